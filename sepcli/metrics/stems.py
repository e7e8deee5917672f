"""Songs with stems on disk, references and estimates alike: found in folders, known by name, read block by block.

A song is a folder with a file for each stem (`Song/vocals.wav`: MUSDB18-HQ, demucs, spleeter, ...), files that carry
both names (`Song_(Vocals)_model.wav`, `Song - vocals.flac`), or a MUSDB18 file `Song.stem.mp4`.
"""

import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sepcli.audio.blocks import Block, reblock
from sepcli.audio.paths import AUDIO_SUFFIXES, track_name
from sepcli.audio.read import open_song
from sepcli.errors import AudioError, UsageError
from sepcli.inference.song import Clip

# Spellings in lower case, words joined by _.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "mixture": ("mixture", "mix", "linear_mixture"),
    "vocals": ("vocals", "vocal", "voice", "vox", "singing", "acapella", "a_cappella"),
    "drums": ("drums", "drum"),
    "bass": ("bass",),
    "other": ("other", "others"),
    "guitar": ("guitar", "guitars"),
    "piano": ("piano",),
    "accompaniment": (
        *("accompaniment", "instrumental", "instrumentals", "inst", "karaoke", "backing", "backing_track"),
        *("no_vocals", "novocals", "no_vocal", "non_vocals", "minus_vocals", "off_vocal"),
    ),
}
SOURCE = {spelling: source for source, spellings in SPELLINGS.items() for spelling in spellings}
# Sums of several sources, which count as none when an accompaniment is summed.
SUMS = ("mixture", "accompaniment", *(f"no_{source}" for source in SPELLINGS))
SOURCE |= {name: name for name in SUMS if name not in SOURCE}

STEM_MP4 = ("mixture", "drums", "bass", "other", "vocals")  # the order of its streams

_WORDS = "|".join(sorted((spelling.replace("_", "[ _-]?") for spelling in SOURCE), key=len, reverse=True))
_BRACKETED = re.compile(rf"^(?:\d+_)?(?P<song>.+?)[ _.-]*\((?P<stem>{_WORDS})\).*$", re.IGNORECASE)
_AFFIXED = re.compile(rf"^(?P<song>.+?)[ _.-]+(?P<stem>{_WORDS})$", re.IGNORECASE)


@dataclass(frozen=True)
class Stem:
    """A file, or one audio stream of a stem.mp4."""

    path: Path
    stream: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.stream is None else f"{self.path} (stream {self.stream})"


@dataclass
class StemSet:
    """The stems of one song by source, its mixture among them where there is one."""

    name: str
    place: Path
    stems: dict[str, Stem] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    """Audio files beside the stems whose names say no source."""
    problem: str = ""
    """Why this song cannot be used, if so."""

    @property
    def key(self) -> str:
        return key_of(self.name)

    def add(self, source: str, stem: Stem) -> None:
        if source in self.stems:
            files = f"{self.stems[source].path.name} and {stem.path.name}"
            self.problem = f"{self.place}: {files} are both {source}; keep one of them"
        self.stems[source] = stem


@dataclass(frozen=True)
class Pair:
    """A song's references, and its estimates where those are files."""

    reference: StemSet
    estimate: StemSet | None = None

    @property
    def name(self) -> str:
        return self.reference.name


def source_of(name: str) -> str | None:
    """The source that a stem's name means, whatever its spelling; None for an unknown name."""
    return SOURCE.get(re.sub(r"[ -]+", "_", name.strip().lower()))


def key_of(name: str) -> str:
    """A song's name as songs are matched by it: Unicode composed, case and a `.stem` at the end left aside."""
    return unicodedata.normalize("NFC", name).strip().casefold().removesuffix(".stem")


def find_sets(folders: Sequence[Path], split: str = "all") -> list[StemSet]:
    """The songs with stems below folders, each in order of name.

    Of a folder with both `train` and `test` in it only those of `split` ("train", "test", "all") are taken. Raises
    UsageError for what is no folder, or holds no song with stems.
    """
    found: list[StemSet] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        both = [folder / name for name in ("train", "test") if (folder / name).is_dir()]
        roots = [root for root in both if split in (root.name, "all")] if len(both) == 2 else [folder]
        sets = [one for root in roots for one in _sets_below(root)]
        if not sets:
            raise UsageError(f"{folder}: no song with stems", "a song is a folder with vocals.wav, drums.wav, …")
        found += sorted(sets, key=lambda one: os.fsencode(one.name))
    return found


def _sets_below(root: Path) -> Iterator[StemSet]:
    entered = set()
    for here, folders, files in os.walk(root, followlinks=True):
        if (own := os.path.realpath(here)) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add(own)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(here)
        paths = [place / name for name in sorted(files) if not name.startswith(".")]
        for path in paths:
            if path.name.lower().endswith(".stem.mp4"):
                yield StemSet(track_name(path), path, {name: Stem(path, i) for i, name in enumerate(STEM_MP4)})
        sounds = [p for p in paths if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.lower().endswith(".stem.mp4")]
        yield from _sets_of(place, sounds)


