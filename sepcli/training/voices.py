"""Recorded voices taken apart by a vocoder (WORLD, through pyworld, extra `train`): pitch, envelope, noise, syllables.

What was taken apart once is kept in the cache, so that songs render fast. A voice is kept in 60 mel-cepstral numbers a
frame of 5 ms; from them it can be sung at another pitch, in another time, by a larger or smaller throat.
"""

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sepcli.errors import AudioError, UsageError
from sepcli.training.data import decoded
from sepcli.training.effects import RATE, Sound
from sepcli.weights.catalog import cache_folder

FRAME = 0.005
"""Seconds between the frames of an analysis."""
FFT = 2048
"""WORLD's size at 44.1 kHz and its lowest pitch of 71 Hz."""
CEPSTRUM = 60
PITCHES = (71.0, 1100.0)
KEPT = ("top", "pitch", "envelope", "noise", "power", "sound")
VERSION = 1
"""Counts up when an analysis of the cache no longer fits."""


@dataclass(frozen=True)
class Voice:
    """One recording, taken apart. Frames F of 5 ms.

    pitch: (F,) Hz, 0 where there is none. envelope: (F, 60). noise: (F, 5), WORLD's coded aperiodicity. power: (F,)
    dB below the loudest frame. syllables: (N, 4) first frame, begin and end of the vowel, end; phrase: (N,) number of
    the phrase that each syllable belongs to. top: Hz above which the recording holds nothing. sound: (T,) samples.
    """

    name: str
    kind: str
    top: float
    pitch: Sound
    envelope: Sound
    noise: Sound
    power: Sound
    syllables: npt.NDArray[np.int32]
    phrase: npt.NDArray[np.int32]
    sound: Sound


def world() -> Any:
    """The vocoder. Raises UsageError where the package is missing."""
    try:
        import pyworld
    except ImportError:
        what = "recorded voices are sung through the package pyworld, which is not installed"
        raise UsageError(what, "pip install 'sepcli[train]', or leave out --samples") from None
    return pyworld


