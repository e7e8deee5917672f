"""Remixes: what fits, how it is brought together, what is written."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from sepcli.errors import UsageError
from sepcli.training import remix as module
from sepcli.training.data import Material
from sepcli.training.remix import Choice, Heard, lag, matching, remix, transposition

RATE = 44100
SOURCES = ("drums", "bass", "other", "vocals")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))


def write_song(folder: Path, *, bpm: float, note: float, first: float = 0.2, seconds: float = 5.0) -> Path:
    """Drums and `other` hit on each beat, from `first` on; a bass of one note; a voice five times as high."""
    time = np.arange(round(seconds * RATE)) / RATE
    after = (time - first) % (60 / bpm) + 1e9 * (time < first)
    noise = np.random.default_rng(0).standard_normal(len(time))
    waves = {
        "drums": 0.1 * noise * np.exp(-60 * after),
        "bass": 0.2 * np.sin(2 * np.pi * note * time),
        "other": 0.2 * np.sin(2 * np.pi * 1500 * time) * np.exp(-40 * after),
        "vocals": 0.1 * np.sin(2 * np.pi * 5 * note * time),
    }
    folder.mkdir(parents=True)
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", np.repeat(wave[:, None], 2, 1), RATE, subtype="FLOAT")
    return folder


def semitone(note: int) -> float:
    return float(110 * 2 ** (note / 12))


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float, int]]:
    """Beats and notes are told instead of heard: tempo, first beat, note of each song."""
    told: dict[str, tuple[float, float, int]] = {}

    def listen(song: Material) -> Heard:
        if song.name not in told:
            return Heard(song, 0)
        tempo, first, note = told[song.name]
        return heard_as(song, tempo, first, note)

    monkeypatch.setitem(sys.modules, "librosa", ModuleType("librosa"))
    monkeypatch.setattr(module, "listen", listen)
    return told


def heard_as(song: Material, tempo: float, first: float, note: int) -> Heard:
    beats = np.arange(first, song.frames / RATE, 60 / tempo)
    return Heard(song, 0, tempo, tuple(map(float, beats)), tuple(np.eye(12)[note % 12]))


def material(name: str, seconds: float = 20.0) -> Material:
    return Material(name, Path(name), dict.fromkeys(SOURCES, ()), round(seconds * RATE), 0.0, 0.1, 0.5, "")


def strongest(wave: npt.NDArray[np.float64]) -> float:
    """The frequency with the most energy."""
    mono = wave.mean(axis=1) * np.hanning(len(wave))
    return float(np.abs(np.fft.rfft(mono)).argmax() * RATE / len(mono))


@pytest.mark.parametrize(("up", "said"), [(0, 0), (2, -2), (3, -3), (10, 2), (6, 6), (7, 5)])
def test_the_transposition_is_the_nearest_way_back(up: int, said: int) -> None:
    notes = np.random.default_rng(1).dirichlet(np.ones(12))
    assert transposition(notes, np.roll(notes, up)) == said


@pytest.mark.parametrize(
    ("tempo", "note", "fits"),
    [(120, 0, True), (105, 0, True), (104, 0, False), (140, 3, True), (142, 0, False), (60, -3, True), (120, 4, False)],
)
def test_only_songs_within_fifteen_per_cent_and_three_semitones_fit(tempo: float, note: int, fits: bool) -> None:
    """The tempo may also be half or twice, a quarter or four times."""
    found = matching(heard_as(material("a"), 120, 0.2, 0), heard_as(material("b"), tempo, 0.3, note))
    assert (found is not None) == fits
    if found:
        assert found.semitones == -note
        assert found.tempo == pytest.approx(120 / (tempo * (2 if tempo == 60 else 1)))


def test_the_delay_lays_beat_upon_beat() -> None:
    ours, theirs = heard_as(material("a"), 120, 0.2, 0), heard_as(material("b"), 100, 0.37, 0)
    delay = lag(ours, theirs, 1.2)
    moved = np.array(theirs.beats) / 1.2 + delay
    off = (moved - ours.beats[0] + 0.25) % 0.5 - 0.25
    assert np.abs(off).max() < 0.006
    assert abs(delay) <= 4


def test_a_remix_has_one_key_one_tempo_and_one_beat(tmp_path: Path, deaf: dict[str, tuple[float, float, int]]) -> None:
    """Two songs: a remix of the first has one of its stems, and the others brought from the second to it."""
    write_song(tmp_path / "in" / "a", bpm=120, note=semitone(0), first=0.2)
    write_song(tmp_path / "in" / "b", bpm=126, note=semitone(2), first=0.47)
    deaf |= {"a": (120, 0.2, 0), "b": (126, 0.47, 2)}
    made = remix([tmp_path / "in"], tmp_path / "out", mixes=2, seed=1)
    assert [folder.name for folder in made] == [f"{name} {number}" for name in "ab" for number in (1, 2)]
    firsts = set()
    for folder in made:
        name, (period, note) = folder.name[0], {"a": (0.5, 0), "b": (60 / 126, 2)}[folder.name[0]]
        facts = json.loads((folder / "remix.json").read_text())
        own = [source for source in SOURCES if facts[source]["song"] == name]
        firsts.update(own)
        assert len(own) == 1
        waves = {source: soundfile.read(folder / f"{source}.wav")[0] for source in SOURCES}
        assert len({len(wave) for wave in waves.values()}) == 1
        assert np.abs(sum(waves.values())).max() < 1
        silent = max(int(np.argmax(np.abs(wave[:, 0]) > 0.01)) for wave in waves.values())
        assert strongest(waves["bass"][silent:]) == pytest.approx(semitone(note), rel=0.01)
        assert strongest(waves["vocals"][silent:]) == pytest.approx(5 * semitone(note), rel=0.01)
        beats = [onsets(waves[source][silent:], period) for source in ("drums", "other")]
        assert abs((beats[0] - beats[1] + period / 2) % period - period / 2) < 0.025
    assert len(firsts) > 1, "which stem is kept is drawn"


def onsets(wave: npt.NDArray[np.float64], period: float) -> float:
    """Where within a beat the hits are: the phase of the energy's course at the tempo."""
    size = 441
    energy = np.square(wave[: len(wave) // size * size].mean(axis=1)).reshape(-1, size).sum(axis=1)
    time = np.arange(len(energy)) * size / RATE
    course = np.sum(energy * np.exp(2j * np.pi * time / period))
    return float(np.angle(course) / (2 * np.pi) * period)


def test_a_second_call_makes_only_what_is_missing_or_different(
    tmp_path: Path, deaf: dict[str, tuple[float, float, int]]
) -> None:
    for name in ("a", "b"):
        write_song(tmp_path / "in" / name, bpm=120, note=110, seconds=2.0)
        deaf[name] = (120, 0.2, 0)
    first, second = remix([tmp_path / "in"], tmp_path / "out", mixes=1)
    before = (first / "drums.wav").stat().st_mtime_ns
    (second / "remix.json").unlink()
    remix([tmp_path / "in"], tmp_path / "out", mixes=1)
    assert (first / "drums.wav").stat().st_mtime_ns == before
    assert (second / "remix.json").is_file()
    deaf["b"] = (126, 0.2, 0)
    remix([tmp_path / "in"], tmp_path / "out", mixes=1)
    assert (first / "drums.wav").stat().st_mtime_ns != before


def test_songs_without_drums_are_copied_and_those_of_the_test_set_left_out(
    tmp_path: Path, deaf: dict[str, tuple[float, float, int]]
) -> None:
    for name in ("a", "b", "calm", "test/secret"):
        write_song(tmp_path / "in" / name, bpm=120, note=110, seconds=2.0)
    deaf |= {"a": (120, 0.2, 0), "b": (120, 0.2, 0)}
    said: list[str] = []
    made = remix([tmp_path / "in"], tmp_path / "out", mixes=1, notice=said.append)
    assert [folder.name for folder in made] == ["a 1", "b 1", "calm 1", "calm 2"]
    copied, given = (soundfile.read(folder / "other.wav")[0] for folder in (made[-1], tmp_path / "in" / "calm"))
    assert np.abs(copied - given).max() < 1e-4  # 16 bits, dithered
    assert said == ["copied as they are, without drums or bass to match them by: calm"]


def test_without_two_songs_that_can_be_heard_nothing_is_made(
    tmp_path: Path, deaf: dict[str, tuple[float, float, int]]
) -> None:
    write_song(tmp_path / "in" / "a", bpm=120, note=110, seconds=2.0)
    deaf["a"] = (120, 0.2, 0)
    with pytest.raises(UsageError, match="1 of 1 songs have drums and bass"):
        remix([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_songs_of_one_name_are_refused(tmp_path: Path, deaf: dict[str, tuple[float, float, int]]) -> None:
    for folder in ("one/a", "two/a"):
        write_song(tmp_path / "in" / folder, bpm=120, note=110, seconds=0.5)
    with pytest.raises(UsageError, match="one/a: another song has this name too"):
        remix([tmp_path / "in"], tmp_path / "out")


def test_without_librosa_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(UsageError, match=r"remixes need librosa; pip install 'sepcli\[train\]'"):
        remix([tmp_path], tmp_path / "out")


def test_a_song_that_fits_no_other_keeps_its_own_stems(
    tmp_path: Path, deaf: dict[str, tuple[float, float, int]]
) -> None:
    for name in ("a", "b"):
        write_song(tmp_path / "in" / name, bpm=120, note=110, seconds=2.0)
    deaf |= {"a": (120, 0.2, 0), "b": (160, 0.2, 0)}
    for folder in remix([tmp_path / "in"], tmp_path / "out", mixes=1):
        facts = json.loads((folder / "remix.json").read_text())
        assert facts == dict.fromkeys(SOURCES, vars(Choice(folder.name[0])))


def test_beats_and_notes_are_heard(tmp_path: Path) -> None:
    """Through librosa: the tempo to half a per cent, beats to 20 ms, the bass' note."""
    pytest.importorskip("librosa", reason="needs the extra `train`")
    from sepcli.training.data import prepare
    from sepcli.training.tracks import find_tracks

    write_song(tmp_path / "a", bpm=126, note=semitone(2), first=0.47, seconds=12.0)
    (song,) = prepare(find_tracks([tmp_path], ()), SOURCES, SOURCES, sample_rate=RATE, channels=2)
    found = module.listen(song)
    assert found.tempo == pytest.approx(126, rel=0.005)
    assert phases(found.beats, 60 / 126, 0.47) < 0.02
    assert int(np.argmax(found.notes)) == 11  # A is the tenth from C, two semitones on is B
    soundfile.write(tmp_path / "a" / "drums.wav", np.zeros((12 * RATE, 2)), RATE)
    (silent,) = prepare(find_tracks([tmp_path], ()), ("bass",), SOURCES, sample_rate=RATE, channels=2)
    assert module.listen(silent).beats == ()


def phases(beats: Sequence[float], period: float, first: float) -> float:
    """How far beats are from where they belong, at most."""
    return float(np.abs((np.array(beats) - first + period / 2) % period - period / 2).max())
