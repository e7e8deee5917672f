"""Songs made from a seed: the same bits again, stems that sum up, stated levels, and hits on the beat."""

import builtins
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sepcli.errors import AudioError, SepcliError, UsageError
from sepcli.training import band, samples, synth
from sepcli.training.data import prepare
from sepcli.training.effects import RATE
from sepcli.training.instruments import perform, string_notes
from sepcli.training.score import compose, drum_hits, melody, riff_notes, wall_notes
from sepcli.training.tracks import find_tracks
from tests.training.songs import sound

SECONDS = 5.0
SEEDS = range(6)


@pytest.fixture(scope="module")
def made() -> dict[int, synth.Rendered]:
    return {seed: synth.render(seed, SECONDS) for seed in SEEDS}


def folder_of(place: Path, voices: tuple[str, ...] = ()) -> Path:
    """A folder of recordings: a kick that is a click, a bass note of 55 Hz, and voices."""
    kick, bass = place / "samples" / "kick", place / "samples" / "bass"
    for folder in (kick, bass, place / "voices" / "singing"):
        folder.mkdir(parents=True)
    click = np.zeros(2000, np.float32)
    click[100] = 0.5
    soundfile.write(kick / "click.wav", click, RATE)
    tone = 0.5 * np.sin(2 * np.pi * 55 * np.arange(RATE) / RATE) + 0.3 * np.sin(
        2 * np.pi * 110 * np.arange(RATE) / RATE
    )
    soundfile.write(bass / "note.wav", tone.astype(np.float32), RATE)
    for name in voices:
        soundfile.write(place / "voices" / "singing" / f"{name}.wav", sound(1.0, 3, RATE, 1), RATE)
    return place


def test_a_seed_makes_the_same_bits_again(made: dict[int, synth.Rendered]) -> None:
    again = synth.render(2, SECONDS)
    for name, stem in made[2].stems.items():
        assert np.array_equal(stem, again.stems[name]), name
    assert not np.array_equal(made[2].stems["drums"], made[3].stems["drums"])


def test_stems_have_one_length_and_no_sample_is_beyond_the_peak(made: dict[int, synth.Rendered]) -> None:
    for song in made.values():
        assert list(song.stems) == ["drums", "bass", "other", "vocals"]
        assert {stem.shape for stem in song.stems.values()} == {(2, round(SECONDS * RATE))}
        mixture = np.sum(list(song.stems.values()), axis=0)
        for stem in (mixture, *song.stems.values()):
            assert np.isfinite(stem).all()
            assert np.abs(stem).max() <= synth.PEAK + 1e-5


def test_stems_are_balanced_within_the_stated_spread() -> None:
    draw = np.random.default_rng(0)
    stems = {name: draw.standard_normal((2, 2 * RATE), dtype=np.float32) for name in synth.LOUDNESS}
    for seed in range(60):
        for name, stem in synth.balanced(stems, seed).items():
            away = synth.loudness(stem) - synth.LOUDNESS[name][0]
            # a fade takes up to 3 dB more from two seconds of noise, mono from stereo noise 3
            assert -synth.SPREAD - 6.5 < away < synth.SPREAD + 0.1, (seed, name)


def test_the_mixture_is_no_louder_than_stated_and_every_stem_is_somewhere(made: dict[int, synth.Rendered]) -> None:
    heard = dict.fromkeys(synth.STEMS, 0)
    for song in made.values():
        mixture = np.sum(list(song.stems.values()), axis=0)
        assert 20 * np.log10(np.sqrt(np.mean(np.square(mixture)))) <= synth.LEVELS[1] + 0.1
        for name, stem in song.stems.items():
            heard[name] += bool(np.abs(stem).max() > 1e-3)
    assert min(heard.values()) >= len(SEEDS) // 2


def test_kicks_are_on_the_grid_of_their_tempo_and_heard_there() -> None:
    for seed in range(40):
        score = compose(seed, 8.0)
        hits = [hit for hit in drum_hits(score, seed) if hit.kind == "kick"]
        starts = {round(bar.start, 6) for bar in score.bars if "drums" in bar.playing}
        firsts = [hit.start for hit in hits if min(abs(hit.start - start) for start in starts) < 0.03]
        assert len(firsts) >= len(starts), seed
    score = compose(0, 8.0)
    assert np.allclose(np.diff([bar.start for bar in score.bars]), 240 / score.tempo)


def test_a_stroke_begins_at_its_hit() -> None:
    for seed in range(20):
        song = synth.begin(seed, 4.0)
        kicks = [hit.start for hit in song.hits if hit.kind == "kick"]
        if kicks and song.hits[0].start > 0.01:
            drums = np.abs(synth.drums(song)).max(axis=0)
            onset = float(np.argmax(drums > 0.02 * drums.max())) / RATE
            assert abs(onset - song.hits[0].start) < 0.012
            return
    pytest.fail("no song begins with a stroke")


