"""Freed memory: kept by the command that says so, and given back where it grows."""

import subprocess
import sys

import pytest

from sepcli.inference import memory

PROBE = """
import resource, sys
from sepcli.inference.memory import keep, release
kept = keep() if sys.argv[1] == "keep" else False
def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * (megabytes * 2**20)
    release()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, *[faults(megabytes) for megabytes in (100, 100, 300, 300, 300)])
"""


def faults(how: str) -> tuple[bool, list[int]]:
    done = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True)
    kept, *counts = done.stdout.split()
    return kept == "True", [int(count) for count in counts]


@pytest.mark.skipif(memory.glibc() is None, reason="the C library is not glibc")
def test_kept_memory_is_used_again_and_given_back_once_when_it_has_grown() -> None:
    kept, counts = faults("keep")
    assert kept
    hundred = 25_000  # pages of 100 MiB, and some that were there
    first, again, more, given_back, longer = counts
    assert first > hundred
    assert again < 1000
    assert more > 2 * hundred
    assert given_back > 3 * hundred
    assert longer < 1000, "twice in a row: no holes, but what it takes now"
    assert min(faults("leave")[1]) > hundred, "by default every large block has fresh pages"


def test_without_glibc_nothing_is_kept_or_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "glibc", lambda: None)
    assert memory.keep() is False
    memory.release()
