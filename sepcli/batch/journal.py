"""A run's journal: one JSON line for each run and each item, appended as it ends; what is done need not be asked again.

Lines of several processes may stand in one file, each written whole under a lock. A line that was cut off by a kill is
passed over, and its item done again.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sepcli.batch.manifest import Item
from sepcli.errors import SepcliError, UsageError
from sepcli.inference.plan import DECIDES, Plan, Record, settings_key

REASONS = ("decode", "nan", "memory", "io", "fault")
"""Classes of failure: the recording, samples that are no numbers, memory, files and networks, and our own mistakes."""
FINISHED = ("done", "skipped")
PATHS = ("out", "bag_weights", "scratch")
"""Fields of a plan that are paths."""


@dataclass
class History:
    """What a journal tells: its runs, and the last line of each item, by uri."""

    path: Path
    runs: list[dict[str, Any]] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[int] = field(default_factory=list)  # numbers of lines that are cut off or not ours


def read_journal(path: Path) -> History:
    """Raises UsageError where there is none."""
    history = History(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    if "run" in row:
                        history.runs.append(row)
                    else:
                        history.items[row["item"]] = row
                except (ValueError, KeyError, TypeError):
                    history.broken.append(number)
    except OSError as error:
        raise UsageError(f"{path}: this journal cannot be read: {error.strerror}") from error
    return history


class Journal:
    """An open journal: `record` appends what became of an item. `before` is what it told when it was opened."""

    def __init__(self, path: Path, plan: Plan, items: int, shard: str | None = None, claim: Path | None = None) -> None:
        """Raises UsageError where it cannot be written, or belongs to a run with other settings."""
        self.before = read_journal(path) if path.exists() else History(path)
        settings = settings_key(plan)
        for run in self.before.runs[:1]:
            if run.get("settings") != settings:
                different = ", ".join(differences(run, plan)) or "the weights' content"
                what = f"--journal {path}: belongs to a run with other settings ({different})"
                raise UsageError(what, "give each its own journal")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(f"--journal {path}: cannot be written: {error.strerror}") from error
        self.path = path
        facts = {"run": 1, "settings": settings, "items": items, "shard": shard, "folder": str(Path.cwd())}
        facts["claim"] = claim and os.path.realpath(claim)  # how it is named differs
        self.append(facts | {"worker": worker(), "at": now(), "plan": plain(plan)})

    def record(self, item: Item, record: Record) -> None:
        """Append what became of an item, unless the journal told already that it is finished."""
        if record.status == "skipped" and self.before.items.get(item.uri, {}).get("status") in FINISHED:
            return
        row = {"item": item.uri, "index": item.index, "reldir": item.reldir or None} | record.document()
        del row["input"], row["model"]
        row |= {"length": item.seconds, "source": source_of(item), "worker": worker(), "at": now()}
        self.append({key: value for key, value in row.items() if value not in (None, [], {})})

    def append(self, row: Mapping[str, Any]) -> None:
        text = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            with locked(self.file):
                end = os.lseek(self.file, 0, os.SEEK_END)
                if end and os.pread(self.file, 1, end - 1) != b"\n":
                    text = b"\n" + text  # the line before was cut off
                if os.write(self.file, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            what = f"--journal {self.path}: cannot be written: {error.strerror}"
            raise SepcliError(what, "what was finished before is marked by its sidecar; run it again") from error

    def finished(self, item: Item) -> Record | None:
        """The record of an item that the journal calls finished, while its file is as it was and its stems are there.

        What lies in object storage is believed without a look.
        """
        row = self.before.items.get(item.uri)
        if row is None or row.get("status") not in FINISHED or row.get("source") != source_of(item):
            return None
        stems = row.get("stems", {})
        if not all("://" in path or os.path.exists(path) for path in stems.values()):  # noqa: PTH110 - 100,000 times
            return None
        model = str(self.before.runs[0]["plan"]["model"]) if self.before.runs else ""
        return Record(item.uri, model, status="skipped", stems=stems, seconds=row.get("seconds", 0.0))

    def close(self) -> None:
        os.close(self.file)


def source_of(item: Item) -> list[int] | None:
    """What tells a file on disk from a changed one, without reading it."""
    if not item.remote:
        with suppress(OSError, ValueError):
            status = os.stat(item.uri)  # noqa: PTH116 - 100,000 times
            return [status.st_size, status.st_mtime_ns]
    return None


def plain(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    table = asdict(plan)
    return table | {name: table[name] and str(table[name]) for name in PATHS}


def plan_of(run: Mapping[str, Any]) -> Plan:
    """The plan that a run's line tells. Raises UsageError."""
    table = dict(run["plan"])
    try:
        for name in PATHS:
            table[name] = Path(table[name]) if table[name] else None
        return Plan(**table | {"stems": tuple(table["stems"])})
    except (KeyError, TypeError) as error:
        what = f"this journal is of another version of sepcli ({error})"
        raise UsageError(what, "run `sepcli separate` again") from None


def differences(run: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """The settings that decide the stems and are not those of a run."""
    before, after = run.get("plan", {}), plain(plan)
    for name in ("model", "out", "destination", *DECIDES):
        old, new = before.get(name), json.loads(json.dumps(after[name]))
        if old != new:
            yield f"{name} = {old}, now {new}"


@contextmanager
def locked(file: int) -> Iterator[None]:
    """An open file to ourselves; where the system has no such locks, only appending keeps lines apart."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def merged(histories: Iterable[History]) -> dict[str, dict[str, Any]]:
    """The last line of each item over several journals; what one of them finished is finished."""
    items: dict[str, dict[str, Any]] = {}
    for history in histories:
        for uri, row in history.items.items():
            before = items.get(uri)
            if before is None or (row["status"] in FINISHED, row["at"]) >= (before["status"] in FINISHED, before["at"]):
                items[uri] = row
    return items


def songs_in(histories: Iterable[History]) -> int:
    """How many songs the lists of several journals have together; one that machines share by claims counts once.

    Of a journal its largest run counts: a retry has only what it tries again.
    """
    counts: dict[tuple[str, ...], int] = {}
    for history in histories:
        key: tuple[str, ...] = ("own", str(history.path))
        for run in history.runs:
            if claim := run.get("claim"):  # an older journal does not tell it
                key = ("shared", claim, str(run.get("settings")), str(run.get("shard")))
        most = max((run["items"] for run in history.runs), default=0)
        counts[key] = max(most, counts.get(key, 0))
    return sum(counts.values())
