"""Several workers in one machine: a process each, with a model of its own, fed one song at a time."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from sepcli.batch.manifest import Item
from sepcli.batch.process import processor
from sepcli.batch.run import Engine, Feed, Watch
from sepcli.errors import SepcliError, UsageError
from sepcli.inference.plan import Notice, Plan, Progress, Record

UNBORN = 20
"""How many workers may die one after the other without a word."""
EVERY = 0.2
"""Seconds between two words of a worker on how far it is."""


def devices_of(text: str, jobs: int) -> list[str]:
    """The device of each worker: `cuda:0,1`, `cuda:0,cuda:1`, `cpu`; `jobs` workers on each. Raises UsageError."""
    devices: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        kind = devices[-1].partition(":")[0] if devices and part.isdigit() else ""
        devices.append(f"{kind}:{part}" if kind else part)
    if not all(re.fullmatch(r"[a-z]+(:\d+)?", device) for device in devices):
        raise UsageError(f"--device {text}: not a list of devices", "give it as cuda:0,1")
    if len(set(devices)) < len(devices):
        raise UsageError(f"--device {text}: names a device twice", "--jobs says how many workers each has")
    return [device for device in devices for _ in range(jobs)]


def threads_each(workers: int) -> int | None:
    """CPU threads of one of several workers: its share of the cores; None where the environment says it."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


@dataclass
class Worker:
    """A process, our end of the pipe to it, and the item that it works at."""

    process: BaseProcess
    pipe: Connection
    device: str
    item: Item | None = None
    shown: ExitStack = field(default_factory=ExitStack)
    progress: Progress | None = None
    there: bool = False  # has said a word

    def give(self, item: Item, allowed: float | None, watch: Watch) -> None:
        self.item = item
        self.progress = self.shown.enter_context(watch(item))
        with suppress(OSError):  # one that is dead already is found out when it is listened to
            self.pipe.send((item, allowed))

    def ended(self) -> Item:
        """Take its item from it."""
        self.shown.close()
        item, self.item, self.progress = self.item, None, None
        assert item is not None
        return item


@dataclass
class Crew:
    """The workers of a batch, started when there is an item for them, replaced when they die."""

    plan: Plan
    free: deque[str]  # devices without a worker
    watch: Watch
    notice: Notice
    digests: bool
    debug: bool
    workers: list[Worker] = field(default_factory=list)
    unborn: int = 0  # deaths since a worker last said that it is there

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.item is not None]

    def hand_out(self, feed: Feed) -> None:
        """An item to everyone who has none, as far as there are any."""
        while idle := next((worker for worker in self.workers if worker.item is None), None) or self.free:
            if (item := feed.take()) is None:
                return
            worker = idle if isinstance(idle, Worker) else self.start()
            worker.give(item, feed.remaining, self.watch)

    def start(self) -> Worker:
        """A new worker. Spawned, not forked: CUDA and threads do not survive a fork."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        plan = replace(self.plan, device=self.free.popleft())
        process = context.Process(target=work, args=(theirs, plan, self.digests, self.debug))
        process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self.workers.append(Worker(process, ours, plan.device))
        return self.workers[-1]

    def hear(self, feed: Feed) -> Iterator[tuple[Item, Record]]:
        """What the workers say next: the records among it. Raises SepcliError."""
        ready = wait([worker.pipe for worker in self.busy], feed.pause)
        for worker in [worker for worker in self.busy if worker.pipe in ready]:
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                yield from self.bury(worker, feed)
                continue
            self.unborn, worker.there = 0, True
            if kind == "record":
                yield worker.ended(), value
            elif kind == "progress" and worker.progress is not None:
                worker.progress(*value)
            elif kind == "notice":
                self.notice(value)
            elif kind == "error":
                error, what, hint = value
                raise error(what, hint)

    def bury(self, worker: Worker, feed: Feed) -> Iterator[tuple[Item, Record]]:
        """A worker has died: its item is done again, or has a record now. Raises SepcliError where all die."""
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        self.free.append(worker.device)
        item = worker.ended()
        self.unborn += 1
        if self.unborn > UNBORN:
            raise SepcliError("the workers do not start", "try without --jobs, with --debug")
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if (record := feed.orphan(item, how, "memory" if code < 0 else "fault", begun=worker.there)) is not None:
            yield item, record

    def dismiss(self) -> None:
        """End all workers: those at work clean up first."""
        for worker in self.workers:
            worker.shown.close()
            worker.pipe.close()
            if worker.item is not None:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(20)
            if worker.process.is_alive():
                worker.process.kill()


def pool(plan: Plan, devices: Sequence[str], watch: Watch, notice: Notice, *, digests: bool, debug: bool) -> Engine:
    """The engine of several workers, one for each of `devices`; the rest as for `processor`."""

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        crew = Crew(plan, deque(devices), watch, notice, digests, debug)
        try:
            while True:
                crew.hand_out(feed)
                if crew.busy:
                    yield from crew.hear(feed)
                elif feed.over:
                    return
                else:
                    time.sleep(feed.pause)
        finally:
            crew.dismiss()

    return engine


def work(pipe: Connection, plan: Plan, digests: bool, debug: bool) -> None:
    """A worker's life: items in, records out, until the pipe ends."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the one in charge ends us
    signal.signal(signal.SIGTERM, stop)
    lock = threading.Lock()
    told = 0.0

    def send(kind: str, value: Any = None) -> None:
        with lock:
            pipe.send((kind, value))

    def progress(done: float, total: float | None) -> None:
        nonlocal told
        if (now := time.monotonic()) - told > EVERY or done == total:
            told = now
            send("progress", (done, total))

    process = processor(plan, notice=lambda text: send("notice", text), digests=digests, debug=debug)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # where nobody is left to work for
        send("ready")
        while True:
            item, allowed = pipe.recv()
            try:
                send("record", process(item, allowed, progress))
            except SepcliError as error:
                send("error", (type(error), error.what, error.hint))
