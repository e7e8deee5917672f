"""What can be said of a separated song without references, second by second.

Per stem: level, silence, and holes in its spectrum; of all together: what they leave of the mixture, and how alike two
of them are. The song is read once, in blocks of a second; memory holds one second and the pictures.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepcli.audio.blocks import Block, reblock
from sepcli.errors import AudioError, UsageError
from sepcli.inference.song import Clip
from sepcli.metrics.stems import SUMS, Stem, StemSet, find_sets, open_stem

Floats = NDArray[np.float64]

FLOOR = -120.0  # dB full scale, for what is silent
SILENT = -80.0  # dBFS of a second below which it counts as silence
AUDIBLE = -70.0  # dBFS of a band in the mixture from which on it can be missed
HOLE = 30.0  # dB that a band lies below both its neighbours
LEFT = -20.0  # dB of the mixture that the stems may leave
ALIKE = 0.5  # correlation of two stems that deserves a look
WINDOW = 4096
ROWS = 128  # of a picture
COLUMNS = 1200  # at most


@dataclass
class Track:
    """One sound of the song: a stem, or the mixture. Lists have one value a second."""

    name: str
    stem: Stem
    level: list[float] = field(default_factory=list)
    """RMS over channels, dBFS."""
    peak: float = 0.0
    holes: list[int] = field(default_factory=list)
    """Bands of a third of an octave that are missing between two that are there."""
    highest: float = 0.0
    """Hz: the upper edge of the highest band within 60 dB of the loudest, over the whole song."""
    picture: list[Floats] = field(default_factory=list)
    """Columns of ROWS levels in dB, from low to high frequencies, evenly spaced in octaves."""

    @property
    def silent(self) -> int:
        """Seconds of silence."""
        return sum(level < SILENT for level in self.level)


@dataclass
class Report:
    """What was found out about one song's stems."""

    name: str
    sample_rate: int
    seconds: float
    stems: list[Track]
    mixture: Track | None
    residual: list[float]
    """Per second: level of mixture less sum of stems, in dB of the mixture; nothing without a mixture."""
    correlation: dict[tuple[str, str], list[float]]
    """Per second, of each two stems, their channels' means; NaN where one is silent."""
    warnings: list[str]

    def document(self) -> dict[str, Any]:
        """As JSON; missing values are None."""

        def plain(values: list[float]) -> list[float | None]:
            return [round(value, 3) if math.isfinite(value) else None for value in values]

        tracks = {
            track.name: {
                "level": plain(track.level),
                "peak": track.peak,
                "silent_seconds": track.silent,
                "holes": track.holes,
                "highest_hz": track.highest,
            }
            for track in [*self.stems, *([self.mixture] if self.mixture else [])]
        }
        pairs = {f"{a} {b}": plain(values) for (a, b), values in self.correlation.items()}
        return {
            "name": self.name,
            "sample_rate": self.sample_rate,
            "seconds": self.seconds,
            "tracks": tracks,
            "residual": plain(self.residual),
            "correlation": pairs,
            "warnings": self.warnings,
        }


