"""Realistic remixes: stems of different songs in one tempo and key, on one beat (Hybrid Demucs' extra training data).

Beats are heard in the drums alone, keys in the bass alone, as in the paper; reference/demucs.md 6.3 has the numbers.
"""

import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sepcli.audio.blocks import BLOCK, Block
from sepcli.audio.write import Format, write_set
from sepcli.errors import UsageError
from sepcli.training.augment import stretched
from sepcli.training.data import Material, mixture_between, prepare
from sepcli.training.tracks import STEM_STREAMS, find_tracks, rows_of

SOURCES = STEM_STREAMS[1:]
RATE = 44100
SEMITONES = 3
TEMPO = 0.15
"""What a stem may be changed by, up and down: whole semitones, and the ratio of tempos less one."""
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""A beat may count as so many."""
QUIET = 0.01
"""Of the mixture's deviation: what a song begins with, and where drums or bass are not heard."""
LOUD = 0.05
"""Of the bass' loudest stretch: where it has a pitch."""
CELL = 0.005
"""Seconds of the grid on which beats are laid over each other."""
REACH = 4.0
"""Seconds by which a stem may be moved."""
UNMATCHED = 2
"""Copies of a song whose drums or bass cannot be heard."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """A song from its first sound on, at frame `start`: its tempo, when its beats are (seconds), which notes it has.

    `notes`: how often each of the twelve is the strongest in the bass. Without beats it can only be copied.
    """

    song: Material
    start: int
    tempo: float = 0.0
    beats: tuple[float, ...] = ()
    notes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The song that a stem comes from, and how it is changed: semitones up, times the tempo, seconds later."""

    song: str
    semitones: int = 0
    tempo: float = 1.0
    delay: float = 0.0


