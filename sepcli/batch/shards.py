"""Which part of a list a process does: the same answer in each of them, and the same when the list has grown."""

import heapq
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sepcli.batch.manifest import Item
from sepcli.errors import UsageError

UNKNOWN = 240.0
"""Seconds that a song counts whose list does not tell its length."""


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` parts, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shard_of(text: str, environment: Mapping[str, str] = os.environ) -> tuple[Shard, str]:
    """The shard that --shard names, and in words where it comes from. Raises UsageError."""
    if text == "auto":
        return from_environment(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UsageError(f"--shard {text}: must be i/n, as 1/4, or auto")
    return checked(Shard(int(match[1]), int(match[2])), f"--shard {text}"), "--shard"


def from_environment(environment: Mapping[str, str]) -> tuple[Shard, str]:
    """The shard of a task of a SLURM array, else of a rank. Raises UsageError."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, count, step = (
            number(environment, f"SLURM_ARRAY_TASK_{name}", default)
            for name, default in (("ID", None), ("MIN", None), ("COUNT", None), ("STEP", 1))
        )
        shard = Shard((task - first) // max(1, step) + 1, count)
        return checked(shard, f"--shard auto: SLURM array task {task}"), "SLURM_ARRAY_TASK_ID, _MIN and _COUNT"
    if "RANK" in environment:
        shard = Shard(number(environment, "RANK", None) + 1, number(environment, "WORLD_SIZE", None))
        return checked(shard, f"--shard auto: RANK {environment['RANK']}"), "RANK and WORLD_SIZE"
    what = "--shard auto: neither SLURM_ARRAY_TASK_ID nor RANK is set"
    raise UsageError(what, "give --shard i/n, or leave it out for the whole list")


def number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--shard auto: {name} = {text!r} is no number", "give --shard i/n") from None


def checked(shard: Shard, origin: str) -> Shard:
    if not 1 <= shard.number <= shard.count:
        raise UsageError(f"{origin}: there is no shard {shard.number} of {shard.count}", "shards are 1/n to n/n")
    return shard


def of_shard(items: Sequence[Item], shard: Shard) -> list[Item]:
    """The items of a shard, longest first.

    Items go in the list's order to the shard with the least to do, the lowest of equals: an item's shard depends on
    those before it only, so that a list that grows at its end keeps each item where it was.
    """
    loads = [(0.0, place) for place in range(1, shard.count + 1)]
    mine = []
    for item in items:
        load, place = loads[0]
        heapq.heapreplace(loads, (load + length(item), place))
        if place == shard.number:
            mine.append(item)
    return sorted(mine, key=length, reverse=True)


def length(item: Item) -> float:
    return UNKNOWN if item.seconds is None else item.seconds
