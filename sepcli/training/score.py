"""What a made song plays: tempo, key, chords, form, drum hits and notes, all drawn from a seed. Times in seconds."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")

STEPS = 16
"""Steps of a bar; a beat has four."""

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
}
PROGRESSIONS = (
    (0, 4, 5, 3), (5, 3, 0, 4), (0, 3, 4, 4), (0, 5, 3, 4), (0, 3, 0, 4), (0, 2, 3, 3), (1, 4, 0, 0), (0, 0, 3, 4),
    (0, 5, 2, 6), (0, 3, 6, 2), (0, 6, 5, 6), (0, 5, 6, 0), (0, 6, 3, 0), (0, 0, 0, 0), (0, 0, 3, 0), (3, 4, 2, 5),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """A kind of music: beats a minute, swing, and the patterns of kick, snare and hi-hat that it may have."""

    tempo: tuple[float, float]
    swing: float
    kicks: tuple[str, ...]
    snares: tuple[str, ...]
    hats: tuple[str, ...]
    basses: tuple[str, ...]
    scales: tuple[str, ...]


STYLES = {
    "rock": Style((90, 165), 0.0,
        ("x.......x.......", "x.......x.x.....", "x..x....x.......", "x.....x.x.x....."),
        ("....x.......x...", "....x.......x..x"), ("x.x.x.x.x.x.x.x.", "x...x...x...x..."),
        ("eighths", "roots", "kick"), ("major", "minor", "mixolydian")),
    "pop": Style((84, 128), 0.05,
        ("x...x...x...x...", "x.......x..x....", "x.....x.x......."),
        ("....x.......x...", "....x.......x..."), ("x.x.x.x.x.x.x.x.", "..x...x...x...x.", "xxxxxxxxxxxxxxxx"),
        ("eighths", "kick", "octaves", "roots"), ("major", "minor", "dorian")),
    "house": Style((116, 140), 0.05,
        ("x...x...x...x...", "x...x...x...x..x"), ("....x.......x...", "................"),
        ("..x...x...x...x.", "x.xxx.xxx.xxx.xx", "xxxxxxxxxxxxxxxx"),
        ("offbeat", "octaves", "syncopated"), ("minor", "dorian", "phrygian")),
    "hiphop": Style((70, 102), 0.22,
        ("x..x......x.....", "x.....x...x..x..", "x......x..x....."), ("....x.......x...", "....x..x.x..x..."),
        ("x.x.x.x.x.x.x.x.", "x.xxx.x.x.xxx.x.", "xxxxxxxxxxxxxxxx"),
        ("kick", "long", "slides"), ("minor", "dorian", "phrygian")),
    "ballad": Style((60, 84), 0.0,
        ("x.......x.......", "x.........x....."), ("........x.......", "....x.......x..."),
        ("x...x...x...x...", "x.x.x.x.x.x.x.x."), ("long", "roots", "walking"), ("major", "minor")),
    "funk": Style((92, 122), 0.14,
        ("x..x..x...x.....", "x.x....x..x..x..", "x......xx.x....."), ("....x..x.x..x...", "....x.......x..x"),
        ("xxxxxxxxxxxxxxxx", "x.xxx.xxx.xxx.xx"),
        ("syncopated", "octaves", "walking"), ("dorian", "mixolydian", "minor")),
    "shuffle": Style((84, 132), 0.3,
        ("x.......x.......", "x..x....x..x...."), ("....x.......x...",), ("x..xx..xx..xx..x", "x...x..xx...x..x"),
        ("walking", "roots"), ("mixolydian", "major", "dorian")),
    "metal": Style((110, 185), 0.0,
        ("xxxxxxxxxxxxxxxx", "x.xxx.xxx.xxx.xx", "x.x.x...x.x.x..."), ("....x.......x...", "..x...x...x...x."),
        ("x...x...x...x...", "x.x.x.x.x.x.x.x."), ("kick", "eighths"), ("minor", "phrygian")),
    "breaks": Style((150, 178), 0.03,
        ("x.........x.....", "x..x......x.....", "x.x.......x..x.."), ("....x..x.x..x...", "....x.......x..x"),
        ("x.x.x.x.x.x.x.x.", "xxxxxxxxxxxxxxxx"), ("long", "syncopated", "slides"), ("minor", "dorian")),
}  # fmt: skip


@dataclass(frozen=True)
class Note:
    """Seconds, seconds, semitones (69 is 440 Hz), 0 to 1."""

    start: float
    length: float
    pitch: float
    velocity: float


@dataclass(frozen=True)
class Hit:
    """One stroke: kick, snare, hat, open, tom (`tone` 0 low to 1 high), crash, ride, perc."""

    start: float
    kind: str
    velocity: float
    tone: float = 0.5


@dataclass(frozen=True)
class Bar:
    """One bar: where it begins, the section it is in, its chord as pitch classes from the root, who plays."""

    start: float
    section: str
    root: int
    chord: tuple[int, ...]
    last: bool
    playing: frozenset[str]


@dataclass(frozen=True)
class Score:
    """A song on paper. `tonic` is a pitch class, `scale` semitones above it; `jitter` is the players' looseness."""

    style: str
    tempo: float
    swing: float
    tonic: int
    scale: tuple[int, ...]
    seconds: float
    jitter: float
    bars: tuple[Bar, ...]

    @property
    def bar(self) -> float:
        return 240.0 / self.tempo

    def time(self, bar: float, step: float) -> float:
        """Seconds at which a step of a bar sounds: every second one late by the swing."""
        late = self.swing if round(step) % 2 else 0.0
        return bar + (step + late) * self.bar / STEPS