def _sets_of(place: Path, sounds: list[Path]) -> Iterator[StemSet]:
    """The one set of a folder whose files are named by stem, else those of files that are named by song and stem."""
    own = StemSet(place.resolve().name, place)
    for path in sounds:
        if source := source_of(path.stem):
            own.add(source, Stem(path))
        else:
            own.ignored.append(path.name)
    if set(own.stems) - {"mixture"}:
        yield own
        return
    flat: dict[str, StemSet] = {}
    for path in sounds:
        match = _BRACKETED.match(path.stem) or _AFFIXED.match(path.stem)
        source = source_of(match["stem"]) if match else None
        if match and source:
            flat.setdefault(key_of(match["song"]), StemSet(match["song"], place)).add(source, Stem(path))
    yield from flat.values()


def pair(references: list[StemSet], estimates: list[StemSet] | None) -> tuple[list[Pair], dict[str, str]]:
    """Songs that can be scored, and what is wrong with the others: name -> one line.

    Without estimates each song stands alone (a model or an oracle will make them).
    """
    problems: dict[str, str] = {}
    known = _unique(references, "--data", problems)
    guessed = None if estimates is None else _unique(estimates, "--estimates", problems)
    pairs = []
    for key, reference in known.items():
        estimate = None if guessed is None else guessed.pop(key, None)
        if reference.name in problems or (estimate and estimate.name in problems):
            continue
        if estimates is not None and estimate is None:
            problems[reference.name] = f"{reference.name}: no estimates of this song"
            continue
        pairs.append(Pair(reference, estimate))
    for estimate in (guessed or {}).values():
        problems.setdefault(estimate.name, f"{estimate.name}: no references for the estimates in {estimate.place}")
    return pairs, problems


def _unique(sets: list[StemSet], option: str, problems: dict[str, str]) -> dict[str, StemSet]:
    """The sets by key; what is told of a name that stands twice, or of a set in itself wrong, goes to `problems`."""
    found: dict[str, StemSet] = {}
    for one in sets:
        if one.key in found:
            where = f"{found[one.key].place} and {one.place}"
            problems[found[one.key].name] = f"{one.name}: two songs with this name in {option}: {where}"
            continue
        found[one.key] = one
        if one.problem:
            problems[one.name] = f"{one.name}: {one.problem}"
    return found


def open_stem(stem: Stem, *, sixteen: bool = False) -> Clip:
    """A stem that can be read as often as wanted; `sixteen`: rounded to 16 bits. Raises AudioError, also in reading.

    A stem.mp4 is always rounded: published scores were made from files that FFmpeg decoded to 16 bits.
    """
    if stem.stream is None:
        song = open_song(stem.path)
        clip = Clip(song.blocks, song.sample_rate, song.channels, song.frames)
    else:
        blocks = functools.partial(_read_stream, stem.path, stem.stream)
        first, rate = next(blocks())
        clip = Clip(lambda: reblock(block for block, _ in blocks()), rate, first.shape[1])
        sixteen = True
    return replace(clip, blocks=lambda: map(_rounded, clip.blocks())) if sixteen else clip


def _rounded(block: Block) -> Block:
    rounded: Block = np.clip(np.rint(block * np.float32(32768)), -32768, 32767) / np.float32(32768)
    return rounded


def _read_stream(path: Path, stream: int) -> Iterator[tuple[Block, int]]:
    """Decoded blocks of one stream of a stem.mp4, and its rate."""
    try:
        import av
    except ImportError:
        raise AudioError(f"{path}: pip install av reads stem.mp4") from None
    empty = True
    try:
        with av.open(str(path), format="mp4") as container:
            if len(container.streams.audio) != len(STEM_MP4):
                raise AudioError(f"{path}: {len(container.streams.audio)} audio streams, MUSDB18's files have five")
            for frame in container.decode(container.streams.audio[stream]):
                empty = False
                yield _floats(frame), frame.sample_rate
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{path}: stream {stream} is damaged") from error
    if empty:
        raise AudioError(f"{path}: stream {stream} holds no sound")


def _floats(frame: Any) -> Block:
    """A decoded frame as (frames, channels)."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, len(frame.layout.channels))
    if samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return np.asarray(samples, dtype=np.float32)


def seconds_of(stems: StemSet) -> float:
    """How long a song is, as its first stem's header says; 0 where that cannot be told (reading it will tell why)."""
    stem = next(iter(stems.stems.values()))
    try:
        song = open_song(stem.path)
    except AudioError:
        return 0.0
    if song.frames is not None:
        return song.frames / song.sample_rate
    return 0.0
