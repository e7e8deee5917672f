"""Processes of one run find each other whatever an earlier attempt left behind."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore, Store, TCPStore

from sepcli.training.join import agree


def attempt(store: Store, world: int) -> list[int]:
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: agree(store, rank, world), reversed(range(world)), timeout=60))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_attempt_has_a_number_that_all_agree_on(world: int) -> None:
    store = HashStore()
    assert attempt(store, world) == [1] * world
    assert attempt(store, world) == [2] * world


def test_an_attempt_that_some_never_reached_leaves_nothing_that_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three processes the last is gone before it is answered, and the first has not begun."""
    store = HashStore()

    def gone(_seconds: float) -> None:
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr("sepcli.training.join.time.sleep", gone)
        for rank in (2, 1, 0):
            with pytest.raises(InterruptedError):
                agree(store, rank, 3)
    assert attempt(store, 3) == [2, 2, 2]


def test_a_process_reads_no_address_of_an_attempt_that_is_over(tmp_path: Path) -> None:
    """The store outlives three attempts, as torchrun's does; the second process is always the quicker one."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    script = tmp_path / "sum.py"
    script.write_text(
        textwrap.dedent("""
            import os, time
            import torch
            from sepcli.training.join import join
            rank = int(os.environ["RANK"])
            time.sleep(0 if rank else 0.5)
            number = join("gloo")
            total = torch.tensor(rank + 1.0)
            torch.distributed.all_reduce(total)
            print(number, int(total))
        """)
    )
    shared = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    for number in (1, 2, 3):
        command = [sys.executable, str(script)]
        both = [
            subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        said = [process.communicate(timeout=120)[0].split() for process in both]
        assert said == [[str(number), "3"]] * 2
