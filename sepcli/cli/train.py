"""`sepcli train`: a recipe of the catalog, from folders of stems to a checkpoint that separates."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sepcli.cli import console
from sepcli.errors import ModelError, UsageError
from sepcli.weights import catalog

if TYPE_CHECKING:
    from sepcli.training.fit import Where
    from sepcli.training.run import Run

MUSDB = "MUSDB18-HQ is to be had at https://zenodo.org/records/3338373, and any folder of songs with stems will do"


def train(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-n", "-m", help="A name of the catalog, see `sepcli models list`.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of songs with stems. [default: $SEPCLI_DATA, ./musdb18hq, ./data]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder. [default: runs/NAME]")] = None,
    init: Annotated[str | None, typer.Option(help="Begin with the weights of this name or file.")] = None,
    freeze: Annotated[str, typer.Option(help="With --init: parts that stay as they are, joined by commas.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. [default: the recipe's]", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser, in place of epochs.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Excerpts a step, over all processes.", min=1)] = None,
    segment: Annotated[float | None, typer.Option(help="Length of an excerpt in seconds.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate to begin with.")] = None,
    loss: Annotated[str | None, typer.Option(help="l1, mse, cws, magnitude, multi_domain, or a sum.")] = None,
    sources: Annotated[str, typer.Option(help="Only these sources, joined by commas. [default: the model's]")] = "",
    absent_stems: Annotated[
        Literal["refuse", "silence"] | None,
        typer.Option(help="Songs that lack a source: refuse, or take it as silent. [default: refuse]"),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", "-d", help="auto (cuda, then mps, then cpu), cpu, cuda, cuda:N, mps.")
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the network's arithmetic.")
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Let torch compile the network: a slow start, then faster steps.")
    ] = False,
    sync_batchnorm: Annotated[
        bool,
        typer.Option("--sync-batchnorm", help="Batch norms take the statistics of all processes' parts of a batch."),
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read ahead; 0 reads in the loop itself.", min=0)] = 0,
    licence: Annotated[str, typer.Option(help="Terms of the weights, as the file and its model card will say.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of weights, order, excerpts and augmentation. [default: 0]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the model, table.word=value of its recipe; as often as wanted."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take: parameters, memory, steps, hours.")
    ] = False,
    progress: Annotated[
        Literal["auto", "json"], typer.Option(help="auto: a bar on a terminal; json: one event a line on stderr.")
    ] = "auto",
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Train a model of the catalog with its recipe.

    A song is a folder of stems (vocals.wav, drums.flac, …) or a .stem.mp4. Every setting of the model is an option
    too: --bands 4. The run's folder gets best.safetensors, which `sepcli separate --model` takes. --loss adds terms:
    "l1+0.1*multi_domain:combinations=true". Many GPUs: torchrun --nproc-per-node 8 -m sepcli train …
    """
    console.state.progress = progress
    entry = catalog.find(model)
    if entry.bag:
        members = ", ".join(vote.model for vote in entry.bag)
        raise ModelError(f"{entry.name} is a bag of {members}", "train one of its members")
    own, more = extra_options(context.args)
    folders = data_folders([*(data or []), *more], resume=resume)
    if freeze and not init:
        raise UsageError("--freeze: needs --init, the weights that stay as they are")

    from sepcli.inference.memory import keep
    from sepcli.training.fit import Interrupted, Tell
    from sepcli.training.join import leave
    from sepcli.training.recipe import parse_value
    from sepcli.training.session import Request, check_start, place, plan
    from sepcli.training.session import train as run_training

    changes: dict[str, Any] = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: is not key=value")
        (changes if "." in key else own)[key.strip()] = value.strip()
    changes = {key: parse_value(value) for key, value in changes.items()}
    changes |= flags(epochs, steps, batch_size, segment, lr, loss, init, freeze)
    path = out or Path("runs") / entry.name
    where = place(device, precision, workers, compiled=compiled, sync_batchnorm=sync_batchnorm)
    resume = resume or (where.again and (path / "last" / "state.safetensors").is_file())
    request = Request(
        entry,
        folders,
        path,
        settings={key: parse_value(value) for key, value in own.items()},
        sources=tuple(name.strip() for name in sources.split(",") if name.strip()),
        changes=changes,
        resume=resume,
        absent=absent_stems,
        seed=seed,
        licence=licence,
    )
    run = plan(request)
    if not resume:
        check_start(run.recipe.start)
    if sync_batchnorm and where.world == 1:
        console.notice("--sync-batchnorm: this is the only process, its statistics are those of the whole batch")
    if dry_run:
        tell_forecast(run, where)
        return
    keep()
    with stopping() as asked, console.bar.over(entry.name) as meter:
        tell = Tell(console.notice if where.rank == 0 else lambda _: None, meter, lambda: bool(asked))
        try:
            done = run_training(run, where, tell, resume=resume, board=board)
        except Interrupted:
            leave()
            console.notice(f"stopped; --resume goes on with {run.path}")
            number = asked[0] if asked else signal.SIGTERM  # torchrun may have asked another process alone
            raise typer.Exit(128 + number) from None
    leave()
    if where.rank == 0:
        best = done.best
        told = f"best of step {best['step']}: loss {best['loss']:.5g}"
        if not math.isfinite(best["loss"]):  # no songs to validate with, or no number came out
            told = f"best.safetensors is of step {best['step']}"
        console.notice(f"done after {done.step} steps; {told}")
        console.result(str(run.best))


