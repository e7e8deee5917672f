"""The catalog: weights.toml, then the user's own file. Standard library only, so that listing needs no torch."""

import difflib
import functools
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sepcli.errors import ModelError


@dataclass(frozen=True)
class FileSpec:
    """One published file: where it is, what it must be, and how its names map to the network's.

    `url` is https, hf://owner/name@commit/file, a path, or package:file. `sha256` is the full digest or the
    publisher's prefix of it. `rename` are (regular expression, replacement) pairs, applied in order to each name;
    names that match a `drop` pattern are no parameters; `part` is the submodule that the file fills; `layout` names a
    function of layouts.py.
    """

    url: str
    sha256: str = ""
    bytes: int | None = None
    rename: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    part: str = ""
    layout: str = ""
    mirrors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Vote:
    """A member of a bag, and its weight for each source; none given: 1 for all."""

    model: str
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One name of the catalog. A bag has `bag` and takes sources, rate and channels from its members."""

    name: str
    about: str = ""
    alias: tuple[str, ...] = ()
    architecture: str = ""
    sources: tuple[str, ...] = ()
    sample_rate: int = 0
    channels: int = 0
    segment: float = 0.0
    level: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    paper: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    commercial: bool = False
    scores: tuple[Mapping[str, Any], ...] = ()
    files: tuple[FileSpec, ...] = ()
    bag: tuple[Vote, ...] = ()
    quantised: tuple[str, ...] = ()
    """Published names of the same networks quantised with diffq, which cannot be read: this one serves instead."""
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def downloadable(self) -> bool:
        return bool(self.files or self.bag)

    @property
    def status(self) -> str:
        """What a user can do with it: downloadable, bundled, or trainable only."""
        if self.files and all(file.url.startswith("package:") for file in self.files):
            return "bundled"
        return "downloadable" if self.downloadable else "trainable only"


def catalog() -> dict[str, Entry]:
    """Every entry by name: the shipped ones, then the user's own, which may not take a shipped name."""
    entries = dict(shipped())
    own = user_catalog()
    if os.path.exists(own):  # noqa: PTH110 - a home of somebody else may not be looked at
        entries |= {name: entry for name, entry in read_catalog(own).items() if name not in entries}
    return entries