def remix(
    folders: Sequence[Path],
    out: Path,
    *,
    mixes: int = 6,
    seed: int = 0,
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
    notice: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write `mixes` remixes of each song, as folders of stems in `out`; those that are there already stay.

    Songs in a folder `test` are left out. Raises UsageError without librosa, or where no two songs can be heard.
    """
    try:
        import librosa  # noqa: F401
    except ImportError:
        raise UsageError("remixes need librosa", "pip install 'sepcli[train]'") from None
    tracks = [track for track in find_tracks(folders, ()) if not track.single and track.subset != "test"]
    if twice := [a.path for a, b in itertools.pairwise(tracks) if a.name == b.name]:
        raise UsageError(f"{twice[0]}: another song has this name too", "a remix is named after its song; rename one")
    sources = [source for source in SOURCES if any(source in track.stems for track in tracks)]
    songs = prepare(tracks, sources, rows_of(sources, tracks), sample_rate=RATE, channels=2, absent="silence")
    heard = []
    for index, song in enumerate(songs):
        heard.append(listen(song))
        progress(index + 1, None)
    matched = [each for each in heard if each.beats]
    if len(matched) < 2:
        what = f"{len(matched)} of {len(songs)} songs have drums and bass that beats and notes are heard in"
        raise UsageError(f"{what}; a remix needs two")
    if alone := [each.song.name for each in heard if not each.beats]:
        notice(f"copied as they are, without drums or bass to match them by: {', '.join(alone)}")
    by_name = {each.song.name: each for each in heard}
    planned = [(each, number) for each in heard for number in range(1, (mixes if each.beats else UNMATCHED) + 1)]
    written = []
    for index, (each, number) in enumerate(planned):
        draw = random.Random(f"{seed} remix {each.song.name} {number}")
        choices = choose(each, matched, sources, draw) if each.beats else dict.fromkeys(sources, Choice(each.song.name))
        folder = out / f"{each.song.name} {number}"
        if not same(folder, choices):
            write(folder, choices, by_name)
        written.append(folder)
        progress(index + 1, len(planned))
    return written


# Listening


def listen(song: Material) -> Heard:
    """Where a song begins, its beats and its notes."""
    from librosa.beat import beat_track

    whole = mixture_between(song, 0, song.frames).mean(axis=1)
    least = QUIET * whole.std()
    start = int(np.argmax(np.abs(whole) >= least))
    drums, bass = (mono(song, source, start) for source in ("drums", "bass"))
    bass = bass[loudness(bass) >= LOUD * loudness(bass).max(initial=0)]
    if min(drums.std(), bass.std() if len(bass) >= RATE else 0.0) <= least:
        return Heard(song, start)
    beats = beat_track(y=drums, sr=RATE, units="time")[1]
    if len(beats) < 2:
        return Heard(song, start)
    period = np.polyfit(np.arange(len(beats)), beats, 1)[0]  # the tempo that comes with them is coarse: it drifts
    return Heard(song, start, 60 / float(period), tuple(map(float, beats)), notes(bass))


def mono(song: Material, source: str, start: int) -> Array:
    found = song.read(source, start, song.frames)
    return np.zeros(song.frames - start, np.float32) if found is None else found.mean(axis=1)


def loudness(wave: Array, window: int = 10_001) -> Array:
    """The root of the mean square around each sample."""
    half = window // 2
    sums = np.cumsum(np.pad(np.square(wave, dtype=np.float64), (half + 1, half)))
    return np.asarray(np.sqrt(np.maximum(sums[window:] - sums[:-window], 0) / window), np.float32)


def notes(bass: Array) -> tuple[float, ...]:
    """How often each of the twelve notes is the strongest; they sum to 1."""
    from librosa.feature import chroma_cqt

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a pure tone's tuning cannot be told
        strongest = chroma_cqt(y=bass, sr=RATE).argmax(axis=0)
    return tuple(np.bincount(strongest, minlength=12) / len(strongest))


# Choosing


def choose(reference: Heard, heard: Sequence[Heard], sources: Sequence[str], draw: random.Random) -> dict[str, Choice]:
    """One stem of the reference, drawn; each other one of the first song in random order that fits.

    Only where no other song fits, it is the reference's own.
    """
    first = draw.choice([source for source in sources if has(reference, source)])
    chosen: dict[str, Choice] = {}
    for source in sources:
        having = [song for song in heard if song is not reference and has(song, source)]
        draw.shuffle(having)
        chosen[source] = Choice(reference.song.name)
        if source != first:
            fitting = (fit for song in having if (fit := matching(reference, song)))
            chosen[source] = next(fitting, chosen[source])
    return chosen


def has(heard: Heard, source: str) -> bool:
    return any(stem.peak for stem in heard.song.rows.get(source, ()))


def matching(reference: Heard, other: Heard) -> Choice | None:
    """How a song is brought to another's key, tempo and beats; None where that takes too much."""
    ratios = [reference.tempo / (other.tempo * multiple) for multiple in MULTIPLES]
    ratio = next((ratio for ratio in ratios if abs(ratio - 1) < TEMPO), None)
    semitones = transposition(reference.notes, other.notes)
    if ratio is None or abs(semitones) > SEMITONES:
        return None
    delay = lag(reference, other, ratio)
    return Choice(other.song.name, semitones, ratio, delay)


def transposition(reference: Sequence[float], other: Sequence[float]) -> int:
    """Semitones up, -5 to 6, that bring the notes of one song nearest to another's."""
    distances = [float(np.abs(np.subtract(reference, np.roll(other, up))).sum()) for up in range(12)]
    best = int(np.argmin(distances))
    return best if best <= 6 else best - 12


def lag(reference: Heard, other: Heard, ratio: float) -> float:
    """Seconds by which the other song, at `ratio` times its tempo, begins later so that the beats fall together."""
    ours = grid(reference.beats, (reference.song.frames - reference.start) / RATE)
    theirs = grid([beat / ratio for beat in other.beats], (other.song.frames - other.start) / RATE / ratio)
    size = 1 << (len(ours) + len(theirs)).bit_length()
    product = np.fft.irfft(np.fft.rfft(ours, size) * np.conj(np.fft.rfft(theirs, size)), size)
    cells = np.arange(-round(REACH / CELL), round(REACH / CELL) + 1)
    return float(cells[np.argmax(product[cells])] * CELL)


def grid(beats: Sequence[float], seconds: float) -> npt.NDArray[np.float64]:
    """A bump of two cells' deviation at each beat that is not in the first or last second."""
    cells = np.zeros(int(seconds / CELL) + 1)
    around = np.arange(-5, 6)
    for beat in beats:
        if 1 <= beat < seconds - 1:
            cells[int(beat / CELL) + around] += np.exp(-np.square(around) / 8)
    return cells


# Writing


def same(folder: Path, choices: Mapping[str, Choice]) -> bool:
    """Whether a folder holds this remix, whole: remix.json arrives last."""
    try:
        found = json.loads((folder / "remix.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == as_plain(choices))


def as_plain(choices: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    return {source: asdict(choice) for source, choice in choices.items()}


def write(folder: Path, choices: Mapping[str, Choice], heard: Mapping[str, Heard]) -> None:
    """Write the stems of a remix, and remix.json, which says what each was made of. Raises AudioError."""
    first = min(choice.delay for choice in choices.values())
    stems = {}
    for source, choice in choices.items():
        song = heard[choice.song]
        part = song.song.read(source, song.start, song.song.frames)
        wave = np.zeros((song.song.frames - song.start, 2), np.float32) if part is None else part
        if choice.semitones or choice.tempo != 1:
            changed = stretched(torch.from_numpy(wave.T), RATE, 2 ** (choice.semitones / 12), choice.tempo)
            wave = changed.numpy().T
        stems[source] = np.pad(wave, ((round((choice.delay - first) * RATE), 0), (0, 0)))
    frames = min(len(wave) for wave in stems.values())
    peak = max(float(np.abs(sum(wave[:frames] for wave in stems.values())).max()), 0.0)
    scale = np.float32(1 / max(1.0, 1.01 * peak))

    def blocks() -> Iterator[dict[str, Block]]:
        for start in range(0, frames, BLOCK):
            yield {source: wave[start : min(start + BLOCK, frames)] * scale for source, wave in stems.items()}

    facts = json.dumps(as_plain(choices), indent=1, ensure_ascii=False).encode()
    write_set(
        blocks(),
        {source: folder / f"{source}.wav" for source in choices},
        format=Format(),
        sample_rate=RATE,
        channels=2,
        sidecar=lambda _: (folder / "remix.json", facts),
    )
