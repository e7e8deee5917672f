"""Voices that sing a melody: from nothing (formants), or a recording's syllables at the pitches of the melody."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sepcli.training.effects import RATE
from sepcli.training.instruments import TABLE, Mono, hertz
from sepcli.training.score import Note, Rng, Score, between, chance, pick
from sepcli.training.voices import FFT, FRAME, Voice, world

VOWELS = {
    "a": (730, 1090, 2440, 3400), "e": (530, 1840, 2480, 3500), "i": (270, 2290, 3010, 3600),
    "o": (570, 840, 2410, 3300), "u": (300, 870, 2240, 3200), "ae": (660, 1720, 2410, 3500),
    "er": (490, 1350, 1690, 3300), "oe": (390, 1450, 2300, 3300), "ah": (640, 1190, 2390, 3400),
}  # fmt: skip
"""Formants in Hz of a man's vowels (after Peterson and Barney, 1952)."""
HUMS = {
    "m": (250, 1000, 2200, 3000), "n": (280, 1450, 2300, 3100), "l": (380, 1150, 2700, 3300),
    "w": (300, 700, 2200, 3200), "y": (280, 2200, 2900, 3500),
}  # fmt: skip
HISSES = {
    "s": (6500, 2500, 1.0), "sh": (3600, 1800, 1.0), "f": (6000, 6000, 0.3), "h": (1800, 2500, 0.35),
    "t": (5000, 3000, 0.9), "k": (2200, 1500, 0.8), "p": (1200, 2000, 0.5),
}  # fmt: skip
"""Centre and width of a consonant's noise in Hz, and its strength."""
STOPS = ("t", "k", "p")
HOP = 256


@dataclass(frozen=True)
class Manner:
    """How a melody is sung: vibrato (Hz, semitones, delay in s), glide between notes (s), drift and jitter (semitones).

    `tuned` 0 to 1: how far a recording's own pitch gives way to the melody's. `loose`: seconds by which notes are late
    or early.
    """

    vibrato: tuple[float, float, float]
    glide: float
    drift: float
    jitter: float
    tuned: float = 1.0
    loose: float = 0.0


def manner(rng: Rng) -> Manner:
    depth = pick(rng, (0.0, between(rng, 0.1, 0.4), between(rng, 0.2, 0.9)))
    vibrato = (between(rng, 4.5, 6.8), depth, between(rng, 0.1, 0.5))
    robot = chance(rng, 0.12)
    return Manner(
        vibrato,
        0.0 if robot else between(rng, 0.02, 0.12),
        0.0 if robot else between(rng, 0.02, 0.2),
        0.0 if robot else between(rng, 0.005, 0.06),
        loose=between(rng, 0.0, 0.02),
    )


