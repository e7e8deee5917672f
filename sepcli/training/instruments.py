"""Drums, basses, keys, strings and leads from nothing: one note or stroke at a time, from a patch drawn at random."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sepcli.training.effects import RATE, Sound, equalise
from sepcli.training.score import Hit, Note, Rng, between, chance, pick

Mono = npt.NDArray[np.float32]
"""(T,)"""
NoteMaker = Callable[[float, float, float], Mono]
"""Pitch in semitones, seconds, velocity: a note (T,), its release included."""

TABLE = 4096
KINDS = ("kick", "snare", "hat", "open", "tom", "crash", "ride", "perc")


def hertz(pitch: float) -> float:
    return float(440 * 2 ** ((pitch - 69) / 12))


def envelope(length: int, seconds: float, attack: float, decay: float, sustain: float, release: float) -> Mono:
    """The course of a note's loudness (length,): up, down to `sustain`, held until `seconds`, then away."""
    time = np.arange(length, dtype=np.float32) / RATE
    body = sustain + (1 - sustain) * np.exp(-np.maximum(time - attack, 0) / max(decay, 1e-3))
    after = np.exp(-np.maximum(time - seconds, 0) / (max(release, 5e-3) / 4))
    return (np.minimum(time / max(attack, 1e-3), 1) * body * after).astype(np.float32)


@dataclass(frozen=True)
class Patch:
    """A waveform synthesiser: three tables from dark to bright that the note moves through, in several detuned voices.

    Harmonic k has 1 / k^slope; `even` scales the even ones; `bright` and `dark` are where the tables end, in octaves
    above the note's pitch. Times in seconds, `detune` in cents.
    """

    slope: float
    even: float
    colour: tuple[float, ...]
    bright: float
    dark: float
    sweep: float
    attack: float
    decay: float
    sustain: float
    release: float
    unison: int
    detune: float
    vibrato: float
    noise: float
    seed: int


def wave_patch(rng: Rng, role: str) -> Patch:
    """A patch for a `bass`, `pad`, `keys` or `lead`."""
    plucked = role == "keys" or (role != "pad" and chance(rng, 0.4))
    return Patch(
        slope=between(rng, 0.6, 1.6) if role != "bass" else between(rng, 0.8, 2.4),
        even=pick(rng, (1.0, 1.0, 0.1)),
        colour=tuple(float(value) for value in np.exp(0.5 * rng.standard_normal(12))),
        bright=between(rng, 2.5, 6.5),
        dark=between(rng, 1.0, 3.5),
        sweep=between(rng, 0.05, 0.8),
        attack=between(rng, 0.1, 0.7) if role == "pad" else between(rng, 0.001, 0.03),
        decay=between(rng, 0.15, 0.9) if plucked else between(rng, 0.5, 3.0),
        sustain=between(rng, 0.0, 0.2) if plucked else between(rng, 0.5, 1.0),
        release=between(rng, 0.2, 0.8) if role == "pad" else between(rng, 0.03, 0.25),
        unison={"bass": 1, "keys": 1, "lead": pick(rng, (1, 1, 2, 3)), "pad": pick(rng, (2, 3, 5))}[role],
        detune=between(rng, 4, 22),
        vibrato=between(rng, 0.0, 0.35) if role == "lead" else 0.0,
        noise=pick(rng, (0.0, 0.0, 0.02, 0.06)) if role in ("lead", "pad") else 0.0,
        seed=int(rng.integers(1 << 31)),
    )


