"""The hidden folder: gone afterwards; left behind by a killed process it is swept, of a living one it stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sepcli.audio import hidden
from sepcli.audio.hidden import hidden_folder, sweep

HOLD = """
import sys, time
from pathlib import Path
from sepcli.audio.hidden import hidden_folder
with hidden_folder(Path(sys.argv[1])) as folder:
    (folder / "0.wav").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that has a hidden folder in tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        yield process, folder
        process.kill()


def test_a_hidden_folder_is_gone_afterwards_with_all_it_holds(tmp_path: Path) -> None:
    with hidden_folder(tmp_path) as folder:
        (folder / "a").write_text("x")
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text("x")
        assert f"-{os.getpid()}-" in folder.name
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_makes_stays_and_what_a_killed_one_left_goes(holder, tmp_path: Path) -> None:
    process, folder = holder
    assert sweep(tmp_path) == []
    assert (folder / "0.wav").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_process_whose_number_was_given_out_again_is_not_taken_for_the_living(holder, tmp_path: Path) -> None:
    process, folder = holder
    process.kill()
    process.wait()
    mine = folder.rename(tmp_path / f".sepcli-{hidden.machine()}-{os.getpid()}-00000000")
    assert sweep(tmp_path) == [mine]


def test_a_folder_of_another_machine_stays(holder, tmp_path: Path) -> None:
    process, folder = holder
    process.kill()
    process.wait()
    other = folder.rename(tmp_path / ".sepcli-ffffff-1-00000000")
    assert sweep(tmp_path) == []
    assert other.exists()


def test_a_folder_whose_lock_is_not_made_yet_goes_and_its_maker_makes_another(tmp_path: Path, monkeypatch) -> None:
    real = os.open
    taken = []

    def swept_before_the_lock(path, flags, *mode):
        if Path(path).name == hidden.LOCK and not taken:
            taken.append(Path(path).parent)
            assert sweep(tmp_path) == taken
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", swept_before_the_lock)
    with hidden_folder(tmp_path) as folder:
        assert folder.is_dir()
        assert folder != taken[0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".sepcli-notes").mkdir()
    (tmp_path / f".sepcli-{hidden.machine()}-1-x").mkdir()
    (tmp_path / f".sepcli-{hidden.machine()}-1-x" / "mine").write_text("x")
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "missing") == []
    assert len(list(tmp_path.iterdir())) == 2
