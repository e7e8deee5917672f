"""A batch: its items are handed to an engine, what becomes of them is told, journalled and counted."""

import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sepcli.batch.claims import Claims
from sepcli.batch.journal import Journal
from sepcli.batch.manifest import Item
from sepcli.batch.process import Process
from sepcli.errors import AudioError, SepcliError, UsageError
from sepcli.inference.plan import Notice, Progress, Record

DEATHS = 3
"""How often a song may take its worker with it before it is called failed."""
Watch = Callable[[Item], AbstractContextManager[Progress]]
"""A context in which an item is shown to be at work; it gives what is called with the seconds done and in all."""


@dataclass
class Limits:
    """When a batch ends early: seconds it may take, and how many of its items may fail."""

    seconds: float | None = None
    failures: float | None = None
    words: str = ""  # --max-failures as it was given


@dataclass
class Feed:
    """The items of a batch, handed out one by one to whoever is free, as long as there is time for them."""

    items: deque[Item]
    model: str
    tell: Callable[[Item, Record], None]
    notice: Notice
    finished: Callable[[Item], Record | None]
    limits: Limits
    claims: Claims | None = None
    began: float = field(default_factory=time.monotonic)
    others: deque[Item] = field(default_factory=deque)  # items that another process holds
    orphans: deque[Item] = field(default_factory=deque)  # items whose worker died
    deaths: Counter[str] = field(default_factory=Counter)
    left: list[Item] = field(default_factory=list)
    failed: int = 0
    stopped: bool = False
    slowest: float = 0.0  # seconds that a second of song took, at most
    longest: float = 0.0  # seconds that a song took, at most

    @property
    def over(self) -> bool:
        return not self.items and not self.others and not self.orphans

    @property
    def pause(self) -> float:
        """Seconds between two looks at what others hold."""
        return self.claims.pause if self.claims else 1.0

    @property
    def remaining(self) -> float | None:
        """Seconds that are left; None: as many as it takes."""
        return None if self.limits.seconds is None else self.limits.seconds - (time.monotonic() - self.began)

    def take(self) -> Item | None:
        """The next item to be worked at; None when there is none just now, or none any more."""
        if self.orphans:
            return self.orphans.popleft()
        for _ in range(len(self.items)):
            item = self.items.popleft()
            if (record := self.finished(item)) is not None:
                self.tell(item, record)
            elif self.stopped or not self.time_for(item):
                self.left.append(item)
            elif self.claims is None or self.free(item):
                return item
        for _ in range(len(self.others)):
            item = self.others.popleft()
            if not self.time_for(item) or self.stopped:
                self.left.append(item)
            elif self.free(item):
                return item
        return None

    def free(self, item: Item) -> bool:
        """Claim an item; what others hold is asked for again later, what they have done meanwhile is theirs."""
        assert self.claims is not None
        state = self.claims.take(item)
        if state == "held":
            self.others.append(item)
        return state == "ours"

    def time_for(self, item: Item) -> bool:
        """Whether an item is likely to be finished in time, from what the others took."""
        if (remaining := self.remaining) is None:
            return True
        expected = self.longest if item.seconds is None else item.seconds * self.slowest
        return remaining > expected

    def orphan(self, item: Item, how: str, reason: str, *, begun: bool = True) -> Record | None:
        """The worker of an item has died: it is taken again, unless it has a record now.

        A worker that had not `begun` says nothing against the item; one that died after its last file left it finished.
        """
        if begun and (record := self.finished(item)) is not None:
            return record
        self.deaths[item.uri] += begun
        if self.deaths[item.uri] >= DEATHS:
            what = f"{item.uri}: its worker {how}, {DEATHS} times; is there too little memory? try fewer workers"
            return Record(item.uri, self.model, error=what, reason=reason)
        if self.stopped or not self.time_for(item):
            return Record(item.uri, self.model, status="left")
        self.notice(f"{item.uri}: its worker {how}; a new one begins it again")
        self.orphans.append(item)
        return None

    def finish(self, item: Item, record: Record) -> None:
        """An item has its record."""
        if record.status == "left":
            self.left.append(item)
            if self.claims:
                self.claims.drop(item)
            return
        if record.status == "done":
            self.longest = max(self.longest, record.spent)
            self.slowest = max(self.slowest, record.spent / max(record.seconds, 1e-3))
        if self.claims:
            self.claims.close(item, "failed" if record.error else "done")
        self.tell(item, record)
        if record.error:
            self.fail()

    def fail(self) -> None:
        self.failed += 1
        if self.limits.failures is not None and self.failed > self.limits.failures:
            self.stopped = True


Engine = Callable[[Feed], Iterator[tuple[Item, Record]]]
"""What takes items from a feed until it is over, and gives each back with its record, in any order."""


def loop(process: Process, watch: Watch) -> Engine:
    """The engine of one process: one song after the other, here."""

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        while True:
            if (item := feed.take()) is not None:
                with watch(item) as progress:
                    record = process(item, feed.remaining, progress)
                yield item, record
            elif feed.over:
                return
            else:
                time.sleep(feed.pause)

    return engine


def run(
    items: Sequence[Item],
    problems: Iterable[AudioError],
    engine: Engine,
    tell: Callable[[Record], None],
    notice: Notice,
    *,
    model: str,
    finished: Callable[[Item], Record | None],
    limits: Limits,
    journal: Journal | None = None,
    claims: Claims | None = None,
) -> int:
    """Do a batch. Returns the exit code: 1 where an input failed. Raises SepcliError, what is done stays done."""

    def told(item: Item, record: Record) -> None:
        if journal:
            journal.record(item, record)
        tell(record)

    feed = Feed(deque(items), model, told, notice, finished, limits, claims)
    for problem in problems:
        tell(Record(problem.input, model, error=str(problem), reason="io"))
        feed.fail()
    for item, record in engine(feed):
        feed.finish(item, record)
    for item in feed.left:
        told(item, Record(item.uri, model, status="left", seconds=item.seconds or 0.0))
    if feed.stopped:
        what = f"stopped: {feed.failed} of {len(items)} inputs failed, more than --max-failures {limits.words} allows"
        raise SepcliError(what, f"{len(feed.left)} are left; see what is wrong, and run it again")
    if feed.left:
        notice(f"--max-time is over: {len(feed.left)} of {len(items)} songs are left; run it again for them")
    return 1 if feed.failed else 0


def seconds_of(text: str, option: str) -> float:
    """A duration: `3h50m`, `90s`, `1d`, or a number of seconds. Raises UsageError."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    units = (86400, 3600, 60, 1)
    total = sum(float(part or 0) * unit for part, unit in zip(match.groups(), units, strict=True)) if match else 0
    if total <= 0:
        raise UsageError(f"{option} {text}: is no time", "give it as 3h50m, 90m or 45s")
    return total


def failures_of(text: str, items: int) -> float:
    """How many of so many items may fail: a number, or a share as `1%`. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if match is None or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
        raise UsageError(f"--max-failures {text}: must be a number, or a share as 1%")
    return math.floor(float(match[1]) * items / 100) if match[2] else int(match[1])
