"""A batch's limits, with an engine that is told what becomes of each item."""

import time
from collections.abc import Callable, Iterator

import pytest

from sepcli.batch.manifest import Item
from sepcli.batch.run import Feed, Limits, failures_of, run, seconds_of
from sepcli.errors import SepcliError, UsageError
from sepcli.inference.plan import Record


def batch(items: list[Item], outcome: Callable[[Item], Record], limits: Limits) -> tuple[int, list[Record], list[str]]:
    """The exit code, the records told, and the notices, of a batch whose items take no time."""
    told: list[Record] = []
    notices: list[str] = []

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        while (item := feed.take()) is not None:
            yield item, outcome(item)

    code = run(items, [], engine, told.append, notices.append, model="m", finished=lambda _: None, limits=limits)
    return code, told, notices


def done(item: Item) -> Record:
    return Record(item.uri, "m", status="done", seconds=item.seconds or 1.0, spent=item.seconds or 1.0)


def test_items_that_would_not_end_in_time_are_left_and_shorter_ones_done() -> None:
    items = [Item(str(seconds), index, seconds=seconds) for index, seconds in enumerate((50.0, 70.0, 30.0), 1)]
    code, told, notices = batch(items, done, Limits(seconds=60.0))
    assert [(record.input, record.status) for record in told] == [("50.0", "done"), ("30.0", "done"), ("70.0", "left")]
    assert code == 0
    assert notices == ["--max-time is over: 1 of 3 songs are left; run it again for them"]


def test_when_the_time_is_over_nothing_is_begun() -> None:
    items = [Item(str(index), index) for index in range(3)]
    code, told, _ = batch(items, lambda item: time.sleep(0.6) or done(item), Limits(seconds=0.5))  # type: ignore[func-returns-value]
    assert [record.status for record in told] == ["done", "left", "left"]
    assert code == 0


def test_too_many_failures_stop_the_run_and_the_rest_is_left() -> None:
    told: list[Record] = []
    items = [Item(str(index), index) for index in range(10)]

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        while (item := feed.take()) is not None:
            yield item, Record(item.uri, "m", error="broken", reason="decode")

    with pytest.raises(SepcliError, match=r"3 of 10 inputs failed, more than --max-failures 20% allows") as caught:
        run(
            items,
            [],
            engine,
            told.append,
            lambda _: None,
            model="m",
            finished=lambda _: None,
            limits=Limits(failures=failures_of("20%", 10), words="20%"),
        )
    assert caught.value.exit_code == 1
    assert [record.status for record in told] == ["failed"] * 3 + ["left"] * 7


def killed_over(deaths: list[bool], finished: Callable[[Item], Record | None] = lambda _: None) -> list[Record]:
    """What is told of one song whose workers die one after the other, each having begun it or not, before one lives."""
    told: list[Record] = []

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        for begun in deaths:
            item = feed.take()
            assert item is not None
            if (record := feed.orphan(item, "was killed by signal 9", "memory", begun=begun)) is not None:
                yield item, record
        if (item := feed.take()) is not None:
            yield item, done(item)

    run([Item("a", 1)], [], engine, told.append, lambda _: None, model="m", finished=finished, limits=Limits())
    return told


def test_three_workers_that_die_at_a_song_are_enough_and_those_that_had_not_begun_do_not_count() -> None:
    assert [record.status for record in killed_over([True, True])] == ["done"]
    assert [record.status for record in killed_over([True, False, False, True])] == ["done"]
    (record,) = killed_over([True, False, True, True])
    assert (
        record.error == "a: its worker was killed by signal 9, 3 times; is there too little memory? try fewer workers"
    )


def test_a_song_whose_worker_died_after_its_last_file_is_finished() -> None:
    looks = iter([None, Record("a", "m", status="skipped")])
    assert [record.status for record in killed_over([True], lambda _: next(looks))] == ["skipped"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800), ("90m", 5400), ("45s", 45), ("45", 45), ("1d2h", 93600), ("0.5s", 0.5)]
)
def test_a_time_is_read_in_units(text: str, seconds: float) -> None:
    assert seconds_of(text, "--max-time") == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-3h", "3h50x", "50m3h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-time"):
        seconds_of(text, "--max-time")


def test_failures_are_a_number_or_a_share() -> None:
    assert [failures_of(text, 250) for text in ("0", "7", "1%", "0.5%", "100%")] == [0, 7, 2, 1, 250]
    for text in ("", "x", "1.5", "101%", "-1"):
        with pytest.raises(UsageError, match="--max-failures"):
            failures_of(text, 250)
