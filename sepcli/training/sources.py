"""The recordings that a recipe of ours is made of: brought from public repositories, proven, cut and joined.

A list is a TOML file, `mini.toml` beside this one: repositories at a commit, files with their digests, what is done to
them, and which acts and voices are held out. Those lie apart, and nothing here renders or trains with them.
"""

import os
import tomllib
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sepcli.audio.blocks import Block
from sepcli.errors import AudioError, ModelError, UsageError
from sepcli.training.data import decoded
from sepcli.weights.catalog import FileSpec
from sepcli.weights.fetch import fetch

RATE = 44100
ADDRESS = "https://raw.githubusercontent.com/{repository}/{commit}/{file}"
FADE = 0.01
"""Seconds at both ends of an excerpt of a song."""
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Source:
    """One file of a repository; `left` and `right` are its share of a sum, `seconds` how much of it is kept."""

    file: FileSpec
    left: float = 1.0
    right: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recording:
    """One recording to make: `to` is its path without suffix; sources are summed, or joined where there is a `gap`.

    `start` and `seconds` cut it, `gain` or `peak` says how loud it becomes, `even` gives each joined source one peak.
    """

    to: str
    sources: tuple[Source, ...]
    channels: int = 2
    start: float = 0.0
    seconds: float = 0.0
    gap: float = -1.0
    gain: float = 1.0
    peak: float = 0.0
    even: bool = False
    fade: bool = False


@dataclass(frozen=True)
class Sources:
    """A whole list, and who is held out of training: songs and voices by name."""

    recordings: tuple[Recording, ...]
    songs: frozenset[str]
    voices: frozenset[str]


def held_out() -> Sources:
    """The list of the recipe of `mini`, for the names of whom it holds out."""
    return read("mini")


def read(name: str) -> Sources:
    """The list of a recipe (`mini`), or of a TOML file. Raises UsageError."""
    path = Path(__file__).with_name(f"{name}.toml") if "/" not in name and not name.endswith(".toml") else Path(name)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        out = document.get("held_out", {})
        songs, voices = frozenset(out.get("songs", [])), frozenset(out.get("voices", []))
        address = document.get("address", ADDRESS)
        return Sources(
            tuple(
                recording(row, repository, address, songs | voices)
                for repository in document["repository"]
                for row in repository["sounds"]
            ),
            songs,
            voices,
        )
    except FileNotFoundError:
        raise UsageError(f"{name}: no such list of sources", "`mini`, or the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is no list of sources ({type(error).__name__}: {error})") from None


def recording(row: dict[str, Any], repository: dict[str, Any], address: str, apart: frozenset[str]) -> Recording:
    """A row of the list; whose name is held out is put apart."""
    sources = []
    for file, digest, *more in row["from"]:
        url = address.format(repository=repository["name"], commit=repository["commit"], file=urllib.parse.quote(file))
        sources.append(Source(FileSpec(url=url, sha256=digest), *more))
    to = Path(row["to"])
    if to.is_absolute() or ".." in to.parts:
        raise ValueError(f"to = {row['to']} leads out of the folder")
    held = {to.name, to.parent.name} & apart
    rest = {key: value for key, value in row.items() if key not in ("from", "to")}
    return Recording(str(Path(HELD_OUT) / to if held else to), tuple(sources), **rest)


def bring(
    list_: Sources,
    name: str,
    out: Path,
    notice: Callable[[str], None],
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
    offline: bool = False,
) -> list[str]:
    """Make every recording of a list below `out` as FLAC (24 bit); those already there stay. What could not be had.

    One repository that is gone does not stop the others. A wrong digest is refused.
    """
    failed = []
    for index, wanted in enumerate(list_.recordings):
        place = out / f"{wanted.to}.flac"
        if not place.is_file():
            try:
                paths = [
                    fetch(source.file, offline=offline, notice=notice, model=name, require_digest=True)
                    for source in wanted.sources
                ]
                write(place, prepared(wanted, paths))
            except (ModelError, AudioError) as error:
                failed.append(f"{wanted.to}: {error.what}")
        progress(index + 1, len(list_.recordings))
    return failed


def prepared(wanted: Recording, paths: Sequence[Path]) -> Block:
    """A recording (frames, channels) out of its files. Raises AudioError."""
    parts = [decoded(path, RATE, wanted.channels) for path in paths]
    if wanted.gap >= 0:
        parts = [
            part[: round(source.seconds * RATE)] if source.seconds else part
            for part, source in zip(parts, wanted.sources, strict=True)
        ]
        if wanted.even:
            parts = [part / max(1e-9, float(np.abs(part).max(initial=0))) for part in parts]
        silence = np.zeros((round(wanted.gap * RATE), wanted.channels), np.float32)
        sound = np.concatenate([piece for part in parts for piece in (part, silence)][:-1])
    else:
        sound = np.zeros((max(len(part) for part in parts), wanted.channels), np.float32)
        for part, source in zip(parts, wanted.sources, strict=True):
            shares = [source.left, source.right] if wanted.channels == 2 else [source.left]
            sound[: len(part)] += part * np.array(shares, np.float32)
    first = round(wanted.start * RATE)
    sound = sound[first : first + round(wanted.seconds * RATE)] if wanted.seconds else sound[first:]
    if wanted.fade:
        slope = np.linspace(0, 1, round(FADE * RATE), dtype=np.float32)[:, None]
        sound[: len(slope)] *= slope
        sound[len(sound) - len(slope) :] *= slope[::-1]
    gain = wanted.peak / max(1e-9, float(np.abs(sound).max(initial=0))) if wanted.peak else wanted.gain
    return np.asarray(sound * np.float32(gain), np.float32)


def write(place: Path, sound: Block) -> None:
    """One FLAC file, whole or not at all. Raises AudioError."""
    import soundfile

    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(aside, np.clip(sound, -1, 1), RATE, "PCM_24", format="FLAC")
        aside.replace(place)
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{place}: cannot be written ({error})") from error
    finally:
        aside.unlink(missing_ok=True)
