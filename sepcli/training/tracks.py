"""Songs with stems, found in folders, and which of their stems each source is the sum of.

A song is a folder of stems (`vocals.wav`, `drums.flac`, …; `mixture` is left out), or a MUSDB18 `.stem.mp4`. A folder
named after a source, with recordings in it, is single-source material.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sepcli.audio.paths import AUDIO_SUFFIXES
from sepcli.errors import UsageError

VALIDATION_SONGS = (
    "Actions - One Minute Smile", "Clara Berry And Wooldog - Waltz For My Victims",
    "Johnny Lokke - Promises & Lies", "Patrick Talbot - A Reason To Leave", "Triviul - Angelsaint",
    "Alexander Ross - Goodbye Bolero", "Fergessen - Nos Palpitants", "Leaf - Summerghost", "Skelpolu - Human Mistakes",
    "Young Griffo - Pennies", "ANiMAL - Rockshow", "James May - On The Line", "Meaxic - Take A Step",
    "Traffic Experiment - Sirens",
)  # fmt: skip
"""Of MUSDB18's 100 training songs those that its package keeps for validation."""

MIXTURE = "mixture"
MIXTURES = (MIXTURE, "mix", "linear_mixture")
RESTS = ("accompaniment", "instrumental", "other", "noise")
"""The first of these among the sources takes every stem that is no source itself."""

SUMS = ("accompaniment", "instrumental")
"""Stems that may lie beside those that they are the sum of."""

STEM_STREAMS = ("mixture", "drums", "bass", "other", "vocals")
"""The audio streams of a MUSDB18 .stem.mp4 in order."""

SUBSETS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}


@dataclass(frozen=True)
class Part:
    """Where a stem's sound is: a file, and for a .stem.mp4 the audio stream in it."""

    path: Path
    stream: int = 0


@dataclass(frozen=True)
class Track:
    """One song as found: its stems by name, and the subset that its folder says ("" if none)."""

    name: str
    path: Path
    stems: Mapping[str, Part]
    subset: str = ""
    mixture: Part | None = None
    single: bool = False


def find_tracks(folders: Sequence[Path], known: Iterable[str]) -> list[Track]:
    """Every song below the folders, sorted. `known` are the names by which stems are recognised.

    Raises UsageError where a folder is missing or holds none.
    """
    names = {*known, *STEM_STREAMS[1:], *RESTS}
    found: dict[str, Track] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--data {folder}: is no folder")
        before = len(found)
        entered: set[tuple[str, str]] = set()
        for place, subfolders, files in os.walk(folder, followlinks=True):
            own = os.path.realpath(place), Path(place).name  # a link may give a folder the name of a source
            if own in entered:  # a link to a folder above
                subfolders.clear()
                continue
            entered.add(own)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for track in _tracks_in(Path(place), sorted(files), names, folder):
                found.setdefault(os.path.realpath(track.path), track)
        if len(found) == before:
            what = f"--data {folder}: holds no songs"
            raise UsageError(what, "a song is a folder of stems (vocals.wav, drums.wav, …) or a .stem.mp4")
    return sorted(found.values(), key=lambda track: (track.name, str(track.path)))


def _tracks_in(place: Path, files: Sequence[str], names: set[str], top: Path) -> Iterator[Track]:
    relative = place.relative_to(top)
    subset = next((SUBSETS[part.lower()] for part in relative.parts if part.lower() in SUBSETS), "")
    stems: dict[str, Part] = {}
    mixture = None
    sounds = []
    for file in files:
        path = place / file
        if file.startswith(".") or path.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        if file.lower().endswith(".stem.mp4"):
            streams = {name: Part(path, index) for index, name in enumerate(STEM_STREAMS)}
            mixed = streams.pop("mixture")
            yield Track(file[: -len(".stem.mp4")], path, streams, subset, mixed)
            continue
        sounds.append(path)
        name = path.stem.lower()
        if name in MIXTURES:
            mixture = Part(path)
        elif name in stems:
            raise UsageError(f"{path}: the song has {stems[name].path.name} too", "keep one file for each stem")
        else:
            stems[name] = Part(path)
    if names & stems.keys():
        yield Track(place.name, place, stems, subset, mixture)
    elif place.name.lower() in names:
        for path in sounds:
            yield Track(f"{place.name}/{path.stem}", path, {place.name.lower(): Part(path)}, subset, single=True)


def split_tracks(tracks: Sequence[Track], split: str, notice: Callable[[str], None]) -> tuple[list[Track], list[Track]]:
    """Songs to train with, and to validate with; those of a folder `test` are neither.

    Folders named train, valid and test decide; then, with split "musdb18", the published names; else one song in
    seven, chosen by the digest of its name. A lone song is both. Raises UsageError where nothing is left.
    """
    usable = [track for track in tracks if track.subset != "test"]
    if not usable:
        raise UsageError("--data: all songs lie in a folder `test`", "training songs lie in `train`, or beside it")
    singles = [track for track in usable if track.single]
    whole = [track for track in usable if not track.single]
    valid = [track for track in whole if track.subset == "valid"]
    if not valid and split == "musdb18":
        valid = [track for track in whole if track.name in VALIDATION_SONGS]
    if not valid and len(whole) > 1:
        order = sorted(whole, key=lambda track: hashlib.sha256(track.name.encode()).digest())
        valid = order[: max(1, len(whole) // 7)]
        notice(f"validating with {', '.join(sorted(track.name for track in valid))}; a folder `valid` says otherwise")
    train = [track for track in whole if track not in valid]
    if not train and not singles:
        train = valid = whole
        notice("validating with the song that is trained with: there is no other")
    return [*train, *singles], valid


def rows_of(sources: Sequence[str], tracks: Sequence[Track]) -> tuple[str, ...]:
    """The sources, and where none of them sums up the rest, every other stem that the mixture is made of."""
    if set(RESTS) & set(sources):
        return tuple(sources)
    return tuple(dict.fromkeys([*sources, *sorted({name for track in tracks for name in parts_of(track, sources)})]))


def parts_of(track: Track, sources: Sequence[str]) -> dict[str, Part]:
    """A song's stems, none of which is the sum of others."""
    stems = dict(track.stems)
    for name in SUMS:
        if name in stems and name in sources:
            return {stem: part for stem, part in stems.items() if stem in sources}
        if name in stems and any(stem not in ("vocals", *SUMS) for stem in stems):
            del stems[name]
    return stems


def assign(track: Track, sources: Sequence[str], rows: Sequence[str], absent: str) -> dict[str, tuple[Part, ...]]:
    """Which stems of a song each row is the sum of. Raises UsageError for a source that the song lacks."""
    stems = parts_of(track, sources)
    given: dict[str, tuple[Part, ...]] = {row: (stems[row],) for row in rows if row in stems}
    if track.single:
        return given
    rest = tuple(part for name, part in stems.items() if name not in rows)
    taker = next((name for name in RESTS if name in sources), None)
    if rest and taker:
        given[taker] = (*given.get(taker, ()), *rest)
    missing = [source for source in sources if source not in given]
    if missing and absent == "refuse":
        what = f"{track.path}: has no {', '.join(missing)} (it has {', '.join(track.stems)})"
        raise UsageError(what, "--absent-stems silence takes what is missing as silent")
    return given