def stream(seed: int, *words: str) -> Rng:
    """Random numbers of one part of one song: what another part draws does not change them."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in words)])


def pick(rng: Rng, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def between(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


def compose(seed: int, seconds: float) -> Score:
    """Tempo, key and form of a song of a seed."""
    rng = stream(seed, "form")
    name = pick(rng, list(STYLES))
    style = STYLES[name]
    tempo = between(rng, *style.tempo)
    tonic, scale = int(rng.integers(12)), SCALES[pick(rng, style.scales)]
    swing = style.swing * between(rng, 0.5, 1.2) if style.swing else 0.0
    jitter = 0.0 if name == "house" or chance(rng, 0.3) else between(rng, 0.001, 0.007)
    bar = 240.0 / tempo
    lead_in = between(rng, 0.0, 0.15)
    count = max(1, int((seconds - lead_in) / bar) + 1)
    bars: list[Bar] = []
    band = [stem for stem, odds in (("drums", 0.9), ("bass", 0.85), ("other", 0.97)) if chance(rng, odds)]
    band.append("vocals")
    sections = {kind: pick(rng, PROGRESSIONS) for kind in ("intro", "verse", "chorus", "break")}
    colour = pick(rng, ("triad", "triad", "seventh", "power", "sus", "add9"))
    while len(bars) < count:
        kind = pick(rng, ("intro", "verse", "verse", "chorus") if not bars else ("verse", "chorus", "chorus", "break"))
        length = min(pick(rng, (2, 4, 4, 8)), count - len(bars))
        playing = players(rng, kind, band)
        for index in range(length):
            degree = sections[kind][index % 4]
            chord = chord_of(scale, degree, colour)
            start = lead_in + len(bars) * bar
            bars.append(Bar(start, kind, (tonic + scale[degree]) % 12, chord, index == length - 1, frozenset(playing)))
    for stem in band:  # nobody comes for nothing
        if not any(stem in bar.playing for bar in bars):
            bars = [
                replace(bar, playing=bar.playing | {stem}) if bar.section == bars[-1].section else bar for bar in bars
            ]
    return Score(name, tempo, swing, tonic, scale, seconds, jitter, tuple(bars))


def players(rng: Rng, section: str, band: Sequence[str]) -> set[str]:
    """Which stems sound in a section: in an intro or a break some drop out, now and then elsewhere too."""
    stays = {"intro": 0.55, "break": 0.5, "verse": 0.92, "chorus": 0.97}[section]
    playing = {stem for stem in band if chance(rng, stays)}
    return playing or {pick(rng, band)}


def chord_of(scale: Sequence[int], degree: int, colour: str) -> tuple[int, ...]:
    """A chord on a degree of a scale, in semitones above its root."""
    steps = {
        "triad": (0, 2, 4), "seventh": (0, 2, 4, 6), "power": (0, 4), "sus": (0, 3, 4), "add9": (0, 1, 2, 4),
    }[colour]  # fmt: skip
    return tuple((scale[(degree + step) % 7] - scale[degree]) % 12 for step in steps)


def pattern(rng: Rng, text: str, loose: float) -> list[int]:
    """The steps of a pattern; each is left out, and a neighbour added, with a small chance."""
    steps = {index for index, mark in enumerate(text) if mark == "x" and not chance(rng, loose / 2)}
    return sorted(steps | {int(rng.integers(STEPS)) for _ in range(2) if chance(rng, loose)})


def drum_hits(score: Score, seed: int) -> list[Hit]:
    """Kick, snare, cymbals and fills; the first kick of a bar is always there."""
    rng, style = stream(seed, "drums"), STYLES[score.style]
    kinds = ("verse", "chorus", "intro", "break")
    kicks = {kind: pick(rng, style.kicks) for kind in kinds}
    snares = {kind: pick(rng, style.snares) for kind in kinds}
    hats = {kind: pick(rng, style.hats) for kind in kinds}
    top = {kind: pick(rng, ("hat", "hat", "hat", "ride", "perc")) for kind in kinds}
    loose, ghosts = between(rng, 0.0, 0.12), between(rng, 0.0, 0.25)
    hits: list[Hit] = []

    def strike(bar: Bar, step: float, kind: str, velocity: float, tone: float = 0.5) -> None:
        late = float(rng.normal(0, score.jitter)) if score.jitter else 0.0
        loud = float(np.clip(velocity * rng.normal(1.0, 0.08), 0.05, 1.0))
        hits.append(Hit(max(0.0, score.time(bar.start, step) + late), kind, loud, tone))

    previous = ""
    for bar in score.bars:
        if "drums" not in bar.playing:
            previous = ""
            continue
        fill = bar.last and chance(rng, 0.6)
        until = pick(rng, (8, 12, 12, 14)) if fill else STEPS
        if bar.section != previous and chance(rng, 0.7):
            strike(bar, 0, "crash", 0.9)
        previous = bar.section
        thin = bar.section == "intro" and chance(rng, 0.3)
        for step in sorted({0, *pattern(rng, kicks[bar.section], loose)}):
            if step < until:
                strike(bar, step, "kick", 1.0 if step % 4 == 0 else 0.8)
        for step in pattern(rng, snares[bar.section], loose / 2):
            if step < until and not thin:
                strike(bar, step, "snare", 0.95 if step % 4 == 0 else 0.5)
        for step in range(until):
            if chance(rng, ghosts) and step % 4 and not thin:
                strike(bar, step, "snare", 0.18)
        opens = chance(rng, 0.3)
        for step in pattern(rng, hats[bar.section], loose):
            if step < until:
                kind = "open" if opens and step == 14 else top[bar.section]
                strike(bar, step, kind, 0.75 if step % 4 == 0 else 0.5, float(rng.random()))
        for step in range(until, STEPS):
            if chance(rng, 0.75):
                tone = 1.0 - (step - until) / max(1, STEPS - until)
                strike(bar, step, pick(rng, ("tom", "tom", "snare")), between(rng, 0.6, 1.0), tone)
    return hits


def bass_notes(score: Score, seed: int, low: int = 28) -> list[Note]:
    """A bass line: one manner a section, roots on the first beat."""
    rng, style = stream(seed, "bass"), STYLES[score.style]
    manners = {kind: pick(rng, style.basses) for kind in ("verse", "chorus", "intro", "break")}
    kick = pick(rng, style.kicks)
    loose = pick(rng, ("x..x..x...x..x..", "x.x..x..x..x.x..", "x...x..x..x...x."))
    short = between(rng, 0.55, 1.0)
    notes: list[Note] = []
    for index, bar in enumerate(score.bars):
        if "bass" not in bar.playing:
            continue
        root = low + (bar.root - low) % 12
        following = score.bars[min(index + 1, len(score.bars) - 1)].root
        manner = manners[bar.section]
        text = {
            "eighths": "x.x.x.x.x.x.x.x.", "roots": "x.......x.......", "kick": kick, "octaves": "x.x.x.x.x.x.x.x.",
            "offbeat": "..x...x...x...x.", "syncopated": loose, "long": "x...............",
            "walking": "x...x...x...x...", "slides": "x.....x...x.....",
        }[manner]  # fmt: skip
        steps = [step for step, mark in enumerate(text) if mark == "x"] or [0]
        for place, step in enumerate(steps):
            until = steps[place + 1] if place + 1 < len(steps) else STEPS
            pitch = root
            if (manner == "octaves" and place % 2) or (manner == "slides" and chance(rng, 0.3)):
                pitch += 12
            elif manner == "walking" and place:
                pitch += int(pick(rng, bar.chord)) if place < 3 else (following - root + 6) % 12 - 7
            elif manner in ("syncopated", "kick") and place and chance(rng, 0.3):
                pitch += pick(rng, (7, 12, 10, -5, int(pick(rng, bar.chord))))
            start = score.time(bar.start, step) + float(rng.normal(0, score.jitter))
            length = (until - step) * score.bar / STEPS * (short if manner != "long" else 0.98)
            notes.append(Note(max(0.0, start), length, float(max(pitch, 23)), between(rng, 0.7, 1.0)))
    return notes


def chord_notes(score: Score, seed: int, part: str) -> list[Note]:
    """One accompaniment: held chords, strums, broken chords, stabs on the off-beat or in a rhythm of its own."""
    rng = stream(seed, "chords", part)
    manner = pick(rng, ("held", "held", "strum", "broken", "broken", "offbeat", "rhythm", "half"))
    middle, wide = between(rng, 52, 67), chance(rng, 0.4)
    rhythm = sorted({0, *(int(step) for step in rng.integers(0, STEPS, int(rng.integers(3, 8))))})
    order = pick(rng, ("up", "down", "both", "any"))
    spread = between(rng, 0.004, 0.02) if manner == "strum" else 0.0
    stays = {kind: chance(rng, 0.8) for kind in ("verse", "chorus", "intro", "break")}
    notes: list[Note] = []
    for bar in score.bars:
        if "other" not in bar.playing or not (stays[bar.section] or bar.section == "chorus"):
            continue
        pitches = voicing(bar, middle, wide)
        steps = {
            "held": [0], "half": [0, 8], "strum": [0, 4, 6, 8, 12, 14], "offbeat": [2, 6, 10, 14], "rhythm": rhythm,
            "broken": list(range(0, STEPS, 2)),
        }[manner]  # fmt: skip
        climb = {"up": pitches, "down": pitches[::-1], "both": pitches + pitches[-2:0:-1], "any": pitches}[order]
        for place, step in enumerate(steps):
            until = steps[place + 1] if place + 1 < len(steps) else STEPS
            start = max(0.0, score.time(bar.start, step) + float(rng.normal(0, score.jitter)))
            length = (until - step) * score.bar / STEPS * (0.6 if manner == "offbeat" else 0.97)
            loud = between(rng, 0.55, 0.9)
            if manner == "broken":
                pitch = pick(rng, climb) if order == "any" else climb[place % len(climb)]
                notes.append(Note(start, 1.6 * length, pitch, loud))
            else:
                notes += [Note(start + spread * k, length, pitch, loud) for k, pitch in enumerate(pitches)]
    return notes


def riff_notes(score: Score, seed: int) -> list[Note]:
    """A low guitar line: a riff of one bar on each chord's root, single notes or power chords, an octave above a bass.

    Its lowest string is tuned between D flat and F.
    """
    rng = stream(seed, "riff notes")
    chugs = (
        "x.xxx.xxx.xxx.xx", "x.x.x.x.x.x.x.x.", "x..x..x.x..x..x.", "x..x..x...x.x...", "x.....x.x.......",
        "x...............",
    )  # fmt: skip
    rhythm, low = pick(rng, chugs), int(rng.integers(37, 42))
    steps = [step for step, mark in enumerate(rhythm) if mark == "x"]
    turns = [pick(rng, (0, 0, 0, 1, 2, 3, 4, 6)) for _ in steps]
    chords, short = chance(rng, 0.6), between(rng, 0.35, 1.0)
    notes: list[Note] = []
    for bar in score.bars:
        if "other" not in bar.playing:
            continue
        root = low + (bar.root - low) % 12
        degree = score.scale.index((bar.root - score.tonic) % 12)
        for place, step in enumerate(steps):
            turn = turns[place] if place else 0
            pitch = float(root + (score.scale[(degree + turn) % 7] - score.scale[degree]) % 12)
            until = steps[place + 1] if place + 1 < len(steps) else STEPS
            start = max(0.0, score.time(bar.start, step) + float(rng.normal(0, score.jitter)))
            length, loud = short * (until - step) * score.bar / STEPS, between(rng, 0.6, 1.0)
            notes += [Note(start, length, pitch + above, loud) for above in ((0, 7, 12) if chords else (0,))]
    return notes


def wall_notes(score: Score, seed: int) -> list[Note]:
    """Whole chords of a loud guitar, held or strummed: root, fifth and octave, at times the rest of the chord above.

    Its lowest string is tuned between D and F.
    """
    rng = stream(seed, "wall notes")
    rhythm = pick(
        rng, ("x...............", "x.......x.......", "x.....x...x.....", "x.x.x.x.x.x.x.x.", "x...x.xxx...x.xx")
    )
    steps = [step for step, mark in enumerate(rhythm) if mark == "x"]
    low, full, short = int(rng.integers(38, 42)), chance(rng, 0.6), between(rng, 0.7, 1.0)
    spread = between(rng, 0.003, 0.015)
    notes: list[Note] = []
    for bar in score.bars:
        if "other" not in bar.playing:
            continue
        root = low + (bar.root - low) % 12
        above = [12 + tone for tone in bar.chord[1:]] if full else []
        for place, step in enumerate(steps):
            until = steps[place + 1] if place + 1 < len(steps) else STEPS
            start = max(0.0, score.time(bar.start, step) + float(rng.normal(0, score.jitter)))
            length, loud = short * (until - step) * score.bar / STEPS, between(rng, 0.7, 1.0)
            shape = sorted({0, 7, 12, *above})
            notes += [Note(start + spread * k, length, float(root + tone), loud) for k, tone in enumerate(shape)]
    return notes


def voicing(bar: Bar, middle: float, wide: bool) -> list[float]:
    """The chord of a bar around a middle pitch, low to high."""
    pitches = sorted(middle - 6 + (bar.root + tone - middle + 6) % 12 for tone in bar.chord)
    pitches = [float(round(pitch)) for pitch in pitches]
    return [pitch + (12 if wide and place == 1 else 0) for place, pitch in enumerate(pitches)]


def melody(score: Score, seed: int, part: str, low: float, high: float, stem: str) -> list[list[Note]]:
    """Phrases of one or two bars between two pitches: steps of the scale, chord notes on the beats, a long last note.

    Sung while `stem` plays. `part` names the random numbers, so that two parts differ.
    """
    rng = stream(seed, "melody", part)
    dense = pick(rng, (2, 2, 3, 4, 4))
    ladder = [p for p in range(int(np.ceil(low)), int(high) + 1) if (p - score.tonic) % 12 in score.scale]
    motif = [int(rng.integers(-2, 3)) for _ in range(int(rng.integers(3, 7)))]
    rest, echo = between(rng, 0.1, 0.35), between(rng, 0.3, 0.8)
    place = len(ladder) // 2
    phrases: list[list[Note]] = []
    for bar in score.bars:
        if stem not in bar.playing or chance(rng, rest if bar.section != "chorus" else rest / 2):
            continue
        first = pick(rng, (0, 0, 2, 4))
        last = pick(rng, (10, 12, 14, 16))
        phrase: list[Note] = []
        step, turn = float(first), 0
        chord = {(bar.root + tone) % 12 for tone in bar.chord}
        while step < last:
            length = float(pick(rng, (1, 2, 2, 3, 4) if dense < 4 else (2, 2, 4, 4, 6)))
            if step + length >= last or chance(rng, 0.08):
                length = max(length, STEPS - step if chance(rng, 0.4) else last - step)
            move = motif[turn % len(motif)] if chance(rng, echo) else int(rng.integers(-3, 4))
            place = int(np.clip(place + move, 0, len(ladder) - 1))
            if step % 4 == 0:
                near = sorted(range(len(ladder)), key=lambda k: (ladder[k] % 12 not in chord, abs(k - place)))
                place = near[0]
            start = max(0.0, score.time(bar.start, step) + float(rng.normal(0, 2 * score.jitter)))
            seconds = 0.95 * length * score.bar / STEPS
            phrase.append(Note(start, seconds, float(ladder[place]), between(rng, 0.6, 1.0)))
            step += length
            turn += 1
        if phrase:
            phrases.append(phrase)
    return phrases
