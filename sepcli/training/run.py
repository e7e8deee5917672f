"""The folder of one training: best.safetensors, last/state.safetensors, metrics.jsonl, recipe.toml, model-card.md."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sepcli import __version__
from sepcli.errors import ModelError, SepcliError, UsageError
from sepcli.training.optim import Average
from sepcli.training.recipe import Recipe, as_table, as_toml
from sepcli.weights import catalog, checkpoint
from sepcli.weights.catalog import Entry


@dataclass
class Progress:
    """How far a run is. `batch`: batches of this epoch that are done; `losses`: of the validations, lower is better.

    `owed`: a validation that is due; `bad`: bad steps in a row; `usual`: the loss, smoothed.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    validated: int = 0
    owed: bool = False
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    usual: float = 0.0
    bad: int = 0
    skipped: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class Run:
    """Where a run's files are, and what it trains."""

    path: Path
    entry: Entry
    recipe: Recipe
    facts: Mapping[str, Any]
    """What reproduces the run beside the recipe: seed, folders, songs with the stamps of their files; the licence."""
    board: Any = None
    """A TensorBoard writer, where there is one."""

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "last" / "state.safetensors"

    def table(self) -> dict[str, Any]:
        """The entry at its final settings, with this recipe, as a checkpoint carries it."""
        licence = self.facts.get("licence", "")
        own = replace(self.entry, training=as_table(self.recipe), scores=(), licence=licence, commercial=False)
        return {"name": self.entry.name, **catalog.as_table(own)}

    def extra(self, **more: Any) -> dict[str, Any]:
        versions = {"sepcli": __version__, "torch": torch.__version__, "python": platform.python_version()}
        return {**self.facts, "versions": versions, **more}

    def save_best(self, tensors: Mapping[str, Tensor], scores: Mapping[str, Any]) -> None:
        checkpoint.save(self.best, tensors, self.table(), self.extra(validation=dict(scores)))
        self.write_text("model-card.md", model_card(self, scores))

    def log(self, **line: Any) -> None:
        """One line of metrics.jsonl. Numbers that are none become null."""
        plain = {key: None if isinstance(v, float) and not abs(v) < float("inf") else v for key, v in line.items()}
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
            if self.board is not None:
                for key in ("loss", "lr"):
                    if plain.get(key) is not None:
                        name = " ".join(filter(None, [key, plain.get("weights")]))
                        self.board.add_scalar(f"{plain['split']}/{name}", plain[key], plain["step"])
        except OSError as error:
            raise SepcliError(f"{self.path}/metrics.jsonl: cannot be written ({error.strerror or error})") from error

    def forget_after(self, progress: Progress) -> None:
        """Take out of metrics.jsonl what a run that died told after its last state: it will be told again."""
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SepcliError(f"{path}: cannot be read ({error.strerror or error})") from error
        kept = [line for line in lines if told_before(line, progress)]
        if kept != lines:
            self.write_text(path.name, "".join(kept))

    def write_text(self, name: str, text: str) -> None:
        aside = self.path / f".{name}.part"
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(self.path / name)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise SepcliError(f"{self.path / name}: cannot be written ({error.strerror or error})") from error

    def write_recipe(self) -> None:
        """recipe.toml: as an entry of a catalog, and what reproduces the run."""
        table = self.table()
        name, training = table.pop("name"), table.pop("training")
        facts = {key: value for key, value in self.facts.items() if key != "songs"}
        songs = {"songs": sorted(self.facts.get("songs", {}))}
        self.write_text("recipe.toml", as_toml({name: table, f"{name}.training": training, "run": {**facts, **songs}}))


def told_before(line: str, progress: Progress) -> bool:
    """Whether a line of metrics.jsonl is of what is done by then; one that was cut off is not."""
    try:
        found = json.loads(line)
        last = progress.step - 1 if found["split"] == "valid" and progress.owed else progress.step
        return bool(found["step"] <= last)
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def claimed(path: Path, *, resume: bool) -> Iterator[None]:
    """The run's folder, made and locked while it is used. Raises UsageError where it is in use, or holds a run."""
    from filelock import FileLock, Timeout

    if resume and not (path / "last" / "state.safetensors").is_file():
        raise UsageError(f"--resume: {path} holds no run", "leave out --resume to begin one")
    if not resume and ((path / "last").exists() or (path / "best.safetensors").exists()):
        raise UsageError(f"--out {path}: holds a run", "--resume goes on with it, another --out begins one")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UsageError(f"--out {path}: another process trains there", "name another folder") from None
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


