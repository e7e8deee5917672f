"""The instruments of a made song: drums, bass, and one to four other parts, each with its effects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sepcli.training import effects as fx
from sepcli.training import samples
from sepcli.training.effects import RATE, Sound
from sepcli.training.instruments import (
    Mono,
    NoteMaker,
    choose,
    fm_notes,
    made_kit,
    perform,
    string_notes,
    wave_notes,
    wave_patch,
)
from sepcli.training.score import (
    Hit,
    Note,
    Rng,
    Score,
    bass_notes,
    between,
    chance,
    chord_notes,
    melody,
    pick,
    riff_notes,
    stream,
    wall_notes,
)

DRUMS = {"kick": 1.0, "snare": 0.85, "hat": 0.4, "open": 0.4, "tom": 0.8, "crash": 0.5, "ride": 0.4, "perc": 0.45}
"""How loud the parts of a drum kit are beside each other."""


@dataclass(frozen=True)
class Session:
    """A song while it is made: `hits` are the drummer's, `hall` is the room's answer that all may share.

    `folder` holds recordings, None where all is made from nothing. `narrow`: nothing above 7.8 kHz will be left.
    """

    score: Score
    seed: int
    length: int
    hits: Sequence[Hit]
    hall: Sound
    folder: samples.Folder | None
    narrow: bool


def drums(song: Session) -> Sound:
    """The drum kit (2, length), recorded or made, sometimes over a recorded loop."""
    rng = stream(song.seed, "kit")
    kit = samples.recorded_kit(song.folder, rng) if song.folder and chance(rng, 0.85) else made_kit(rng)
    gains = {kind: gain * 10 ** (between(rng, -5, 4) / 20) for kind, gain in DRUMS.items()}
    width = pick(rng, (0.0, 0.4, 0.7, 1.0))
    pans = {kind: width * between(rng, -0.7, 0.7) for kind in DRUMS}
    pans |= {"kick": 0.0, "snare": 0.3 * pans["snare"]}
    strokes = {kind: [fx.placed(take, pans[kind]) for take in takes] for kind, takes in kit.items()}
    out = np.zeros((2, song.length), np.float32)
    for hit in song.hits:
        start = int(hit.start * RATE)
        part = choose(strokes, hit)[:, : max(0, song.length - start)]
        out[:, start : start + part.shape[1]] += part * np.float32(gains[hit.kind] * hit.velocity)
    if song.folder and chance(rng, 0.18):
        beat = samples.loop(song.folder, "drumloop", song.score.bar, song.length, rng)
        if beat is not None:
            shifted = np.roll(beat, round(song.score.bars[0].start * RATE), axis=1)
            out = shifted * playing(song, "drums") + out * np.float32(pick(rng, (0.0, 0.5, 1.0)))
    return drum_chain(out, rng)


def drum_chain(sound: Sound, rng: Rng) -> Sound:
    """The bus of the drums: room, compressor, saturation, an old sampler, equaliser."""
    if chance(rng, 0.6):
        answer = fx.room(rng, between(rng, 0.15, 0.9), between(rng, 3000, 10000), 0.002)
        sound = fx.reverb(sound, answer, between(rng, 0.05, 0.5))
    if chance(rng, 0.6):
        attack, release = between(rng, 0.001, 0.03), between(rng, 0.05, 0.3)
        sound = fx.compress(sound, between(rng, -4, 6), between(rng, 2, 8), attack, release)
    if chance(rng, 0.35):
        sound = fx.saturate(sound, between(rng, -6, 10), between(rng, 0, 0.3))
    if chance(rng, 0.06):
        sound = fx.crush(sound, int(rng.integers(2, 5)), int(rng.integers(6, 12)))
    bells = [(between(rng, 60, 9000), between(rng, -5, 5), between(rng, 0.7, 2)) for _ in range(2)]
    high = pick(rng, (0.0, 0.0, 0.0, between(rng, 5000, 14000)))
    return fx.equalise(sound, bells=bells, tilt=between(rng, -1.2, 1.2), high=high)


def playing(song: Session, stem: str) -> Mono:
    """1 while a stem plays, 0 while it does not (length,), with short fades."""
    gate = np.zeros(song.length, np.float32)
    for bar in song.score.bars:
        if stem in bar.playing:
            gate[int(bar.start * RATE) : int((bar.start + song.score.bar) * RATE)] = 1
    return np.convolve(gate, np.full(220, 1 / 220, np.float32), "same")[: song.length].astype(np.float32)


def bass(song: Session) -> Sound:
    """The bass (2, length), in the middle."""
    rng = stream(song.seed, "bass sound")
    make = samples.recorded_notes(song.folder, "bass", rng) if song.folder and chance(rng, 0.7) else None
    if make is None:
        muted = between(rng, 0, 0.8)
        make = pick(rng, (wave_notes(wave_patch(rng, "bass")), fm_notes(rng), string_notes(rng, muted)))
    sound = np.tile(perform(bass_notes(song.score, song.seed), make, song.length), (2, 1))
    if chance(rng, 0.25):
        sound = fx.saturate(sound, between(rng, 0, 22), between(rng, 0, 0.4))
    bells = [(between(rng, 60, 120), between(rng, -3, 6), 1.5), (between(rng, 600, 2500), between(rng, -6, 5), 1.5)]
    high = pick(rng, (0.0, 0.0, between(rng, 700, 5000)))
    sound = fx.equalise(sound, low=between(rng, 22, 45), high=high, bells=bells)
    if chance(rng, 0.7):
        sound = fx.compress(sound, between(rng, -3, 4), between(rng, 2, 6), 0.01, between(rng, 0.06, 0.3))
    if chance(rng, 0.2):
        sound = fx.chorus(sound, between(rng, 0.3, 1.2), 0.003, between(rng, 0.2, 0.6))
    if chance(rng, 0.2):
        sound = fx.duck(sound, kicks(song.hits), between(rng, 0.3, 0.9), between(rng, 0.12, 0.3))
    return sound


def kicks(hits: Sequence[Hit]) -> list[float]:
    return [hit.start for hit in hits if hit.kind == "kick"]


def other(song: Session) -> Sound:
    """One to four parts (2, length): chords, broken chords, leads; often a low riff, at times a recorded texture."""
    rng = stream(song.seed, "band")
    out = np.zeros((2, song.length), np.float32)
    for number in range(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]))):
        out += part(song, number)
    if chance(stream(song.seed, "riff"), 0.4):
        out += riff(song)
    if chance(stream(song.seed, "wall"), 0.3):
        out += wall(song)
    if song.folder and chance(rng, 0.2):
        texture = samples.loop(song.folder, pick(rng, ("other", "guitar")), song.score.bar, song.length, rng)
        if texture is not None:
            gain = np.float32(between(rng, 0.3, 1.2) / (fx.rms(texture) + fx.QUIET))
            out += texture * playing(song, "other") * gain
    if chance(rng, 0.15):
        out = fx.duck(out, kicks(song.hits), between(rng, 0.3, 0.9), between(rng, 0.15, 0.35))
    return out


def part(song: Session, number: int) -> Sound:
    """One part of the others (2, length) at a level of its own; the first is a chord part near the middle."""
    rng = stream(song.seed, "part", str(number))
    lead = number > 0 and chance(rng, 0.4)
    if lead:
        low = between(rng, 55, 72)
        phrases = melody(song.score, song.seed, f"lead {number}", low, low + 16, "other")
        notes = [note for phrase in phrases for note in phrase]
    else:
        notes = chord_notes(song.score, song.seed, str(number))
    sound = perform(notes, instrument(song, rng, lead), song.length)
    side = between(rng, -0.8, 0.8) if number else between(rng, -0.2, 0.2)
    placed = other_chain(fx.placed(sound, side), song, rng)
    return placed * np.float32(10 ** (between(rng, -9, 0) / 20) / (fx.rms(placed) + 1e-6))


def riff(song: Session) -> Sound:
    """A low guitar or clavinet (2, length), clean to distorted, one take or two: not all that is low is the bass."""
    rng = stream(song.seed, "riff sound")
    make = samples.recorded_notes(song.folder, "guitar", rng) if song.folder and chance(rng, 0.5) else None
    if make is None:
        strings = string_notes(rng, muted=pick(rng, (0.0, 0.4, 0.8)))
        make = pick(rng, (strings, strings, wave_notes(wave_patch(rng, "keys"))))
    notes = riff_notes(song.score, song.seed)
    drive = pick(rng, (0.0, between(rng, 5, 20), between(rng, 20, 40)))
    return amplified(song, rng, notes, make, drive, low=between(rng, 50, 100))


def wall(song: Session) -> Sound:
    """A distorted guitar that plays whole chords (2, length), often a take on each side: a wall of sound."""
    rng = stream(song.seed, "wall sound")
    make = samples.recorded_notes(song.folder, "guitar", rng) if song.folder and chance(rng, 0.6) else None
    notes = wall_notes(song.score, song.seed)
    return amplified(song, rng, notes, make or string_notes(rng), between(rng, 15, 45), low=between(rng, 60, 120))


def amplified(song: Session, rng: Rng, notes: Sequence[Note], make: NoteMaker, drive: float, low: float) -> Sound:
    """Notes through an amplifier and its cabinet (2, length), one to four takes; nothing below `low` Hz, drive in dB.

    Where there is much drive, the hiss and hum of pickups, pedals and preamplifier come up with the strings, at times
    until the guitar is more noise than notes, or a pedal drives the amplifier.
    """
    hiss = 10 ** (between(rng, -50, -5) / 20) if drive > 20 else 0.0
    pedal = between(rng, 10, 30) if drive > 20 and chance(rng, 0.3) else 0.0
    high, tilt = between(rng, 2500, 6000), between(rng, -6, -1)
    bells = [(between(rng, 90, 250), between(rng, -3, 6), 1.0), (between(rng, 400, 3000), between(rng, -6, 6), 1.0)]
    side = pick(rng, (0.0, between(rng, 0.1, 0.5), between(rng, 0.6, 1.0)))
    out = np.zeros((2, song.length), np.float32)
    both, one = (-side, side), (pick(rng, (-side, side)),)
    thick = 2 if drive > 20 and chance(rng, 0.25) else 1
    for place in (both if side and chance(rng, 0.6) else one) * thick:
        late = [replace(note, start=note.start + abs(float(rng.normal(0, 0.008 * thick)))) for note in notes]
        strings = perform(late, make, song.length)
        if hiss:
            noise = rng.standard_normal(song.length, np.float32) * playing(song, "other")
            strings += np.float32(hiss * fx.rms(strings)) * noise
        sound = fx.placed(strings, place)
        sound = fx.saturate(sound, pedal, between(rng, 0, 0.2)) if pedal else sound
        sound = fx.saturate(sound, drive, between(rng, 0, 0.2)) if drive else sound
        out += fx.equalise(sound, low=low, high=high, bells=bells, tilt=tilt, steep=6.0)
    if chance(rng, 0.4):
        out = fx.reverb(out, song.hall, between(rng, 0.03, 0.3))
    return out * np.float32(10 ** (between(rng, -6, 4) / 20) / (fx.rms(out) + 1e-6))


def instrument(song: Session, rng: Rng, lead: bool) -> NoteMaker:
    """What plays a part: recorded where there is a recording, in six of ten cases."""
    if song.folder and chance(rng, 0.6):
        found = samples.recorded_notes(song.folder, pick(rng, ("keys", "guitar", "guitar", "other")), rng)
        if found:
            return found
    kind = pick(rng, ("lead", "lead", "fm", "string") if lead else ("pad", "keys", "fm", "string", "string"))
    if kind == "fm":
        return fm_notes(rng)
    if kind == "string":
        return string_notes(rng, muted=pick(rng, (0.0, 0.0, 0.8)))
    return wave_notes(wave_patch(rng, kind))


def other_chain(sound: Sound, song: Session, rng: Rng) -> Sound:
    """A part's own effects, in the order of a pedal board, and the hall."""
    bar = song.score.bar
    if chance(rng, 0.35):
        sound = fx.saturate(sound, between(rng, 0, 30), between(rng, 0, 0.3))
        sound = fx.equalise(sound, low=80, high=between(rng, 3000, 7000), steep=6.0)
    if chance(rng, 0.35):
        sound = fx.chorus(sound, between(rng, 0.2, 2.5), between(rng, 0.001, 0.005), between(rng, 0.3, 1.0))
    if chance(rng, 0.12):
        sound = fx.sway(sound, pick(rng, (1, 2, 4, 8)) / bar, between(rng, 0.3, 0.9), chance(rng, 0.5))
    if chance(rng, 0.25):
        sound = fx.echo(sound, echo_time(bar, rng), between(rng, 0.2, 0.6), between(rng, 0.1, 0.4), rng)
    if chance(rng, 0.6):
        sound = fx.reverb(sound, song.hall, between(rng, 0.05, 0.7))
    bells = [(between(rng, 150, 6000), between(rng, -6, 6), between(rng, 0.7, 2)) for _ in range(2)]
    return fx.equalise(sound, low=between(rng, 40, 250), bells=bells, tilt=between(rng, -1.5, 1.0))


def echo_time(bar: float, rng: Rng) -> float:
    """Seconds of an echo: an eighth, a dotted eighth or a quarter."""
    return bar * pick(rng, (1.0, 1.5, 2.0)) / 8
