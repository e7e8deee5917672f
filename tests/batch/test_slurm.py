"""The script of a SLURM array: shell that runs, each task with its own shard and journal."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from sepcli.batch.slurm import script


@pytest.fixture
def array(sepcli, song, tmp_path: Path):
    song("my songs/a.wav", seconds=0.1)
    song("my songs/b.wav", seconds=0.1)
    return sepcli


def test_the_script_says_the_call_again_with_a_shard_and_a_journal(array, tmp_path: Path) -> None:
    made = array("my songs", "--engine", "slurm", "-j", "2", "--max-time", "3h50m", "--two-stems=vocals", "-r", "-q")
    assert made.code == 0, made.err
    assert made.out == "sepcli-array.sh\n"
    text = (tmp_path / "sepcli-array.sh").read_text()
    assert "#SBATCH --array=1-2\n" in text
    assert "#SBATCH --time=04:00:00\n" in text
    assert "#SBATCH --gres=gpu:1\n" in text
    assert text.endswith("  -- 'my songs'\n")
    assert "--recursive" in text or "-r" in text.split()
    assert "--engine" not in text
    assert not (tmp_path / "separated").exists()


@pytest.mark.parametrize("task", [1, 2])
def test_a_task_runs_its_shard(task: int, array, tmp_path: Path) -> None:
    """With a `sepcli` that writes down its arguments."""
    assert array("my songs", "--engine", "slurm", "-j", "2", "--device", "cpu", "--threads", "3").code == 0
    (tmp_path / "sepcli").write_text('#!/bin/bash\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n')
    (tmp_path / "sepcli").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(
        ["bash", "sepcli-array.sh"], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    words = done.stdout.splitlines()
    assert words[0] == "3"
    assert words[1:3] == ["separate", "--model"]
    assert words[-6:] == ["--shard", f"{task}/2", "--journal", f"sepcli-array/{task}.jsonl", "--", "my songs"]


def test_names_that_begin_with_a_dash_stay_names(array, song, tmp_path: Path) -> None:
    song("-a.wav", seconds=0.1)
    assert array("--engine", "slurm", "-j", "2", "--", "-a.wav").code == 0
    command = (tmp_path / "sepcli-array.sh").read_text().partition("exec sepcli separate ")[2]
    words = shlex.split(command.replace("\\\n", "").replace("$SLURM_ARRAY_TASK_ID", "1"))
    done = array(*words)
    assert done.code == 0, done.err
    assert len(done.lines) == 4


def test_a_list_is_enough(array, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("my songs/a.wav\n")
    assert array("--engine", "slurm", "-j", "2", "--input-list", "list.txt").code == 0
    assert (tmp_path / "sepcli-array.sh").read_text().endswith('.jsonl"\n')


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "how many tasks?"),
        (["-j", "4", "--shard", "1/4"], "a shard and a journal of its own"),
        (["-j", "4", "--journal", "j"], "a shard and a journal of its own"),
        (["-j", "4", "--input-list", "-"], "--input-list -: the tasks of an array have no standard input"),
        (["-j", "4", "--lease", "5m"], "--lease 5m: goes with --claim"),
        (["-j", "4", "--claim", "c", "--lease", "never"], "--lease never: is no time"),
        (["-j", "4", "--address", "auto"], "--address auto: goes with --engine ray"),
        (["-j", "4", "--max-failures", "many"], "--max-failures many"),
    ],
)
def test_what_an_array_cannot_be_is_refused(options: list[str], words: str, array, tmp_path: Path) -> None:
    done = array("my songs", "--engine", "slurm", *options)
    assert done.err.count("\n") == 1
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "sepcli-array.sh").exists()


def test_an_array_without_songs_is_refused(array, tmp_path: Path) -> None:
    done = array("--engine", "slurm", "-j", "4")
    assert done.code == 2
    assert "no input is named" in done.err
    assert not (tmp_path / "sepcli-array.sh").exists()


def test_names_with_quotes_stay_words() -> None:
    text = script(
        ["sepcli", "separate"], ["it's $HOME.wav"], tasks=3, folder="/a b", logs="l", gpu=False, seconds=None, cores=2
    )
    assert "cd '/a b'\n" in text
    assert json.dumps("it's $HOME.wav").strip('"').replace("'", "'\"'\"'") in text
    assert "gres" not in text
    assert "--time" not in text