def extra_options(words: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    """Settings of the model given as options of their own, and further folders behind --data. Raises UsageError."""
    own: dict[str, str] = {}
    folders = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            folders.append(Path(word))
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest or word[:2] != "--":
                raise UsageError(f"{word}: is no option of `sepcli train`, or lacks its value")
            value = rest.pop(0)
        own[name.replace("-", "_")] = value
    return own, folders


def data_folders(named: Sequence[Path], *, resume: bool) -> list[Path]:
    """Where the songs are. Raises UsageError where there is nothing; a resumed run knows its own."""
    for folder in named:
        if not folder.is_dir():
            raise UsageError(f"--data {folder}: is no folder", MUSDB)
    if named or resume:
        return list(named)
    own = os.environ.get("SEPCLI_DATA")
    for place in [*([Path(own)] if own else []), Path("musdb18hq"), Path("data")]:
        if place.is_dir():
            return [place]
    said = f"$SEPCLI_DATA ({own or 'not set'})"
    raise UsageError(f"no data: --data is not given, and neither {said} nor ./musdb18hq nor ./data is a folder", MUSDB)


def flags(
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    segment: float | None,
    lr: float | None,
    loss: str | None,
    init: str | None,
    freeze: str,
) -> dict[str, Any]:
    """Options as dotted words of the recipe."""
    from sepcli.training.recipe import parse_loss

    words: dict[str, Any] = {"data.batch": batch_size, "data.excerpt": segment, "optimiser.rate": lr}
    if epochs is not None or steps is not None:
        words |= {"stop.epochs": epochs or 0, "stop.steps": steps or 0, "stop.patience": 0}
    words["start.from"] = init
    if freeze:
        words |= {"start.parts": [name.strip() for name in freeze.split(",")], "start.freeze": True}
    if loss is not None:
        words["loss"] = parse_loss(loss)
    return {word: value for word, value in words.items() if value is not None}


@contextmanager
def stopping() -> Iterator[list[int]]:
    """While it lasts, the first Ctrl-C or SIGTERM is only noted, so that a step ends and is saved; the second acts."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
        console.notice("stopping: the state is saved first; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def board(path: Path) -> Any:
    """A TensorBoard writer, or nothing with a line that says so."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.notice("no TensorBoard logs: pip install 'sepcli[train]'")
        return None
    return SummaryWriter(str(path / "tensorboard"))


def tell_forecast(run: "Run", where: "Where") -> None:
    """The answer of --dry-run, on stdout."""
    from sepcli.training.fit import Tell, last_step
    from sepcli.training.forecast import forecast
    from sepcli.training.session import as_asked, gather, network_of

    excerpts, valid = gather(run, Tell(console.notice))
    found = forecast(network_of(run, excerpts, Tell(console.notice), resume=True), run.recipe, where)
    batches = max(1, len(excerpts) // run.recipe.data.batch)
    total = last_step(run.recipe, batches)
    hours = f"about {total * found.step_seconds / 3600:.1f}" if total else "not known before"
    console.result(f"model        {run.entry.name} ({run.entry.architecture}), {', '.join(run.entry.sources)}")
    console.result(f"parameters   {run.entry.parameters:,}")
    console.result(f"songs        {len(excerpts.songs)} to train with, {len(valid)} to validate with")
    console.result(
        f"memory       about {(found.weights + found.activations) / 2**30:.2f} GiB a process on {where.device}: "
        f"{found.weights / 2**30:.2f} weights, {found.activations / 2**30:.2f} activations"
    )
    console.result(f"steps        {batches} an epoch of {len(excerpts)} excerpts; until {as_asked(run.recipe)}")
    console.result(f"hours        {hours} ({found.step_seconds:.2f} s a step), validation not counted")
