"""`sepcli bench`: what networks cost on this machine."""

from typing import Annotated, Any

import typer

from sepcli.cli import console
from sepcli.errors import ModelError, UsageError
from sepcli.weights.catalog import find

HEAD = ("MODEL", "PARAMETERS", "GFLOPs/s", "x REAL TIME", "(SLOWEST-FASTEST)", "CPU s/s", "MEMORY", "START-UP", "SOUND")


def bench(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Models of `sepcli models list`; bags are none.")],
    seconds: Annotated[
        float | None, typer.Option(help="Sound in one pass at most, in seconds. [default: each model's own piece]")
    ] = None,
    passes: Annotated[int, typer.Option(help="Timed passes, of which the median counts.", min=1)] = 3,
    one_source: Annotated[
        bool, typer.Option("--one-source", help="Time the network of one source, and scale; for slow networks.")
    ] = False,
    device: Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: torch's own]", min=1)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document a line for each model.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Measure networks on this machine: speed, memory, arithmetic, start-up; no weights are needed.

    GFLOPs/s are 1e9 operations a second of sound (a multiplication and an addition are two): convolutions, products of
    matrices and LSTMs; transforms, norms and activations are left out. CPU s/s are processor seconds for each second of
    sound. Memory is the whole process's on the CPU. Speeds marked ~ were timed on less than a whole piece, or on one
    source of several, and scaled by the operations.
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g}: must be a positive number")
    for name in names:
        if find(name).bag:
            raise ModelError(f"{name} is a bag", f"measure its members: {' '.join(v.model for v in find(name).bag)}")
    if not json:
        console.result(line(HEAD))
    for name in names:
        cost = alone(name, seconds, device, passes, threads, one_source)
        if json:
            console.document(cost)
        else:
            console.result(line(row(cost)))
        if is_scaled(cost):
            timed = f"{cost['sources']} of its {len(find(name).sources)} sources and {cost['seconds']:.2f} s were timed"
            console.notice(f"{name}: {timed}, its piece is {cost['piece']:.2f} s: speeds are times {cost['scale']:.3g}")


def alone(name: str, *options: Any) -> dict[str, Any]:
    """A network's figures from a process of its own, so that one does not find the other's memory."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(figures, (name, *options))


def figures(
    name: str, seconds: float | None, device: str, passes: int, threads: int | None, one_source: bool
) -> dict[str, Any]:
    import dataclasses

    import torch

    from sepcli.inference.bench import measure

    if threads:
        torch.set_num_threads(threads)
    return dataclasses.asdict(measure(name, seconds=seconds, device=device, passes=passes, one_source=one_source))


def is_scaled(cost: dict[str, Any]) -> bool:
    """Whether the speeds are other than measured, in more than their last digit."""
    return bool(abs(cost["scale"] - 1) > 0.01)


def row(cost: dict[str, Any]) -> tuple[str, ...]:
    digits = 2 if cost["slowest"] >= 0.1 else 3
    return (
        cost["model"],
        f"{cost['parameters']:,}",
        f"{cost['gflops']:.2f}",
        f"{'~' if is_scaled(cost) else ''}{cost['speed']:.{digits}f}",
        f"({cost['slowest']:.{digits}f}-{cost['fastest']:.{digits}f})",
        f"{cost['cpu']:.2f}",
        f"{cost['memory'] / 2**20:,.0f} MiB",
        f"{cost['start_up']:.1f} s",
        f"{cost['seconds']:.2f} s",
    )


def line(cells: tuple[str, ...]) -> str:
    widths = (22, 12, 9, 11, 18, 8, 10, 9, 9)
    first, *rest = [
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest])
