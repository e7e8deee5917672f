"""Songs with stems: checked and measured once, read as excerpts at random places.

What cannot be read by exact seeking at the network's rate (lossy formats, other rates, mp4) is decoded once, into the
cache.
"""

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sepcli.audio.blocks import BLOCK, Block
from sepcli.audio.read import Song, open_song
from sepcli.audio.resample import resample
from sepcli.errors import AudioError, UsageError
from sepcli.training.augment import repitch
from sepcli.training.recipe import Recipe
from sepcli.training.streams import stream_blocks
from sepcli.training.tracks import MIXTURE, Part, Track, assign
from sepcli.training.vary import evened, played, speeds, varied
from sepcli.weights.catalog import cache_folder

TRIES, AUDIBLE = 4, 1e-3
"""Sources that are evened are looked for so often before silence is taken; below this they are silent."""


@dataclass(frozen=True)
class Stem:
    """A stem that can be read anywhere: through its file, or the decoded copy (float32, frames x channels)."""

    song: Song | None
    copy: Path | None
    channels: int
    frames: int
    peak: float = 0.0

    def read(self, start: int, stop: int) -> Block:
        """Frames start..stop (frames, channels)."""
        if self.copy is not None:
            shape = (self.frames, self.channels)
            return np.array(np.memmap(self.copy, np.float32, "r", shape=shape)[start:stop])
        assert self.song is not None
        blocks = [fit_channels(block, self.channels) for block in self.song.blocks(start, stop)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.channels), np.float32)


@dataclass(frozen=True)
class Material:
    """One song ready for use: each source as the stems that it is the sum of, and the whole song's loudness."""

    name: str
    path: Path
    rows: Mapping[str, tuple[Stem, ...]]
    frames: int
    mean: float
    deviation: float
    peak: float
    stamp: str
    single: bool = False

    def read(self, row: str, start: int, stop: int) -> Block | None:
        """A source's frames; None where the song does not have it."""
        stems = self.rows.get(row)
        if not stems:
            return None
        parts = [stem.read(start, stop) for stem in stems]
        return parts[0] if len(parts) == 1 else np.sum(parts, axis=0, dtype=np.float32)


# Preparing


def prepare(
    tracks: Sequence[Track],
    sources: Sequence[str],
    rows: Sequence[str],
    *,
    sample_rate: int,
    channels: int,
    absent: str = "refuse",
    mixtures: bool = False,
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
) -> list[Material]:
    """Open, check, decode where needed, and measure every song; what was measured before is remembered in the cache.

    With `mixtures`, of songs to validate with, a song's own mixture file, where there is one, is its row "mixture".

    Raises UsageError or AudioError naming song and file: stems of unequal length or rate, absent or damaged ones, and
    a source that is silent in every song. With absent="silence" songs to validate with may lack it, or be none at all.
    """
    assigned = [(track, assign(track, sources, rows, absent)) for track in tracks]
    ready = []
    for index, (track, parts) in enumerate(assigned):
        if mixtures and track.mixture:
            parts[MIXTURE] = (track.mixture,)
        if parts:
            ready.append(_prepared(track, parts, sample_rate, channels))
        progress(index + 1, len(assigned))
    if mixtures and not ready and absent == "refuse":
        hint = "two whole songs will do, or one in a folder `valid`; --absent-stems silence trains without"
        raise UsageError("--data: there are no songs to validate with", hint)
    for source in sources if absent == "refuse" or not mixtures else ():
        peaks = [stem.peak for material in ready for stem in material.rows.get(source, ())]
        if not any(peaks):
            raise UsageError(f"--data: {source} is silent or absent in all of the {len(ready)} songs")
    return ready


