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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], env=environment, capture_output=True, text=True)
    words = done.stderr.split()
    assert words[-1] == "0", done.stderr
    assert soundfile.info(folder / "out" / "pass" / str(minutes) / "vocals.wav").frames == minutes * 60 * 44100
    song.unlink()
    (folder / "out" / "pass" / str(minutes) / "vocals.wav").unlink()
    return int(words[words.index("PEAK") + 1]) / 1024


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_four_minutes(tmp_path: Path) -> None:
    four, sixty = peak(tmp_path, 4), peak(tmp_path, 60)
    print(f"4 minutes {four:.0f} MiB, 60 minutes {sixty:.0f} MiB")
    assert sixty < 1.1 * four
