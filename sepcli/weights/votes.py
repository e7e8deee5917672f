"""Which networks a --model option names, and their weight for each source. Standard library only: no torch."""

import difflib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sepcli.errors import ModelError, UsageError
from sepcli.weights import checkpoint
from sepcli.weights.catalog import Entry, find
from sepcli.weights.fetch import digest_of

WEIGHT_SUFFIXES = (".th", ".pth", ".pt", ".ckpt", ".safetensors", ".gz", ".h5", ".bin")


@dataclass
class Candidate:
    """A network to be loaded: its weight for each source (none: 1 for all) and the bag's segment."""

    model: str
    votes: dict[str, float]
    segment: float | None


def candidates(models: str, weights: Path | None = None) -> list[Candidate]:
    """The networks of names, paths and bags joined by commas, each once. Raises ModelError, UsageError."""
    own = read_weights(weights) if weights else {}
    found: dict[str, Candidate] = {}
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--model {models!r}: names no model", "see `sepcli models list`")
    if unknown := own.keys() - set(names):
        raise UsageError(f"--bag-weights {weights}: {min(unknown)} is not among the models", f"they are {models}")
    for name in names:
        members = [Candidate(name, {}, None)] if is_path(name) else published(find(name))
        factor = own.get(name, {})
        known = known_sources(name, members) if factor else ()
        for source in factor if known else ():
            check_source(source, known, f"--bag-weights {weights}: {name}")
        for candidate in members:
            if factor:
                sources = candidate.votes or dict.fromkeys(factor, 1.0)
                candidate.votes = {source: vote * factor.get(source, 0.0) for source, vote in sources.items()}
            if (same := found.get(candidate.model)) is not None:
                votes = candidate.votes.items()
                same.votes = {source: same.votes.get(source, 0.0) + vote for source, vote in votes}
            else:
                found[candidate.model] = candidate
    return list(found.values())


def published(entry: Entry) -> list[Candidate]:
    """The members of a catalog entry, itself if it is no bag."""
    if not entry.bag:
        return [Candidate(entry.name, dict.fromkeys(entry.sources, 1.0), None)]
    members = []
    for vote in entry.bag:
        sources = find(vote.model).sources
        votes = dict(zip(sources, vote.weights or [1.0] * len(sources), strict=True))
        members.append(Candidate(vote.model, votes, entry.segment or None))
    return members


def known_sources(model: str, members: Sequence[Candidate]) -> tuple[str, ...]:
    """The sources of a model, as far as its entry or its file says them without being loaded. Raises ModelError."""
    if is_path(model):
        table = checkpoint.read_entry(weights_file(model)) or {}
        return tuple(map(str, table.get("sources", ())))
    return tuple(dict.fromkeys(source for member in members for source in member.votes))


def read_weights(path: Path) -> dict[str, dict[str, float]]:
    """Weights of a bag from a TOML file: a table for each model, `source = weight`. Raises UsageError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--bag-weights {path}: cannot be read ({error})") from error
    for name, table in tables.items():
        good = isinstance(table, dict) and all(
            isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0 for weight in table.values()
        )
        if not good:
            raise UsageError(f"--bag-weights {path}: [{name}] must be a table of source = weight, none below 0")
    return tables


def is_path(model: str) -> bool:
    """Whether a model is named by a path: it looks like one, or there is such a file or run."""
    path = Path(model)
    looks = "/" in model or "\\" in model or path.suffix in WEIGHT_SUFFIXES
    return looks or path.is_file() or (path / "best.safetensors").is_file()


def is_config(architecture: str) -> bool:
    """Whether an architecture is named by the public trainer's yaml."""
    return architecture.endswith((".yaml", ".yml"))


def weights_file(model: str) -> Path:
    """The file of a model that is named by a path: itself, or a run's best. Raises ModelError where there is none."""
    path = Path(model).expanduser()
    path = path / "best.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "give a file of weights, a run's folder, or a name of the catalog")
    return path


def identity(model: str) -> list[str]:
    """Which weights a network has, as digests where they are known, without loading it."""
    if is_path(model):
        return [digest_of(weights_file(model))]
    return [file.sha256 or file.url for file in find(model).files]


def every_stem(sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is written of a model, each stem with the sources that it sums: of one with a single target the rest too.

    `no_NAME`, of no source, is what the target leaves of the mixture.
    """
    rest: dict[str, tuple[str, ...]] = {f"no_{sources[0]}": ()} if len(sources) == 1 else {}
    return {source: (source,) for source in sources} | rest


def check_votes(members: Sequence[Candidate], wanted: Sequence[str], weights: Path) -> None:
    """Refuse weights that leave a stem that is wanted to nobody. Raises UsageError."""
    if lost := [source for source in wanted if not any(one.votes.get(source, not one.votes) for one in members)]:
        what = f"--bag-weights {weights}: no model has a weight for {', '.join(lost)}"
        raise UsageError(what, "give one a weight, or leave them out with --stems")


def check_architecture(architecture: str, members: Sequence[Candidate]) -> None:
    """Refuse an architecture that is not known, and one where no file is to be told it. Raises UsageError."""
    if not is_config(architecture):
        try:
            find(architecture)
        except ModelError as error:
            raise UsageError(f"--architecture {architecture}: {error.what}", error.hint) from error
    if not any(is_path(candidate.model) for candidate in members):
        names = ", ".join(candidate.model for candidate in members)
        raise UsageError(
            f"--architecture {architecture}: has no effect on {names}", "it goes with a file; leave it out"
        )


def check_source(name: str, sources: Sequence[str], model: str) -> None:
    """Refuse a source that a model does not have. Raises UsageError."""
    if name not in sources:
        if name.startswith("no_") and name.removeprefix("no_") in sources:
            raise UsageError(f"{model} has no source {name!r}", f"use --two-stems {name.removeprefix('no_')}")
        near = difflib.get_close_matches(name, sources, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{model} has no stem {name!r}", f"{guess}it has {', '.join(sources)}")
