"""An iterator run one thread ahead: decoding goes on while the network computes."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


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
