"""Thousands of seeded mutations of songs and weights: read or refused in one line; no crash, no hang, no flood."""

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.audio.test_read import FUZZ, encode

MEASURE = """
status = Path("/proc/self/status")  # getrusage would begin with the memory of the process that started this one
lines = status.read_text().splitlines() if status.exists() else []
print(next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0))
"""

WEIGHTS = """
import faulthandler, resource, sys, time
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from sepcli.errors import ModelError
from sepcli.weights.read import read
faulthandler.enable()
torch.set_num_threads(1)
folder = Path(sys.argv[1])
draw = np.random.default_rng(int(sys.argv[2]))
tensors = {f"layer{i}.weight": torch.randn(7, 5) for i in range(6)} | {"count": torch.tensor(3)}
save_file(tensors, folder / "a.safetensors", {"sepcli": '{"schema": 1, "entry": {"name": "a"}}'})
torch.save(tensors, folder / "a.pth")
torch.save({"state_dict": tensors, "epoch": 3}, folder / "a.pt", _use_new_zipfile_serialization=False)
sources = sorted(folder.glob("a.*"))
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
count = dict.fromkeys((path.suffix for path in sources), 0)
read_whole = refused = 0
slowest = 0.0
for turn in range(int(sys.argv[3])):
    source = sources[turn % len(sources)]
    content = bytearray(source.read_bytes())
    reach = 600 if turn % 4 else len(content)
    for _ in range(int(draw.integers(1, 6))):
        place = int(draw.integers(0, min(reach, len(content))))
        kind = int(draw.integers(0, 4))
        if kind == 0:
            content[place] = int(draw.integers(0, 256))
        elif kind == 1:
            number = [0, 2**32 - 1, 2**31 - 1, 2**31][int(draw.integers(0, 4))]
            content[place : place + 4] = number.to_bytes(4, ["big", "little"][int(draw.integers(0, 2))])
        elif kind == 2:
            del content[place : place + int(draw.integers(1, 50))]
        else:
            content[place:place] = draw.bytes(int(draw.integers(1, 50)))
    path = folder / f"fuzz{source.suffix}"
    path.write_bytes(content)
    print(turn, source.suffix, file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        read(path)
        read_whole += 1
    except ModelError as error:
        assert "\\n" not in str(error), str(error)
        refused += 1
    slowest = max(slowest, time.perf_counter() - began)
print(read_whole, refused, round(slowest, 2))
"""


def outcome(script: str, folder: Path, turns: int) -> tuple[int, int, float, int]:
    """How many were read and refused, the slowest in seconds, and the most memory in MiB."""
    command = [sys.executable, "-c", script + MEASURE, str(folder), "1", str(turns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    was_read, refused, slowest, memory = done.stdout.split()
    print(f"{was_read} read, {refused} refused, slowest {slowest} s, {memory} MiB at most")
    return int(was_read), int(refused), float(slowest), int(memory)


@pytest.mark.slow
def test_two_thousand_mutated_songs_are_read_or_refused(tmp_path: Path, noise) -> None:
    sound = noise(8_000)
    for suffix in ("wav", "flac", "mp3", "ogg", "aiff", "au", "caf", "w64"):
        with soundfile.SoundFile(tmp_path / f"a.{suffix}", "w", 44100, 2) as file:
            file.write(sound)
    soundfile.write(tmp_path / "a.opus", sound, 48000, format="OGG", subtype="OPUS")
    pytest.importorskip("av")
    encode(tmp_path / "a.m4a", sound, 44100, "aac")
    encode(tmp_path / "a.mp4", sound, 44100, "alac")
    encode(tmp_path / "a.mkv", sound, 44100, "flac")
    was_read, refused, slowest, memory = outcome(FUZZ, tmp_path, 2_040)
    assert was_read + refused == 2_040
    assert min(was_read, refused) > 300
    assert slowest < 5
    assert memory < 1024


@pytest.mark.slow
def test_two_thousand_mutated_weights_are_read_or_refused(tmp_path: Path) -> None:
    was_read, refused, slowest, memory = outcome(WEIGHTS, tmp_path, 2_100)
    assert was_read + refused == 2_100
    assert refused > 1_000
    assert slowest < 5
    assert memory < 1024
