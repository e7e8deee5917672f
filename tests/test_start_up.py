"""What a person types most often answers at once: no torch, no numpy, and little of the processor."""

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "soundfile", "soxr", "av", "rich", "huggingface_hub", "safetensors", "http.client")
PROBE = """
import sys
from sepcli.cli import run
code = run(sys.argv[1:])
heavy = [name for name in {heavy!r} if name in sys.modules]
print("heavy:", heavy, file=sys.stderr)
sys.exit(code)
"""


def call(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    probe = PROBE.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["separate", "--help"],
        ["models", "--help"],
        ["models", "list"],
        ["models", "show", "hdemucs"],
        ["evaluate", "--help"],
        ["train", "--help"],
        ["bench", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_listing_load_nothing_heavy(arguments: list[str]) -> None:
    done, _ = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr
    assert done.stdout.strip()


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    assert min(call("--help")[1] for _ in range(3)) < 0.5
    assert min(call("models", "list")[1] for _ in range(3)) < 0.5
