"""The Ray engine on this machine: what one process makes, though an actor is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import passthrough
from tests.cli.test_lists import environment, rows, sets

DRIVER = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
         runtime_env={"worker_process_setup_hook": "tests.passthrough.install"})
from sepcli.cli import run
sys.exit(run(sys.argv[1:]))
"""


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def actors(driver: int) -> list[int]:
    """Processes below a driver that are at work on a song."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::Actor.separate"):
                above = process = int(place.name)
                while above not in (0, driver):
                    above = parent_of(above)
                found += [process] if above else []
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_actors_give_what_one_process_gives_though_one_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    passthrough.save(tmp_path / "pass.safetensors", segment=0.2)
    (tmp_path / "songs").mkdir()
    for index in range(12):
        drawn = np.random.default_rng(index).uniform(-0.5, 0.5, (600_000 + 5_000 * index, 2))
        soundfile.write(tmp_path / f"songs/{index}.wav", drawn, 44100)
    call = ["separate", "--model", "pass.safetensors", "songs", "--threads", "1"]
    kept = {"cwd": tmp_path, "env": environment(tmp_path)}
    one = [sys.executable, "-m", "tests.passthrough", *call, "--out", "one"]
    subprocess.run(one, check=True, stdout=subprocess.DEVNULL, **kept)  # type: ignore[call-overload]
    crew = [sys.executable, "-c", DRIVER, *call, "--out", "crew", "--engine", "ray", "-j", "2", "--journal", "j.jsonl"]
    with subprocess.Popen(crew, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kept) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        victims: list[int] = []
        while not victims and process.poll() is None:
            victims = actors(process.pid)
        os.kill(victims[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "its worker was lost" in errors
    assert sets(tmp_path / "crew") == sets(tmp_path / "one")
    assert len(sets(tmp_path / "one")) == 48
    assert sorted(row["status"] for row in rows(tmp_path / "j.jsonl")) == ["done"] * 12
    assert not list((tmp_path / "crew").rglob(".sepcli-*"))


def test_without_ray_it_is_said_what_to_install(sepcli, song, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = sepcli(song("a.wav", seconds=0.1), "--engine", "ray")
    assert done.code == 2
    assert "pip install 'sepcli[ray]'" in done.err


def test_an_address_is_of_the_ray_engine(sepcli, song) -> None:
    done = sepcli(song("a.wav", seconds=0.1), "--address", "ray://host:1")
    assert done.code == 2
    assert "goes with --engine ray" in done.err