def report_on(
    folder: Path, song: Path | None = None, *, progress: Callable[[float, float | None], None] = lambda _a, _b: None
) -> Report:
    """Measure the stems in a folder, with the mixture `song`, or the one among them. Raises UsageError, AudioError."""
    sets = find_sets([folder])
    if len(sets) > 1:
        names = ", ".join(one.name for one in sets[:3])
        raise UsageError(f"{folder} holds the stems of {len(sets)} songs: {names}", "name the folder of one")
    if sets[0].problem:
        raise UsageError(sets[0].problem)
    sounds = chosen(sets[0])
    if song is not None:
        sounds["mixture"] = Stem(song)
    tracks = {name: (Track(name, stem), open_stem(stem)) for name, stem in sounds.items()}
    rates = {opened.sample_rate for _, opened in tracks.values()}
    if len(rates) > 1:
        told = ", ".join(f"{track.stem.path.name} {opened.sample_rate} Hz" for track, opened in tracks.values())
        raise AudioError(f"{folder}: sample rates differ: {told}")
    rate = rates.pop()
    stems = [track for name, (track, _) in tracks.items() if name != "mixture"]
    found = Report(sets[0].name, rate, 0.0, stems, None, [], {}, [])
    if "mixture" in tracks:
        found.mixture = tracks["mixture"][0]
    bands = Bands(rate)
    longest = max((opened.frames or 0) for _, opened in tracks.values()) / rate
    pieces_a_second = max(1, min(10, int(COLUMNS // max(longest, 1))))
    for count, seconds in in_step([(track.stem, opened) for track, opened in tracks.values()], rate):
        for (track, _), second in zip(tracks.values(), seconds, strict=True):
            measure(track, second, bands, pieces_a_second)
        between(found, dict(zip(tracks, seconds, strict=True)), bands)
        found.seconds += count / rate
        progress(found.seconds, longest or None)
    for track, _ in tracks.values():
        track.highest = bands.highest(np.array(track.picture))
    judge(found)
    return found


def chosen(stems: StemSet) -> dict[str, Stem]:
    """The stems that together make the song; a sum only where its parts are not there."""
    names = [name for name in stems.stems if name not in SUMS]
    if len(names) < 2:
        names += [name for name in stems.stems if name in SUMS and name != "mixture"]
    return {name: stems.stems[name] for name in [*names, *(["mixture"] if "mixture" in stems.stems else [])]}


def in_step(sounds: list[tuple[Stem, Clip]], rate: int) -> Iterator[tuple[int, list[Block]]]:
    """Seconds of all sounds side by side, with their number of frames. Raises AudioError where one ends early.

    Channels are those of the sound with the fewest: a mono stem beside a stereo mixture is compared with its mean.
    """
    channels = min(clip.channels for _, clip in sounds)
    streams = [reblock(clip.blocks(), rate) for _, clip in sounds]
    while True:
        blocks = [next(stream, None) for stream in streams]
        lengths = [0 if block is None else len(block) for block in blocks]
        if not any(lengths):
            return
        if len(set(lengths)) > 1:
            shorter, _ = sounds[lengths.index(min(lengths))]
            raise AudioError(f"{shorter}: is shorter than the others", "stems and mixture must have one length")
        there = [block for block in blocks if block is not None]
        yield lengths[0], [b if b.shape[1] == channels else b.mean(1, keepdims=True) for b in there]


class Bands:
    """Where a spectrum's bins go: thirds of octaves from 40 Hz to the Nyquist frequency, and rows of a picture."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        frequencies = np.fft.rfftfreq(WINDOW, 1 / rate)
        top = rate / 2
        self.edges = 40 * 2 ** (np.arange(0, math.floor(3 * math.log2(top / 40)) + 1) / 3)
        self.starts = np.searchsorted(frequencies, self.edges)
        self.rows = np.clip(np.searchsorted(frequencies, 40 * (top / 40) ** (np.arange(ROWS) / ROWS)), 1, None)
        self.tops = 40 * (top / 40) ** (np.arange(1, ROWS + 1) / ROWS)

    def power(self, second: NDArray[Any], pieces: int) -> Floats:
        """Power spectra of `pieces` parts of a second, (pieces, bins); the bins of each sum to its mean square."""
        spectra = []
        for part in np.array_split(second.astype(np.float64), min(pieces, len(second))):
            size = min(len(part), WINDOW)
            window = np.hanning(size + 2)[1:-1, None]
            frames = [
                part[start : start + size] * window for start in range(0, len(part) - size + 1, max(1, size // 2))
            ]
            power = np.square(np.abs(np.fft.rfft(np.array(frames), WINDOW, axis=1))).mean((0, 2))
            spectra.append(power * 2 / (WINDOW * np.square(window).sum()))
        return np.array(spectra)

    def thirds(self, power: Floats) -> Floats:
        """Levels of the bands in dB."""
        sums = np.add.reduceat(power, self.starts)[:-1] if len(self.starts) > 1 else power.sum(keepdims=True)
        return decibels(sums)

    def image(self, power: Floats) -> Floats:
        """One column of a picture: the loudest bin of each row, in dB."""
        ends = np.append(self.rows[1:], len(power))
        return decibels(np.array([power[a : max(b, a + 1)].max() for a, b in zip(self.rows, ends, strict=True)]))

    def highest(self, picture: Floats) -> float:
        if not len(picture):
            return 0.0
        loud = picture.max(0)
        heard = np.flatnonzero(loud > max(loud.max() - 60, FLOOR + 10))
        return float(self.tops[heard[-1]]) if len(heard) else 0.0


def decibels(power: Floats) -> Floats:
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10)))


def measure(track: Track, second: Block, bands: Bands, pieces: int) -> None:
    """Add what one second tells of a track."""
    power = float(np.square(second, dtype=np.float64).mean())
    track.level.append(float(decibels(np.array(power))))
    track.peak = max(track.peak, float(np.abs(second).max()))
    track.picture += [bands.image(part) for part in bands.power(second, pieces)]


def between(report: Report, sounds: dict[str, Block], bands: Bands) -> None:
    """Add what one second tells of the stems beside each other: holes, correlations, and the residual."""
    names = [track.name for track in report.stems]
    total: Floats = np.sum(np.array([sounds[name] for name in names]), axis=0, dtype=np.float64)
    whole = sounds["mixture"].astype(np.float64) if report.mixture else total
    heard = bands.thirds(bands.power(whole, 1)[0])
    for track in report.stems:
        track.holes.append(holes(bands.thirds(bands.power(sounds[track.name], 1)[0]), heard))
    if report.mixture:
        level = np.square(whole).mean()
        left = np.square(whole - total).mean()
        report.residual.append(float(10 * np.log10(left / level)) if level > 1e-10 and left > 0 else math.nan)
    means = {name: sounds[name].mean(1, dtype=np.float64) for name in names}
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            energy = float(np.square(means[a]).sum() * np.square(means[b]).sum())
            audible = min(track.level[-1] for track in report.stems if track.name in (a, b)) >= SILENT
            value = float(means[a] @ means[b]) / math.sqrt(energy) if audible and energy else math.nan
            report.correlation.setdefault((a, b), []).append(value)


def holes(own: Floats, heard: Floats) -> int:
    """Bands that the mixture has, and a stem lacks although it has the bands on both sides."""
    if len(own) < 3:
        return 0
    beside = np.minimum(own[:-2], own[2:])
    return int(np.sum((own[1:-1] < beside - HOLE) & (heard[1:-1] > AUDIBLE) & (beside > AUDIBLE)))


def judge(report: Report) -> None:
    """What deserves a look, in words."""
    seconds = len(report.stems[0].level)
    for track in report.stems:
        if track.silent == seconds:
            report.warnings.append(f"{track.name} is silent throughout")
        if track.peak > 1:
            report.warnings.append(f"{track.name} exceeds full scale: peak {track.peak:.2f}")
        if bad := sum(count > 0 for count in track.holes):
            report.warnings.append(f"{track.name} has holes in its spectrum in {bad} of {seconds} seconds")
    for (a, b), values in report.correlation.items():
        if alike := sum(abs(value) > ALIKE for value in values if math.isfinite(value)):
            told = f"alike (correlation beyond {ALIKE}) in {alike} of {seconds} seconds"
            report.warnings.append(f"{a} and {b} are {told}")
    if lost := sum(value > LEFT for value in report.residual):
        told = f"in {lost} of {seconds} seconds (residual above {LEFT:g} dB)"
        report.warnings.append(f"the stems do not sum to the mixture {told}")
