"""`--engine ray`: an actor for each device, with the model, on this machine or a cluster (extra `ray`)."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from sepcli.batch.manifest import Item
from sepcli.batch.process import processor
from sepcli.batch.run import Engine, Feed, Watch
from sepcli.errors import SepcliError, UsageError
from sepcli.inference.plan import Notice, Plan, Record


class Actor:
    """What runs in the cluster: a processor, made where it is used. Items come by address, records go back."""

    def __init__(self, plan: Plan, digests: bool, debug: bool) -> None:
        self.notices: list[str] = []
        self.process = processor(plan, notice=self.notices.append, digests=digests, debug=debug)

    def separate(self, item: Item, allowed: float | None) -> tuple[Record | tuple[Any, str, str], list[str]]:
        """The item's record, or the error that ends the batch; and what is to be said."""
        try:
            record = self.process(item, allowed, lambda _done, _total: None)
        except SepcliError as error:
            return (type(error), error.what, error.hint), self.said()
        return record, self.said()

    def said(self) -> list[str]:
        notices = list(self.notices)
        self.notices.clear()
        return notices


@dataclass
class Place:
    """One device's actor, and the item that it works at."""

    plan: Plan
    actor: Any = None
    item: Item | None = None
    shown: ExitStack = field(default_factory=ExitStack)


def connect(address: str | None) -> Any:
    """ray, connected: to the cluster of `address` or of the environment, else to one that is started here.

    Raises UsageError.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray: ray is not installed", "pip install 'sepcli[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # noqa: BLE001 - Ray raises plain ones too
            what = f"--engine ray: no cluster answers at {address or 'this machine'} ({str(error).splitlines()[0]})"
            raise UsageError(what, "give its --address, or leave that out to work here") from None
    return ray


def actors(
    plan: Plan,
    devices: Sequence[str],
    address: str | None,
    watch: Watch,
    notice: Notice,
    *,
    digests: bool,
    debug: bool,
) -> Engine:
    """The engine of a Ray cluster: an actor for each of `devices`, each with one item at a time.

    An actor that is lost is made again, and its item done by whoever is free.
    """

    def engine(feed: Feed) -> Iterator[tuple[Item, Record]]:
        ray = connect(address)
        places = [Place(replace(plan, device=device)) for device in devices]
        pending: dict[Any, Place] = {}
        try:
            while True:
                for place in (place for place in places if place.item is None):
                    if (item := feed.take()) is None:
                        break
                    place.actor = place.actor or make(ray, place.plan, digests, debug)
                    place.item = item
                    place.shown.enter_context(watch(item))
                    pending[place.actor.separate.remote(item, feed.remaining)] = place
                if pending:
                    for reference in ray.wait(list(pending), timeout=feed.pause)[0]:
                        yield from heard(ray, reference, pending.pop(reference), feed, notice)
                elif feed.over:
                    return
                else:
                    time.sleep(feed.pause)
        finally:
            for place in places:
                place.shown.close()
                if place.actor is not None:
                    ray.kill(place.actor)

    return engine


def make(ray: Any, plan: Plan, digests: bool, debug: bool) -> Any:
    """A new actor, wherever the cluster has a device for it."""
    gpus = 1 if plan.device.startswith("cuda") else 0
    return ray.remote(num_cpus=plan.threads or 1, num_gpus=gpus, max_restarts=0)(Actor).remote(plan, digests, debug)


def heard(ray: Any, reference: Any, place: Place, feed: Feed, notice: Notice) -> Iterator[tuple[Item, Record]]:
    """What has come of a place's item: its record, or nothing yet where its actor was lost. Raises SepcliError."""
    item, place.item = place.item, None
    assert item is not None
    place.shown.close()
    try:
        result, notices = ray.get(reference)
    except ray.exceptions.RayActorError as error:
        place.actor = None
        how = f"was lost ({str(error).strip().splitlines()[0].rstrip('.')})"
        if (record := feed.orphan(item, how, "memory")) is not None:
            yield item, record
        return
    for text in notices:
        notice(text)
    if not isinstance(result, Record):
        kind, what, hint = result
        raise kind(what, hint)
    yield item, result
