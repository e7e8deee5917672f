"""The script of a SLURM array: shell that runs, each task with its own shard and journal."""

import json
import os
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
    assert "'my songs' --model" in text
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
    assert words[1:3] == ["separate", "my songs"]
    assert words[-4:] == ["--shard", f"{task}/2", "--journal", f"sepcli-array/{task}.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "how many tasks?"),
        (["-j", "4", "--shard", "1/4"], "a shard and a journal of its own"),
        (["-j", "4", "--journal", "j"], "a shard and a journal of its own"),
    ],
)
def test_what_an_array_cannot_be_is_refused(options: list[str], words: str, array, tmp_path: Path) -> None:
    done = array("my songs", "--engine", "slurm", *options)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "sepcli-array.sh").exists()


def test_names_with_quotes_stay_words() -> None:
    text = script(
        ["sepcli", "separate", "it's $HOME.wav"], tasks=3, folder="/a b", logs="l", gpu=False, seconds=None, cores=2
    )
    assert "cd '/a b'\n" in text
    assert json.dumps("it's $HOME.wav").strip('"').replace("'", "'\"'\"'") in text
    assert "gres" not in text
    assert "--time" not in text
