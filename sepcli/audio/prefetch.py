"""One thread ahead, one thread behind: decoding and encoding go on while the network computes."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, MutableSequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(items: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead.

    An exception of `items` is raised here at its place, after the items before it. Closing the generator stops the
    thread, closes `items` in it, and waits for both, at longest until the item being made is finished.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
    stopped = threading.Event()

    def work() -> None:
        end: BaseException = StopIteration()
        try:
            for item in items:
                if stopped.is_set():
                    break
                ready.put((item, None))
                if stopped.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again where the items are consumed
            end = error
        finally:
            close = getattr(items, "close", None)
            if stopped.is_set() and close is not None:
                close()
        if not stopped.is_set():
            ready.put((None, end))

    thread = threading.Thread(target=work, name="sepcli-prefetch")
    thread.start()
    try:
        while True:
            item, end = ready.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item  # type: ignore[misc]
    finally:
        # The thread looks at `stopped` between two items: it can put one more at most, and emptying makes room for it.
        stopped.set()
        while not ready.empty():
            ready.get_nowait()
        thread.join()


def behind(
    items: Iterable[T],
    consume: Callable[[Iterator[T]], R],
    depth: int = 4,
    stopped: MutableSequence[BaseException] | None = None,
) -> R:
    """What `consume(items)` gives, run in a thread that is at most `depth` items behind; items are made in this one.

    An exception of `items`, or one that interrupts this thread, is raised inside `consume` at its place, so that it
    can clean up, and then here; an exception of `consume` is raised here at the next item. However it ends, `items`
    is closed, if it can be, and `consume` is waited for. What interrupts this thread after the last item is put into
    `stopped`, for `consume` to look at, and raised here when it has come to its end.
    """
    late: MutableSequence[BaseException] = [] if stopped is None else stopped
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
    results: list[R] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def arriving() -> Iterator[T]:
        while True:
            item, end = waiting.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item  # type: ignore[misc]

    def work() -> None:
        try:
            results.append(consume(arriving()))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are made
            failures.append(error)
        finally:
            over.set()
            while not waiting.empty():  # the other side may wait for room
                waiting.get_nowait()

    thread = threading.Thread(target=work, name="sepcli-behind")
    thread.start()
    end: BaseException = StopIteration()
    try:
        for item in items:
            waiting.put((item, None))
            if over.is_set():
                break
    except BaseException as error:
        end = error
        raise
    finally:
        told = False
        while not over.is_set():  # not thread.join(): interrupted once, it takes a running thread for an ended one
            try:
                if not told:
                    waiting.put((None, end), timeout=0.1)
                    told = True
                over.wait()
            except queue.Full:
                continue
            except BaseException as error:  # noqa: BLE001 - raised below, once nothing is half done
                late.append(error)
                end = end if told else error
        thread.join()
        close = getattr(items, "close", None)
        if close is not None:
            close()
        failure = failures.pop() if failures else None
        if failure is not None and failure is not end:
            raise failure
        if late:
            raise late[0]
    return results[0]