def tables(patch: Patch, pitch: float) -> list[Mono]:
    """Three periods (TABLE,) from dark to bright, nothing above 18 kHz."""
    count = max(1, min(TABLE // 4, int(18000 / hertz(pitch))))
    k = np.arange(1, count + 1)
    colour = np.ones(count)
    colour[: len(patch.colour)] = patch.colour[:count]
    amplitude = k**-patch.slope * colour * np.where(k % 2 == 0, patch.even, 1.0)
    phases = np.random.default_rng(patch.seed).uniform(0, 2 * np.pi, count)
    out = []
    for octaves in (patch.dark, 0.5 * (patch.dark + patch.bright), patch.bright):
        soft = 1 / np.sqrt(1 + (k / 2**octaves) ** 6)
        spectrum = np.zeros(TABLE // 2 + 1, complex)
        spectrum[1 : count + 1] = amplitude * soft * np.exp(1j * phases)
        wave = np.fft.irfft(spectrum, TABLE)
        out.append((wave / (np.sqrt(np.mean(np.square(wave))) + 1e-9)).astype(np.float32))
    return out


def wave_notes(patch: Patch) -> NoteMaker:
    def make(pitch: float, seconds: float, velocity: float) -> Mono:
        length = int(RATE * (seconds + patch.release))
        time = np.arange(length, dtype=np.float64) / RATE
        draw = np.random.default_rng([patch.seed, round(100 * pitch)])
        loud = envelope(length, seconds, patch.attack, patch.decay, patch.sustain, patch.release)
        place = 2 * np.exp(-time / patch.sweep) * (0.4 + 0.6 * velocity)
        shares = [np.clip(1 - np.abs(place - index), 0, 1).astype(np.float32) for index in range(3)]
        waves = tables(patch, pitch)
        out = np.zeros(length, np.float32)
        for number in range(patch.unison):
            cents = patch.detune * (2 * number / max(1, patch.unison - 1) - 1) if patch.unison > 1 else 0.0
            turns = hertz(pitch + cents / 100) * time + draw.random()
            if patch.vibrato:
                turns += patch.vibrato * np.minimum(time / 0.5, 1) * np.sin(2 * np.pi * 5.3 * time)
            index = (turns * TABLE).astype(np.int64) & (TABLE - 1)
            for share, wave in zip(shares, waves, strict=True):
                out += share * wave[index]
        out /= np.float32(np.sqrt(patch.unison))
        if patch.noise:
            out += np.float32(patch.noise) * draw.standard_normal(length, dtype=np.float32)
        return out * loud * np.float32(velocity)

    return make


def fm_notes(rng: Rng) -> NoteMaker:
    """Electric pianos, bells, glassy basses: one sine bends the phase of another."""
    ratio, index = pick(rng, (1.0, 1.0, 2.0, 3.0, 3.5, 7.0, 14.0)), between(rng, 0.5, 4.0)
    quick, decay, release = between(rng, 0.1, 0.8), between(rng, 0.5, 2.5), between(rng, 0.05, 0.4)

    def make(pitch: float, seconds: float, velocity: float) -> Mono:
        length = int(RATE * (seconds + release))
        time = np.arange(length, dtype=np.float64) / RATE
        turn = 2 * np.pi * hertz(pitch) * time
        depth = index * velocity * np.exp(-time / quick) * (1.0 if ratio < 5 else 0.3)
        wave = np.sin(turn + depth * np.sin(ratio * turn)).astype(np.float32)
        return wave * envelope(length, seconds, 0.002, decay, 0.0, release) * np.float32(velocity)

    return make


def string_notes(rng: Rng, muted: float = 0.0) -> NoteMaker:
    """Plucked strings (Karplus and Strong, 1983): a burst of noise runs around a loop that takes its highs away."""
    seed = int(rng.integers(1 << 31))
    damping, place, sharp = between(rng, 0.2, 0.5), between(rng, 0.1, 0.4), between(rng, 1500, 9000)
    release = between(rng, 0.05, 0.3)

    def make(pitch: float, seconds: float, velocity: float) -> Mono:
        frequency = hertz(pitch)
        period = max(2, round(RATE / frequency))
        length = int(RATE * (seconds + release))
        draw = np.random.default_rng([seed, round(10 * pitch)])
        burst = equalise(draw.standard_normal(period, dtype=np.float32), high=sharp * (0.4 + 0.6 * velocity), steep=2.0)
        burst -= np.roll(burst, max(1, int(place * period)))
        keep = np.float32(10 ** (-3 / (frequency * (2.5 - 2.2 * muted) * (110 / frequency) ** 0.3)))
        rows = -(-int(length * 1.02) // period) + 2
        loop = np.empty((rows, period), np.float32)
        loop[0] = burst / (np.abs(burst).max() + 1e-9)
        for row in range(1, rows):
            last = loop[row - 1]
            loop[row] = keep * ((1 - damping) * last + damping * np.roll(last, 1))
        exact = RATE / frequency / period  # the loop is a whole number of samples, the string is not
        places = np.arange(length, dtype=np.float64) / exact
        sound = np.interp(places, np.arange(loop.size), loop.reshape(-1)).astype(np.float32)
        return sound * envelope(length, seconds, 0.001, 60.0, 1.0, release) * np.float32(velocity)

    return make


def perform(notes: Sequence[Note], make: NoteMaker, length: int) -> Mono:
    """Notes played one over another (length,). Equal notes are made once."""
    out = np.zeros(length, np.float32)
    made: dict[tuple[float, float, float], Mono] = {}
    for note in notes:
        velocity = round(note.velocity * 4) / 4 or 0.25
        key = (note.pitch, round(note.length, 2), velocity)
        if key not in made:
            made[key] = make(note.pitch, max(0.03, key[1]), velocity)
        start = int(note.start * RATE)
        part = made[key][: max(0, length - start)]
        out[start : start + len(part)] += part
    return out


# Drums


def burst(rng: Rng, seconds: float, low: float, high: float, decay: float) -> Mono:
    """Noise between two frequencies that dies away."""
    time = np.arange(int(RATE * seconds), dtype=np.float32) / RATE
    noise = equalise(rng.standard_normal(len(time), dtype=np.float32), low=low, high=high)
    return np.asarray(noise / (np.sqrt(np.mean(np.square(noise))) + 1e-9) * np.exp(-time / decay), np.float32)


def ringing(rng: Rng, seconds: float, base: float, decay: float, count: int = 6) -> Mono:
    """Metal: square waves at frequencies that are no multiples of each other."""
    time = np.arange(int(RATE * seconds), dtype=np.float32) / RATE
    tones = base * np.cumprod(rng.uniform(1.1, 1.6, count))
    wave = sum(np.sign(np.sin(2 * np.pi * tone * time + rng.random())) for tone in tones)
    return (equalise(np.asarray(wave, np.float32), low=base) / count * np.exp(-time / decay)).astype(np.float32)


def swept(seconds: float, begin: float, end: float, fall: float, decay: float) -> Mono:
    """A sine that falls from one frequency to another."""
    time = np.arange(int(RATE * seconds), dtype=np.float64) / RATE
    turns = end * time + (begin - end) * fall * (1 - np.exp(-time / fall))
    fade = np.minimum(1, (seconds - time) / 0.01)
    return (np.sin(2 * np.pi * turns) * np.exp(-time / decay) * fade).astype(np.float32)


def peaked(sound: Mono) -> Mono:
    """A sound brought to a peak of 1."""
    return np.asarray(sound / (np.abs(sound).max() + 1e-9), np.float32)


def kick(rng: Rng) -> Mono:
    low = between(rng, 38, 72)
    decay = between(rng, 0.06, 0.4)
    sound = swept(min(1.2, 5 * decay), between(rng, 150, 600), low, between(rng, 0.01, 0.05), decay)
    click = burst(rng, 0.02, 1000, between(rng, 3000, 12000), 0.004)
    sound[: len(click)] += np.float32(between(rng, 0.02, 0.35)) * click
    return np.asarray(np.tanh(between(rng, 1, 5) * sound), np.float32)


def snare(rng: Rng) -> Mono:
    if chance(rng, 0.25):  # hands
        sound = np.zeros(int(0.5 * RATE), np.float32)
        low = between(rng, 700, 1200)
        for index in range(int(rng.integers(2, 5))):
            tail = burst(rng, 0.3, low, 7000, 0.008 if index else between(rng, 0.05, 0.15))
            start = int(RATE * between(rng, 0.0, 0.03))
            sound[start : start + len(tail)] += tail
        return peaked(sound)
    decay = between(rng, 0.05, 0.22)
    sound = burst(rng, 6 * decay, between(rng, 200, 1500), between(rng, 6000, 16000), decay)
    tone = swept(0.3, between(rng, 220, 420), between(rng, 150, 240), 0.02, between(rng, 0.03, 0.12))[: len(sound)]
    sound[: len(tone)] += np.float32(between(rng, 0.5, 3.0)) * tone
    return peaked(sound)


def stroke(rng: Rng, kind: str) -> Mono:
    """One stroke of a kind of drum, drawn anew."""
    if kind == "kick":
        return kick(rng)
    if kind == "snare":
        return snare(rng)
    if kind == "tom":
        base = between(rng, 70, 220)
        return swept(0.7, 1.6 * base, base, 0.04, between(rng, 0.1, 0.3)) + 0.1 * burst(rng, 0.7, 300, 6000, 0.03)
    if kind == "perc":
        if chance(rng, 0.5):
            return burst(rng, 0.15, between(rng, 2000, 6000), 15000, between(rng, 0.01, 0.04))
        return swept(0.2, between(rng, 400, 1800), between(rng, 300, 1500), 0.01, between(rng, 0.02, 0.08))
    seconds, decay = {
        "hat": (0.15, between(rng, 0.01, 0.05)), "open": (0.8, between(rng, 0.1, 0.3)),
        "crash": (2.5, between(rng, 0.5, 1.1)), "ride": (1.2, between(rng, 0.2, 0.5)),
    }[kind]  # fmt: skip
    low = between(rng, 3000, 8000) if kind != "ride" else between(rng, 2000, 5000)
    metal = ringing(rng, seconds, low / 2, decay)
    noise = burst(rng, seconds, low, between(rng, 12000, 20000), decay)
    share = between(rng, 0.2, 0.8)
    return np.float32(share) * peaked(metal) + np.float32(1 - share) * peaked(noise)


def made_kit(rng: Rng) -> dict[str, list[Sound]]:
    """A drum kit from nothing: strokes (T,) of each kind, toms from low to high."""
    kit: dict[str, list[Sound]] = {kind: [stroke(rng, kind)] for kind in KINDS}
    kit["tom"] = [varied(kit["tom"][0], ratio) for ratio in (0.75, 1.0, 1.3)]
    return kit


def varied(sound: Mono, ratio: float) -> Mono:
    """A sound (..., T) played faster or slower by a ratio."""
    length = sound.shape[-1]
    places = np.arange(0, length - 1, ratio)
    if sound.ndim == 1:
        return np.interp(places, np.arange(length), sound).astype(np.float32)
    return np.stack([np.interp(places, np.arange(length), row) for row in sound]).astype(np.float32)


def choose(kit: dict[str, list[Sound]], hit: Hit) -> Sound:
    """The recording of a stroke: toms by their tone, the others by how hard they are struck."""
    takes = kit[hit.kind]
    place = hit.tone if hit.kind == "tom" else hit.velocity
    return takes[min(len(takes) - 1, int(place * len(takes)))]
