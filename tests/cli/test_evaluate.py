"""`sepcli evaluate`: options, tables, files, resuming, exits; and a published file on a real song."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sepcli.cli import console, run
from sepcli.metrics import evaluate
from tests.metrics.signals import museval

RATE = 44100


@dataclass
class Answer:
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """call("--mixture", "--data", folder): `sepcli evaluate` in this process."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(console, "state", console.State())
        capfdbinary.readouterr()
        code = run(["evaluate", *map(str, arguments)])
        taken = capfdbinary.readouterr()
        return Answer(code, taken.out.decode(), taken.err.decode())

    return command


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Three songs of white noise, 1.2 s, mono, vocals and other; `made` has them ten times quieter in error."""
    for index in range(3):
        draw = np.random.default_rng(index)
        for name in ("vocals", "other"):
            sound = (0.1 * draw.standard_normal(round(1.2 * RATE))).astype(np.float32)
            for folder, gain in (("data", 1.0), ("made", 0.9)):
                place = tmp_path / folder / f"song {index}"
                place.mkdir(parents=True, exist_ok=True)
                soundfile.write(place / f"{name}.wav", gain * sound, RATE, subtype="FLOAT")
    return tmp_path / "data"


def test_a_table_names_the_rule_and_the_paper_is_shown_beside_with_its_own(call: Call, songs: Path) -> None:
    answer = call("--estimates", "made", "--data", songs, "--protocol", "cws", "--metrics", "sdr")
    assert answer.code == 0
    assert answer.out.startswith("cws: {vocals, accompaniment} at 44.1 kHz; SDR, SIR, SAR of BSSEval v4, frames of 1 s")
    assert "mean over frames, median over songs" in answer.out
    assert f"Ours: 3 songs of {songs}" in answer.out.replace("\n", "")
    own = next(line for line in answer.out.splitlines() if line.strip().startswith("made"))
    assert own.split() == ["made", "20.00", "20.00"]
    assert "Published: CWS (arXiv:2008.05216), table 2, on MUSDB18-HQ, protocol cws" in answer.out
    paper = next(line for line in answer.out.splitlines() if "MDN+CWS K=8" in line)
    assert paper.split()[-2:] == ["4.17", "15.67"]
    assert "published scores are of other songs than ours" in answer.err


def test_a_finished_song_is_not_scored_again(call: Call, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    real = evaluate.score_song

    def counted(pair: Any, *rest: Any) -> dict[str, Any]:
        scored.append(pair.name)
        return real(pair, *rest)

    monkeypatch.setattr(evaluate, "score_song", counted)
    words = ("--estimates", "made", "--data", songs, "--protocol", "cws", "--metrics", "sdr", "--json", "out.json")
    broken = Path("made/song 1/vocals.wav")
    kept = broken.read_bytes()
    broken.write_bytes(b"")
    first = call(*words)
    assert (first.code, scored) == (1, ["song 0", "song 1", "song 2"])
    assert "sepcli: error: song 1: the estimate of vocals: made/song 1/vocals.wav: is empty" in first.err
    document = json.loads(Path("out.json").read_text())
    assert [song["name"] for song in document["songs"]] == ["song 0", "song 2"]
    assert [failure["name"] for failure in document["failed"]] == ["song 1"]
    broken.write_bytes(kept)
    scored.clear()
    again = call(*words)
    assert (again.code, scored) == (0, ["song 1"])
    assert "2 of 3 songs are scored already" in again.err
    assert json.loads(Path("out.json").read_text())["aggregate"]["vocals"]["SDR"] == pytest.approx(20, abs=1e-3)


def test_all_files_are_written_and_museval_reads_its_own(call: Call, songs: Path) -> None:
    answer = call("--estimates", "made", "--data", songs, "--protocol", "cws", "--json", "-", "--csv", "a/out.csv",
                  "--museval-json", "scores/test", "--no-frames")  # fmt: skip
    assert answer.code == 0
    document = json.loads(answer.out)  # nothing else on stdout
    assert document["complete"] is True
    assert "frames" not in document["songs"][0]
    assert set(document["songs"][0]["sources"]["vocals"]) == {"SDR", "ISR", "SIR", "SAR", "nSDR", "SI-SDR"}
    assert Path("a/out.csv").read_text().count("\n") == 9
    written = json.loads(Path("scores/test/song 0.json").read_text())
    assert [target["name"] for target in written["targets"]] == ["vocals", "accompaniment"]
    assert written["targets"][0]["frames"][0]["metrics"]["SDR"] == pytest.approx(20, abs=1e-3)


def test_musevals_files_are_written_though_the_result_was_kept_without_frames(call: Call, songs: Path) -> None:
    words = ("--estimates", "made", "--data", songs, "--protocol", "cws", "--json", "r.json", "--no-frames")
    assert call(*words).code == 0
    answer = call(*words, "--museval-json", "mv")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in Path("mv").iterdir()) == ["song 0.json", "song 1.json", "song 2.json"]
    assert "frames" not in json.loads(Path("r.json").read_text())["songs"][0]


def test_musevals_file_of_a_whole_song_has_its_begin_and_its_length(call: Call, songs: Path) -> None:
    answer = call("--estimates", "made", "--data", songs, "--protocol", "cws", "--frame", "inf", "--museval-json", "mv")
    assert answer.code == 0
    for target in json.loads(Path("mv/song 0.json").read_text())["targets"]:
        assert [(frame["time"], frame["duration"]) for frame in target["frames"]] == [(0, 1.2)]


@pytest.mark.parametrize("option", ["--museval-json", "--plots", "--csv", "--json"])
def test_what_cannot_be_written_is_refused_before_anything_is_scored(
    option: str, call: Call, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "score_song", None)
    Path("afile").touch()
    for place in ("afile/x", "afile" if option in ("--museval-json", "--plots") else "data"):
        answer = call("--estimates", "made", "--data", songs, "--protocol", "cws", option, place)
        assert answer.code == 2
        assert f"{option} {place}: cannot be written" in answer.err
        assert answer.err.count("\n") == 1
    assert not list(songs.parent.glob("*.part"))


@pytest.mark.reference
def test_musevals_store_aggregates_our_files_as_we_do(call: Call, songs: Path) -> None:
    store = museval().EvalStore(frames_agg="median", tracks_agg="median")
    call("--mixture", "--data", songs, "--protocol", "cws", "--museval-json", "scores/test", "--json", "out.json")
    store.add_eval_dir("scores")
    ours = json.loads(Path("out.json").read_text())["aggregate"]
    theirs = store.agg_frames_tracks_scores()
    for source in ("vocals", "accompaniment"):  # one frame a song: its mean is its median
        assert theirs[source]["SDR"] == pytest.approx(ours[source]["SDR"], abs=1e-5)


def test_songs_in_one_folder_only_are_named_and_the_exit_is_1(call: Call, songs: Path) -> None:
    Path("made/song 0").rename("made/another")
    answer = call("--estimates", "made", "--data", songs, "--protocol", "cws", "--metrics", "sdr")
    assert answer.code == 1
    assert "sepcli: error: song 0: no estimates of this song" in answer.err
    assert "sepcli: error: another: no references for the estimates in made/another" in answer.err
    assert "Ours: 2 songs" in answer.out


def test_data_takes_several_folders_and_two_songs_of_one_name_are_named(call: Call, songs: Path) -> None:
    shutil.copytree(songs / "song 1", "more/song 1")
    shutil.copytree(songs / "song 1", "more/song 9")
    answer = call("--mixture", "--data", songs, "more", "--protocol", "cws", "--metrics", "sdr")
    assert answer.code == 1
    assert "song 1: two songs with this name in --data" in answer.err
    assert "Ours: 3 songs" in answer.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to score; give one of --model, --estimates, --oracle, --mixture, --report"),
        (("--mixture", "--oracle", "mwf"), "--oracle and --mixture exclude each other"),
        (("--mixture",), "--data is missing"),
        (("--mixture", "--data", "nowhere"), "nowhere: no such folder"),
        (("--mixture", "--data", "empty"), "empty: no song with stems"),
        (("--mixture", "--data", "data", "--protocol", "csw"), "protocol 'csw' is unknown; did you mean cws?"),
        (("--mixture", "--data", "data", "--bss-ridge", "2"), "--bss-ridge 2: must be at least 0 and below 1"),
        (("--mixture", "--data", "data", "--frame", "0"), "--frame 0: must be a positive number of seconds"),
        (("--mixture", "--data", "data", "--museval-exact", "--silence", "score"), "--museval-exact and --silence"),
        (("--mixture", "--data", "data", "--museval-json", "x", "--metrics", "sdr"), "--museval-json needs ISR"),
        (("--mixture", "--data", "data", "--museval-exact", "--metrics", "si-sdr"), "--museval-exact and --metrics"),
        (("--mixture", "--data", "data", "--device", "tpu"), "--device tpu: not a device"),
        (("--mixture", "--data", "data", "--song", "x.wav"), "--song and --html go with --report"),
        (("compare", "a.json"), "compare needs two results or more"),
        (("compare", "a.json", "b.json"), "a.json: cannot be read"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_done(
    words: tuple[str, ...], message: str, call: Call, songs: Path
) -> None:
    Path("empty").mkdir()
    answer = call(*words)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_a_model_without_weights_is_refused_with_exit_3(call: Call, songs: Path) -> None:
    answer = call("--model", "cws-mdensenet-paper", "--data", songs)
    assert answer.code == 3
    assert "cws-mdensenet-paper has no published weights; `sepcli train --model cws-mdensenet-paper`" in answer.err


def test_a_model_is_scored_as_its_estimates_would_be(call: Call, songs: Path, weights: Path) -> None:
    words = ("--data", songs, "--protocol", "cws", "--metrics", "sdr", "--json")
    answer = call("--model", weights, *words, "model.json")
    assert answer.code == 0
    document = json.loads(Path("model.json").read_text())
    for song in document["songs"]:  # an eighth of the mixture for vocals, the rest for the accompaniment
        vocals, other = (soundfile.read(songs / song["name"] / f"{n}.wav", dtype="float64")[0][:RATE] for n in ("vocals", "other"))  # fmt: skip # noqa: E501
        for name, true, guess in (("vocals", vocals, 0.125), ("accompaniment", other, 0.875)):
            error = true - guess * (vocals + other)
            expected = 10 * np.log10(np.square(true).sum() / np.square(error).sum())
            assert song["frames"][name]["SDR"] == pytest.approx([expected], abs=1e-4)


def test_a_model_that_lacks_a_source_of_the_protocol_is_refused(call: Call, songs: Path, weights: Path) -> None:
    for song in songs.iterdir():
        for name in ("drums", "bass"):
            shutil.copy(song / "other.wav", song / f"{name}.wav")
    from tests import passthrough

    model = passthrough.save(weights.parent / "two.safetensors", {"vocals": 0.5, "accompaniment": 0.5})
    answer = call("--model", model, "--data", songs, "--protocol", "musdb18", "--metrics", "sdr")
    assert answer.code == 2
    assert "has no drums, which the protocol scores; it has vocals, accompaniment" in answer.err


def test_two_results_are_compared(call: Call, songs: Path) -> None:
    words = ("--data", songs, "--protocol", "cws", "--metrics", "sdr", "--json")
    call("--estimates", "made", *words, "a.json")
    call("--mixture", *words, "b.json")
    answer = call("compare", "a.json", "b.json")
    assert answer.code == 0
    assert "A = made, B = mixture; cws:" in answer.out
    row = next(line for line in answer.out.splitlines() if line.strip().startswith("SDR vocals"))
    assert row.split()[2:4] == ["3", "20.00"]
    machine = json.loads(call("compare", "a.json", "b.json", "--json").out)
    first = machine["comparisons"][0]["rows"][0]
    assert (first["source"], first["metric"], first["songs"]) == ("vocals", "SDR", 3)
    assert first["p"] == 0.25


def test_a_report_is_a_page_beside_the_stems(call: Call, songs: Path) -> None:
    answer = call("--report", songs / "song 0", "--json", "report.json")
    assert answer.code == 0
    assert answer.out.strip() == str(songs / "song 0" / "report.html")
    assert (songs / "song 0" / "report.html").read_text().count("<audio") == 2
    document = json.loads(Path("report.json").read_text())
    assert document["schema"] == 1
    assert document["tracks"]["vocals"]["level"] == pytest.approx([-20, -20], abs=0.2)


@pytest.mark.shared
def test_oracles_and_the_mixture_on_a_real_song(call: Call, shared: Path) -> None:
    shutil.copytree(shared / "audio" / "songs" / "se-rubidium-b", "data/se-rubidium-b")
    scores = {}
    for words in (("--mixture",), ("--oracle", "irm2"), ("--oracle", "mwf")):
        assert call(*words, "--data", "data", "--protocol", "cws", "--metrics", "sdr", "--json", "x.json").code == 0
        scores[words[-1]] = json.loads(Path("x.json").read_text())["aggregate"]["vocals"]
    assert scores["--mixture"]["nSDR"] < -10 < 5 < scores["irm2"]["nSDR"]
    assert scores["--mixture"]["nSDR"] < -10 < 5 < scores["mwf"]["nSDR"]
