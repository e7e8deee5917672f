"""`sepcli bench`: what networks cost on this machine."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer

from sepcli.cli import console
from sepcli.errors import ModelError, SepcliError, UsageError
from sepcli.weights.catalog import find

T = TypeVar("T")

HEAD = ("MODEL", "PARAMETERS", "GFLOPs/s", "x REAL TIME", "(SLOWEST-FASTEST)", "CPU s/s", "MEMORY", "START-UP", "SOUND")


def bench(
    context: typer.Context,
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
    plain: Annotated[
        bool, typer.Option("--plain", help="The networks as they are written, not their fast forms.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="PACKAGE", help="Run beside demucs or openunmix, by turns, on the CPU.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="How many turns --compare takes, each in a fresh process.", min=1)] = 3,
    both_keep: Annotated[
        bool, typer.Option("--both-keep", help="With --compare: the package keeps freed memory too, as we do.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where the time goes: by module and by kind of operation.")
    ] = False,
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
    check_options(context)
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g}: must be a positive number")
    for name in names:
        if find(name).bag:
            raise ModelError(f"{name} is a bag", f"measure its members: {' '.join(v.model for v in find(name).bag)}")
    if compare or profile:
        for name in names:
            if compare:
                found = compared(name, compare, seconds, threads or 1, pairs, plain=plain, both_keep=both_keep)
            else:
                found = in_a_process(profile_of, name, seconds, threads, plain)
            console.document(found) if json else console.result("\n".join(table(found)))
        return
    if not json:
        console.result(line(HEAD))
    for name in names:
        cost = in_a_process(figures, name, seconds, device, passes, threads, one_source, plain)
        if json:
            console.document(cost)
        else:
            console.result(line(row(cost)))
        if is_scaled(cost):
            timed = f"{cost['sources']} of its {len(find(name).sources)} sources and {cost['seconds']:.2f} s were timed"
            console.notice(f"{name}: {timed}, its piece is {cost['piece']:.2f} s: speeds are times {cost['scale']:.3g}")


def check_options(context: typer.Context) -> None:
    """Refuse options that what is asked for has no use for. Raises UsageError."""
    values = context.params
    if values["compare"] and values["profile"]:
        raise UsageError("--compare and --profile exclude each other", "give one of them")
    way = "--compare" if values["compare"] else "--profile" if values["profile"] else ""
    useless = dict.fromkeys(("pairs", "both_keep"), "without --compare") if not values["compare"] else {}
    if way:
        useless |= dict.fromkeys(("passes", "one_source"), f"with {way}")
    if way and values["device"] != "cpu":
        useless["device"] = f"with {way}, which is on the CPU"
    for name, why in useless.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = f" {values[name]}" if name == "device" else ""
            raise UsageError(f"--{name.replace('_', '-')}{value}: has no effect {why}", "leave it out")


def in_a_process(work: Callable[..., T], *options: Any, **named: Any) -> T:
    """What a function gives in a process of its own, so that it finds nobody else's memory.

    Raises what the function raises, and SepcliError where its process is killed (a Pool would wait for ever).
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return pool.submit(work, *options, **named).result()
    except BrokenProcessPool:
        what = "the process that measured was killed, likely for lack of memory"
        raise SepcliError(what, "try a smaller network, or less sound with --seconds") from None
    finally:
        for process in multiprocessing.active_children():  # an interrupt does not wait for it
            process.terminate()
        pool.shutdown()


def figures(
    name: str,
    seconds: float | None,
    device: str,
    passes: int,
    threads: int | None,
    one_source: bool,
    plain: bool,
) -> dict[str, Any]:
    import dataclasses

    import torch

    from sepcli.inference.bench import measure
    from sepcli.inference.memory import keep

    keep()
    if threads:
        torch.set_num_threads(threads)
    found = measure(name, seconds=seconds, device=device, passes=passes, one_source=one_source, plain=plain)
    return dataclasses.asdict(found)


def is_scaled(cost: dict[str, Any]) -> bool:
    """Whether the speeds are other than measured, in more than their last digit."""
    return bool(abs(cost["scale"] - 1) > 0.01)


def compared(
    name: str, package: str, seconds: float | None, threads: int, pairs: int, *, plain: bool, both_keep: bool
) -> dict[str, Any]:
    """Our network and a package's by turns, each run in a process of its own."""
    import dataclasses

    from sepcli.inference.compare import comparison, run

    ours, theirs = [], []
    for _ in range(pairs):
        theirs.append(in_a_process(run, find(name), package=package, seconds=seconds, threads=threads, keep=both_keep))
        ours.append(in_a_process(run, find(name), seconds=seconds, threads=threads, plain=plain))
    return dataclasses.asdict(comparison(find(name), package, ours, theirs, threads))


def profile_of(name: str, seconds: float | None, threads: int | None, plain: bool) -> dict[str, Any]:
    import dataclasses

    import torch

    from sepcli.inference.bench import untrained
    from sepcli.inference.memory import keep
    from sepcli.inference.profile import profiled

    keep()
    torch.set_num_threads(threads or 1)
    model = untrained(find(name), seconds)
    mixture = 0.1 * torch.randn(1, model.channels, model.piece)
    found = profiled(model if plain else model.fast(), mixture)
    return {"model": find(name).name, "piece": model.piece / model.sample_rate, **dataclasses.asdict(found)}


def table(found: dict[str, Any]) -> Iterator[str]:
    """A comparison or a profile to look at."""
    if "ratio" in found:
        threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
        alike = f"stems differ by {found['difference']:.1e}"
        yield f"{found['model']}, {found['seconds']:.1f} s of sound, {threads}; {alike}"
        yield f"{'':8}{found['package']:>24}{'sepcli':>24}{'ratio':>24}"
        for field, unit, scale in (("cpu", "s", 1), ("wall", "s", 1), ("memory", "MiB", 2**20)):
            runs = [" ".join(f"{value / scale:,.1f}" for value in found[side][field]) for side in ("theirs", "ours")]
            middle, least, most = found["ratio"][field]
            yield f"{field:8}{runs[0]:>24}{runs[1]:>24}{f'{middle:.2f} ({least:.2f}-{most:.2f})':>24} {unit}"
        return
    yield f"{found['model']}: {found['seconds']:.2f} CPU seconds for {found['piece']:.1f} s of sound"
    for title in ("kinds", "modules"):
        yield ""
        yield from (f"{share:6.1%}  {name}" for name, share in list(found[title].items())[:25] if share >= 0.005)


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