def _prepared(track: Track, rows: Mapping[str, Sequence[Part]], rate: int, channels: int) -> Material:
    parts = {part: _opened(part) for row in rows.values() for part in row}
    rates = {part.path.name: song.sample_rate for part, song in parts.items()}
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{name} {value} Hz" for name, value in rates.items())
        raise AudioError(f"{track.path}: its stems have different sample rates ({told})")
    stamps = [(part.path.name, part.stream, *_stamp(part.path)) for part in parts]
    digest = _digest(os.path.realpath(track.path), rate, channels, stamps)
    record = cache_folder() / "songs" / f"{digest}.json"
    known = _remembered(record)
    stems: dict[Part, Stem] = {}
    for index, (part, song) in enumerate(parts.items()):
        direct = part.stream == 0 and song.decoder == "soundfile" and song.depth and song.sample_rate == rate
        if direct and song.frames is not None:
            stems[part] = Stem(song, None, channels, song.frames)
        else:
            copy = record.with_name(f"{digest}.{index}.f32")
            if not known or not copy.is_file():
                _decode(part, song, rate, channels, copy)
                known = None
            stems[part] = Stem(None, copy, channels, copy.stat().st_size // (4 * channels))
    lengths = {part.path.name: stem.frames for part, stem in stems.items()}
    if len({stem.frames for stem in stems.values()}) > 1:
        told = ", ".join(f"{name} {value:,}" for name, value in lengths.items())
        raise AudioError(f"{track.path}: its stems have different lengths ({told} frames at {rate} Hz)")
    mixed = rows.get(MIXTURE, ())
    numbers = known or _measure([(stem, part not in mixed) for part, stem in stems.items()])
    if not known:
        _remember(record, numbers)
    peaks = dict(zip(stems, numbers["peaks"], strict=True))
    named = {
        row: tuple(Stem(**{**vars(stems[part]), "peak": float(peaks[part])}) for part in row_parts)
        for row, row_parts in rows.items()
    }
    mean, deviation, peak = (float(value) for value in numbers["loudness"])
    frames = next(iter(stems.values())).frames
    return Material(track.name, track.path, named, frames, mean, deviation, peak, _digest(stamps), track.single)


def _opened(part: Part) -> Song:
    song = open_song(part.path)
    if song.channels > 2:
        raise AudioError(f"{part.path}: {song.channels} channels; stems must be mono or stereo")
    return song


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int]:
    """What tells that a file is as it was."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _decode(part: Part, song: Song, rate: int, channels: int, copy: Path) -> None:
    """Write a stem's sound at the network's rate and channels, whole or not at all. Raises AudioError."""
    blocks = stream_blocks(part.path, part.stream, song.sample_rate) if part.stream else song.blocks()
    aside = copy.with_suffix(f".{os.getpid()}.part")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            for block in resample((fit_channels(block, channels) for block in blocks), song.sample_rate, rate):
                file.write(np.ascontiguousarray(block, np.float32).tobytes())
        aside.replace(copy)
    except OSError as error:
        what = f"{copy.parent}: the decoded copy of {part.path} cannot be written ({error.strerror or error})"
        raise AudioError(what, "SEPCLI_CACHE names another place") from error
    finally:
        aside.unlink(missing_ok=True)


def _measure(stems: Sequence[tuple[Stem, bool]]) -> dict[str, list[float]]:
    """The peak of each stem; mean and deviation of the mixture's channel mean, and its largest signed sample.

    The mixture is the sum of the stems that say so.
    """
    frames = stems[0][0].frames
    count, total, squares, peak = 0, 0.0, 0.0, -np.inf
    peaks = [0.0] * len(stems)
    for start in range(0, frames, BLOCK):
        parts = [stem.read(start, min(start + BLOCK, frames)) for stem, _ in stems]
        peaks = [max(old, float(np.abs(part).max(initial=0))) for old, part in zip(peaks, parts, strict=True)]
        mixture = np.sum([part for part, (_, added) in zip(parts, stems, strict=True) if added], axis=0)
        mono = mixture.mean(axis=1, dtype=np.float64)
        count, total, squares = count + len(mono), total + mono.sum(), squares + np.square(mono).sum()
        peak = max(peak, float(mixture.max(initial=-np.inf)))
    mean = total / count
    deviation = float(np.sqrt(max(squares - count * mean**2, 0.0) / max(count - 1, 1)))
    return {"peaks": peaks, "loudness": [float(mean), deviation, float(peak)]}


def _remembered(record: Path) -> dict[str, list[float]] | None:
    try:
        numbers = json.loads(record.read_text(encoding="utf-8"))
        return numbers if {"peaks", "loudness"} <= numbers.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _remember(record: Path, numbers: Mapping[str, list[float]]) -> None:
    """What was measured; a cache that cannot be written costs time only."""
    aside = record.with_suffix(f".{os.getpid()}.part")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(numbers), encoding="utf-8")
        aside.replace(record)
    except OSError:
        aside.unlink(missing_ok=True)


def fit_channels(block: Block, wanted: int) -> Block:
    """Mono for stereo is repeated, stereo for mono is averaged."""
    if block.shape[1] == wanted:
        return block
    if wanted == 1:
        return np.ascontiguousarray(block.mean(axis=1, keepdims=True, dtype=np.float32))
    return np.ascontiguousarray(np.repeat(block[:, :1], wanted, axis=1))


def decoded(path: Path, rate: int, channels: int) -> Block:
    """A whole recording (frames, channels) at a rate. Raises AudioError."""
    song = open_song(path)
    blocks = (fit_channels(block[:, :2], channels) for block in song.blocks())
    parts = list(resample(blocks, song.sample_rate, rate))
    return np.concatenate(parts) if parts else np.zeros((0, channels), np.float32)


# Reading


@dataclass
class Excerpts(Dataset[Tensor]):
    """Excerpts of songs, (rows, C, T): item (epoch, index) is always the same, whoever asks, in whatever order.

    T is recipe.read_seconds long; shorter songs are filled with zeros. A row is a source or another part of the
    mixture. With `level` each song is brought to the loudness that inference brings it to.
    """

    songs: Sequence[Material]
    rows: Sequence[str]
    recipe: Recipe
    sample_rate: int
    channels: int
    level: Mapping[str, float]
    seed: int
    places: list[tuple[int, int]] = field(init=False)
    having: dict[str, list[Material]] = field(init=False)

    def __post_init__(self) -> None:
        """`places`: the song and first frame of each excerpt of an epoch; those of single-source material mix in."""
        data = self.recipe.data
        self.length = round(self.recipe.read_seconds * self.sample_rate)
        vary = self.recipe.augment.vary
        self.kept = int(self.length / 2 ** (vary.speed / 12)) if vary else self.length
        whole = [index for index, song in enumerate(self.songs) if not song.single]
        if len(whole) < len(self.songs) and not self.recipe.augment.mix:
            raise UsageError("--data: single-source material needs a recipe that mixes", "--set augment.mix=true")
        if data.draws:
            self.places = [(index, -1) for index in range(len(self.songs)) for _ in range(data.draws)]
        else:
            stride = max(1, round(data.stride * self.sample_rate))
            counts = [max(0, -(-(song.frames - self.length) // stride)) + 1 for song in self.songs]
            self.places = [(song, k * stride) for song, count in enumerate(counts) for k in range(count)]
        often = [song for song in self.songs for _ in range(weight(song, data.weights))]
        self.having = {row: [song for song in often if row in song.rows] for row in self.rows}
        self.order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        draw = random.Random(f"{self.seed} excerpt {epoch} {index}")
        song, start = self.places[self.permuted(epoch)[index % len(self)]]
        chosen = self.songs[song]
        if start < 0:
            start = draw.randint(0, max(0, chosen.frames - self.length))
        sound = np.zeros((len(self.rows), self.channels, self.kept), np.float32)
        rules = self.recipe.augment
        mixed = rules.mix and (chosen.single or draw.random() >= rules.intact)
        together = speeds(rules.vary, draw) if rules.vary else 1.0
        for number, row in enumerate(self.rows):
            source, block = chosen, None
            for _ in range(TRIES if rules.even else 1):
                first = start
                if mixed and self.having[row]:
                    source = draw.choice(self.having[row])
                    first = draw.randint(0, max(0, source.frames - self.length))
                block = source.read(row, first, min(first + self.length, source.frames))
                if not mixed or block is None or np.abs(block).max(initial=0) > AUDIBLE:
                    break
            if block is None:
                continue
            offset, scale = brought(source, self.level, peaks=not rules.peak)
            wave = ((block - np.float32(offset)) / np.float32(scale)).T
            if mixed and rules.even:
                wave = evened(wave)
            if rules.vary:
                wave = played(wave, speeds(rules.vary, draw) if mixed else together, self.kept)
                wave = varied(wave, rules.vary, self.sample_rate, draw)
            sound[number, :, : wave.shape[1]] = wave
        if self.recipe.augment.repitch:
            wanted = round((self.recipe.data.excerpt + self.recipe.augment.shift) * self.sample_rate)
            return repitch(torch.from_numpy(sound), self.recipe.augment.repitch, self.sample_rate, wanted, draw)
        return torch.from_numpy(sound)

    def permuted(self, epoch: int) -> list[int]:
        if self.order[0] != epoch:
            order = list(range(len(self)))
            random.Random(f"{self.seed} order {epoch}").shuffle(order)
            self.order = (epoch, order)
        return self.order[1]


def weight(song: Material, weights: Mapping[str, int]) -> int:
    """How often a song is mixed in, by the folders that it lies in."""
    return math.prod(weights.get(folder, 1) for folder in {parent.name for parent in song.path.parents})


def mixture_blocks(song: Material) -> Iterator[Block]:
    """A song's mixture block by block."""
    for start in range(0, song.frames, BLOCK):
        yield mixture_between(song, start, min(start + BLOCK, song.frames))


def mixture_between(song: Material, start: int, stop: int) -> Block:
    """Frames of a song's mixture: of its own file, or else the sum of its rows."""
    rows = [MIXTURE] if MIXTURE in song.rows else list(song.rows)
    parts = [block for row in rows if (block := song.read(row, start, stop)) is not None]
    return parts[0] if len(parts) == 1 else np.sum(parts, axis=0, dtype=np.float32)


def brought(song: Material, level: Mapping[str, float], *, peaks: bool = True) -> tuple[float, float]:
    """What is taken from each stem and what it is divided by, so that the sum of all has the network's level."""
    if "deviation" in level:
        return song.mean / max(1, len(song.rows)), (song.deviation + 1e-8) / level["deviation"]
    if "peak" in level and peaks and song.peak > 1e-3:
        return 0.0, song.peak / level["peak"]
    return 0.0, 1.0
