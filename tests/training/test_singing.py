"""Voices: a melody is sung at its pitches, by a made singer and by a recording's syllables through the vocoder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.training import singing, voices
from sepcli.training.effects import RATE
from sepcli.training.instruments import hertz
from sepcli.training.score import Note, compose, stream

STEADY = singing.Manner((5.0, 0.0, 0.3), 0.0, 0.0, 0.0)


def pitch_at(sound: np.ndarray, seconds: float, near: float) -> float:
    """The strongest period around a time, within a fifth of `near`, in semitones."""
    piece = sound[int((seconds - 0.06) * RATE) : int((seconds + 0.06) * RATE)].astype(float)
    course = np.fft.irfft(np.square(np.abs(np.fft.rfft(piece, 1 << 15))))
    low, high = (int(RATE / hertz(near + step)) for step in (7, -7))
    return float(69 + 12 * np.log2(RATE / (low + int(np.argmax(course[low:high]))) / 440))


def spoken_syllables(seed: int = 0) -> np.ndarray:
    """Six vowels of 0.3 s at 120 Hz, 0.15 s apart: a pulse train through two resonances."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(0.3 * RATE)) / RATE
    parts = []
    for _ in range(6):
        formants = draw.uniform((300, 900), (800, 2200))
        harmonics = np.arange(1, 60) * 120.0
        weights = sum(1 / (1 + np.square((harmonics - formant) / 120)) for formant in formants) + 0.01
        wave = (weights[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(axis=0)
        parts += [wave * np.minimum(1, np.minimum(time, time[::-1]) / 0.03), np.zeros(int(0.15 * RATE))]
    sound = np.concatenate(parts)
    return (0.5 * sound / np.abs(sound).max() + 1e-5 * draw.standard_normal(len(sound))).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> voices.Voice:
    pytest.importorskip("pyworld")
    folder = tmp_path_factory.mktemp("voices") / "speech"
    folder.mkdir()
    soundfile.write(folder / "one.wav", spoken_syllables(), RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEPCLI_CACHE", str(folder.parent / "cache"))
        first = voices.voice(folder / "one.wav", voices.kind_of(folder / "one.wav"))
        patch.setattr(voices, "take_apart", None)  # the second time comes from the cache
        second = voices.voice(folder / "one.wav", "speech")
    assert np.array_equal(first.envelope, second.envelope)
    assert second.kind == "speech"
    return second


MELODY = [[Note(0.2, 0.5, 57.0, 1.0), Note(0.8, 0.5, 60.0, 1.0)], [Note(1.6, 0.6, 55.0, 1.0)]]


def test_a_made_singer_sings_the_notes_at_their_pitch() -> None:
    rng = stream(3, "voice")
    singer = singing.throat(rng)
    sound = singing.sing_from_nothing(singer, MELODY, STEADY, 2 * RATE + RATE // 2, rng)
    for note in (note for phrase in MELODY for note in phrase):
        assert pitch_at(sound, note.start + 0.3, note.pitch) == pytest.approx(note.pitch, abs=0.35)
    assert np.abs(sound[: int(0.05 * RATE)]).max() < 0.01 * np.abs(sound).max()


def test_syllables_of_a_recording_are_found(recorded: voices.Voice) -> None:
    assert len(recorded.syllables) == 6
    begins = recorded.syllables[:, 1] * voices.FRAME
    assert np.allclose(begins, 0.45 * np.arange(6), atol=0.04)
    usual = np.median(recorded.pitch[recorded.pitch > 0])
    assert usual == pytest.approx(120, abs=1)


def test_a_recording_sings_other_notes_each_vowel_where_its_note_begins(recorded: voices.Voice) -> None:
    singer = singing.Singer(recorded, 0.0, 1.1, 0.0, 0.0, 0.0, -10.0)
    sound = singing.sing(singer, MELODY, STEADY, 2 * RATE + RATE // 2, stream(1, "sing"))
    for note in (note for phrase in MELODY for note in phrase):
        assert pitch_at(sound, note.start + 0.3, note.pitch) == pytest.approx(note.pitch, abs=0.3)
    loud = np.abs(sound) > 0.1 * np.abs(sound).max()
    assert float(np.argmax(loud)) / RATE == pytest.approx(0.2, abs=0.04)
    again = singing.sing(singer, MELODY, STEADY, 2 * RATE + RATE // 2, stream(1, "sing"))
    assert np.array_equal(sound, again)


def test_a_larger_throat_moves_the_formants_down_and_not_the_pitch(recorded: voices.Voice) -> None:
    centres = []
    for size in (0.8, 1.25):
        singer = singing.Singer(recorded, 0.0, size, 0.0, 0.0, 0.0, -10.0)
        sound = singing.sing(singer, [[Note(0.1, 0.8, 50.0, 1.0)]], STEADY, RATE, stream(1, "sing"))
        assert pitch_at(sound, 0.5, 50.0) == pytest.approx(50.0, abs=0.3)
        power = np.square(np.abs(np.fft.rfft(sound.astype(float))))[: 6000 * len(sound) // RATE]
        centres.append(float((power * np.arange(len(power))).sum() / power.sum()))
    assert centres[1] > 1.25 * centres[0]


def test_a_narrow_recording_gets_a_band_above_its_end(recorded: voices.Voice) -> None:
    shares = []
    for top in (RATE / 2, 2000.0):
        voice = voices.Voice(**{**vars(recorded), "top": top})
        singer = singing.Singer(voice, 0.0, 1.0, 0.0, 0.0, 0.0, -8.0)
        sound = singing.sing(singer, [[Note(0.1, 0.8, 50.0, 1.0)]], STEADY, RATE, stream(1, "sing")).astype(float)
        power = np.square(np.abs(np.fft.rfft(sound)))
        shares.append(power[9000:16000].sum() / power[:2000].sum())
    assert shares[1] > 1e-6
    assert shares[1] > 3 * shares[0]


def test_where_a_recording_ends_is_measured() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE * 2)
    spectrum = np.fft.rfft(noise)
    spectrum[16000:] = 0  # 8 kHz
    assert voices.top_of(noise) == RATE / 2
    assert voices.top_of(np.fft.irfft(spectrum)) == 7800.0


def test_kinds_are_told_by_folder() -> None:
    assert voices.kind_of(Path("voices/speech/a.ogg")) == "speech"
    assert voices.kind_of(Path("voices/singing/a.ogg")) == "singing"


def test_a_recordings_own_phrases_fill_their_slots_and_come_into_the_key(recorded: voices.Voice) -> None:
    score = compose(1, 3.0)
    singer = singing.Singer(recorded, 0.3, 1.0, 0.0, 0.0, 0.0, -10.0)
    how = singing.Manner((5.0, 0.0, 0.3), 0.0, 0.0, 0.0, tuned=1.0)
    sound = singing.cover(singer, score, [(0.5, 2.5)], how, 3 * RATE, stream(2, "cover"))
    loud = np.square(sound).reshape(-1, RATE // 20).mean(axis=1)
    heard = loud > 1e-3 * loud.max()
    assert not heard[:9].any()
    assert not heard[51:].any()
    assert heard[10:50].mean() > 0.6
    loudest = (10 + int(np.argmax(loud[10:50]))) / 20
    pitch = pitch_at(sound, loudest, 69 + 12 * np.log2(120 / 440))
    assert min(abs((pitch - score.tonic - step + 6) % 12 - 6) for step in score.scale) < 0.3
