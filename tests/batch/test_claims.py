"""Claims: one holder at a time, whatever dies or sleeps."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sepcli.batch.claims import Claims
from sepcli.batch.manifest import Item
from sepcli.errors import UsageError

SONG = Item("a.wav", 1)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Callable[..., Claims]]:
    """member(lease=60): another process at the same list, as far as the folder can tell."""
    members: list[Claims] = []

    def join(lease: float = 60.0, notices: list[str] | None = None) -> Claims:
        said = [] if notices is None else notices
        members.append(Claims(tmp_path / "claims", "settings", lease, said.append))
        return members[-1]

    yield join
    for each in members:
        each.end()


def stop_beating(claims: Claims) -> None:
    """As a killed process, or one that sleeps."""
    claims.stop.set()
    claims.thread.join()


def test_an_item_has_one_holder(member) -> None:
    one, two = member(), member()
    assert one.take(SONG) == "ours"
    assert two.take(SONG) == "held"
    assert two.take(Item("b.wav", 2)) == "ours"


@pytest.mark.parametrize("status", ["done", "failed"])
def test_what_one_has_ended_the_others_leave_alone(member, status: str) -> None:
    one, two = member(), member()
    one.take(SONG)
    one.close(SONG, status)
    assert two.take(SONG) == "done"


def test_a_later_run_may_try_again(member) -> None:
    one = member()
    one.take(SONG)
    one.close(SONG, "failed")
    time.sleep(0.02)
    assert member().take(SONG) == "ours"


def test_what_is_let_go_is_free(member) -> None:
    one, two = member(), member()
    one.take(SONG)
    one.drop(SONG)
    assert two.take(SONG) == "ours"


def test_a_living_holder_keeps_its_claim_beyond_the_lease(member) -> None:
    one, two = member(3.0), member(3.0)
    assert one.take(SONG) == "ours"
    time.sleep(3.6)
    assert two.take(SONG) == "held"


def test_a_dead_holders_claim_expires_and_one_of_many_gets_it(member) -> None:
    dead, *living = [member(60.0) for _ in range(5)]
    assert dead.take(SONG) == "ours"
    stop_beating(dead)
    os.utime(next(iter(dead.held)), (time.time() - 100, time.time() - 100))
    assert sorted(claims.take(SONG) for claims in living) == ["held", "held", "held", "ours"]


def test_a_holder_that_sleeps_longer_than_its_lease_is_told_and_may_end_first(member) -> None:
    notices: list[str] = []
    sleeper, other, third = member(0.2, notices), member(60.0), member(60.0)
    assert sleeper.take(SONG) == "ours"
    stop_beating(sleeper)
    path = next(iter(sleeper.held))
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert other.take(SONG) == "ours"
    sleeper.look_for_successor(path, SONG.uri)
    sleeper.look_for_successor(path, SONG.uri)
    assert len(notices) == 1
    assert "its claim expired" in notices[0]
    assert third.take(SONG) == "held"
    sleeper.close(SONG, "done")
    assert third.take(SONG) == "done"


def test_other_settings_are_other_claims(member, tmp_path: Path) -> None:
    assert member().take(SONG) == "ours"
    other = Claims(tmp_path / "claims", "others", 60.0, print)
    assert other.take(SONG) == "ours"
    other.end()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        Claims(tmp_path / "file" / "claims", "settings", 60.0, print)
