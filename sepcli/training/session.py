"""One training from what was asked to what is left: plan, data, network, loop."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepcli import models
from sepcli.errors import ModelError, SepcliError, UsageError
from sepcli.inference.device import choose
from sepcli.models.separator import Separator, Traits
from sepcli.training.data import Excerpts, Material, mixture_blocks, prepare
from sepcli.training.fit import Tell, Where, fit
from sepcli.training.join import join
from sepcli.training.losses import make_loss
from sepcli.training.recipe import Recipe, Start, as_table, read_recipe, with_values
from sepcli.training.run import Progress, Run, claimed
from sepcli.training.start import begin, freeze
from sepcli.training.tracks import find_tracks, rows_of, split_tracks
from sepcli.weights import checkpoint
from sepcli.weights.catalog import Entry
from sepcli.weights.load import own_entry, skeleton

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""In what torch's backends say when a process at the other end has died."""


@dataclass(frozen=True)
class Request:
    """What was asked for. `changes` are dotted words of the recipe: {"optimiser.rate": 1e-4}.

    `absent`, `seed`: None is "refuse" and 0, or what the resumed run has.
    """

    entry: Entry
    folders: Sequence[Path]
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    absent: str | None = None
    seed: int | None = None
    licence: str = ""


def plan(request: Request) -> Run:
    """Entry, recipe and facts at their final values, agreed with the network's constructor. Raises UsageError.

    A resumed run has the recipe that it began with: only when it stops, and its licence, may change.
    """
    if request.resume:
        return resumed(request)
    entry = request.entry
    if request.sources:
        entry = replace(entry, sources=tuple(request.sources))
    models.check_settings(models.find(entry.architecture), request.settings)
    entry = replace(entry, settings={**entry.settings, **request.settings})
    recipe = read_recipe(with_values(entry.training, request.changes), entry.name)
    network = skeleton(entry)
    make_loss(recipe.loss, entry.sources)
    entry = replace(entry, parameters=sum(parameter.numel() for parameter in network.parameters()))
    facts = {"data": [str(folder.resolve()) for folder in request.folders], "seed": request.seed or 0}
    return Run(request.path, entry, recipe, facts | {"absent": request.absent or "refuse", "licence": request.licence})


def resumed(request: Request) -> Run:
    """The plan of the run in the folder. Raises UsageError where another one is asked for."""
    state = request.path / "last" / "state.safetensors"
    metadata = checkpoint.read_metadata(state) if state.is_file() else None
    if metadata is None:
        raise UsageError(f"--resume: {request.path} holds no run", "leave out --resume to begin one")
    entry = own_entry(metadata["entry"], state)
    if entry.name != request.entry.name:
        raise UsageError(f"--resume: {request.path} holds a run of {entry.name}, not of {request.entry.name}")
    for name, value in request.settings.items():
        if entry.settings.get(name) != value:
            raise UsageError(f"--resume: {name} was {entry.settings.get(name, 'not set')}, not {value}")
    if request.sources and tuple(request.sources) != entry.sources:
        raise UsageError(f"--resume: the sources were {', '.join(entry.sources)}")
    before = read_recipe(entry.training, entry.name)
    recipe = read_recipe(with_values(entry.training, request.changes), entry.name)
    old, new = as_table(replace(before, stop=recipe.stop)), as_table(recipe)
    if changed := [word for word in {**old, **new} if old.get(word) != new.get(word)]:
        word = changed[0]
        raise UsageError(f"--resume: {word} was {old.get(word, {})}, not {new.get(word, {})}", "begin another run")
    extra = metadata["extra"]
    if request.seed not in (None, extra["seed"]):
        raise UsageError(f"--resume: the seed was {extra['seed']}, not {request.seed}", "begin another run")
    if request.absent not in (None, extra["absent"]):
        how = "refused" if extra["absent"] == "refuse" else "taken as silence"
        raise UsageError(f"--resume: absent stems were {how}", "begin another run")
    facts = {key: extra[key] for key in ("seed", "absent", "songs")}
    folders = [str(folder.resolve()) for folder in request.folders] or extra["data"]
    licence = request.licence or extra.get("licence", "")
    return Run(request.path, entry, recipe, facts | {"data": folders, "licence": licence})