def save_state(
    run: Run,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    averages: Sequence[Average],
    progress: Progress,
    scaler: GradScaler,
    randoms: Sequence[Mapping[str, Tensor]],
) -> None:
    """All that a run needs to go on as if nothing had happened, in one file: written aside, synced, then renamed.

    `randoms`: the random states of all its processes in order, as `random_state` gives them.
    """
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for parameter, state in optimiser.state.items():
        tensors |= {f"optimiser.{names[id(parameter)]}|{key}": value for key, value in state.items()}
    for index, average in enumerate(averages):
        tensors |= {f"average.{index}.{name}": tensor for name, tensor in average.tensors.items()}
    for rank, state in enumerate(randoms):
        tensors |= {f"random.{kind}{of_rank(rank)}": tensor for kind, tensor in state.items()}
    facts = {
        "progress": asdict(progress),
        "counts": [average.count for average in averages],
        "scaler": scaler.state_dict(),
    }
    checkpoint.save(run.state, tensors, run.table(), run.extra(state=facts))


def random_state() -> dict[str, Tensor]:
    """Where this process's random numbers stand, by device."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def of_rank(rank: int) -> str:
    """The end of a random state's name: nothing for the first process, as in states of a single one."""
    return f".{rank}" if rank else ""


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state and what stands beside them: entry, extra. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = checkpoint.read_metadata(path)
    if metadata is None or "state" not in metadata.get("extra", {}):
        raise ModelError(f"{path}: is not the state of a run")
    try:
        return load_file(str(path)), dict(metadata)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error


def restore(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    averages: Sequence[Average],
    scaler: GradScaler,
    rank: int = 0,
) -> Progress:
    """Put a state back, random numbers of this process too. Raises ModelError where it does not fit.

    A process that the state knows nothing of, there having been fewer, or one for all, keeps its own random numbers.
    """
    try:
        network.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=True)
        for name, parameter in network.named_parameters():
            prefix = f"optimiser.{name}|"
            own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            if own:
                moved = {k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in own.items()}
                optimiser.state[parameter] = moved
        for index, (average, count) in enumerate(zip(averages, state["counts"], strict=True)):
            prefix = f"average.{index}."
            device = next(network.parameters()).device
            average.count = count
            average.tensors = {
                key[len(prefix) :]: value.to(device, copy=True)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
        if state["scaler"]:
            scaler.load_state_dict(dict(state["scaler"]))
        cpu, cuda = (tensors.get(f"random.{kind}{of_rank(rank)}") for kind in ("cpu", "cuda"))
        if cpu is not None:
            torch.set_rng_state(cpu)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        return Progress(**state["progress"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the state of the run does not fit: {str(error).splitlines()[0][:200]}") from error


def model_card(run: Run, scores: Mapping[str, Any]) -> str:
    """What someone who gets the file should know, as Markdown."""
    entry, facts = run.entry, run.facts
    lines = [
        f"# {entry.name}",
        "",
        f"{entry.about or entry.architecture}, trained with sepcli {__version__}.",
        "",
        f"- Architecture: `{entry.architecture}`, settings `{json.dumps(dict(entry.settings))}`,"
        f" {entry.parameters:,} parameters",
        f"- Sources: {', '.join(entry.sources)}; {entry.sample_rate} Hz, {entry.channels} channels",
        f"- Paper: {entry.paper.get('title', 'none')} ({entry.paper.get('id', '')})",
        f"- Data: {len(facts.get('songs', {}))} songs of {', '.join(map(str, facts.get('data', [])))}",
        f"- Weights: {scores.get('weights', 'raw')} of step {scores.get('step')}, seed {facts.get('seed')}",
        f"- Validation loss: {scores.get('loss')}",
        *(f"- Validation nSDR, {name}: {value:.2f} dB" for name, value in scores.get("nsdr", {}).items()),
        f"- Licence: {facts.get('licence') or 'not stated; the terms of the training data decide'}",
        "",
        "Use: `sepcli separate SONG --model best.safetensors`",
        "",
        "```toml",
        as_toml({f"{entry.name}.training": as_table(run.recipe)}).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)