def smoothed(track: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """A moving mean over `width` frames along the first axis, the ends held."""
    if width < 2:
        return track
    edges = [(width // 2, width - 1 - width // 2)] + [(0, 0)] * (track.ndim - 1)
    sums = np.cumsum(np.pad(track, edges, mode="edge"), axis=0)
    sums = np.concatenate([np.zeros((1, *track.shape[1:])), sums])
    return (sums[width:] - sums[:-width]) / width


def pitch_track(notes: Sequence[Note], how: Manner, frames: int, step: float, rng: Rng) -> npt.NDArray[np.float64]:
    """The pitch (frames,) in semitones of a sung line, `step` seconds a frame; held where nothing is sung."""
    track = np.full(frames, notes[0].pitch)
    age = np.zeros(frames)
    for note in notes:
        first = max(0, int(note.start / step))
        track[first:] = note.pitch
        age[first:] = np.arange(len(age[first:])) * step
    track = smoothed(track, int(how.glide / step))
    speed, depth, delay = how.vibrato
    time = np.arange(frames) * step
    sway = smoothed(rng.standard_normal(frames), int(0.15 / step)) * np.sqrt(0.15 / step)
    track += (
        depth * np.clip((age - delay) / 0.25, 0, 1) * np.sin(2 * np.pi * speed * time + 0.6 * np.cumsum(sway) * step)
    )
    track += how.drift * smoothed(sway, int(0.3 / step)) * 1.5 + how.jitter * rng.standard_normal(frames)
    return track


# From nothing


@dataclass(frozen=True)
class Throat:
    """A made singer: size of the throat (formants times this), its own shifts of each, breath, tilt, range of pitch."""

    size: float
    own: tuple[float, ...]
    breath: float
    tilt: float
    narrow: float
    low: float
    high: float
    vowels: tuple[str, ...]


def throat(rng: Rng) -> Throat:
    middle = between(rng, 47, 69)
    size = 2 ** ((middle - 50) / 12 * 0.19) * between(rng, 0.94, 1.08)
    vowels = tuple(pick(rng, list(VOWELS)) for _ in range(int(rng.integers(3, 9))))
    own = tuple(np.exp(0.05 * rng.standard_normal(4)).tolist())
    return Throat(
        size,
        own,
        between(rng, 0.0, 0.12),
        between(rng, 0.7, 1.5),
        between(rng, 0.7, 1.4),
        middle - 5,
        middle + 8,
        vowels,
    )


def sing_from_nothing(voice: Throat, phrases: Sequence[Sequence[Note]], how: Manner, length: int, rng: Rng) -> Mono:
    """A melody (length,) sung on made syllables: a pulse and noise through moving formants."""
    notes = [note for phrase in phrases for note in phrase]
    if not notes:
        return np.zeros(length, np.float32)
    frames = length // HOP + 5
    step = HOP / RATE
    formants = np.tile(np.array(VOWELS[voice.vowels[0]], float), (frames, 1))
    loud, hiss = np.zeros(frames), np.zeros(frames)
    noise = np.tile(np.array([1500.0, 3000.0]), (frames, 1))
    for note in notes:
        syllable(voice, note, formants, loud, hiss, noise, rng)
    pitch = pitch_track(notes, how, frames, step, rng)
    formants = smoothed(formants, 9) * voice.size * np.array(voice.own)
    loud, hiss = smoothed(loud, 5), smoothed(hiss, 3)
    highest = hertz(float(pitch.max()))
    k = np.arange(1, max(2, min(TABLE // 4, int(18000 / highest))))
    spectrum = np.zeros(TABLE // 2 + 1, complex)
    spectrum[k] = k**-voice.tilt * np.exp(0.3j * k)
    wave = np.fft.irfft(spectrum, TABLE)
    wave /= np.sqrt(np.mean(np.square(wave)))
    each = np.interp(np.arange(length) / HOP, np.arange(frames), 440 * 2 ** ((pitch - 69) / 12))
    turns = np.cumsum(each / RATE)
    pulse = wave[(turns * TABLE).astype(np.int64) & (TABLE - 1)]
    breath = rng.standard_normal(length)
    return spoken(pulse, breath, formants, loud, hiss, noise, voice)


def syllable(
    voice: Throat,
    note: Note,
    formants: npt.NDArray[np.float64],
    loud: npt.NDArray[np.float64],
    hiss: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    rng: Rng,
) -> None:
    """Write one sung syllable into the tracks of formants, voice and noise; its vowel begins with the note."""
    step = HOP / RATE
    first, last = int(note.start / step), min(len(loud), int((note.start + note.length) / step) + 1)
    vowel = pick(rng, voice.vowels)
    formants[first:] = VOWELS[vowel]
    loud[first:last] = note.velocity
    hiss[first:last] = voice.breath * note.velocity
    noise[first:last] = (1500.0, 4000.0)
    fade = min(last - first, 8)
    if last > first:
        loud[last - fade : last] *= np.linspace(1, 0, fade)
        hiss[last - fade : last] *= np.linspace(1, 0, fade)
    if chance(rng, 0.35) and last - first > 40:  # a second vowel: diphthongs and melismas
        formants[(first + last) // 2 : last] = VOWELS[pick(rng, voice.vowels)]
    sound = pick(rng, ("", "", *HUMS, *HISSES))
    before = max(0, first - int(between(rng, 0.05, 0.11) / step))
    if sound in HUMS:
        formants[before:first] = HUMS[sound]
        loud[before:first] = 0.35 * note.velocity
        hiss[before:first] = 0
    elif sound in HISSES:
        centre, width, strength = HISSES[sound]
        loud[before:first] = 0
        hiss[before:first] = 0
        start = max(before, first - 4) if sound in STOPS else before
        hiss[start:first] = strength * note.velocity
        noise[start:first] = (centre * voice.size, width)


def spoken(
    pulse: npt.NDArray[np.float64],
    breath: npt.NDArray[np.float64],
    formants: npt.NDArray[np.float64],
    loud: npt.NDArray[np.float64],
    hiss: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    voice: Throat,
) -> Mono:
    """Pulse and noise through the formants of each frame of 1,024 samples, 256 apart, added up again."""
    size = 4 * HOP
    bins = np.arange(size // 2 + 1) * (RATE / size)
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    frames = len(loud) - 4
    padded = [np.pad(x, (size // 2, size + frames * HOP - len(x))).astype(np.float32) for x in (pulse, breath)]
    views = [np.lib.stride_tricks.sliding_window_view(x, size)[::HOP][:frames] for x in padded]
    out = np.zeros(frames * HOP + size, np.float32)
    widths = np.array([70.0, 90.0, 130.0, 200.0, 300.0]) * voice.narrow
    heights = np.array([1.0, 0.55, 0.25, 0.12, 0.06])
    sounding = np.flatnonzero((loud[:frames] > 1e-3) | (hiss[:frames] > 1e-3))
    for part in np.array_split(sounding, max(1, len(sounding) // 512)):
        if not len(part):
            continue
        fifth = np.concatenate([formants[part], np.full((len(part), 1), 4500 * voice.size)], axis=1)
        ratio = (bins[None, :, None] / fifth[:, None, :]).astype(np.float32)
        damp = (widths / fifth)[:, None, :].astype(np.float32)
        peaks = damp * 8 / np.sqrt(np.square(1 - np.square(ratio)) + np.square(ratio * damp))
        shape = (peaks * heights.astype(np.float32)).sum(axis=2)
        centre, width = noise[part, :1], noise[part, 1:]
        hissing = np.exp(-0.5 * np.square((bins[None, :] - centre) / width))
        spectrum = np.fft.rfft(views[0][part] * window) * (shape * loud[part, None])
        spectrum += np.fft.rfft(views[1][part] * window) * (hissing * hiss[part, None] * 0.5)
        waves = (np.fft.irfft(spectrum) * window).astype(np.float32)
        for frame, wave in zip(part.tolist(), waves, strict=True):
            out[frame * HOP : frame * HOP + size] += wave
    return out[size // 2 : size // 2 + len(pulse)] / np.float32(1.5)


# From recordings


@dataclass(frozen=True)
class Singer:
    """A recorded voice made another's: `shift` semitones of its register, throat `size`, more breath, tilt, roughness.

    `air` dB an octave is how the band above a narrow recording falls.
    """

    voice: Voice
    shift: float
    size: float
    breath: float
    tilt: float
    rough: float
    air: float

    @property
    def middle(self) -> float:
        """Semitones of the voice's usual pitch, shifted."""
        pitch = self.voice.pitch[self.voice.pitch > 0]
        usual = float(np.median(pitch)) if len(pitch) else 150.0
        return float(69 + 12 * np.log2(usual / 440)) + self.shift


def cast(rng: Rng, voice: Voice, strange: float = 0.3) -> Singer:
    """Another singer out of a voice; `strange` is the chance that it is far from the voice."""
    far = chance(rng, strange)
    shift = between(rng, -9, 9) if far else between(rng, -3, 4)
    size = 2 ** (0.25 * shift / 12) * np.exp(between(rng, -0.16, 0.16) if far else between(rng, -0.07, 0.07))
    if voice.kind == "speech":
        shift += between(rng, 0, 7)
    breath = pick(rng, (0.0, 0.0, between(rng, 0.0, 0.35)))
    rough = pick(rng, (0.0, 0.0, 0.0, between(rng, 0.1, 0.6)))
    return Singer(voice, shift, float(size), breath, between(rng, -1.5, 1.5), rough, between(rng, -14, -7))


@dataclass
class Plan:
    """What a recording's frames become: source frame (F,) or -1, pitch in semitones, gain."""

    source: npt.NDArray[np.float64]
    pitch: npt.NDArray[np.float64]
    gain: npt.NDArray[np.float64]


def sing(singer: Singer, phrases: Sequence[Sequence[Note]], how: Manner, length: int, rng: Rng) -> Mono:
    """A melody (length,) sung with a recording's syllables, in their order; each vowel begins with its note."""
    voice = singer.voice
    notes = [replace(n, start=max(0, n.start + float(rng.normal(0, how.loose)))) for p in phrases for n in p]
    if not notes or not len(voice.syllables):
        return np.zeros(length, np.float32)
    frames = int(length / RATE / FRAME) + 1
    plan = Plan(np.full(frames, -1.0), pitch_track(notes, how, frames, FRAME, rng), np.ones(frames))
    count = int(voice.phrase.max()) + 1
    index, done = 0, 0
    for phrase in phrases:
        index = int(np.searchsorted(voice.phrase, rng.integers(count)))
        for _ in phrase:
            following = notes[done + 1].start if done + 1 < len(notes) else np.inf
            lay(plan, voice, voice.syllables[index % len(voice.syllables)], notes[done], following)
            index, done = index + 1, done + 1
    return resynthesise(singer, plan, how, length, rng)


def lay(plan: Plan, voice: Voice, syllable: npt.NDArray[np.int32], note: Note, following: float) -> None:
    """Put one syllable under one note: consonants in their own time, the vowel as long as the note."""
    first, begin, end, last = (int(frame) for frame in syllable)
    start = int(note.start / FRAME)
    stop = min(int((note.start + note.length) / FRAME), int(min(following, 1e6) / FRAME), len(plan.source))
    if start >= stop:
        return
    lead = min(begin - first, start)
    plan.source[start - lead : start] = np.arange(begin - lead, begin)
    vowel, wanted = end - begin, stop - start
    edge = min(10, vowel // 4, wanted // 4)
    middle = np.arange(wanted - 2 * edge)
    room_, need = vowel - 2 * edge, len(middle)
    if need <= 3 * room_:
        held = edge + middle * (room_ - 1) / max(1, need - 1)
    else:  # to and fro in the middle of the vowel, slowly: a held note
        swing = np.abs((0.4 * middle / max(1, 0.5 * room_)) % 2 - 1)
        held = edge + (0.25 + 0.5 * swing) * room_
    plan.source[start:stop] = begin + np.concatenate([np.arange(edge), held, vowel - edge + np.arange(edge)])
    tail = min(last - end, len(plan.source) - stop, max(0, int(min(following, 1e6) / FRAME) - stop - 12))
    plan.source[stop : stop + tail] = np.arange(end, end + tail)
    power = voice.power[begin:end].max()
    plan.gain[start - lead : stop + tail] = note.velocity * 10 ** (np.clip(-8 - power, -6, 14) / 20)


def cover(
    singer: Singer, score: Score, starts: Sequence[tuple[float, float]], how: Manner, length: int, rng: Rng
) -> Mono:
    """A recording's own phrases in its own time, drawn to the scale as far as `how.tuned`, in each (start, end)."""
    voice = singer.voice
    frames = int(length / RATE / FRAME) + 1
    plan = Plan(np.full(frames, -1.0), np.zeros(frames), np.ones(frames))
    own = np.log2(np.maximum(voice.pitch, 1) / 440) * 12 + 69
    voiced = np.flatnonzero(voice.pitch > 0)
    if not len(voiced) or not len(voice.syllables):
        return np.zeros(length, np.float32)
    own = np.interp(np.arange(len(own)), voiced, own[voiced]) + singer.shift
    shift = min(range(-6, 6), key=lambda semitones: off_key(own[voiced] + semitones, score))
    speed = between(rng, 0.85, 1.2)
    drawn = smoothed(snapped(own + shift, score), max(1, int(how.glide / FRAME)))
    pitch = how.tuned * drawn + (1 - how.tuned) * (own + shift)
    spans = phrase_spans(voice)
    for start, stop in starts:
        begin, until = int(start / FRAME), min(int(stop / FRAME), frames)
        number = int(rng.integers(len(spans)))
        while until - begin >= 20:
            first, last = spans[number % len(spans)]
            count = min(int((last - first) / speed), until - begin)
            source = first + np.arange(count) * speed
            plan.source[begin : begin + count] = source
            plan.pitch[begin : begin + count] = np.interp(source, np.arange(len(pitch)), pitch)
            plan.gain[begin : begin + count] = 10 ** (np.clip(-8 - voice.power[first:last].max(), -6, 14) / 20)
            begin += count + int(between(rng, 0.05, 0.4) / FRAME)
            number += 1
    return resynthesise(singer, plan, how, length, rng)


def snapped(pitch: npt.NDArray[np.float64], score: Score) -> npt.NDArray[np.float64]:
    """Each pitch moved to the nearest of the scale."""
    tones = np.array(sorted({12 * octave + score.tonic + step for octave in range(12) for step in score.scale}), float)
    places = np.clip(np.searchsorted(tones, pitch), 1, len(tones) - 1)
    lower, upper = tones[places - 1], tones[places]
    return np.where(pitch - lower < upper - pitch, lower, upper)


def off_key(pitch: npt.NDArray[np.float64], score: Score) -> float:
    return float(np.abs(pitch - snapped(pitch, score)).mean())


def resynthesise(singer: Singer, plan: Plan, how: Manner, length: int, rng: Rng) -> Mono:
    """Frames of a voice put together anew (length,) at other pitches, in another throat."""
    pyworld, voice = world(), singer.voice
    sounding = plan.source >= 0
    if not sounding.any():
        return np.zeros(length, np.float32)
    places = np.clip(plan.source, 0, len(voice.pitch) - 1.001)
    whole = places.astype(np.int64)
    part = (places - whole)[:, None]
    envelope = voice.envelope[whole] * (1 - part) + voice.envelope[whole + 1] * part
    noise = voice.noise[whole] * (1 - part) + voice.noise[whole + 1] * part
    voiced = sounding & (voice.pitch[np.round(places).astype(np.int64)] > 0)
    pitch = np.where(voiced, 440 * 2 ** ((plan.pitch - 69) / 12), 0.0)
    pitch = np.where(pitch > 0, np.clip(pitch, 50, 1400), 0.0)
    power = pyworld.decode_spectral_envelope(np.ascontiguousarray(envelope, np.float64), RATE, FFT)
    loose = pyworld.decode_aperiodicity(np.ascontiguousarray(noise, np.float64), RATE, FFT)
    power, loose = in_throat(singer, power), np.clip(loose + singer.breath * (1 - loose) * 0.7, 0.001, 1.0)
    if voice.top < RATE / 2:
        extend(power, loose, voice.top, singer)
    fades = smoothed(np.where(sounding, plan.gain, 0.0), 5) * smoothed(sounding.astype(float), 3)
    power *= np.square(fades)[:, None]
    power += 1e-14
    sound = pyworld.synthesize(pitch, np.ascontiguousarray(power), np.ascontiguousarray(loose), RATE, 1000 * FRAME)
    if singer.rough:
        each = np.interp(np.arange(len(sound)) / (FRAME * RATE), np.arange(len(pitch)), np.maximum(pitch, 50))
        sound *= 1 - singer.rough * (0.5 + 0.5 * np.sin(np.pi * np.cumsum(each) / RATE * 2 / pick(rng, (2, 3))))
    out = np.zeros(length, np.float32)
    out[: min(length, len(sound))] = sound[:length]
    return out


def in_throat(singer: Singer, power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Envelopes (F, 1025) with every formant `size` times as high, tilted."""
    bins = np.arange(power.shape[1])
    places = np.clip(bins / singer.size, 0, power.shape[1] - 1.001)
    whole = places.astype(np.int64)
    part = places - whole
    tilt = 10 ** (singer.tilt * np.clip(np.log2(np.maximum(bins, 1) * RATE / FFT / 1000), -3, 4.3) / 10)
    moved: npt.NDArray[np.float64] = (power[:, whole] * (1 - part) + power[:, whole + 1] * part) * tilt
    return moved


def extend(power: npt.NDArray[np.float64], loose: npt.NDArray[np.float64], top: float, singer: Singer) -> None:
    """Give a narrow recording a band above its end: noise that goes on from the level just below, falling."""
    bins = np.arange(power.shape[1]) * RATE / FFT
    end = top * singer.size * 0.93
    below = (bins > 0.75 * end) & (bins < end)
    above = bins >= end
    level = np.exp(np.log(power[:, below] + 1e-16).mean(axis=1, keepdims=True))
    power[:, above] = level * 10 ** (singer.air * np.log2(bins[above] / (0.87 * end)) / 10)
    loose[:, above] = np.maximum(loose[:, above], 0.9)


def phrase_spans(voice: Voice) -> list[tuple[int, int]]:
    """First frame and end of each phrase of a recording."""
    numbers = range(int(voice.phrase.max(initial=-1)) + 1)
    rows = [voice.syllables[voice.phrase == number] for number in numbers]
    return [(int(row[0][0]), int(row[-1][3])) for row in rows]


def phrase_sounds(voice: Voice) -> list[Mono]:
    """A recording's phrases as they are, each with short fades."""
    out = []
    for first, last in phrase_spans(voice):
        sound = voice.sound[max(0, int((first * FRAME - 0.02) * RATE)) : int((last * FRAME + 0.05) * RATE)].copy()
        if len(sound) < RATE // 5:
            continue
        fade = np.linspace(0, 1, 400, dtype=np.float32)
        sound[:400] *= fade
        sound[-400:] *= fade[::-1]
        out.append(sound)
    return out