def test_melodies_stay_in_their_scale_and_range() -> None:
    for seed in range(20):
        score = compose(seed, 12.0)
        for phrase in melody(score, seed, "vocals", 55, 68, "vocals"):
            for note in phrase:
                assert 55 <= note.pitch <= 68
                assert (note.pitch - score.tonic) % 12 in score.scale


def test_a_riff_is_low_and_in_the_scale_of_its_song() -> None:
    for seed in range(20):
        score = compose(seed, 12.0)
        notes = riff_notes(score, seed)
        assert bool(notes) == any("other" in bar.playing for bar in score.bars)
        assert {(note.pitch - score.tonic) % 12 for note in notes[:1]} <= set(score.scale)
        assert all(37 <= note.pitch <= 75 for note in notes)
        if notes:
            assert min(note.pitch for note in notes) < 53


def test_a_wall_is_of_chords_and_denser_than_its_strings() -> None:
    ratios = []
    for seed in range(20):
        score = compose(seed, 12.0)
        notes = wall_notes(score, seed)
        assert bool(notes) == any("other" in bar.playing for bar in score.bars)
        assert all(38 <= note.pitch <= 76 for note in notes)
        for bar in (bar for bar in score.bars if "other" in bar.playing):
            pitches = {note.pitch for note in notes if -0.05 < note.start - bar.start < 0.05}
            assert (min(pitches) - bar.root) % 12 == 0
            assert {min(pitches) + 7, min(pitches) + 12} <= pitches
        if notes and seed < 4:
            song = synth.begin(seed, 4.0)
            strings = perform(wall_notes(song.score, seed), string_notes(np.random.default_rng(0)), song.length)
            ratios.append(crest(strings) / crest(band.wall(song).mean(axis=0)))
    assert np.median(ratios) > 1.5


def test_the_noise_of_an_amplifier_is_heard_where_there_is_much_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    real, level = band.between, {}

    def between(rng: np.random.Generator, low: float, high: float) -> float:
        drawn = real(rng, low, high)
        return level["hiss"] if (low, high) == (-50, -5) else drawn

    monkeypatch.setattr(band, "between", between)
    ratios: dict[float, list[float]] = {40.0: [], 10.0: []}
    for seed in range(6):
        song = synth.begin(seed, 4.0)
        notes = wall_notes(song.score, seed)
        for drive in ratios if notes else ():
            heard = []
            for level["hiss"] in (-50.0, -5.0):
                rngs = np.random.default_rng(seed), np.random.default_rng(0)
                sound = band.amplified(song, rngs[0], notes, string_notes(rngs[1]), drive, 80.0)
                assert sound.shape == (2, song.length)
                heard.append(flatness(sound.mean(axis=0)))
            ratios[drive].append(heard[1] / heard[0])
    assert len(ratios[40.0]) >= 4
    assert np.median(ratios[40.0]) > 1.5
    assert set(ratios[10.0]) == {1.0}


def flatness(sound: np.ndarray) -> float:
    """Geometric over arithmetic mean of the power from 1 to 2.4 kHz: 1 is noise, little is a few lines."""
    power = np.square(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))))
    bins = power[int(1000 * len(sound) / 44100) : int(2400 * len(sound) / 44100)] + 1e-12
    return float(np.exp(np.log(bins).mean()) / bins.mean())


def crest(sound: np.ndarray) -> float:
    """The peak over the root mean square of what is not silence."""
    played = sound[np.abs(sound) > 1e-4 * np.abs(sound).max()]
    return float(np.abs(played).max() / np.sqrt(np.mean(np.square(played))))


def test_songs_are_made_faster_than_they_play() -> None:
    begin = time.process_time()
    synth.render(7, 10.0)
    assert time.process_time() - begin < 10.0  # twelve times faster on an idle core


def test_folders_of_songs_are_written_whole_and_read_by_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    places = synth.render_songs(4, 2, tmp_path / "songs", seconds=2.0)
    stems = [soundfile.read(places[0] / f"{name}.wav", dtype="int16")[0].astype(int) for name in synth.STEMS]
    mixture, rate = soundfile.read(places[0] / "mixture.wav", dtype="int16")
    assert rate == RATE
    assert np.array_equal(mixture, np.sum(stems, axis=0))
    tracks = find_tracks([tmp_path / "songs"], synth.STEMS)
    assert [track.name for track in tracks] == ["song-000004", "song-000005"]
    songs = prepare(tracks, tuple(synth.STEMS), tuple(synth.STEMS), sample_rate=RATE, channels=2)
    assert {song.frames for song in songs} == {2 * RATE}


def test_songs_that_are_there_stay_and_flac_holds_the_same(tmp_path: Path) -> None:
    place = synth.render_songs(4, 1, tmp_path, seconds=1.0)[0]
    (place / "drums.wav").write_bytes(b"mine")
    synth.render_songs(4, 1, tmp_path, seconds=1.0)
    assert (place / "drums.wav").read_bytes() == b"mine"
    flac = synth.render_songs(4, 1, tmp_path / "flac", seconds=1.0, container="flac")[0]
    wave, _ = soundfile.read(place / "bass.wav", dtype="int16")
    assert np.array_equal(wave, soundfile.read(flac / "bass.flac", dtype="int16")[0])


