"""The voices of a made song: a lead, doubles, harmonies and choirs, made or recorded, through a vocal chain."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sepcli.training import effects as fx
from sepcli.training import singing
from sepcli.training.band import Session, echo_time
from sepcli.training.effects import RATE, Sound
from sepcli.training.instruments import Mono, varied
from sepcli.training.score import Note, Rng, Score, between, chance, melody, pick, stream
from sepcli.training.voices import Voice, kind_of, voice

MANNERS = ("melody", "melody", "melody", "cover", "cover", "cover", "rap", "raw", "raw")
"""What recorded voices do: sing a melody, sing their own phrases in the song's key, rap, or stay as recorded."""


class Layer(NamedTuple):
    """One voice (length,), its place between -1 and 1, its gain."""

    sound: Mono
    pan: float = 0.0
    gain: float = 1.0


def vocals(song: Session) -> Sound:
    """All voices (2, length), or silence in one song of twenty."""
    rng = stream(song.seed, "voices")
    out = np.zeros((2, song.length), np.float32)
    if chance(rng, 0.05):
        return out
    recorded = song.folder and song.folder.voices and chance(rng, 0.94)
    for layer in recorded_layers(song, rng) if recorded else made_layers(song, rng):
        heard = layer.sound[np.abs(layer.sound) > 1e-4]
        level = fx.rms(heard) if len(heard) else 1.0
        out += fx.placed(layer.sound, layer.pan) * np.float32(layer.gain / (level + 1e-6))
    return vocal_chain(out, song, rng)


def made_layers(song: Session, rng: Rng) -> list[Layer]:
    """A singer from nothing, doubled or harmonised now and then."""
    lead = singing.throat(rng)
    phrases = melody(song.score, song.seed, "vocals", lead.low, lead.high, "vocals")
    how = singing.manner(rng)
    layers = [Layer(singing.sing_from_nothing(lead, phrases, how, song.length, rng))]
    for second, pan, gain in company(song.score, phrases, rng):
        singer = lead if chance(rng, 0.6) else singing.throat(rng)
        layers.append(Layer(singing.sing_from_nothing(singer, second, how, song.length, rng), pan, gain))
    return layers


def company(score: Score, phrases: Sequence[Sequence[Note]], rng: Rng) -> list[tuple[list[list[Note]], float, float]]:
    """Second voices (phrases, place, gain): doubles in unison or the octave, harmonies, choirs, in some phrases."""
    kind = pick(rng, ("none", "none", "none", "double", "double", "harmony", "choir"))
    count = {"none": 0, "double": int(rng.integers(1, 3)), "harmony": int(rng.integers(1, 3)), "choir": 3}[kind]
    intervals = {"double": (0, 0, 12, -12), "harmony": (3, 4, -3, 7), "choir": (0, 3, 7, 12, -12)}
    out = []
    for _ in range(count):
        interval = pick(rng, intervals[kind])
        part = []
        for phrase in phrases:
            if chance(rng, 0.6 if kind == "double" else 0.9):
                moved = singing.snapped(np.array([note.pitch + interval for note in phrase], float), score)
                part.append([Note(n.start, n.length, float(p), n.velocity) for n, p in zip(phrase, moved, strict=True)])
        if part:
            out.append((part, between(rng, -0.9, 0.9), between(rng, 0.25, 0.8)))
    return out


def recorded_layers(song: Session, rng: Rng) -> list[Layer]:
    """Recorded voices in one of MANNERS. Narrow recordings stay as they are only in a narrow song."""
    kind = pick(rng, MANNERS)
    voice = hired(song, rng, speech=kind == "rap" or chance(rng, 0.12))
    if kind == "raw" and (voice.top == RATE / 2 or song.narrow):
        return [Layer(as_recorded(song, voice, rng))]
    singer = singing.cast(rng, voice)
    if kind in ("cover", "raw"):
        return covers(song, singer, rng)
    how = singing.manner(rng)
    middle = singer.middle
    phrases = melody(song.score, song.seed, "vocals", middle - 5, middle + 8, "vocals")
    if kind == "rap":
        phrases = [spoken_line(song.score, phrase, middle, rng) for phrase in phrases]
    layers = [Layer(singing.sing(singer, phrases, how, song.length, rng))]
    if kind == "melody":
        for second, pan, gain in company(song.score, phrases, rng):
            another = singer if chance(rng, 0.5) else singing.cast(rng, hired(song, rng))
            layers.append(Layer(singing.sing(another, second, how, song.length, rng), pan, gain))
    return layers


