"""Lists, shards, journals, limits and workers through the command line."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import passthrough

ROOT = Path(__file__).parents[2]


@pytest.fixture
def songs(song, tmp_path: Path) -> list[Path]:
    """Six songs, shortest first."""
    return [song(f"songs/{index}.wav", seconds=0.1 + 0.05 * index, seed=index) for index in range(6)]


def sets(folder: Path) -> dict[str, str]:
    """Every stem below a folder with its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.wav")
    }


def rows(path: Path) -> list[dict]:
    """A journal's lines on items."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if "item" in row]


def test_shards_together_equal_the_whole_and_say_what_they_are(sepcli, songs, tmp_path: Path) -> None:
    assert sepcli("songs", "--out", "whole", "--filename", "{index}/{track}/{stem}.{ext}").code == 0
    for number in (1, 2, 3):
        done = sepcli(
            *("songs", "--out", "parts", "--filename", "{index}/{track}/{stem}.{ext}", "--shard", f"{number}/3")
        )
        assert done.code == 0
        assert f"shard {number}/3 (from --shard): 2 of 6 songs" in done.err
        assert "6 songs of unknown length count 240 s each" in done.err
    assert sets(tmp_path / "parts") == sets(tmp_path / "whole")
    assert len(sets(tmp_path / "whole")) == 24


def test_nothing_is_sharded_unless_asked(sepcli, songs, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert len(sepcli("songs", "--json").lines) == 6
    done = sepcli("songs", "--json", "--shard", "auto", "--out", "other")
    assert len(done.lines) == 1
    assert "shard 1/6 (from RANK and WORLD_SIZE): 1 of 6 songs" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "7/6"], "there is no shard 7 of 6"),
        (["--max-time", "soon"], "--max-time soon"),
        (["--max-failures", "many"], "--max-failures many"),
        (["--device", "cuda:0,cuda:0"], "names a device twice"),
        (["--device", "cuda:0,,1"], "not a list of devices"),
        (["--claim", "c", "--lease", "never"], "--lease never"),
        (["--lease", "5m"], "goes with --claim"),
        (["--scratch", "s"], "no song and no stem lies at an address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(sepcli, songs, options, words: str, tmp_path: Path) -> None:
    done = sepcli("songs", *options)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "separated").exists()


def test_a_journal_tells_of_each_song_and_a_rerun_believes_it(sepcli, songs, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "songs/bad.wav").write_bytes(b"no sound")
    done = sepcli("songs", "--journal", "j.jsonl")
    assert done.code == 1
    told = {Path(row["item"]).name: row for row in rows(tmp_path / "j.jsonl")}
    assert [told[f"{index}.wav"]["status"] for index in range(6)] == ["done"] * 6
    assert (told["bad.wav"]["status"], told["bad.wav"]["reason"]) == ("failed", "decode")
    row = told["3.wav"]
    assert row["digests"] == {
        stem: hashlib.sha256(Path(path).read_bytes()).hexdigest() for stem, path in row["stems"].items()
    }
    assert (row["device"], round(row["seconds"], 2)) == ("cpu", 0.25)

    (tmp_path / "songs/bad.wav").unlink()
    monkeypatch.setattr("sepcli.batch.process.separate_song", None)
    monkeypatch.setattr("sepcli.batch.process.finished", None)  # which would read the song through
    again = sepcli("songs", "--journal", "j.jsonl", "--json")
    assert again.code == 0
    assert [json.loads(line)["status"] for line in again.lines] == ["skipped"] * 6
    assert len(rows(tmp_path / "j.jsonl")) == 7

    refused = sepcli("songs", "--journal", "j.jsonl", "--format", "flac")
    assert refused.code == 2
    assert "belongs to a run with other settings (format = wav, now flac)" in refused.err


def test_status_counts_and_retry_does_what_failed_for_one_reason(sepcli, songs, tmp_path: Path) -> None:
    from sepcli.cli import run

    (tmp_path / "songs/bad.wav").write_bytes(b"no sound")
    (tmp_path / "list.txt").write_text("\n".join(map(str, [*songs, "songs/bad.wav", "late.wav"])))
    assert sepcli("--input-list", "list.txt", "--journal", "j.jsonl").code == 1
    assert run(["batch", "status", "j.jsonl"]) == 1
    songs[0].rename(tmp_path / "late.wav")
    assert run(["batch", "retry", "--class", "nan", "j.jsonl"]) == 0
    assert run(["batch", "retry", "--class", "io", "j.jsonl"]) == 0
    assert [row["status"] for row in rows(tmp_path / "j.jsonl") if row["item"] == "late.wav"] == ["failed", "done"]
    assert [row["status"] for row in rows(tmp_path / "j.jsonl") if row["item"] == "songs/bad.wav"] == ["failed"]


def test_status_says_how_many_are_done_failed_and_left(sepcli, songs, tmp_path: Path, capfdbinary) -> None:
    from sepcli.cli import run

    (tmp_path / "songs/bad.wav").write_bytes(b"no sound")
    (tmp_path / "songs/worse.wav").write_bytes(b"no sound")
    stopped = sepcli("songs/bad.wav", "songs/worse.wav", *songs, "--journal", "j.jsonl", "--max-failures", "1")
    assert stopped.code == 1
    assert "stopped: 2 of 8 inputs failed, more than --max-failures 1 allows; 6 are left" in stopped.err
    capfdbinary.readouterr()
    assert run(["batch", "status", "j.jsonl"]) == 1
    told = capfdbinary.readouterr().out.decode().splitlines()
    assert told[-1] == "8 songs: 0 finished, 2 failed (2 decode), 6 left"
    assert run(["batch", "status", "j.jsonl", "--json"]) == 1
    document = json.loads(capfdbinary.readouterr().out)
    assert (document["items"], document["failed"], document["left"]) == (8, {"decode": 2}, 6)


def test_status_counts_the_songs_of_two_machines_that_share_them_once(sepcli, songs, capfdbinary) -> None:
    from sepcli.cli import run

    for name in ("one", "two"):
        assert sepcli("songs", "--claim", "claims", "--journal", f"{name}.jsonl").code == 0
    capfdbinary.readouterr()
    assert run(["batch", "status", "one.jsonl", "two.jsonl"]) == 0
    assert "6 songs: 6 finished, 0 failed, 0 left\n" in capfdbinary.readouterr().out.decode()


def test_retry_of_a_journal_from_another_folder_says_where_to_go(sepcli, songs, tmp_path: Path, monkeypatch) -> None:
    from sepcli.cli import run

    assert sepcli("songs", "missing.wav", "--journal", "j.jsonl").code == 1
    monkeypatch.chdir(tmp_path / "songs")
    assert run(["batch", "retry", "../j.jsonl"]) == 2


def test_an_unreadable_line_fails_by_name_and_the_rest_is_done(sepcli, songs, tmp_path: Path) -> None:
    lines = [json.dumps({"uri": str(path), "seconds": 0.1}) for path in songs]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines[:3], '{"uri":', *lines[3:]]))
    done = sepcli("--input-list", "list.jsonl", "--json")
    assert done.code == 1
    assert "list.jsonl, line 4: is no JSON object" in done.err
    assert sorted(json.loads(line)["status"] for line in done.lines) == ["done"] * 6 + ["failed"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_the_document_of_what_names_no_song_names_it_alone(more, sepcli, songs, tmp_path: Path) -> None:
    (tmp_path / "empty: a  b").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.jsonl").write_text(f'{{"uri": "{songs[0]}"}}\n{{}}\n')
    done = sepcli("empty", "empty: a  b", "--input-list", "list.jsonl", "--json", *more)
    assert done.code == 1
    failed = [one for one in map(json.loads, done.lines) if one["status"] == "failed"]
    assert {one["input"]: one["error"].partition(";")[0] for one in failed} == {
        "list.jsonl, line 2": "list.jsonl, line 2: names no song in a field `uri`",
        "empty": "empty: no song in this folder",
        "empty: a  b": "empty: a b: no song in this folder",
    }


def test_a_list_without_a_good_line_tells_what_is_wrong_with_each(sepcli, songs, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"uri":\n{"seconds": 3}\n')
    done = sepcli("--input-list", "list.jsonl")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "list.jsonl, line 1: is no JSON object; list.jsonl, line 2: names no song" in done.err
    assert sepcli(songs[0], "--input-list", "list.jsonl").code == 1


def test_paths_and_addresses_are_judged_together(sepcli, songs, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "empty").mkdir()
    address = f"file://{songs[1]}"
    done = sepcli(songs[0], address, "missing.wav", f"file://{tmp_path}/empty/", "empty", "--json")
    assert done.code == 1
    states = {one["input"]: (one["status"], one["error"]) for one in map(json.loads, done.lines)}
    assert states.pop(str(songs[0])) == states.pop(address) == ("done", None)
    assert states == {
        "missing.wav": ("failed", "missing.wav: no such file"),
        f"file://{tmp_path}/empty/": (
            "failed",
            f"file://{tmp_path}/empty/: no song there; --recursive looks below it",
        ),
        "empty": ("failed", "empty: no song in this folder; --recursive looks into the folders below it"),
    }
    nothing = sepcli("missing.wav", f"file://{tmp_path}/empty/")
    assert (nothing.code, nothing.err.count("\n")) == (2, 1)
    assert "no such file: missing.wav" in nothing.err


def test_a_run_ends_in_time_with_the_rest_told(sepcli, song, tmp_path: Path) -> None:
    song("long.wav", seconds=600.0)
    song("short.wav", seconds=0.1)
    done = sepcli("long.wav", "short.wav", "--max-time", "1s", "--journal", "j.jsonl")
    assert done.code == 0
    assert "left: long.wav" in done.err
    assert {row["item"]: row["status"] for row in rows(tmp_path / "j.jsonl")}["long.wav"] == "left"
    assert not list((tmp_path / "separated").rglob(".sepcli-*"))
    assert not list((tmp_path / "separated").rglob("long/*"))


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SEPCLI_CACHE": str(tmp_path / "cache")}


def workers_of(parent: int) -> list[int]:
    """Processes that a process has spawned to work (not the one that tracks semaphores)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_workers_give_what_one_process_gives_though_one_is_killed(tmp_path: Path) -> None:
    passthrough.save(tmp_path / "pass.safetensors", segment=0.2)
    (tmp_path / "songs").mkdir()
    for index in range(8):
        drawn = np.random.default_rng(index).uniform(-0.5, 0.5, (200_000 + 5_000 * index, 2))
        soundfile.write(tmp_path / f"songs/{index}.wav", drawn, 44100)
    command = [sys.executable, "-m", "tests.passthrough", "separate", "--model", "pass.safetensors", "songs"]
    kept = {"cwd": tmp_path, "env": environment(tmp_path)}
    subprocess.run([*command, "--out", "one"], check=True, stdout=subprocess.DEVNULL, **kept)  # type: ignore[call-overload]
    crew = [*command, "--out", "crew", "--jobs", "2", "--journal", "j.jsonl", "--json"]
    with subprocess.Popen(crew, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kept) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        victim = workers_of(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "its worker was killed by signal 9; a new one begins it again" in errors
    assert sets(tmp_path / "crew") == sets(tmp_path / "one")
    assert len(sets(tmp_path / "one")) == 32
    assert not list((tmp_path / "crew").rglob(".sepcli-*"))
    assert sorted(row["status"] for row in rows(tmp_path / "j.jsonl")) == ["done"] * 8


def test_workers_are_ended_by_a_signal_and_clean_up(tmp_path: Path) -> None:
    passthrough.save(tmp_path / "pass.safetensors", segment=0.2)
    for name, frames in (("a.wav", 44100), ("b.wav", 44100 * 900)):
        soundfile.write(tmp_path / name, np.random.default_rng(0).uniform(-0.5, 0.5, (frames, 2)), 44100)
    command = [sys.executable, "-m", "tests.passthrough", "separate", "--model", "pass.safetensors", "a.wav", "b.wav"]
    with subprocess.Popen(
        [*command, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
    ) as process:
        for _ in range(4):
            process.stdout.readline()  # type: ignore[union-attr]
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated" in errors
    assert len(sets(tmp_path / "separated")) == 4
    assert not list((tmp_path / "separated").rglob(".sepcli-*"))


def test_a_model_that_cannot_be_had_ends_the_workers_with_its_code(sepcli, songs, tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    done = sepcli("songs", "--model", "no.safetensors", "--jobs", "2")
    assert done.code == 3
    assert "no.safetensors" in done.err


def test_two_processes_share_a_list_by_claims(tmp_path: Path) -> None:
    passthrough.save(tmp_path / "pass.safetensors", segment=0.2)
    (tmp_path / "songs").mkdir()
    for index in range(10):
        drawn = np.random.default_rng(index).uniform(-0.5, 0.5, (100_000, 2))
        soundfile.write(tmp_path / f"songs/{index}.wav", drawn, 44100)
    command = [sys.executable, "-m", "tests.passthrough", "separate", "--model", "pass.safetensors", "songs"]
    running = [
        subprocess.Popen(
            [*command, "--claim", "claims", "--lease", "1m", "--journal", f"{name}.jsonl"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        for name in ("one", "two")
    ]
    assert [(process.communicate(timeout=100)[1], process.returncode) for process in running] == [(b"", 0)] * 2
    told = [*rows(tmp_path / "one.jsonl"), *rows(tmp_path / "two.jsonl")]
    done = sorted(row["item"] for row in told if row["status"] == "done")
    assert done == sorted(f"songs/{index}.wav" for index in range(10))
    assert len(sets(tmp_path / "separated")) == 40
