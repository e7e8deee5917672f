"""Many songs in one call: killed, interrupted, run again, run twice at once, and for a long time."""

import ctypes
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.cli import console
from tests import passthrough

ROOT = Path(__file__).parents[2]

# One process with everything imported; each word on stdin is a call in a child of its own: seconds until it is killed,
# or 0 for a call that is left alone. It answers with the child's exit status.
FORKS = """
import os, signal, sys, time, threading
import torch, soundfile, soxr, av
torch.set_num_threads(1)
from sepcli import models
from sepcli.audio import write, read, cover
from sepcli.inference import song, bag
from sepcli.cli import console, run
from tests import passthrough
models.find = passthrough.find
for line in sys.stdin:
    delay, *arguments = line.split()
    child = os.fork()
    if not child:
        os.setsid()
        code = 1
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
            code = run(arguments)
        finally:
            os._exit(code)
    began = time.monotonic()
    if float(delay):
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), time.monotonic() - began, flush=True)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SEPCLI_CACHE": str(tmp_path / "cache"),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def call(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real command line in a process of its own, with the pass-through network known."""

    def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.passthrough", *map(str, arguments)]
        everything = environment | more
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=everything, timeout=120, check=False
        )

    return run


@pytest.fixture
def batch(tmp_path: Path) -> list[str]:
    """Six songs of noise and a checkpoint `pass.safetensors`."""
    passthrough.save(tmp_path / "pass.safetensors", segment=0.2)
    for index in range(6):
        drawn = np.random.default_rng(index).uniform(-0.5, 0.5, (30_000 + 7_000 * index, 2))
        (tmp_path / "songs").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"songs/{index}.wav", drawn, 44100)
    return ["separate", "--model", "pass.safetensors", "songs"]


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, hidden ones too; and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.mark.slow
def test_a_batch_killed_at_any_moment_ends_as_an_undisturbed_one(batch, tmp_path: Path, environment) -> None:
    """Kills at seeded moments of a call, each followed by a rerun: the same files, and nothing else left.

    On a machine whose load changes a call may end before its kill; then the later ones come sooner.
    """
    draw = np.random.default_rng(0)
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:

        def run(delay: float, out: str) -> tuple[int, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(" ".join([str(delay), *batch, "--quiet", "--out", out]) + "\n")
            process.stdin.flush()
            code, spent = process.stdout.readline().split()
            return int(code), float(spent)

        run(0, "warm")
        code, whole = run(0, "undisturbed")
        assert code == 0
        expected = tree(tmp_path / "undisturbed")
        assert len([name for name in expected if name.endswith(".wav")]) == 24
        killed = hidden = turn = 0
        while turn < 50 or (turn < 200 and (killed < 40 or hidden < 10)):
            turn += 1
            out = f"out{turn}"
            code, _ = run(float(draw.uniform(0.05, 0.95)) * whole, out)
            killed += code == -signal.SIGKILL
            whole *= 1.0 if code else 0.9
            hidden += any(path.name.startswith(".sepcli-") for path in (tmp_path / out).rglob("*"))
            assert run(0, out)[0] == 0
            assert tree(tmp_path / out) == expected, f"turn {turn}"
        process.stdin.close()  # type: ignore[union-attr]
    print(f"{killed} of {turn} killed, {hidden} left a hidden folder; at most {whole:.2f} s were waited")
    assert killed >= 40
    assert hidden >= 10


def test_a_rerun_of_a_finished_batch_is_quick_and_needs_no_torch(batch, tmp_path: Path, call, environment) -> None:
    assert call(*batch).returncode == 0
    probe = (
        "import sys; from sepcli.cli import run; code = run(sys.argv[1:]);"
        "print(code, [n for n in ('torch', 'soundfile', 'numpy') if n in sys.modules], file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", probe, *batch, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{spent:.2f} CPU s")
    assert done.stderr == "0 []\n"
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["skipped"] * 6
    assert spent < 3


def test_two_processes_write_the_same_bytes(batch, tmp_path: Path, call) -> None:
    for out in ("one", "two"):
        assert call(*batch, "--out", out, "--shifts", "2").returncode == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) >= 30


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ter")]
)
def test_a_signal_ends_after_cleaning_up_and_finished_songs_stay(
    number: int, code: int, word: str, tmp_path: Path, batch, environment
) -> None:
    soundfile.write(tmp_path / "songs/9.wav", np.random.default_rng(9).uniform(-0.5, 0.5, (44100 * 400, 2)), 44100)
    command = [sys.executable, "-m", "tests.passthrough", *batch]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(24):
            process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(number)
        error = process.stderr.read()
        assert process.wait() == code
    assert error.startswith(f"sepcli: error: {word}")
    assert error.count("\n") == 1
    left = tree(tmp_path / "separated")
    assert len([name for name in left if name.endswith(".wav")]) == 24
    assert not [name for name in left if ".sepcli-" in name or name.startswith("pass/9")]


