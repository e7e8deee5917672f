"""`sepcli train` and `sepcli data` as typed: what they refuse within a second, and what they leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepcli.cli import console, run
from tests.training.songs import free_port, sound, write_data, write_song

Call = Callable[..., tuple[int, str, str]]
TINY = ["--model", "cws-unet", "--bands", "8", "--width", "4", "--batch-size", "2", "--segment", "0.25"]
HERE = Path(__file__).parents[2]


@pytest.fixture
def sepcli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEPCLI_DATA", raising=False)
    torch.set_num_threads(1)

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(console, "state", console.State())
        capfdbinary.readouterr()
        code = run([str(word) for word in words])
        taken = capfdbinary.readouterr()
        return code, taken.out.decode(), taken.err.decode()

    return call


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("songs") / "data", songs=2, seconds=2.0)


def test_without_data_it_says_where_it_looked_and_where_some_is(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    environment.pop("SEPCLI_DATA", None)
    words = [sys.executable, "-X", "importtime", "-m", "sepcli", "train", "--model", "cws-unet", "--bands", "4"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (text,) = [line for line in done.stderr.splitlines() if line.startswith("sepcli: error")]
    for word in ("--data", "$SEPCLI_DATA", "./musdb18hq", "./data", "https://zenodo.org/records/3338373"):
        assert word in text
    assert "torch" not in done.stderr, "it answers within a second, before anything heavy is loaded"


def test_a_run_leaves_what_separates(sepcli: Call, songs: Path, tmp_path: Path) -> None:
    code, out, err = sepcli("train", *TINY, "--data", songs, "--steps", "12", "--out", "run")
    assert code == 0, err
    assert out == "run/best.safetensors\n"
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left >= {"best.safetensors", "last", "metrics.jsonl", "recipe.toml", "model-card.md"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"split", "step", "epoch", "loss", "lr", "seconds"} <= lines[0].keys()
    assert {line["step"] for line in lines if line["split"] == "train"} >= {1, 10, 12}
    mixture = np.random.default_rng(0).uniform(-0.3, 0.3, (44100, 2))
    soundfile.write(tmp_path / "mix.wav", mixture, 44100)
    code, out, err = sepcli("separate", "mix.wav", "--model", "run/best.safetensors")
    assert code == 0, err
    assert sorted(Path(line).stem for line in out.splitlines()) == ["accompaniment", "vocals"]
    assert {len(soundfile.read(line)[0]) for line in out.splitlines()} == {44100}


def test_the_default_folders_are_looked_at_in_order(
    sepcli: Call, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    code, _, err = sepcli("train", *TINY, "--steps", "1")
    assert (code, "data: holds no songs" in err) == (2, True)
    monkeypatch.setenv("SEPCLI_DATA", str(songs))
    code, out, err = sepcli("train", *TINY, "--steps", "1")
    assert code == 0, err
    assert out == "runs/cws-unet/best.safetensors\n"


def test_a_resumed_run_keeps_its_seed_and_refuses_another(sepcli: Call, songs: Path) -> None:
    words = ["train", "--model", "cws-unet", "--out", "run", "--resume"]
    code, _, err = sepcli("train", *TINY, "--data", songs, "--steps", "1", "--seed", "7", "--out", "run")
    assert code == 0, err
    assert sepcli(*words, "--steps", "2")[0] == 0
    code, _, err = sepcli(*words, "--steps", "3", "--seed", "0")
    assert (code, "the seed was 7, not 0" in err) == (2, True)
    code, _, err = sepcli(*words, "--steps", "3", "--absent-stems", "silence")
    assert (code, "absent stems were refused" in err) == (2, True)


def test_dry_run_says_what_it_would_take_and_leaves_nothing(sepcli: Call, songs: Path, tmp_path: Path) -> None:
    code, out, err = sepcli("train", *TINY, "--data", songs, "--steps", "7", "--dry-run")
    assert code == 0, err
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(facts) == {"model", "parameters", "songs", "memory", "steps", "hours"}
    assert facts["parameters"] == "108,656"
    assert "until 7 steps" in facts["steps"]
    assert "GiB" in facts["memory"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--model", "cws-unett"], 3, "did you mean"),
        (["--model", "mdx"], 3, "is a bag"),
        (["--bands", "x"], 2, "bands = 'x'"),
        (["--bandz", "4"], 2, "did you mean 'bands'"),
        (["--bands"], 2, "--bands"),
        (["--set", "bands"], 2, "--set bands: is not key=value"),
        (["--set", "optimiser.rat=1"], 2, "did you mean 'rate'"),
        (["--loss", "l3"], 2, "'l3'"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--freeze", "down"], 2, "--init"),
        (["--segment", "-1"], 2, "data.excerpt = -1.0"),
        (["--data", "nowhere"], 2, "nowhere: is no folder"),
        (["--device", "cuda:9"], 2, "cuda:9"),
        (["--resume"], 2, "holds no run"),
        (["--sources", "vocals,drums,piano"], 2, "has no piano"),
        (["--init", "cde-htcn"], 3, "sepcli train --model cde-htcn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str], code: int, text: str, sepcli: Call, songs: Path, tmp_path: Path
) -> None:
    model = [] if "--model" in words else ["--model", "cws-unet"]
    found, out, err = sepcli("train", *model, "--data", songs, *words)
    assert (found, out) == (code, "")
    assert text in err
    assert err.count("sepcli: error:") == 1
    assert not list((tmp_path).glob("runs/*/last"))


def shortened(song: Path) -> None:
    wave, rate = soundfile.read(song / "bass.wav")
    soundfile.write(song / "bass.wav", wave[:-1], rate)


def slowed(song: Path) -> None:
    wave, _ = soundfile.read(song / "bass.wav")
    soundfile.write(song / "bass.wav", wave, 48000)


def silenced(song: Path) -> None:
    for each in (song, song.with_name("song 1")):
        soundfile.write(each / "vocals.wav", np.zeros((88200, 2)), 44100)


def damaged(song: Path) -> None:
    (song / "bass.wav").write_bytes(b"RIFF nothing")


def emptied(song: Path) -> None:
    for each in (song, song.with_name("song 1")):
        shutil.rmtree(each)


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (emptied, 2, "data: holds no songs"),
        (lambda song: (song / "vocals.wav").unlink(), 2, "song 0: has no vocals"),
        (shortened, 1, "song 0: its stems have different lengths (vocals.wav 88,200, bass.wav 88,199"),
        (slowed, 1, "song 0: its stems have different sample rates (vocals.wav 44100 Hz, bass.wav 48000 Hz"),
        (silenced, 2, "vocals is silent or absent in all"),
        (damaged, 1, "song 0/bass.wav"),
    ],
    ids=["no songs", "a missing stem", "unequal lengths", "mixed rates", "silence", "a damaged stem"],
)
def test_songs_that_cannot_be_trained_with_are_named_and_nothing_is_written(
    spoil: Callable[[Path], object], code: int, text: str, sepcli: Call, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", songs=2, seconds=2.0)
    spoil(data / "song 0")
    found, out, err = sepcli("train", *TINY, "--data", data, "--steps", "1")
    assert (found, out) == (code, ""), err
    assert text in err
    assert err.count("sepcli: error:") == 1
    assert not [path for path in tmp_path.glob("runs/*/*") if path.name != ".lock"]


def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of a process of its own."""
    cache = str(tmp_path / "cache")
    return {**os.environ, "PYTHONPATH": str(HERE), "SEPCLI_CACHE": cache, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_is_saved_and_goes_on(number: int, code: int, songs: Path, tmp_path: Path, sepcli: Call) -> None:
    words = ["train", *TINY, "--data", str(songs), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "sepcli", *words, "--steps", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=alone(tmp_path))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "--resume goes on" in err
    from sepcli.training.run import read_state

    done = read_state(tmp_path / "run" / "last" / "state.safetensors")[1]["extra"]["state"]["progress"]["step"]
    found, _, err = sepcli(
        "train", "--model", "cws-unet", "--out", tmp_path / "run", "--resume", "--steps", str(done + 3)
    )
    assert found == 0, err
    assert f"done after {done + 3} steps" in err


def test_without_songs_to_validate_with_the_last_line_names_no_loss(sepcli: Call, tmp_path: Path) -> None:
    for name in ("vocals", "accompaniment"):
        (tmp_path / "data" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / name / "one.wav", sound(1.0, seed=3), 44100)
    words = [*TINY, "--data", tmp_path / "data", "--set", "augment.mix=true", "--steps", "3"]
    code, _, err = sepcli("train", *words)
    assert (code, "no songs to validate with" in err) == (2, True)
    code, _, err = sepcli("train", *words, "--absent-stems", "silence")
    assert code == 0, err
    assert "done after 3 steps; best.safetensors is of step 3" in err
    assert "nan" not in err


def test_two_processes_train_under_torchrun(songs: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    words = ["-m", "sepcli", "train", *TINY, "--data", str(songs), "--steps", "4", "--out", str(tmp_path / "run")]
    words.append("--sync-batchnorm")
    done = subprocess.run(
        [*launch, *words], env=alone(tmp_path), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("best.safetensors") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 4]


def test_a_process_that_stops_because_another_was_asked_to_ends_alike(
    sepcli: Call, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun one process alone may get the signal."""
    from sepcli.training import session
    from sepcli.training.fit import Interrupted

    def agreed(*_: object, **__: object) -> None:
        raise Interrupted

    monkeypatch.setattr(session, "train", agreed)
    code, out, err = sepcli("train", *TINY, "--data", songs)
    assert (code, out) == (143, "")
    assert "--resume goes on" in err
    assert "fault of sepcli" not in err


# sepcli data check


def test_a_good_folder_has_no_problems(sepcli: Call, tmp_path: Path) -> None:
    write_data(tmp_path / "data", songs=3, seconds=2.0, mixture=True)
    code, out, _ = sepcli("data", "check", tmp_path / "data", "--json")
    document = json.loads(out)
    assert (code, document["songs"], document["problems"]) == (0, 3, [])
    assert document["seconds"] == pytest.approx(6.0, abs=1e-3)


def test_everything_that_is_wrong_is_named(sepcli: Call, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_song(data / "good", seed=1)
    short = write_song(data / "short", seed=2)
    soundfile.write(short / "bass.wav", soundfile.read(short / "bass.wav")[0][:-5], 44100)
    other = write_song(data / "rate", seed=3)
    soundfile.write(other / "bass.wav", soundfile.read(other / "bass.wav")[0], 48000)
    mono = write_song(data / "mono", seed=4)
    soundfile.write(mono / "bass.wav", soundfile.read(mono / "bass.wav")[0][:, 0], 44100)
    silent = write_song(data / "silent", seed=5)
    soundfile.write(silent / "bass.wav", np.zeros((3 * 44100, 2)), 44100)
    wrong = write_song(data / "no sum", seed=6, mixture=True)
    mixture, _ = soundfile.read(wrong / "mixture.wav")
    soundfile.write(wrong / "mixture.wav", 1.1 * mixture, 44100, subtype="FLOAT")
    broken = write_song(data / "broken", seed=7)
    (broken / "bass.wav").write_bytes(b"nothing")
    code, out, _ = sepcli("data", "check", data, "--json")
    problems = {(p["song"], p["kind"]): p["what"] for p in json.loads(out)["problems"]}
    assert code == 1
    assert set(problems) == {
        ("short", "length"), ("rate", "rate"), ("mono", "channels"), ("silent", "silence"), ("no sum", "mixture"),
        ("broken", "unreadable"),
    }  # fmt: skip
    assert "bass 132,295" in problems["short", "length"]
    assert f"{20 * np.log10(0.1 / 1.1):.1f} dB" in problems["no sum", "mixture"]


def test_a_song_in_training_and_in_test_is_found_though_it_begins_elsewhere(sepcli: Call, tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = write_song(data / "train" / "one", seconds=6.0, seed=1)
    write_song(data / "train" / "two", seconds=6.0, seed=2)
    again = data / "test" / "another name"
    again.mkdir(parents=True)
    for stem in first.iterdir():
        wave, rate = soundfile.read(stem)
        soundfile.write(again / stem.name, 0.7 * wave[15_000:], rate)
    code, out, _ = sepcli("data", "check", data)
    assert code == 1
    assert "another name: duplicate: sounds like one (one in test, one in train)" in out
    assert "2 problems" not in out
