"""Several machines at one list, with nothing between them but a folder that all can write: who works at what.

A claim is a file that is made exclusively, KEY.0 at first. Its holder touches it while it works, and writes at its end
what became of the item. A claim that was not touched for a lease is dead: whoever makes KEY.1 has the item next. No
claim is ever removed or renamed, so that none can be taken from under its holder. Time is the folder's own: the clocks
of the machines need not agree.
"""

import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from sepcli.batch.journal import worker
from sepcli.batch.manifest import Item
from sepcli.errors import UsageError
from sepcli.inference.plan import Notice

FINAL = ("done", "failed")
State = Literal["ours", "held", "done"]


@dataclass
class Claims:
    """A folder of claims on the items of a batch, whose results `settings` decides."""

    folder: Path
    settings: str
    lease: float
    notice: Notice
    held: dict[Path, str] = field(default_factory=dict)  # our claims, and the items' names
    stop: threading.Event = field(default_factory=threading.Event)
    lost: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Begin to keep our claims alive. Raises UsageError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clock = self.folder / f".now-{worker().replace(':', '-')}"
            self.began = self.now()
        except OSError as error:
            raise UsageError(f"--claim {self.folder}: cannot be written: {error.strerror}") from error
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.beat, name="sepcli-claims", daemon=True)
        self.thread.start()

    @property
    def pause(self) -> float:
        """Seconds between two looks at what others hold."""
        return min(5.0, self.lease / 10)

    def now(self) -> float:
        self.clock.touch()
        return self.clock.stat().st_mtime

    def take(self, item: Item) -> State:
        """Claim an item: "ours", "held" by a living process, or "done" by another one since we began."""
        key = hashlib.sha256(f"{self.settings} {item.uri}".encode("utf-8", "surrogateescape")).hexdigest()
        folder = self.folder / key[:2]
        folder.mkdir(exist_ok=True)
        for turn in count():
            path = folder / f"{key[2:40]}.{turn}"
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                touched, words = path.stat().st_mtime, path.read_text(errors="replace").split("\n")
                final = words[0] in FINAL
                if final and touched >= self.began:
                    return "done"
                if not final and words[0] != "dropped" and self.now() - touched < self.lease:
                    return "held"
                continue
            with os.fdopen(file, "w") as claim:
                claim.write(f"held\n{worker()}\n")
            with self.lock:
                self.held[path] = item.uri
            return "ours"
        raise AssertionError

    def close(self, item: Item, status: str) -> None:
        """Write what became of an item that is ours."""
        with self.lock:
            path = next(path for path, uri in self.held.items() if uri == item.uri)
            del self.held[path]
        with suppress(OSError):
            path.write_text(f"{status}\n{worker()}\n")

    def drop(self, item: Item) -> None:
        """Let an item go, for whoever wants it."""
        self.close(item, "dropped")

    def beat(self) -> None:
        while not self.stop.wait(self.lease / 4):
            with self.lock:
                held = list(self.held.items())
            for path, uri in held:
                with suppress(OSError):
                    os.utime(path)
                    self.look_for_successor(path, uri)

    def look_for_successor(self, path: Path, uri: str) -> None:
        """Say once that a claim has expired while we lived: both make the same set, and the later one replaces it."""
        turn = int(path.suffix[1:])
        successor = path.with_suffix(f".{turn + 1}")
        if path not in self.lost and successor.exists():
            self.lost.add(path)
            holder = successor.read_text(errors="replace").partition("\n")[2].strip() or "another process"
            self.notice(f"{uri}: its claim expired, and {holder} works at it too; a longer --lease helps")

    def end(self) -> None:
        """Stop touching; what is still ours is let go."""
        self.stop.set()
        self.thread.join()
        for path in list(self.held):
            with suppress(OSError):
                path.write_text(f"dropped\n{worker()}\n")
        with suppress(OSError):
            self.clock.unlink()
