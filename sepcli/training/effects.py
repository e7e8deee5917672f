"""What a studio does to a sound: equaliser, compressor, saturation, reverb, echo, chorus, place. Sounds are (2, T).

All of it is numpy at 44.1 kHz, works on whole sounds, and gives the same bits for the same input.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sepcli.training.score import Rng, between, chance

Sound = npt.NDArray[np.float32]

RATE = 44100
QUIET = 1e-9
CONTROL = 64
"""Samples of one step of a compressor's gain."""


def good_size(length: int) -> int:
    """The smallest 2^a 3^b 5^c that is no shorter: such Fourier transforms are fast."""
    best = 1 << max(0, length - 1).bit_length()
    three = 1
    while three < best:
        five = three
        while five < best:
            size = five << max(0, -(-length // five) - 1).bit_length()
            best = min(best, size)
            five *= 5
        three *= 3
    return best


def filtered(sound: Sound, response: npt.NDArray[np.float32], size: int) -> Sound:
    """A sound (..., T) times a response (size // 2 + 1,) in frequency; `size` is at least T."""
    spectrum = np.fft.rfft(sound, size)
    spectrum *= response
    return np.fft.irfft(spectrum, size)[..., : sound.shape[-1]].astype(np.float32)


def equalise(
    sound: Sound,
    *,
    low: float = 0.0,
    high: float = 0.0,
    bells: Sequence[tuple[float, float, float]] = (),
    tilt: float = 0.0,
    steep: float = 4.0,
) -> Sound:
    """Cut below `low` and above `high` Hz (0: not), lift bells (Hz, dB, octaves), tilt by dB an octave around 1 kHz.

    `steep` is twice the order of the cuts. The phase is left alone.
    """
    size = good_size(sound.shape[-1] + 2048)
    hertz = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(RATE / size)
    hertz[0] = hertz[1] / 2
    octave = np.log2(hertz / 1000)
    decibels = tilt * np.clip(octave, -5, 4.5)
    for centre, gain, width in bells:
        decibels += gain * np.exp(-0.5 * np.square((octave - np.log2(centre / 1000)) / (0.5 * width)))
    response = 10 ** (decibels / 20)
    if low:
        response /= np.sqrt(1 + (low / np.maximum(hertz, low / 100)) ** steep)
    if high:
        response /= np.sqrt(1 + (hertz / high) ** steep)
    return filtered(sound, response.astype(np.float32), size)


def cut_above(sound: Sound, hertz: float) -> Sound:
    """Nothing above a frequency, as a recording at a lower rate has it: a slope of 300 Hz."""
    size = good_size(sound.shape[-1] + 2048)
    bins = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(RATE / size)
    return filtered(sound, np.clip((hertz - bins) / 300 + 1, 0, 1).astype(np.float32), size)


def followed(level: npt.NDArray[np.float32], attack: float, release: float) -> npt.NDArray[np.float32]:
    """A course (N,) in steps of CONTROL samples, which rises and falls with these times in seconds."""
    up, down = (float(np.exp(-CONTROL / (RATE * max(seconds, 1e-4)))) for seconds in (attack, release))
    held = 0.0
    out = []
    for value in level.tolist():
        keep = up if value > held else down
        held = keep * held + (1 - keep) * value
        out.append(held)
    return np.array(out, np.float32)


def loudest(sound: Sound) -> npt.NDArray[np.float32]:
    """The largest sample of each step of CONTROL, over the channels."""
    height = np.abs(sound).max(axis=0)
    height = np.pad(height, (0, -len(height) % CONTROL))
    course: npt.NDArray[np.float32] = height.reshape(-1, CONTROL).max(axis=1)
    return course


def smooth_gain(gain: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """A gain in steps of CONTROL as one for every sample (T,)."""
    places = np.arange(length, dtype=np.float32) / CONTROL - 0.5
    return np.interp(places, np.arange(len(gain)), gain).astype(np.float32)


def compression(sound: Sound, threshold: float, ratio: float, attack: float, release: float) -> npt.NDArray[np.float32]:
    """The gain (T,) of a compressor. `threshold` is in dB beside the sound's own loudness."""
    level = float(np.sqrt(np.mean(np.square(sound)))) + QUIET
    over = 20 * np.log10(loudest(sound) / level + 1e-6) - threshold - 6
    reduction = followed((np.maximum(over, 0) * (1 - 1 / ratio)).astype(np.float32), attack, release)
    return smooth_gain((10 ** (-reduction / 20)).astype(np.float32), sound.shape[-1])


def compress(sound: Sound, threshold: float, ratio: float, attack: float, release: float) -> Sound:
    return sound * compression(sound, threshold, ratio, attack, release)


def de_ess(sound: Sound, depth: float) -> Sound:
    """The band above 5 kHz pressed down where it is loud, by up to `depth` dB."""
    sharp = equalise(sound, low=5000, steep=8.0)
    height = followed(loudest(sharp), 0.001, 0.04)
    level = float(np.sqrt(np.mean(np.square(sharp)))) + QUIET
    press = np.clip(20 * np.log10(height / level + 1e-6) - 9, 0, depth)
    taken = smooth_gain((1 - 10 ** (-press / 20)).astype(np.float32), sound.shape[-1])
    return (sound - sharp * taken).astype(np.float32)


def saturate(sound: Sound, drive: float, bias: float = 0.0) -> Sound:
    """A soft bend; `drive` in dB above the sound's own peak level, `bias` makes even harmonics too."""
    peak = float(np.abs(sound).max()) + QUIET
    gain = np.float32(10 ** (drive / 20) / peak)
    bent = np.tanh(sound * gain + np.float32(bias)) - np.float32(np.tanh(bias))
    level = np.sqrt(np.mean(np.square(sound)) / (np.mean(np.square(bent)) + QUIET))
    return np.asarray(bent * np.float32(level), np.float32)


def crush(sound: Sound, step: int, bits: int) -> Sound:
    """An old sampler: every `step`-th value held, in `bits` bits."""
    peak = np.float32(np.abs(sound).max() + QUIET)
    held = np.repeat(sound[:, ::step], step, axis=1)[:, : sound.shape[1]]
    scale = np.float32(2 ** (bits - 1))
    return (np.round(held / peak * scale) / scale * peak).astype(np.float32)


def room(rng: Rng, seconds: float, bright: float, before: float) -> Sound:
    """The answer of a room (2, T) to a click: a few early reflections, then noise that decays, the high band sooner."""
    length = int(RATE * min(1.1 * seconds + before, 4.0)) + 1
    start = int(RATE * before)
    time = np.arange(length - start, dtype=np.float32) / RATE
    noise = rng.standard_normal((2, length - start), dtype=np.float32)
    dark = equalise(noise, high=bright, steep=2.0)
    tail = dark * np.exp(-6.9 * time / seconds) + 0.5 * (noise - dark) * np.exp(-6.9 * time / (0.35 * seconds))
    tail *= np.minimum(1, time / 0.01)
    answer = np.zeros((2, length), np.float32)
    answer[:, start:] = tail / np.sqrt(np.square(tail).sum(axis=1, keepdims=True) + QUIET)
    for _ in range(6):
        at = start + int(RATE * between(rng, 0.002, 0.05))
        if at < length:
            answer[int(rng.integers(2)), at] += np.float32(between(rng, -0.35, 0.35))
    return equalise(answer, low=between(rng, 100, 300), steep=2.0)


def reverb(sound: Sound, answer: Sound, wet: float) -> Sound:
    """A sound with its own echo in a room; `wet` is the room's share as an amplitude."""
    size = good_size(sound.shape[1] + answer.shape[1])
    spectrum = np.fft.rfft(sound.mean(axis=0) * np.float32(0.5) + sound * np.float32(0.5), size)
    spectrum *= np.fft.rfft(answer, size)
    tail = np.fft.irfft(spectrum, size)[:, : sound.shape[1]]
    return (sound + np.float32(wet) * tail).astype(np.float32)


def echo(sound: Sound, seconds: float, again: float, wet: float, rng: Rng) -> Sound:
    """Repeats after `seconds`, each `again` times the last, darker than the sound, some by turns left and right."""
    shift, across = max(1, int(seconds * RATE)), chance(rng, 0.5)
    source = equalise(sound, low=200, high=between(rng, 1500, 8000), steep=2.0)
    out = sound.copy()
    gain, count = wet, 1
    while gain > 0.003 and count * shift < sound.shape[1]:
        part = source[::-1] if across and count % 2 else source
        out[:, count * shift :] += np.float32(gain) * part[:, : sound.shape[1] - count * shift]
        gain, count = gain * again, count + 1
    return out


def chorus(sound: Sound, speed: float, depth: float, wet: float) -> Sound:
    """A second, wavering copy on each side: `speed` Hz, `depth` seconds."""
    time = np.arange(sound.shape[1], dtype=np.float32)
    out = sound.copy()
    for side in range(2):
        sway = np.sin(2 * np.pi * speed * time / RATE + side * np.pi / 2, dtype=np.float32)
        places = time - np.float32(RATE * (0.008 + depth)) - np.float32(RATE * depth) * sway
        whole = np.clip(places.astype(np.int32), 0, sound.shape[1] - 2)
        part = np.clip(places - whole, 0, 1)
        copy = sound[side][whole] * (1 - part) + sound[side][whole + 1] * part
        out[side] = (out[side] + np.float32(wet) * copy) / np.float32(1 + 0.5 * wet)
    return out


def sway(sound: Sound, speed: float, depth: float, across: bool) -> Sound:
    """Tremolo, or, `across`, from side to side."""
    time = np.arange(sound.shape[1], dtype=np.float32) / RATE
    wave = np.sin(2 * np.pi * speed * time, dtype=np.float32)
    left = 1 - depth * (0.5 + 0.5 * wave)
    right = 1 - depth * (0.5 - 0.5 * wave) if across else left
    return sound * np.stack([left, right]).astype(np.float32)


def duck(sound: Sound, times: Sequence[float], depth: float, seconds: float) -> Sound:
    """Pressed down at each of these times and let up again, as a compressor does that listens to the kick."""
    gain = np.ones(sound.shape[1], np.float32)
    dip = (1 - depth * np.square(1 - np.arange(int(seconds * RATE), dtype=np.float32) / (seconds * RATE))).astype(
        np.float32
    )
    for time in times:
        start = int(time * RATE)
        part = gain[start : start + len(dip)]
        np.minimum(part, dip[: len(part)], out=part)
    return sound * gain


def wide(sound: Sound, width: float) -> Sound:
    """The sides of a sound times `width`: 0 is mono."""
    middle, side = sound.mean(axis=0), (sound[0] - sound[1]) * np.float32(0.5 * width)
    return np.stack([middle + side, middle - side]).astype(np.float32)


def placed(sound: npt.NDArray[np.float32], pan: float) -> Sound:
    """One channel (T,), or two (2, T), between left (-1) and right (1), the power kept."""
    angle = (pan + 1) * np.pi / 4
    gains = np.array([[np.cos(angle)], [np.sin(angle)]], np.float32) * np.float32(np.sqrt(2) if sound.ndim == 2 else 1)
    return (sound * gains).astype(np.float32)


def rms(sound: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
