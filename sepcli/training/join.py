"""How the processes of one run find each other, also when torchrun has begun them again.

torchrun keeps one store for all its attempts, and torch (2.11) reads the addresses of an attempt from where the one
before wrote its own: a process that is quicker than its peers calls those that are gone. So an attempt gets a number
that all its processes have agreed on, and a part of the store to itself.
"""

import datetime
import time
import uuid
from contextlib import suppress

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

WAIT = datetime.timedelta(hours=12)
"""A process may prepare songs so long while the others wait for it."""
POLL_SECONDS = 0.05


def join(backend: str) -> int:
    """Become one of the processes that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Returns the number of the attempt: 1, and more where torchrun has begun the processes again.
    """
    store, rank, world = next(rendezvous("env://", timeout=WAIT))
    attempt = agree(store, rank, world)
    own = PrefixStore(f"attempt {attempt}", store)
    torch.distributed.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=WAIT)
    return attempt


def leave() -> None:
    """Part from the other processes, once all are here; torch's threads may abort a process that ends with them."""
    if torch.distributed.is_initialized():
        with suppress(RuntimeError):  # whoever is gone by now has said why
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def agree(store: Store, rank: int, world: int) -> int:
    """The number of this attempt, the same in all its processes, whatever earlier ones left in the store.

    The first process counts. Each of the others asks with a word that nobody used before, and says that it is here
    once that word is answered; questions of processes that are gone are answered too, and nobody reads it.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"question of {rank}", word)
        while not store.check([f"answer to {word}"]):
            time.sleep(POLL_SECONDS)
        attempt = int(store.get(f"answer to {word}"))
        store.set(f"{rank} is in {attempt}", "")
        return attempt
    attempt = store.add("attempts", 1)
    others = set(range(1, world))
    while others:
        for other in others:
            if store.check([f"question of {other}"]):
                store.set(f"answer to {store.get(f'question of {other}').decode()}", str(attempt))
        others = {other for other in others if not store.check([f"{other} is in {attempt}"])}
        time.sleep(POLL_SECONDS if others else 0)
    return attempt
