"""One item to its record: the function that every engine runs: plain loop, workers, Ray actors, SLURM tasks."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from sepcli.audio.hidden import sweep
from sepcli.batch.journal import Journal
from sepcli.batch.manifest import Item
from sepcli.errors import AudioError, SepcliError
from sepcli.inference.files import digests_of, finished, loader, separate_song
from sepcli.inference.memory import keep
from sepcli.inference.plan import Notice, Plan, Progress, Record, sidecar_path

Process = Callable[[Item, float | None, Progress], Record]


class TimeUp(BaseException):
    """The time that an item had is over: raised between two pieces, so that all that is half made is cleaned up."""


def processor(
    plan: Plan,
    *,
    notice: Notice,
    downloads: Callable[[int, int | None], None] | None = None,
    digests: bool = False,
    debug: bool = False,
) -> Process:
    """process(item, seconds it may take or None, progress) -> its record, with `digests` of the stems if wanted.

    The model is loaded for the first item that needs one, and kept. Whatever is wrong with an item becomes its record;
    UsageError and ModelError are raised, since no other item would do better. Freed memory stays with the process from
    here on: it is an engine's own.
    """
    keep()
    load = loader(plan, notice, downloads)

    def process(item: Item, allowed: float | None, progress: Progress) -> Record:
        began = time.monotonic()

        def tick(done: float, total: float | None) -> None:
            if allowed is not None and time.monotonic() - began > allowed:
                raise TimeUp
            progress(done, total)

        record = Record(item.uri, plan.model)
        try:
            if item.remote or plan.destination:
                from sepcli.batch.storage import separate_remote

                return separate_remote(item, plan, load, notice=notice, progress=tick, digests=digests)
            record = separate_song(item.found, item.index, plan, load, notice=notice, progress=tick)
            if digests and record.status == "done":
                record.digests = digests_of(record)
            return record
        except TimeUp:
            record.status = "left"
        except AudioError as error:
            record.error, record.reason = str(error), error.reason
        except SepcliError:
            raise
        except Exception as error:  # noqa: BLE001 - one song, whatever is wrong with it, never stops the others
            if debug:
                traceback.print_exc()
            what = f"{item.uri}: {type(error).__name__}: {error}"
            record.error = " ".join(f"{what}; this is a fault of sepcli: please report it".split())
            record.reason = "memory" if isinstance(error, MemoryError) else "fault"
        record.spent = round(time.monotonic() - began, 3)
        return record

    return process


def finder(plan: Plan, journal: Journal | None) -> Callable[[Item], Record | None]:
    """A function that finds the record of an item that was finished before, without its model.

    What lies in object storage only its journal tells here: `process` looks there.
    """

    def find(item: Item) -> Record | None:
        if plan.existing != "skip":
            return None
        if journal is not None and (record := journal.finished(item)) is not None:
            return record
        if item.remote or plan.destination:
            return None
        with suppress(AudioError, OSError):  # it fails when its turn comes
            sweep(sidecar_path(item.found, item.index, plan).parent)
            return finished(item.found, item.index, plan)
        return None

    return find