def test_an_interrupt_while_stems_are_encoded_leaves_nothing(tmp_path: Path, environment) -> None:
    passthrough.save(tmp_path / "pass.safetensors", segment=5.0)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(9).uniform(-0.5, 0.5, (44100 * 120, 2)), 44100)
    words = ["separate", "--model", "pass.safetensors", "--format", "mp3", "long.wav"]
    command = [sys.executable, "-m", "tests.passthrough", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        while process.poll() is None and not any(
            file.stat().st_size for file in tmp_path.glob("separated/pass/long/.sepcli-*/*.mp3")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "sepcli: error: interrupted; finished songs are kept\n"
        assert process.wait() == 130
    assert tree(tmp_path / "separated") == {}


def test_only_where_songs_are_separated_those_that_are_finished_are_spoken_of(sepcli, song, monkeypatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise console.Stopped(signal.SIGINT)

    monkeypatch.setattr("sepcli.batch.process.separate_song", stopped)
    monkeypatch.setattr("sepcli.cli.models.catalog", stopped)
    done = sepcli(song("a.wav", seconds=0.1))
    assert (done.code, done.err) == (130, "sepcli: error: interrupted; finished songs are kept\n")
    done = sepcli("models", "list")
    assert (done.code, done.err) == (130, "sepcli: error: interrupted\n")


def test_where_nobody_reads_the_results_the_work_goes_on(batch, tmp_path: Path, environment) -> None:
    command = [sys.executable, "-m", "tests.passthrough", *batch]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait() == 0
    assert error == ""
    assert len([name for name in tree(tmp_path / "separated") if name.endswith(".wav")]) == 24


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants a device that is always full")
def test_where_the_results_have_no_room_it_is_said_once_and_the_work_goes_on(batch, tmp_path, environment) -> None:
    command = [sys.executable, "-m", "tests.passthrough", *batch]
    buffered = environment | {"PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=buffered, check=False
        )
    assert done.stderr == (
        "sepcli: error: results cannot be written: No space left on device; the work goes on without them\n"
    )
    assert done.returncode == 1, "a script that reads them must not think that it has all"
    assert len(list((tmp_path / "separated").rglob("*.wav"))) == 24


def test_where_nobody_reads_the_notices_the_work_goes_on(batch, tmp_path: Path, environment) -> None:
    command = [sys.executable, "-m", "tests.passthrough", *batch, "--verbose"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        process.stderr.readline()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]
        results = process.stdout.read().splitlines()  # type: ignore[union-attr]
    assert process.returncode == 0
    assert len(results) == 24


def test_where_the_terminal_is_gone_the_work_goes_on(batch, tmp_path: Path, environment) -> None:
    pty = pytest.importorskip("pty", reason="terminals are made by POSIX")
    here, there = pty.openpty()
    command = [sys.executable, "-m", "tests.passthrough", *batch]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=there, cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        os.close(there)
        assert os.read(here, 100), "a bar"
        os.close(here)
        results = process.stdout.read().splitlines()  # type: ignore[union-attr]
    assert process.returncode == 0
    assert len(results) == 24


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_streams_that_are_closed_before_it_begins_do_not_matter(closed: str, batch, tmp_path, environment) -> None:
    command = shlex.join([sys.executable, "-m", "tests.passthrough", *batch, "no.wav", "--verbose"])
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 1, "of the song that is missing"
    assert len(list((tmp_path / "separated").rglob("*.wav"))) == 24
    assert len(done.stdout.splitlines()) == (24 if closed == "2>&-" else 0)
    assert done.stderr.count("no.wav: no such file") == (closed == ">&-")


def test_a_second_interrupt_while_python_ends_has_nothing_to_say(tmp_path: Path, environment) -> None:
    code = (
        "import atexit, sys, time\n"
        "from sepcli.cli import main\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(60)))\n"
        "sys.argv = ['sepcli', 'models', 'list']\n"
        "main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "ending\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGINT


def test_two_calls_at_once_do_not_sweep_each_other(batch, tmp_path: Path, environment) -> None:
    commands = [[sys.executable, "-m", "tests.passthrough", *batch, "--existing", "overwrite"]] * 2
    running = [
        subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path, env=environment)
        for c in commands
    ]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 2
    left = tree(tmp_path / "separated")
    assert len([name for name in left if name.endswith(".wav")]) == 24
    assert not [name for name in left if ".sepcli-" in name]


SOAK = """
import ctypes, gc, sys
import torch
torch.set_num_threads(1)
from sepcli import models
from sepcli.cli import console, run
from tests import passthrough
models.find = passthrough.find
class Use(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
use = ctypes.CDLL(None).mallinfo2
use.restype = Use
files = iter(range(1, 201))
def in_use(document):
    if next(files) % 10 == 0:
        gc.collect()
        print((now := use()).uordblks + now.hblkhd)
console.document = in_use
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 and newer what is in use")
def test_memory_does_not_grow_over_two_hundred_files(tmp_path: Path, environment) -> None:
    passthrough.save(tmp_path / "pass.safetensors")
    (tmp_path / "songs").mkdir()
    for index in range(200):
        drawn = np.random.default_rng(index).uniform(-0.5, 0.5, (44_100, 2))
        soundfile.write(tmp_path / f"songs/{index:03}.wav", drawn, 44100)
    command = [sys.executable, "-c", SOAK, "separate", "--model", "pass.safetensors", "songs", "--json"]
    # All that Python and torch ask for comes from one heap, whose sum does not count what is kept for later.
    one_heap = {**environment, "MALLOC_ARENA_MAX": "1", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=one_heap, check=False)
    assert done.returncode == 0, done.stderr
    sizes = np.array([int(line) for line in done.stdout.split()]) / 2**10
    assert len(sizes) == 20
    slope = float(np.polyfit(np.arange(50, 201, 10), sizes[4:], 1)[0])
    print(f"{sizes[4]:.1f} KiB in use after 50 files, {sizes[-1]:.1f} after 200, slope {slope:.2f} a file")
    assert slope < 1.0, "KiB a file"
    assert sizes[-1] - sizes[4] < 512, "KiB in all"


def test_progress_as_json_is_one_event_a_line(batch, call) -> None:
    done = call(*batch, "--progress", "json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    assert all(set(event) == {"event", "input", "done", "total", "eta"} for event in events)
    assert len({event["input"] for event in events}) == 6
    assert all(re.match(r"\d/6 ", event["input"]) for event in events)