def covers(song: Session, singer: singing.Singer, rng: Rng) -> list[Layer]:
    """A singer's own phrases, drawn to the key by as much as a producer's mood; sometimes a second one's too."""
    tuned = pick(rng, (0.0, between(rng, 0.3, 1.0), 1.0))
    how = singing.Manner((5.0, 0.0, 0.3), between(rng, 0.0, 0.08), 0.0, 0.0, tuned)
    layers = [Layer(singing.cover(singer, song.score, slots(song.score, rng), how, song.length, rng))]
    if chance(rng, 0.35):
        another = singing.cast(rng, hired(song, rng))
        sound = singing.cover(another, song.score, slots(song.score, rng), how, song.length, rng)
        layers.append(Layer(sound, between(rng, -0.8, 0.8), between(rng, 0.3, 0.8)))
    return layers


def hired(song: Session, rng: Rng, speech: bool = False) -> Voice:
    """A recorded voice of the wanted kind, if there is one."""
    assert song.folder is not None
    wanted = [path for path in song.folder.voices if (kind_of(path) == "speech") == speech] or song.folder.voices
    path = pick(rng, wanted)
    return voice(path, kind_of(path))


def spoken_line(score: Score, phrase: Sequence[Note], middle: float, rng: Rng) -> list[Note]:
    """A phrase as rap: a syllable on every sixteenth or eighth, the pitch falling from the first to the last."""
    start, end = phrase[0].start, phrase[-1].start + phrase[-1].length
    step = score.bar / pick(rng, (16, 16, 12, 8))
    count = max(1, int((end - start) / step))
    pitches = middle - between(rng, 0, 5) * np.linspace(0, 1, count) + rng.normal(0, 1.2, count)
    return [
        Note(start + k * step, 0.9 * step, float(pitch), between(rng, 0.6, 1.0))
        for k, pitch in enumerate(pitches)
        if k == 0 or not chance(rng, 0.12)
    ]


def slots(score: Score, rng: Rng) -> list[tuple[float, float]]:
    """Where recorded phrases may begin and must end: bars in which there is singing."""
    out: list[tuple[float, float]] = []
    free = 0.0
    for bar in score.bars:
        if "vocals" not in bar.playing or bar.start < free or chance(rng, 0.12):
            continue
        until = bar.start + score.bar * pick(rng, (1, 2, 2, 4))
        out.append((bar.start + pick(rng, (0, 0, 1, 2)) * score.bar / 8, min(until, score.seconds)))
        free = until - 0.5 * score.bar
    return out


def as_recorded(song: Session, voice: Voice, rng: Rng) -> Mono:
    """Phrases as they were recorded, faster or slower as a tape is."""
    ratio = 2 ** (between(rng, -3, 3) / 12)
    phrases = singing.phrase_sounds(voice)
    out = np.zeros(song.length, np.float32)
    for start, stop in slots(song.score, rng) if phrases else []:
        first, until, number = int(start * RATE), int(stop * RATE), int(rng.integers(len(phrases)))
        while first < min(until, song.length):
            sound = varied(phrases[number % len(phrases)], ratio)[: song.length - first]
            out[first : first + len(sound)] += sound
            first += len(sound) + int(between(rng, 0.05, 0.4) * RATE)
            number += 1
    return out


def vocal_chain(sound: Sound, song: Session, rng: Rng) -> Sound:
    """Equaliser, compressor, de-esser, saturation, a telephone, doubling, echo, the hall, each with its own odds."""
    bells = [(between(rng, 200, 500), between(rng, -4, 2), 1.2), (between(rng, 2000, 6000), between(rng, -3, 5), 1.5)]
    sound = fx.equalise(sound, low=between(rng, 60, 160), bells=bells, tilt=between(rng, -0.8, 0.8))
    if chance(rng, 0.8):
        attack, release = between(rng, 0.002, 0.02), between(rng, 0.05, 0.25)
        sound = fx.compress(sound, between(rng, -4, 4), between(rng, 2, 6), attack, release)
    if chance(rng, 0.4):
        sound = fx.de_ess(sound, between(rng, 3, 12))
    if chance(rng, 0.3):
        sound = fx.saturate(sound, between(rng, -6, 14), between(rng, 0, 0.3))
    if chance(rng, 0.06):
        sound = fx.equalise(sound, low=between(rng, 300, 600), high=between(rng, 2000, 4000), steep=8.0)
    if chance(rng, 0.25):
        sound = fx.chorus(sound, between(rng, 0.1, 0.8), between(rng, 0.002, 0.008), between(rng, 0.2, 0.8))
    if chance(rng, 0.35):
        sound = fx.echo(sound, echo_time(song.score.bar, rng), between(rng, 0.15, 0.6), between(rng, 0.05, 0.35), rng)
    if chance(rng, 0.75):
        sound = fx.reverb(sound, song.hall, float(np.exp(between(rng, np.log(0.04), np.log(0.9)))))
    if chance(rng, 0.05):
        sound = fx.sway(sound, pick(rng, (2, 4, 8)) / song.score.bar, 0.8, False)
    return sound
