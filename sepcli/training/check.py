"""What is wrong with a folder of songs: lengths, rates, channels, silence, mixtures, songs that are there twice."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sepcli.audio.blocks import BLOCK, Block, reblock
from sepcli.audio.read import open_song
from sepcli.errors import AudioError
from sepcli.training.data import fit_channels
from sepcli.training.streams import stream_blocks
from sepcli.training.tracks import MIXTURE, SUMS, Part, Track, find_tracks

FRAME = 0.05
"""Seconds of a loudness frame, by which songs are compared."""
ALIKE = (0.4, 0.7)
"""Songs whose changes of loudness correlate so well are looked at again; whose waveforms do, are one recording."""
COARSE = 32
"""Samples that become one in the waveforms by which songs are compared."""
LEFT = -40.0
"""What a mixture may hold beside the sum of its stems, in dB below it: lossy codecs leave as much."""


@dataclass(frozen=True)
class Problem:
    """`kind`: unreadable, length, rate, channels, silence, mixture, duplicate."""

    song: str
    kind: str
    what: str


@dataclass(frozen=True)
class Looked:
    """What one pass over a song found: problems, seconds, how its loudness changes, and its coarse waveform."""

    track: Track
    problems: tuple[Problem, ...]
    seconds: float
    changes: npt.NDArray[np.float32]
    outline: npt.NDArray[np.float32]


def check(
    folders: Sequence[Path], progress: Callable[[float, float | None], None] = lambda _done, _total: None
) -> tuple[list[Looked], list[Problem]]:
    """Look at every song below the folders. Raises UsageError where there is none."""
    tracks = [track for track in find_tracks(folders, ()) if not track.single]
    looked = []
    for index, track in enumerate(tracks):
        looked.append(look(track))
        progress(index + 1, len(tracks))
    problems = [problem for song in looked for problem in song.problems]
    return looked, problems + list(duplicates(looked))


def look(track: Track) -> Looked:
    """One pass over a song's stems and its mixture."""
    parts: dict[str, Part] = dict(track.stems)
    if track.mixture:
        parts[MIXTURE] = track.mixture
    try:
        songs = {name: open_song(part.path) for name, part in parts.items()}
        rates = {name: song.sample_rate for name, song in songs.items()}
        widths = {name: song.channels for name, song in songs.items()}
        found = list(differing(track, "rate", rates, "Hz")) + list(differing(track, "channels", widths, "channels"))
        rate = max(rates.values())
        streams = {
            name: stream_blocks(part.path, part.stream, rates[name]) if part.stream else songs[name].blocks()
            for name, part in parts.items()
        }
        lengths, peaks, left, whole, loudness, outline = measured(streams, rate)
    except AudioError as error:
        empty = np.zeros(0, np.float32)
        return Looked(track, (Problem(track.name, "unreadable", str(error)),), 0.0, empty, empty)
    found += differing(track, "length", lengths, "frames")
    found += [Problem(track.name, "silence", f"{name} is silent") for name, peak in peaks.items() if not peak]
    if track.mixture and not found and whole > 0:
        beside = 10 * np.log10(max(left, 1e-20) / whole)
        if beside > LEFT:
            text = f"mixture minus the sum of the stems is at {beside:.1f} dB of the mixture"
            found.append(Problem(track.name, "mixture", text))
    changes = np.diff(np.log(loudness + 1e-4)).astype(np.float32)
    return Looked(track, tuple(found), max(lengths.values()) / rate, changes, outline)


def differing(track: Track, kind: str, values: Mapping[str, int], unit: str) -> Iterator[Problem]:
    if len(set(values.values())) > 1:
        told = ", ".join(f"{name} {value:,}" for name, value in values.items())
        yield Problem(track.name, kind, f"stems differ: {told} {unit}")


def measured(
    streams: Mapping[str, Iterator[Block]], rate: int
) -> tuple[dict[str, int], dict[str, float], float, float, npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Frames and peaks of each stem, energies of what the mixture holds beside the stems and of it, loudness, outline.

    Loudness and outline are those of the sum of the stems.
    """
    lengths, peaks = dict.fromkeys(streams, 0), dict.fromkeys(streams, 0.0)
    left = whole = 0.0
    loudness: list[npt.NDArray[np.float64]] = []
    outline: list[npt.NDArray[np.float32]] = []
    size = round(FRAME * rate) // COARSE * COARSE
    step = BLOCK // size * size
    added = [name for name in streams if name != MIXTURE and (name not in SUMS or len(streams) <= 3)]
    cut = {name: reblock(blocks, step) for name, blocks in streams.items()}
    for blocks in itertools.zip_longest(*cut.values()):
        sums, mixture = np.zeros((step, 2)), np.zeros((step, 2))
        for name, block in zip(cut, blocks, strict=True):
            if block is None:
                continue
            lengths[name] += len(block)
            peaks[name] = max(peaks[name], float(np.abs(block).max(initial=0)))
            wide = fit_channels(block[:, :2], 2)
            if name == MIXTURE:
                mixture[: len(wide)] = wide
            elif name in added:
                sums[: len(wide)] += wide
        left += float(np.square(mixture - sums).sum())
        whole += float(np.square(mixture).sum())
        mono = sums.mean(axis=1)
        loudness.append(np.sqrt(np.square(mono).reshape(-1, size).mean(axis=1)))
        outline.append(mono.reshape(-1, COARSE).mean(axis=1).astype(np.float32))
    return lengths, peaks, left, whole, np.concatenate(loudness), np.concatenate(outline)


def duplicates(songs: Sequence[Looked]) -> Iterator[Problem]:
    """Songs that are there twice, first of all in training and in test: by name, or by how their loudness changes."""
    for one, other in itertools.combinations(songs, 2):
        a, b = one.track, other.track
        place = f" (one in {a.subset}, one in {b.subset})" if a.subset != b.subset else ""
        if a.name == b.name:
            yield Problem(a.name, "duplicate", f"{a.path} and {b.path} have one name{place}")
        elif alike(one, other):
            yield Problem(a.name, "duplicate", f"sounds like {b.name}{place}")


def alike(one: Looked, other: Looked) -> bool:
    """Whether two songs are one recording, wherever they begin and however loud they are."""
    return all(
        correlation(a, b) > least
        for (a, b), least in zip(((one.changes, other.changes), (one.outline, other.outline)), ALIKE, strict=True)
    )


def correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The largest correlation of two courses over all lags; 0 where their lengths are far apart."""
    if min(len(a), len(b)) < 20 or max(len(a), len(b)) > 1.5 * min(len(a), len(b)):
        return 0.0
    size = 1 << (len(a) + len(b)).bit_length()
    product = np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size))
    scale = float(np.sqrt(np.square(a, dtype=np.float64).sum() * np.square(b, dtype=np.float64).sum()))
    return float(np.abs(np.fft.irfft(product, size)).max()) / scale if scale > 0 else 0.0