def test_what_is_low_is_not_always_the_bass() -> None:
    shares = []
    for seed in range(4, 8):
        spectrum = np.square(np.abs(np.fft.rfft(band.riff(synth.begin(seed, 2.0)).mean(axis=0))))
        below = np.arange(len(spectrum)) / 2.0 < 250
        shares.append(spectrum[below].sum() / spectrum.sum())
    assert np.median(shares) > 0.3


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    one = synth.render_songs(8, 2, tmp_path / "one", seconds=1.0)
    two = synth.render_songs(8, 2, tmp_path / "two", seconds=1.0, jobs=2)
    for a, b in zip(one, two, strict=True):
        for name in synth.STEMS:
            digests = {hashlib.sha256((place / f"{name}.wav").read_bytes()).digest() for place in (a, b)}
            assert len(digests) == 1


def half_made(job: synth.Job) -> None:
    """A song as it looks while it is made."""
    synth.aside_of(job[1], os.getpid()).mkdir(parents=True)


def killed(job: synth.Job) -> None:
    half_made(job)
    os.kill(os.getpid(), signal.SIGKILL)


def endless(job: synth.Job) -> None:
    half_made(job)
    time.sleep(600)


def test_a_process_that_is_killed_is_told_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    work = [(number, tmp_path / f"song {number}") for number in range(3)]
    with pytest.raises(SepcliError, match="a process ended before its song was made"):
        list(synth.side_by_side(killed, work, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_all_processes_without_a_word_of_theirs(number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the group, SIGTERM the first alone."""
    code = f"""
        import sys
        from pathlib import Path
        from sepcli.cli import console
        from sepcli.training import synth
        from tests.training.test_synth import endless
        console.listen_for_signals()
        work = [(number, Path({str(tmp_path)!r}) / f"song {{number}}") for number in range(4)]
        try:
            list(synth.side_by_side(endless, work, 2))
        except console.Stopped as stopped:
            sys.exit(stopped.exit_code)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stderr=pipe, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(begun := [path.name for path in tmp_path.iterdir()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(begun) == 2
    os.killpg(process.pid, number) if number == signal.SIGINT else process.terminate()
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (128 + number, "")
    assert not list(tmp_path.iterdir())
    for name in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(name.rpartition(".")[2]), 0)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "songs").write_text("a file")
    with pytest.raises(AudioError, match="song-000001: cannot be written"):
        synth.render_songs(1, 1, tmp_path / "songs", seconds=1.0)


def test_recorded_samples_are_what_is_heard(tmp_path: Path) -> None:
    folder = samples.look(folder_of(tmp_path), frozenset())
    kit = samples.recorded_kit(folder, np.random.default_rng(1))
    assert len(kit["kick"]) == 1
    assert np.count_nonzero(kit["kick"][0][0]) < 4  # a click, as the recording is
    assert samples.pitch_of(folder.of("bass")[0]) == pytest.approx(33.0, abs=0.2)  # 55 Hz
    make = samples.recorded_notes(folder, "bass", np.random.default_rng(1))
    assert make is not None
    note = make(40.0, 0.5, 1.0)
    spectrum = np.abs(np.fft.rfft(note[: RATE // 2] * np.hanning(RATE // 2)))
    assert 2 * int(np.argmax(spectrum)) == pytest.approx(440 * 2 ** ((40 - 69) / 12), abs=3)


def test_a_kit_of_one_maker_has_others_only_where_that_maker_has_nothing() -> None:
    kicks, snares, toms = (Path("a_1.wav"), Path("b_1.wav")), (Path("b_2.wav"), Path("c_2.wav")), (Path("a_3.wav"),)
    folder = samples.Folder({"kick": kicks, "snare": snares, "tom": toms}, ())
    own = samples.of_one_maker(folder, np.random.default_rng(0))
    assert own.classes == {"kick": kicks[1:], "snare": snares[:1], "tom": toms}


def test_held_out_voices_are_never_seen(tmp_path: Path) -> None:
    place = folder_of(tmp_path, ("anna", "vocadito-10"))
    folder = samples.look(place, frozenset({"vocadito-10"}))
    assert [path.stem for path in folder.voices] == ["anna"]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither samples/CLASS/ nor voices/"):
        samples.look(tmp_path, frozenset())


def test_without_pyworld_one_line_says_so_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "pyworld":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    folder = samples.look(folder_of(tmp_path / "recordings", ("anna",)), frozenset())
    with pytest.raises(UsageError, match="package pyworld, which is not installed; pip install 'sepcli"):
        synth.render_songs(1, 1, tmp_path / "songs", seconds=1.0, folder=folder)
    assert not (tmp_path / "songs").exists()
