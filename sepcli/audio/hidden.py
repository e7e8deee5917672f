"""The hidden folder in which a set is made: gone afterwards, and swept by a later call where its process was killed.

`.sepcli-<machine>-<pid>-<random>` holds a file `lock`, which its process keeps locked as long as it lives. The system
gives the lock back when a process ends, however it ends: no number of a process has to be trusted. The lock is made
first and removed last, so that a folder without one is empty: just made, or almost gone.
"""

import hashlib
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".sepcli-"
LOCK = "lock"


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, which exists; removed with all it holds. Raises OSError."""
    folder, lock = _made(parent)
    try:
        yield folder
    finally:
        _clear(folder, lock)


def sweep(parent: Path) -> list[Path]:
    """Remove the hidden folders in `parent` that a process of this machine left behind; which these were.

    Those of living processes stay, those of other machines too, and whatever cannot be removed.
    """
    try:
        left = [path for path in parent.iterdir() if path.name.startswith(f"{PREFIX}{machine()}-")]
    except OSError:
        return []
    swept = []
    for folder in sorted(left):
        with suppress(OSError):
            if not (folder / LOCK).exists():
                folder.rmdir()  # refused where it is not empty; its maker, if it lives, tries again
            else:
                lock = os.open(folder / LOCK, os.O_RDWR)
                if not _locked(lock):
                    os.close(lock)
                    continue
                _clear(folder, lock)
            swept.append(folder)
    return swept


def machine() -> str:
    """This machine's mark in the folders' names: a disk may be shared, and locks of others need not be seen here."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _made(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock, which is ours. A call that sweeps may take it away before that."""
    for attempt in range(100):
        folder = parent / f"{PREFIX}{machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue
        # Where a disk knows no locks, nothing is swept either: the second attempt does without.
        if _locked(lock) or attempt:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                    return folder, lock
        os.close(lock)
        with suppress(OSError):
            shutil.rmtree(folder)
    raise OSError(f"{parent}: no folder can be made that stays")


def _clear(folder: Path, lock: int) -> None:
    """Remove a folder, its lock last, and let the lock go."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != LOCK:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
    if sys.platform == "win32":  # where an open file cannot be removed
        os.close(lock)
    with suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()
    if sys.platform != "win32":
        os.close(lock)


def _locked(lock: int) -> bool:
    """Take a lock, unless another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
