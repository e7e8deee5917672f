"""What a person or a script sees: progress and notices on stderr, results on stdout, errors in one line, signals."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass
class State:
    """How much is said; set by the options that every command has."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    progress: str = "auto"
    lost: bool = False  # a result could not be written
    keeps: bool = False  # whatever songs are finished stay so when the work is stopped


state = State()


def set_state(name: str, help: str, *flags: str) -> Any:
    def remember(value: bool) -> None:
        if value:
            setattr(state, name, True)

    return typer.Option(*flags, help=help, callback=remember, expose_value=False, is_eager=True)


Quiet = Annotated[bool, set_state("quiet", "Say nothing but errors and results.", "--quiet", "-q")]
Verbose = Annotated[bool, set_state("verbose", "Say more about what is done and why.", "--verbose", "-v")]
Debug = Annotated[bool, set_state("debug", "Show the traceback of an error.", "--debug")]


class Stopped(BaseException):
    """SIGINT or SIGTERM: raised in the main thread, so that whatever is half done is cleaned up on the way out.

    Not KeyboardInterrupt, which Typer catches itself and says nothing of.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number
        self.word = "interrupted" if number == signal.SIGINT else "terminated"


def listen_for_signals() -> None:
    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # a second one does not disturb the cleaning up
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def open_streams() -> None:
    """Where a stream was closed before we began, one that leads nowhere; else the next file would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as we run


def result(text: str) -> None:
    """A result, on stdout at once, whatever characters a path holds. Where it cannot be written, work goes on.

    That nobody reads it any more is no fault; any other is said, once.
    """
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
        sys.stdout.buffer.flush()
    except OSError as failed:
        lead_nowhere(sys.stdout)
        if not isinstance(failed, BrokenPipeError):
            state.lost = True
            error(f"results cannot be written: {failed.strerror}; the work goes on without them")


def document(value: dict[str, Any]) -> None:
    """A machine-readable result, one line of UTF-8: what of a name is none is escaped, as os.fsencode understands."""
    text = json.dumps({"schema": 1} | value, ensure_ascii=False, allow_nan=False)
    result("".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in text))


def notice(text: str) -> None:
    """Something the user should know, on stderr; not with --quiet."""
    if not state.quiet:
        say(f"sepcli: {text}")


def detail(text: str) -> None:
    """Something only --verbose tells."""
    if state.verbose:
        notice(text)


def error(text: str) -> None:
    say(f"sepcli: error: {text}")


def say(text: str) -> None:
    line = printable(text)
    if bar.progress is not None:
        bar.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        write_line(line)


def write_line(line: str) -> None:
    """A line on stderr; where it cannot be written, work goes on without."""
    with outlived(sys.stderr):
        print(line, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text that stays one line and does not move the cursor: control characters are shown escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Lasting:
    """A stream for rich: once it has failed, as that of a terminal which was closed, it leads nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        with outlived(self.stream):
            self.stream.write(text)

    def flush(self) -> None:
        with outlived(self.stream):
            self.stream.flush()


class Bar:
    """Progress while something is done: bars on a terminal, JSON lines with --progress json, else nothing."""

    progress: "Progress | None" = None

    @contextmanager
    def over(self, label: str) -> Iterator["Meter"]:
        """Show how far one song is; what is downloaded meanwhile, and other songs at once, have a bar below."""
        if self.progress is not None:
            meter = Meter(label)
            yield meter
            if self.progress is not None and meter.task is not None:
                self.progress.remove_task(meter.task)
            return
        if state.progress == "json" or state.quiet or not sys.stderr.isatty():
            yield Meter(label)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
        )
        console = Console(file=cast(TextIO, Lasting(sys.stderr)))
        with Progress(*columns, console=console, transient=True, expand=True) as self.progress:
            try:
                yield Meter(label)
            finally:
                self.progress = None


bar = Bar()


class Meter:
    """How far one job is, called with what is done and in all: seconds of a song, or bytes of a download."""

    def __init__(self, label: str, event: str = "progress") -> None:
        self.label, self.event = label, event
        self.began = self.told = time.monotonic()
        self.task: TaskID | None = None
        if bar.progress is not None:
            width = max(8, min(32, bar.progress.console.width - 30))  # the figures come first where it is narrow
            self.task = bar.progress.add_task(shortened(printable(label), width), total=None, speed="")

    def __call__(self, done: float, total: float | None) -> None:
        now = time.monotonic()
        spent = max(now - self.began, 1e-9)
        if bar.progress is not None and self.task is not None:
            rate = f"{done / spent:.1f}x" if self.event == "progress" else f"{done / spent / 1e6:.1f} MB/s"
            bar.progress.update(self.task, completed=done, total=total, speed=rate)
        elif state.progress == "json" and (now - self.told > 0.1 or done == total):
            self.told = now
            document = {"event": self.event, "input": self.label, "done": round(done, 3)}
            eta = round(spent * (total - done) / done, 1) if done and total else None
            write_line(json.dumps(document | {"total": total and round(total, 3), "eta": eta}))


class Downloads:
    """The progress of one download after the other: a new meter whenever the count begins again."""

    meter: Meter | None = None
    before = 0

    def __call__(self, done: int, total: int | None) -> None:
        if self.meter is None or done < self.before:
            self.meter = Meter("download", "download")
        self.before = done
        self.meter(done, total)


downloads = Downloads()


def shortened(text: str, width: int = 32) -> str:
    return text if len(text) <= width else text[: width // 2 - 1] + "…" + text[-width // 2 :]


@contextmanager
def outlived(stream: TextIO) -> Iterator[None]:
    """Work goes on where a stream fails within."""
    try:
        yield
    except OSError:
        lead_nowhere(stream)


def lead_nowhere(stream: TextIO) -> None:
    """After a stream has failed: later flushes, that at exit too, must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
