"""`sepcli separate`: options in, stems out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import passthrough

Run = Callable[..., "object"]


def test_stems_have_the_songs_rate_length_and_channels(sepcli, song, tmp_path: Path) -> None:
    path = song("My Song.wav", seconds=2.5)
    done = sepcli(path)
    assert done.code == 0, done.err
    names = ["drums", "bass", "other", "vocals"]
    assert done.lines == [f"separated/pass/My Song/{name}.wav" for name in names]
    mixture, _ = soundfile.read(path)
    for name in names:
        stem, rate = soundfile.read(tmp_path / f"separated/pass/My Song/{name}.wav")
        assert rate == 44100
        assert stem.shape == mixture.shape
        assert np.abs(stem - passthrough.SHARES[name] * mixture).max() < 2 / 32768 + 1e-6


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_layout_comes_back_in_place(sepcli, song, tmp_path: Path, rate: int, channels: int) -> None:
    path = song("a.wav", seconds=1.3, rate=rate, channels=channels, subtype="PCM_24")
    assert sepcli(path).code == 0
    mixture, _ = soundfile.read(path, always_2d=True)
    stem, found = soundfile.read(tmp_path / "separated/pass/a/drums.wav", always_2d=True)
    assert (found, stem.shape) == (rate, mixture.shape)
    products = [np.vdot(stem[50:-50], np.roll(mixture, lag, axis=0)[50:-50]) for lag in range(-20, 21)]
    assert int(np.argmax(products)) == 20, "no lag"
    other, _ = soundfile.read(tmp_path / "separated/pass/a/other.wav", always_2d=True)
    total = sum(soundfile.read(file, always_2d=True)[0] for file in (tmp_path / "separated/pass/a").glob("*.wav"))
    assert np.abs(total - mixture).max() < 1e-6, "what resampling loses goes to the accompaniment"
    if rate > 44100:
        assert np.square(other).mean() > 0.125**2 * np.square(mixture).mean() * 1.05


def test_two_stems_are_one_and_the_sum_of_the_others(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", subtype="FLOAT")
    done = sepcli(path, "--two-stems", "drums")
    assert done.lines == ["separated/pass/a/drums.wav", "separated/pass/a/no_drums.wav"]
    mixture, _ = soundfile.read(path)
    rest, _ = soundfile.read(tmp_path / "separated/pass/a/no_drums.wav")
    assert np.abs(rest - 0.5 * mixture).max() < 1e-6


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_single_target_leaves_the_rest_of_the_song(sepcli, song, tmp_path: Path, rate: int, channels: int) -> None:
    model = passthrough.save(tmp_path / "voice.safetensors", {"vocals": 0.3}, level={"deviation": 1.0})
    path = song("a.wav", rate=rate, channels=channels, subtype="FLOAT")
    done = sepcli(path, "--model", model)
    assert done.lines == ["separated/voice/a/vocals.wav", "separated/voice/a/no_vocals.wav"], done.err
    mixture, _ = soundfile.read(path)
    vocals, rest = (soundfile.read(tmp_path / f"separated/voice/a/{stem}.wav")[0] for stem in ("vocals", "no_vocals"))
    assert np.abs(vocals + rest - mixture).max() < 1e-6, "in the song's own scale, with all that no network heard"
    heard = 44100 / rate  # of the noise's band
    assert np.square(vocals).mean() == pytest.approx(0.09 * heard * np.square(mixture).mean(), rel=0.1)
    same = sepcli(path, "--model", model, "--two-stems", "vocals", "--out", "two")
    assert [Path(line).name for line in same.lines] == ["vocals.wav", "no_vocals.wav"]
    again, _ = soundfile.read(tmp_path / same.lines[1])
    assert np.array_equal(again, rest)
    if channels == 2:
        exact = sepcli(path, "--model", model, "--consistent", "--bit-depth", "16", "--out", "exact")
        parts = [soundfile.read(tmp_path / line, dtype="int16")[0].astype(int) for line in exact.lines]
        assert np.array_equal(sum(parts), np.rint(mixture * 32768).astype(int))
    only = sepcli(path, "--model", model, "--stems", "vocals", "--out", "one")
    assert [Path(line).name for line in only.lines] == ["vocals.wav"]
    refused = sepcli(path, "--model", model, "--stems", "no_vocals", "--out", "none")
    assert (refused.code, "use --two-stems vocals" in refused.err) == (2, True)


def test_of_a_single_target_what_no_network_heard_may_be_dropped(sepcli, song, tmp_path: Path) -> None:
    model = passthrough.save(tmp_path / "voice.safetensors", {"vocals": 0.25})
    path = song("a.wav", rate=96000, subtype="FLOAT")
    sepcli(path, "--model", model, "--upper-band", "drop")
    vocals, rest = (soundfile.read(tmp_path / f"separated/voice/a/{stem}.wav")[0] for stem in ("vocals", "no_vocals"))
    assert np.abs(rest - 3 * vocals).max() < 1e-5


def test_the_word_of_a_quality_is_an_overlap(sepcli, song) -> None:
    path = song("a.wav", seconds=3.0)
    counts = [
        json.loads(sepcli(path, "--dry-run", "--json", *option).out)["segments"]
        for option in ([], ["--quality", "fast"], ["--quality", "normal"], ["--quality", "best"], ["--overlap", "0.5"])
    ]
    assert counts == [4, 4, 4, 6, 6]
    done = sepcli(path, "--quality", "best", "--overlap", "0.5")
    assert done.code == 2
    assert done.err == "sepcli: error: --quality and --overlap exclude each other; give one of them\n"
    unknown = sepcli(path, "--quality", "finest")
    assert (unknown.code, "finest" in unknown.err) == (2, True)


def test_only_the_stems_asked_for_are_written(sepcli, song, tmp_path: Path) -> None:
    done = sepcli(song("a.wav"), "--stems", "vocals,bass")
    assert done.lines == ["separated/pass/a/vocals.wav", "separated/pass/a/bass.wav"]
    assert sorted(path.name for path in (tmp_path / "separated/pass/a").iterdir()) == [
        "bass.wav",
        "stems.json",
        "vocals.wav",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.wav", "--stems", "voice"], 2, "no stem 'voice'"),
        (["a.wav", "--stems", "vocals", "--two-stems", "vocals"], 2, "exclude each other"),
        (["a.wav", "--overlap", "1.0"], 2, "--overlap"),
        (["a.wav", "--segment", "0"], 2, "--segment"),
        (["a.wav", "--segment", "0.00001"], 2, "--segment 1e-05: must be a number of seconds, at least 0.01"),
        (["a.wav", "--shifts", "-1"], 2, "--shifts"),
        (["a.wav", "--batch-size", "0"], 2, "--batch-size"),
        (["a.wav", "--end", "0"], 2, "--end"),
        (["a.wav", "--filename", "{song}/{stem}.{ext}"], 2, "{song}"),
        (["a.wav", "--device", "gpu"], 2, "--device gpu"),
        (["a.wav", "--format", "mp4"], 2, "mp4"),
        (["a.wav", "--nonsense"], 2, "--nonsense"),
        (["a.wav", "--model", "hdemuks"], 3, "hdemucs"),
        (["a.wav", "--model", "nowhere/x.th"], 3, "nowhere/x.th"),
        (["missing.wav"], 2, "missing.wav"),
        ([], 2, "input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_and_a_code(sepcli, song, tmp_path, arguments, code: int, words: str) -> None:
    song("a.wav", seconds=0.1)
    done = sepcli("--out", "o", *arguments)
    assert done.code == code, done.err
    assert done.err.startswith("sepcli: error: ")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "o").exists()


def test_one_bad_song_does_not_stop_the_others(sepcli, song, tmp_path: Path) -> None:
    song("in/a.wav")
    (tmp_path / "in/b.wav").write_text("no sound at all")
    song("in/c.wav", seed=1)
    done = sepcli("in", "--json")
    documents = [json.loads(line) for line in done.lines]
    assert [document["status"] for document in documents] == ["done", "failed", "done"]
    assert all(document["schema"] == 1 for document in documents)
    assert "b.wav" in documents[1]["error"]
    assert documents[0]["stems"]["vocals"] == "separated/pass/a/vocals.wav"
    assert done.code == 1
    assert done.err.count("sepcli: error:") == 1


def test_a_set_that_was_overwritten_without_a_sidecar_is_not_taken_for_finished(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", seconds=0.3)
    assert sepcli(path).code == 0
    assert sepcli(path, "--format", "flac").code == 0
    first = (tmp_path / "separated/pass/a/vocals.wav").read_bytes()
    assert sepcli(path, "--start", "0.1", "--end", "0.2", "--no-sidecar").code == 0
    assert (tmp_path / "separated/pass/a/vocals.wav").read_bytes() != first
    again = sepcli(path, "--json")
    assert json.loads(again.out)["status"] == "done"
    assert (tmp_path / "separated/pass/a/vocals.wav").read_bytes() == first
    assert json.loads(sepcli(path, "--format", "flac", "--json").out)["status"] == "skipped"


def test_a_finished_set_is_skipped_and_another_setting_is_not(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav")
    stem = tmp_path / "separated/pass/a/drums.wav"
    assert sepcli(path).code == 0
    first = stem.stat().st_mtime_ns
    again = sepcli(path, "--json")
    assert json.loads(again.out)["status"] == "skipped"
    assert json.loads(again.out)["stems"]["drums"] == "separated/pass/a/drums.wav"
    assert stem.stat().st_mtime_ns == first
    assert json.loads(sepcli(path, "--json", "--seed", "3").out)["status"] == "done"
    assert json.loads(sepcli(path, "--json", "--seed", "3", "--existing", "overwrite").out)["status"] == "done"
    refused = sepcli(path, "--existing", "error")
    assert refused.code == 1
    assert "exists" in refused.err
    stem.unlink()
    assert json.loads(sepcli(path, "--json", "--seed", "3").out)["status"] == "done"


def test_the_sidecar_tells_how_the_stems_were_made(sepcli, song, tmp_path: Path) -> None:
    assert sepcli(song("a.wav"), "--shifts", "1").code == 0
    document = json.loads((tmp_path / "separated/pass/a/stems.json").read_text())
    assert document["schema"] == 1
    (record,) = document["sets"]
    assert record["weights"][0]["licence"] == "none needed"
    assert len(record["weights"][0]["sha256"]) == len(record["input"]["sha256"]) == 64
    assert record["settings"]["shifts"] == 1
    assert record["frames"] == 44100
    assert record["stems"]["bass"]["path"] == "bass.wav"


@pytest.mark.parametrize("depth", ["16", "24"])
@pytest.mark.parametrize("peak", [0.5, 1.0])
def test_consistent_stems_sum_to_the_song_to_the_last_bit(sepcli, song, tmp_path, depth: str, peak: float) -> None:
    path = song("a.wav", peak=peak, subtype=f"PCM_{depth}", rate=48000)
    done = sepcli(path, "--consistent", "--bit-depth", depth)
    assert done.code == 0, done.err
    total = sum(soundfile.read(file, dtype="int32")[0].astype(np.int64) for file in map(Path, done.lines))
    assert np.array_equal(total, soundfile.read(path, dtype="int32")[0])


def test_a_stem_beyond_full_scale_lowers_all_by_one_gain(sepcli, song, tmp_path: Path, weights: Path) -> None:
    loud = passthrough.save(tmp_path / "loud.safetensors", {"a": 3.0, "b": 0.5})
    path = song("a.wav", peak=0.9)
    done = sepcli(path, "--model", loud, "--json")
    document = json.loads(done.out)
    mixture, _ = soundfile.read(path)
    expected = 1 / (3 * np.abs(mixture).max())
    assert document["gain"] == pytest.approx(expected, rel=1e-4)
    assert "full scale" in done.err
    quiet, _ = soundfile.read(tmp_path / "separated/loud/a/b.wav")
    assert np.abs(quiet - 0.5 * expected * mixture).max() < 1.6 / 32768


def test_a_network_that_gives_no_numbers_fails_the_song_and_names_the_second(sepcli, song, tmp_path: Path) -> None:
    broken = passthrough.save(tmp_path / "broken.safetensors", settings={"fault": "nan"})
    done = sepcli(song("loud.wav", peak=0.9), song("soft.wav", peak=0.1), "--model", broken)
    assert done.code == 1
    assert "gave no numbers for drums at 0.00 s" in done.err
    assert len(done.lines) == 4
    assert not (tmp_path / "separated/broken/loud").exists()


def test_start_and_end_take_a_stretch_of_the_song(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", seconds=3, subtype="FLOAT")
    assert sepcli(path, "--start", "0.5", "--end", "1.25").code == 0
    mixture, _ = soundfile.read(path)
    stem, _ = soundfile.read(tmp_path / "separated/pass/a/drums.wav")
    assert np.abs(stem - 0.5 * mixture[22050:55125]).max() < 1e-6


@pytest.mark.parametrize("choice", ["other", "share", "drop"])
def test_the_band_that_the_network_does_not_hear_goes_where_it_is_wanted(sepcli, song, tmp_path, choice: str) -> None:
    path = song("a.wav", rate=96000, subtype="FLOAT")
    assert sepcli(path, "--upper-band", choice).code == 0
    mixture, _ = soundfile.read(path)
    stems = {file.stem: soundfile.read(file)[0] for file in (tmp_path / "separated/pass/a").glob("*.wav")}
    lost = mixture - sum(stems.values())
    upper = np.square(mixture).mean() * (1 - 44.1 / 96)
    if choice == "drop":
        assert np.square(lost).mean() == pytest.approx(upper, rel=0.1)
        return
    assert np.abs(lost).max() < 1e-5
    drums = np.square(stems["drums"]).mean() - 0.25 * (np.square(mixture).mean() - upper)
    share = 0.5**2 / sum(x**2 for x in passthrough.SHARES.values())
    assert drums == pytest.approx(share**2 * upper if choice == "share" else 0, abs=0.05 * upper)


def test_a_single_stem_does_not_get_what_belongs_to_the_others(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", rate=96000, subtype="FLOAT")
    assert sepcli(path, "--stems", "vocals").code == 0
    vocals, _ = soundfile.read(tmp_path / "separated/pass/a/vocals.wav")
    mixture, _ = soundfile.read(path)
    heard = np.square(mixture).mean() * 44.1 / 96
    assert np.square(vocals).mean() == pytest.approx(0.125**2 * heard, rel=0.1)