def place(device: str, precision: str, workers: int, *, compiled: bool = False, sync_batchnorm: bool = False) -> Where:
    """Where to run; under torchrun this process becomes one of several. Raises UsageError."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    chosen = choose(device)
    if world > 1:
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        again = join(backend) > 1
    return Where(chosen, precision, rank, world, workers, compiled, sync_batchnorm, again)


def gather(run: Run, tell: Tell) -> tuple[Excerpts, list[Material]]:
    """The songs to train with, as excerpts, and those to validate with. Raises UsageError, AudioError."""
    entry, recipe = run.entry, run.recipe
    tracks = find_tracks([Path(folder) for folder in run.facts["data"]], entry.sources)
    ours, theirs = split_tracks(tracks, recipe.data.split, tell.notice)
    rows = rows_of(entry.sources, [*ours, *theirs])
    train, valid = (
        prepare(
            found,
            entry.sources,
            rows,
            sample_rate=entry.sample_rate,
            channels=entry.channels,
            absent=run.facts["absent"],
            mixtures=found is theirs,
            progress=tell.progress,
        )
        for found in (ours, theirs)
    )
    seed = run.facts["seed"]
    return Excerpts(train, rows, recipe, entry.sample_rate, entry.channels, entry.level, seed), valid


def stamps(train: Excerpts, valid: Sequence[Material]) -> dict[str, str]:
    """What tells that the songs are as they were, by name."""
    found: dict[str, str] = {}
    for kind, songs in (("train", train.songs), ("valid", valid)):
        for song in songs:
            name = f"{kind}/{song.name}"
            found[name if name not in found else f"{name} ({song.path})"] = song.stamp
    return found


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with other songs. Raises UsageError naming the first."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            what = "is new" if name not in before else "is gone" if name not in now else "has changed"
            raise UsageError(f"--resume: the song {name} {what} since the run began", "begin another run")


def train(
    run: Run, where: Where, tell: Tell, *, resume: bool, board: Callable[[Path], Any] = lambda _: None
) -> Progress:
    """Train, in the run's folder. Raises what `claimed`, `gather` and `fit` raise, SepcliError without its peers."""
    try:
        return alone_or_not(run, where, tell, resume, board)
    except RuntimeError as error:
        if where.world == 1 or not any(word in str(error) for word in LOST):
            raise
        raise SepcliError(
            f"another process of this run is gone ({str(error).splitlines()[0][:120]})",
            "--resume goes on; torchrun --standalone --max-restarts 3 does so itself",
        ) from error


def alone_or_not(run: Run, where: Where, tell: Tell, resume: bool, board: Callable[[Path], Any]) -> Progress:
    """The first process claims the folder and prepares the songs; the others wait for it."""
    if where.rank:
        torch.distributed.barrier()
        return trained(run, where, tell, resume)
    with claimed(run.path, resume=resume):
        excerpts, valid = gather(run, tell)  # decodes and measures for the other processes too
        if where.world > 1:
            torch.distributed.barrier()
        return trained(replace(run, board=board(run.path)), where, tell, resume, (excerpts, valid))


def trained(
    run: Run, where: Where, tell: Tell, resume: bool, songs: tuple[Excerpts, list[Material]] | None = None
) -> Progress:
    excerpts, valid = songs or gather(run, Tell())
    now = stamps(excerpts, valid)
    if resume:
        check_unchanged(run.facts["songs"], now)
    run = replace(run, facts={**run.facts, "songs": now})
    model = network_of(run, excerpts, tell, resume)
    torch.manual_seed(run.facts["seed"] + 1000 * where.rank)
    return fit(model, run, excerpts, valid, where, tell, resume=resume)


def network_of(run: Run, excerpts: Excerpts, tell: Tell, resume: bool) -> Separator:
    """The network with what it begins with; of a resumed run only what is frozen is settled here."""
    torch.manual_seed(run.facts["seed"])
    model = models.build(run.entry.architecture, run.entry.settings, traits(run.entry))
    start = run.recipe.start
    if resume:
        if start is not None and start.freeze:
            freeze(model, start.parts)
        return model

    def mixtures() -> Iterator[Tensor]:
        for song in excerpts.songs:
            if not song.single:
                yield torch.cat([torch.from_numpy(block.T) for block in mixture_blocks(song)], dim=-1)

    begin(model, start, mixtures, tell.notice)
    return model


def check_start(start: Start | None) -> None:
    """Refuse what cannot be begun with before anything else is done. Raises ModelError."""
    from sepcli.weights.catalog import find
    from sepcli.weights.votes import is_path

    if start is None or is_path(start.model):
        return
    entry = find(start.model)
    if not entry.files:
        hint = f"`sepcli train --model {entry.name}` first, then --init runs/{entry.name}/best.safetensors"
        raise ModelError(f"it begins with {entry.name}, which has no published weights", hint)


def traits(entry: Entry) -> Traits:
    return {
        "sources": entry.sources,
        "channels": entry.channels,
        "sample_rate": entry.sample_rate,
        "segment": entry.segment,
        "level": entry.level,
    }


def as_asked(recipe: Recipe) -> str:
    """When it ends, in words."""
    stop = recipe.stop
    parts = [f"{stop.epochs} epochs"] * bool(stop.epochs) + [f"{stop.steps} steps"] * bool(stop.steps)
    return " or ".join(parts + [f"{stop.patience} validations without a better one"] * bool(stop.patience))
