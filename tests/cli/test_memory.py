"""Memory does not know the song's length."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import passthrough

ROOT = Path(__file__).parents[2]
PROBE = """
import resource, runpy, sys
sys.argv = ["sepcli", *sys.argv[1:]]
try:
    runpy.run_module("tests.passthrough", run_name="__main__")
except SystemExit as end:
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, end.code, file=sys.stderr)
"""


def peak(folder: Path, minutes: int) -> float:
    """The most memory (MiB) that the command holds while it separates a song of so many minutes."""
    song = folder / f"{minutes}.wav"
    block = np.random.default_rng(0).uniform(-0.1, 0.1, (60 * 44100, 2)).astype(np.float32)
    with soundfile.SoundFile(song, "w", 44100, 2) as file:
        for _ in range(minutes):
            file.write(block)
    weights = passthrough.save(folder / "pass.safetensors", segment=10.0)
    arguments = ["separate", str(song), "--model", str(weights), "--stems", "vocals", "-o", str(folder / "out")]
    held = most_of(arguments)
    assert soundfile.info(folder / "out" / "pass" / str(minutes) / "vocals.wav").frames == minutes * 60 * 44100
    song.unlink()
    (folder / "out" / "pass" / str(minutes) / "vocals.wav").unlink()
    return held


def most_of(arguments: list[str]) -> float:
    """The most memory (MiB) that a command holds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], env=environment, capture_output=True, text=True)
    words = done.stderr.split()
    assert words[-1] == "0", done.stderr
    return int(words[words.index("PEAK") + 1]) / 1024


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_four_minutes(tmp_path: Path) -> None:
    four, sixty = peak(tmp_path, 4), peak(tmp_path, 60)
    print(f"4 minutes {four:.0f} MiB, 60 minutes {sixty:.0f} MiB")
    assert sixty < 1.1 * four


def test_scoring_five_minutes_takes_no_more_memory_than_one(tmp_path: Path) -> None:
    """Four stems and their estimates of five minutes, mono, are 404 MiB in float32."""
    held = []
    minute = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * 44100).astype(np.float32)
    for minutes in (1, 5):
        song = tmp_path / str(minutes) / "song"
        song.mkdir(parents=True)
        with soundfile.SoundFile(song / "vocals.wav", "w", 44100, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        for name in ("drums", "bass", "other"):
            os.link(song / "vocals.wav", song / f"{name}.wav")
        folder = str(song.parent)
        held.append(most_of(["evaluate", "--estimates", folder, "--data", folder, "--protocol", "hdemucs"]))
    print(f"1 minute {held[0]:.0f} MiB, 5 minutes {held[1]:.0f} MiB")
    assert held[1] < held[0] + 40
