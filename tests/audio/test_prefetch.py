import itertools
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from sepcli.audio.prefetch import behind, prefetch


def ours():
    return [thread for thread in threading.enumerate() if thread.name == "sepcli-prefetch"]


def test_items_come_in_order_and_no_thread_is_left():
    assert list(prefetch(range(1000), depth=3)) == list(range(1000))
    assert ours() == []


def test_an_empty_iterator_ends_at_once():
    assert list(prefetch([])) == []


def test_an_exception_is_raised_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise KeyError("three")

    ahead = prefetch(items())
    assert (next(ahead), next(ahead)) == (1, 2)
    with pytest.raises(KeyError, match="three"):
        next(ahead)
    assert ours() == []


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_closing_stops_a_thread_that_waits_at_a_full_queue(depth):
    closed = threading.Event()

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = prefetch(endless(), depth)
    assert next(items) == 0
    time.sleep(0.05)  # the queue is full now
    began = time.perf_counter()
    items.close()
    assert time.perf_counter() - began < 10  # it would wait for ever
    assert closed.is_set()
    assert ours() == []


def test_the_thread_is_never_more_than_depth_and_one_item_ahead():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(items(), depth=3)
    for i in range(20):
        assert next(ahead) == i
        time.sleep(0.002)
        assert len(made) <= i + 1 + 3 + 1
    ahead.close()


def test_closing_while_the_thread_ends_by_itself_never_hangs():
    for taken in itertools.chain.from_iterable([range(1, 7)] * 50):
        items = prefetch(range(6), depth=2)
        for _ in range(taken):
            next(items)
        items.close()
    assert ours() == []


def test_what_is_consumed_behind_is_every_item_in_order() -> None:
    assert behind(range(1000), list, depth=3) == list(range(1000))
    assert behind([], list) == []


def test_the_items_are_made_here_and_consumed_elsewhere() -> None:
    here = threading.current_thread()
    makers = set()

    def items() -> Iterator[int]:
        for item in range(5):
            makers.add(threading.current_thread())
            yield item

    consumers = behind(items(), lambda arriving: {threading.current_thread() for _ in arriving})
    assert makers == {here}
    assert here not in consumers


def test_an_exception_of_the_items_is_raised_inside_the_consumer_and_then_here() -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    def consume(arriving: Iterator[int]) -> int:
        try:
            return sum(arriving)
        except KeyboardInterrupt:
            seen.append("cleaned up")
            raise

    with pytest.raises(KeyboardInterrupt):
        behind(items(), consume)
    assert seen == ["cleaned up"]


def test_an_exception_of_the_consumer_ends_the_items() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(10_000):
            made.append(item)
            yield item

    def consume(arriving: Iterator[int]) -> None:
        next(arriving)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        behind(items(), consume, depth=2)
    assert len(made) < 100


def test_a_consumer_that_stops_early_gives_its_result() -> None:
    assert behind(iter(range(10_000)), next, depth=2) == 0
    assert not [t for t in threading.enumerate() if t.name == "sepcli-behind"]


def test_an_interrupt_here_closes_the_items_so_that_no_thread_waits() -> None:
    def items() -> Iterator[int]:
        ahead = prefetch(iter(range(10_000)), depth=1)
        try:
            yield from ahead
        finally:
            ahead.close()

    def interrupted() -> Iterator[int]:
        yield from items()

    def consume(arriving: Iterator[int]) -> int:
        next(arriving)
        raise OSError

    try:
        behind(interrupted(), consume, depth=1)
    except OSError as error:
        kept = error  # as a debugger or an error report would
    assert isinstance(kept, OSError)
    assert ours() == []


class Alarm(BaseException):
    pass


@pytest.mark.parametrize("asks", [True, False], ids=["a consumer that looks", "one that does not"])
def test_an_interrupt_after_the_last_item_waits_for_the_consumer_to_clean_up(asks: bool) -> None:
    stopped: list[BaseException] = []
    seen: list[object] = []
    began = threading.Event()

    def consume(arriving: Iterator[int]) -> int:
        seen.extend(arriving)
        began.set()
        try:
            deadline = time.monotonic() + (60 if asks else 0.5)
            while time.monotonic() < deadline:
                for error in stopped if asks else ():
                    raise error
                time.sleep(0.01)
            return 3
        finally:
            seen.append("cleaned up")

    def ring(_number: int, _frame: object) -> None:
        raise Alarm

    def interrupt() -> None:
        began.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Alarm):
            behind([1, 2], consume, stopped=stopped)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1, 2, "cleaned up"]
    assert ours() == []