def voice(path: Path, kind: str) -> Voice:
    """A recording taken apart, from the cache where it is there. Raises AudioError, UsageError without pyworld."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = cache_folder() / "voices" / f"{digest[:32]}-{VERSION}.npz"
    try:
        with np.load(record, allow_pickle=False) as file_of_arrays:
            arrays = {name: file_of_arrays[name] for name in KEPT}
    except (OSError, ValueError, KeyError):
        arrays = take_apart(decoded(path, RATE, 1)[:, 0])
        keep(record, arrays, path)
    syllables, phrase = syllables_of(arrays["pitch"], arrays["power"])
    return Voice(path.stem, kind, syllables=syllables, phrase=phrase, **{**arrays, "top": float(arrays["top"])})


def keep(record: Path, arrays: dict[str, npt.NDArray[Any]], path: Path) -> None:
    """Write an analysis into the cache, whole or not at all. Raises AudioError."""
    aside = record.with_suffix(f".{os.getpid()}.part.npz")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        np.savez(aside, **arrays)  # type: ignore[arg-type]
        aside.replace(record)
    except OSError as error:
        what = f"{record.parent}: the analysis of {path} cannot be written ({error.strerror or error})"
        raise AudioError(what, "SEPCLI_CACHE names another place") from error
    finally:
        aside.unlink(missing_ok=True)


def take_apart(sound: Sound) -> dict[str, npt.NDArray[Any]]:
    """What the vocoder finds in a voice (T,) at 44.1 kHz, as arrays by the names of Voice."""
    pyworld = world()
    wide = sound.astype(np.float64)
    pitch, times = pyworld.harvest(wide, RATE, f0_floor=PITCHES[0], f0_ceil=PITCHES[1], frame_period=1000 * FRAME)
    pitch = pyworld.stonemask(wide, pitch, times, RATE)
    envelope = pyworld.cheaptrick(wide, pitch, times, RATE, fft_size=FFT)
    noise = pyworld.d4c(wide, pitch, times, RATE, fft_size=FFT)
    size = round(FRAME * RATE)
    padded = np.pad(np.square(wide), (size, 3 * size))
    sums = np.concatenate([[0.0], np.cumsum(padded)])
    first = np.minimum(np.round(times * RATE).astype(int), len(padded) - 2 * size - 1)
    power = 10 * np.log10((sums[first + 2 * size] - sums[first]) / (2 * size) + 1e-12)
    power -= power.max()
    pitch = np.where(power > -50, pitch, 0.0)
    return {
        "top": np.float64(top_of(wide)),
        "pitch": pitch.astype(np.float32),
        "envelope": pyworld.code_spectral_envelope(envelope, RATE, CEPSTRUM).astype(np.float32),
        "noise": pyworld.code_aperiodicity(noise, RATE).astype(np.float32),
        "power": power.astype(np.float32),
        "sound": sound.astype(np.float32),
    }


def top_of(sound: npt.NDArray[np.float64]) -> float:
    """Where a recording ends in Hz: 8 kHz for one that was sampled at 16, else the Nyquist frequency."""
    size = 2048
    frames = sound[: len(sound) // size * size].reshape(-1, size) * np.hanning(size)
    spectrum = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0) if len(frames) else np.ones(size // 2 + 1)
    bins = np.arange(len(spectrum)) * RATE / size
    below = spectrum[(bins > 6500) & (bins < 7500)].mean()
    above = spectrum[(bins > 8700) & (bins < 11000)].mean()
    return 7800.0 if above < 1e-4 * below else RATE / 2


def syllables_of(pitch: npt.NDArray[Any], power: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Syllables (N, 4) and the phrase of each (N,): vowels are voiced, and end where power dips or pitch jumps.

    The consonant before a vowel belongs to it as far as it can be heard, at most 150 ms; what follows up to the next
    one too, at most 150 ms. A phrase ends where 250 ms are silent.
    """
    voiced = pitch > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(int), [0]])))
    runs: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if runs and begin - runs[-1][1] < 4:
            runs[-1] = (runs[-1][0], int(end))
        else:
            runs.append((int(begin), int(end)))
    smooth = np.convolve(power, np.hanning(9) / np.hanning(9).sum(), "same")
    cuts = cuts_of(pitch, smooth)
    vowels = [part for run in runs if run[1] - run[0] >= 8 for part in parted(run, cuts)]
    vowels = [(a, b) for a, b in vowels if b - a >= 10 and smooth[a:b].max() > -32]
    rows: list[list[int]] = []
    phrases: list[int] = []
    number = 0
    for index, (begin, end) in enumerate(vowels):
        before = vowels[index - 1][1] if index else 0
        after = vowels[index + 1][0] if index + 1 < len(vowels) else len(power)
        if index and begin - before > 50:
            number += 1
        first, last = begin, end
        while first > max(before, begin - 30) and power[first - 1] > -45:
            first -= 1
        while last < min(after, end + 30) and power[last] > -45:
            last += 1
        if rows and first < rows[-1][3]:
            rows[-1][3] = max(rows[-1][2], first)
        rows.append([first, begin, end, last])
        phrases.append(number)
    return np.array(rows, np.int32).reshape(-1, 4), np.array(phrases, np.int32)


def cuts_of(pitch: npt.NDArray[Any], power: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Frames (F,) at which a vowel may end: dips of 4 dB between louder places, and where the pitch moves to a note."""
    windows = np.lib.stride_tricks.sliding_window_view
    wide = np.pad(power, 30, mode="edge")
    left, right = windows(wide, 30)[: len(power)].max(axis=1), windows(wide, 30)[31:].max(axis=1)
    dip = (power <= windows(np.pad(power, 2, mode="edge"), 5).min(axis=1)) & (np.minimum(left, right) - power > 4)
    note = 12 * np.log2(np.maximum(pitch, 1.0))
    sums = np.cumsum(np.pad(note, (16, 15), mode="edge"))
    before, after = sums[15:-16] - np.pad(sums, (1, 0))[:-32][: len(note)], sums[31:] - sums[15:-16]
    step = np.abs(after - before) / 16
    moved = (step > 1.0) & (step >= windows(np.pad(step, 8, mode="edge"), 17).max(axis=1))
    found: npt.NDArray[np.bool_] = dip | moved
    return found


def parted(run: tuple[int, int], cuts: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """A voiced stretch cut at these frames, no part shorter than 80 ms."""
    points = [run[0]]
    for frame in np.flatnonzero(cuts[run[0] : run[1]]) + run[0]:
        if frame - points[-1] >= 16 and run[1] - frame >= 16:
            points.append(int(frame))
    points.append(run[1])
    return list(itertools.pairwise(points))


def kind_of(path: Path) -> str:
    """What a recording is, from its folder: `singing` or `speech`."""
    return "speech" if path.parent.name == "speech" else "singing"