def find(name: str) -> Entry:
    """An entry by name or alias. Raises ModelError with the nearest names."""
    entries = catalog()
    if name in entries:
        return entries[name]
    aliases = {alias: entry for entry in entries.values() for alias in entry.alias}
    if name in aliases:
        return aliases[name]
    for entry in entries.values():
        if name in entry.quantised:
            raise ModelError(f"{name} is quantised with diffq, which is not supported", f"use {entry.name}, its twin")
    near = difflib.get_close_matches(name.lower(), [*entries, *aliases], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see `sepcli models list`"
    raise ModelError(f"unknown model {name!r}", hint)


def total_parameters(entry: Entry) -> int:
    """Parameters of an entry; of a bag, those of its different members together."""
    if not entry.bag:
        return entry.parameters
    return sum(find(name).parameters for name in dict.fromkeys(vote.model for vote in entry.bag))


def all_files(entry: Entry) -> list[FileSpec]:
    """The files that an entry needs; of a bag, those of its different members."""
    if not entry.bag:
        return list(entry.files)
    return [file for name in dict.fromkeys(vote.model for vote in entry.bag) for file in find(name).files]


def require_weights(entry: Entry) -> None:
    """Refuse an entry without published weights. Raises ModelError naming one that has them, and how to train it."""
    if entry.downloadable:
        return

    def distance(other: Entry) -> tuple[bool, bool, bool]:
        same_sources = set(other.sources) == set(entry.sources)
        return other.architecture != entry.architecture, other.paper != entry.paper, not same_sources

    others = [other for other in catalog().values() if other.downloadable and not other.bag]
    train = f"train it with `sepcli train --model {entry.name}`"
    hint = f"use {min(others, key=distance).name}, or {train}" if others else train
    raise ModelError(f"{entry.name} has no published weights", hint)


def cache_folder() -> Path:
    """Where downloaded weights and the user's own catalog lie."""
    if own := os.environ.get("SEPCLI_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "sepcli"
    return Path.home() / ".cache" / "sepcli"


def user_catalog() -> Path:
    """The user's own catalog, in the format of weights.toml."""
    return cache_folder() / "weights.toml"


@functools.cache
def shipped() -> Mapping[str, Entry]:
    """The catalog that comes with the package: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    for path in (package / "weights.toml", package.parent / "weights.toml"):
        if path.is_file():
            return read_catalog(path)
    raise ModelError("weights.toml is missing from this installation", "install sepcli again")


def read_catalog(path: Path) -> dict[str, Entry]:
    """Read a catalog file. Raises ModelError naming file, table and key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as a catalog ({error})") from error
    return {name: read_entry(name, inherited(name, tables, str(path)), str(path)) for name in tables}


OWN = ("about", "alias", "licence", "commercial", "scores", "files", "bag", "quantised")
"""What a table never takes from the one that it is `like`: its names, and what is true of published weights only."""


def inherited(name: str, tables: Mapping[str, Any], where: str) -> Any:
    """A table with what it lacks from the table of the file that it is `like`; settings and training word by word."""
    table = tables[name]
    if not isinstance(table, Mapping) or "like" not in table:
        return table
    other, place = table["like"], f"{where} [{name}]"
    model = tables.get(other) if isinstance(other, str) else None
    if not isinstance(model, Mapping):
        raise ModelError(f"{place}: like = {other!r}: no table of this file", nearest(str(other), tables))
    if "like" in model:
        raise ModelError(f"{place}: like = {other!r}: which is itself like {model['like']!r}; name that one")
    merged = {key: value for key, value in model.items() if key not in OWN}
    for key, value in table.items():
        word_by_word = key in ("settings", "training") and isinstance(value, Mapping) and key in merged
        merged[key] = {**merged[key], **value} if word_by_word else value
    del merged["like"]
    return merged


def read_entry(name: str, table: Any, where: str) -> Entry:
    """One table as an Entry. `where` names the file in errors. Raises ModelError."""
    place = f"{where} [{name}]"
    values = checked(Entry, table, place)
    for key in ("alias", "sources", "quantised"):
        values[key] = tuple(values.get(key, ()))
    scores = values.get("scores", ())
    values["scores"] = (scores,) if isinstance(scores, Mapping) else tuple(scores)
    values["files"] = tuple(read_file(file, place) for file in values.get("files", ()))
    values["bag"] = tuple(
        Vote(**{**checked(Vote, vote, f"{place} bag"), "weights": tuple(vote.get("weights", ()))})
        for vote in values.get("bag", ())
    )
    values["name"] = name
    if not values["bag"] and not all(values.get(key) for key in ("architecture", "sources", "sample_rate", "segment")):
        raise ModelError(f"{place}: needs architecture, sources, sample_rate and segment, or a bag")
    return Entry(**values)


def read_file(table: Any, place: str) -> FileSpec:
    values = checked(FileSpec, table, f"{place} files")
    values["rename"] = tuple((pattern, replacement) for pattern, replacement in values.get("rename", ()))
    for key in ("drop", "mirrors"):
        values[key] = tuple(values.get(key, ()))
    if not values.get("url"):
        raise ModelError(f"{place} files: a file needs a url")
    return FileSpec(**values)


def as_table(entry: Entry) -> dict[str, Any]:
    """An entry as plain data that read_entry takes back: what travels in a checkpoint's metadata."""
    table: dict[str, Any] = {}
    for item in fields(entry):
        value = getattr(entry, item.name)
        if item.name in ("name", "files", "bag", "alias") or value == item.default or value in ((), {}):
            continue
        table[item.name] = value
    return dict(json.loads(json.dumps(table)))


def checked(kind: type, table: Any, place: str) -> dict[str, Any]:
    """A table's items, all of them fields of a dataclass. Raises ModelError with the nearest field."""
    if not isinstance(table, Mapping):
        raise ModelError(f"{place}: must be a table")
    known = [item.name for item in fields(kind) if item.name != "name"]
    for key in table:
        if key not in known:
            raise ModelError(f"{place}: unknown key {key!r}", nearest(key, known))
    return dict(table)


def nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
