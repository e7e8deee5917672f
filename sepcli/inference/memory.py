"""What the C library does with freed memory, where that is glibc: keep it for the next tensor, or give it back.

Half of a network's time on a CPU can go into fresh pages, which the system clears one by one: by default glibc asks it
for every large tensor anew. A command that owns its process says `keep` once, and freed memory stays at hand. Blocks
and pieces of many sizes leave holes that would add up over a song: `release`, between two pieces, gives free pages
back, kept ones only where the heap has grown, so that an hour takes no more than a minute.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
GROWTH = 1.1


@dataclass
class Kept:
    """Whether freed memory is kept, how much the process may hold before it is given back, and whether it just was."""

    on: bool = False
    limit: float = 0.0
    given_back: bool = False


state = Kept()


@functools.cache
def glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return library


def keep() -> bool:
    """Let freed memory stay with this process, for its whole life. False where the C library cannot."""
    library = glibc()
    if library is None or not library.mallopt(MMAP_THRESHOLD, 1 << 30):
        return False
    state.on = bool(library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
    return state.on


def release() -> None:
    """Give free pages back to the system; kept ones only where the process holds a tenth more than after a first piece.

    Where that is so twice in a row, it is not holes: pieces have become longer, and what they hold is the new measure.
    """
    library = glibc()
    if library is None:
        return
    if state.on:
        held = resident()
        if held <= state.limit:
            state.given_back = False
            return
        if not state.limit or state.given_back:
            state.limit, state.given_back = GROWTH * held, False
            return
        state.given_back = True
    library.malloc_trim(0)


def resident() -> int:
    """Pages of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
