"""Shards: together the whole, of equal work, and where they were when the list has grown."""

import numpy as np
import pytest

from sepcli.batch.manifest import Item
from sepcli.batch.shards import Shard, of_shard, shard_of
from sepcli.errors import UsageError


def songs(count: int) -> list[Item]:
    """Songs of skewed lengths: most some minutes, a few an hour."""
    lengths = np.random.default_rng(1).lognormal(5.3, 0.8, count)
    return [Item(f"{index}.wav", index, seconds=float(seconds)) for index, seconds in enumerate(lengths, 1)]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_shards_together_are_the_whole(count: int) -> None:
    items = songs(400)
    parts = [of_shard(items, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(item.index for part in parts for item in part) == list(range(1, 401))


def test_shards_of_a_skewed_list_are_balanced_within_five_percent() -> None:
    items = songs(400)
    loads = np.array([sum(item.seconds or 0 for item in of_shard(items, Shard(number, 4))) for number in range(1, 5)])
    print(f"longest {max(item.seconds or 0 for item in items):.0f} s, loads {loads.round()}")
    assert np.ptp(loads) < 0.05 * loads.mean()


def test_a_list_that_grows_moves_no_old_item() -> None:
    items = songs(300)
    for number in (1, 2, 3):
        before = {item.uri for item in of_shard(items[:200], Shard(number, 3))}
        after = {item.uri for item in of_shard(items, Shard(number, 3)) if item.index <= 200}
        assert before == after


def test_a_shard_begins_with_its_longest_songs() -> None:
    lengths = [item.seconds or 0 for item in of_shard(songs(100), Shard(2, 3))]
    assert lengths == sorted(lengths, reverse=True)


def test_equal_songs_go_round_from_the_lowest_shard() -> None:
    items = [Item(str(index), index) for index in range(1, 8)]
    assert [[item.index for item in of_shard(items, Shard(n, 3))] for n in (1, 2, 3)] == [[1, 4, 7], [2, 5], [3, 6]]


@pytest.mark.parametrize(
    ("environment", "shard", "origin"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8), "SLURM"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "20",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_STEP": "10",
                "RANK": "0",
            },
            (3, 4),
            "SLURM",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, (1, 2), "RANK and WORLD_SIZE"),
    ],
)
def test_auto_asks_slurm_then_rank_and_says_so(environment, shard, origin: str) -> None:
    found, words = shard_of("auto", environment)
    assert (found.number, found.count) == shard
    assert words.startswith(origin)


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("5/4", {}, "there is no shard 5 of 4"),
        ("0/4", {}, "there is no shard 0 of 4"),
        ("1/0", {}, "there is no shard 1 of 0"),
        ("half", {}, "must be i/n"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor RANK"),
        ("auto", {"RANK": "1"}, "WORLD_SIZE = '' is no number"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"},
            "there is no shard 5 of 2",
        ),
    ],
)
def test_a_shard_that_cannot_be_is_refused(text: str, environment: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shard_of(text, environment)
