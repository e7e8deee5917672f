"""A folder of recorded one-shots, notes, loops and voices, as instruments.

`samples/CLASS/*`: kick, snare, hihat, tom, cymbal, perc, drumloop, bass, guitar, keys, other. `voices/singing/*`,
`voices/speech/*`. A missing class is made from nothing. Notes are told apart by their measured pitch, not their names.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sepcli.audio.paths import AUDIO_SUFFIXES
from sepcli.errors import UsageError
from sepcli.training.data import decoded
from sepcli.training.effects import RATE, Sound
from sepcli.training.instruments import KINDS, Mono, NoteMaker, envelope, made_kit, varied
from sepcli.training.score import Rng, between, chance, pick


@dataclass(frozen=True)
class Folder:
    """What a folder holds, by class; `left_out` are voices that must not be used."""

    classes: dict[str, tuple[Path, ...]]
    voices: tuple[Path, ...]

    def of(self, name: str) -> tuple[Path, ...]:
        return self.classes.get(name, ())


def look(folder: Path, left_out: frozenset[str]) -> Folder:
    """Raises UsageError where the folder has neither samples/ nor voices/."""
    classes: dict[str, tuple[Path, ...]] = {}
    if (folder / "samples").is_dir():
        for place in sorted((folder / "samples").iterdir()):
            if place.is_dir():
                classes[place.name] = sounds_in(place)
    voices = tuple(path for path in sounds_in(folder / "voices") if path.stem not in left_out)
    if not any(classes.values()) and not voices:
        what = f"--samples {folder}: holds neither samples/CLASS/ nor voices/ with recordings"
        raise UsageError(what, "classes are kick, snare, hihat, tom, cymbal, perc, drumloop, bass, guitar, keys, other")
    return Folder(classes, voices)


def sounds_in(place: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in place.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES))


@functools.lru_cache(maxsize=1024)
def sound_of(path: Path) -> Sound:
    """A recording (2, T) at 44.1 kHz, peak 1, silence before its begin cut. Raises AudioError."""
    sound = np.pad(decoded(path, RATE, 2), ((0, 1), (0, 0))).T
    height = np.abs(sound).max(axis=0)
    peak = float(height.max(initial=0)) or 1.0
    first = int(np.argmax(height > 0.01 * peak))
    return np.ascontiguousarray(sound[:, max(0, first - 64) :] / np.float32(peak))


@functools.lru_cache(maxsize=4096)
def pitch_of(path: Path) -> float | None:
    """The pitch of a recorded note in semitones, or None: by autocorrelation between 28 and 1,200 Hz."""
    sound = sound_of(path).mean(axis=0)
    start = min(int(0.08 * RATE), len(sound) // 4)
    piece = sound[start : start + int(0.35 * RATE)]
    if len(piece) < 0.1 * RATE:
        return None
    piece = piece - piece.mean()
    size = 1 << (2 * len(piece)).bit_length()
    power = np.square(np.abs(np.fft.rfft(piece, size)))
    course = np.fft.irfft(power)[: len(piece)]
    course /= course[0] + 1e-12
    course /= 1 - np.arange(len(course)) / (len(course) + 1)
    fallen = np.flatnonzero(course < 0.3)  # beyond the peak at no lag, which a low tone has wide
    low, high = max(int(RATE / 1200), int(fallen[0]) if len(fallen) else len(course)), min(int(RATE / 28), len(course))
    part = course[low:high]
    if len(part) < 3 or part.max() < 0.75:
        return None
    lag = low + int(np.flatnonzero(part > 0.93 * part.max())[0])
    while lag + 1 < high and course[lag + 1] > course[lag]:
        lag += 1
    return float(69 + 12 * np.log2(RATE / lag / 440))


def decay_of(sound: Sound) -> float:
    """Seconds until a sound stays 20 dB below its peak."""
    height = np.abs(sound).max(axis=0)
    return float(np.flatnonzero(height > 0.1 * height.max())[-1]) / RATE


def recorded_kit(folder: Folder, rng: Rng) -> dict[str, list[Sound]]:
    """A drum kit of recorded strokes, every second one of a single maker; what the folder lacks is made.

    Each stroke is played a little higher or lower.
    """
    kit: dict[str, list[Sound]] = {kind: list(takes) for kind, takes in made_kit(rng).items()}
    if chance(rng, 0.5):
        folder = of_one_maker(folder, rng)
    own = {"kick": "kick", "snare": "snare", "perc": "perc"}
    for kind, name in own.items():
        if folder.of(name):
            kit[kind] = takes_of(folder, name, rng)
    hats = [sound_of(path) for path in folder.of("hihat")]
    for kind, wanted in (
        ("hat", [h for h in hats if decay_of(h) < 0.18]),
        ("open", [h for h in hats if decay_of(h) >= 0.18]),
    ):
        if wanted:
            kit[kind] = [varied(pick(rng, wanted), between(rng, 0.9, 1.12))]
    if len(folder.of("tom")) > 2:
        kit["tom"] = [varied(pick(rng, [sound_of(p) for p in folder.of("tom")]), r) for r in (0.85, 1.0, 1.15)]
    cymbals = [sound_of(path) for path in folder.of("cymbal")]
    for kind in ("crash", "ride"):
        if cymbals:
            kit[kind] = [varied(pick(rng, cymbals), between(rng, 0.9, 1.1))]
    assert set(kit) == set(KINDS)
    return kit


def of_one_maker(folder: Folder, rng: Rng) -> Folder:
    """A folder without other makers' drums: a file's maker is what stands before the first underscore of its name."""
    makers = sorted({maker(path) for path in folder.of("kick")} & {maker(path) for path in folder.of("snare")})
    if not makers:
        return folder
    chosen = pick(rng, makers)
    own = {name: tuple(p for p in paths if maker(p) == chosen) or paths for name, paths in folder.classes.items()}
    return Folder(own, folder.voices)


def maker(path: Path) -> str:
    return path.stem.split("_")[0]


def takes_of(folder: Folder, name: str, rng: Rng) -> list[Sound]:
    """One stroke, or soft to hard takes of one instrument where file names differ in their last number only."""
    path = pick(rng, folder.of(name))
    stem = path.stem.rstrip("0123456789")
    takes = [p for p in folder.of(name) if p.stem.rstrip("0123456789") == stem] if stem != path.stem else [path]
    ratio = between(rng, 0.85, 1.18)
    takes = sorted(takes, key=lambda p: (len(p.stem), p.stem))
    return [varied(sound_of(p), ratio) for p in takes[:4]]


def recorded_notes(folder: Folder, name: str, rng: Rng) -> NoteMaker | None:
    """Notes of one recorded instrument of a class, moved from the nearest recorded pitch; None where there is none."""
    families: dict[str, list[Path]] = {}
    for path in folder.of(name):
        if pitch_of(path) is not None:
            families.setdefault(family(path), []).append(path)
    if not families:
        return None
    chosen = families[pick(rng, sorted(families))]
    release = between(rng, 0.05, 0.3)
    dull = chance(rng, 0.3)

    def make(pitch: float, seconds: float, velocity: float) -> Mono:
        path = min(chosen, key=lambda p: (abs((pitch_of(p) or 0) - pitch), p.name))
        step = pitch - (pitch_of(path) or 0)
        step -= 12 * round(step / 12) if abs(step) > 18 else 0
        sound = varied(sound_of(path).mean(axis=0), 2 ** (step / 12))
        sound = sound[: int(RATE * (seconds + release))]
        loud = velocity if not dull else 0.7 + 0.3 * velocity
        return sound * envelope(len(sound), seconds, 0.001, 60.0, 1.0, release) * np.float32(loud)

    return make


def family(path: Path) -> str:
    """The instrument that a file belongs to: its name up to the note, number or dynamics."""
    words = path.stem.split("_")
    return "_".join(words[:2]) if words[0] in ("pasta", "dbass", "bk") else words[0]


def loop(folder: Folder, name: str, bar: float, length: int, rng: Rng) -> Sound | None:
    """A recorded loop (2, length), played at the speed at which it fills a whole or half number of bars."""
    if not folder.of(name):
        return None
    sound = sound_of(pick(rng, folder.of(name)))
    seconds = sound.shape[1] / RATE
    bars = min((0.5, 1, 2, 4), key=lambda count: abs(np.log(seconds / (count * bar))))
    fitted = varied(sound, seconds / (bars * bar))[:, : round(bars * bar * RATE)]
    fitted[:, -200:] *= np.linspace(1, 0, min(200, fitted.shape[1]), dtype=np.float32)
    return np.tile(fitted, -(-length // fitted.shape[1]))[:, :length]
