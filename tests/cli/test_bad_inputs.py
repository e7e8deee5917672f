"""Every bad input through the command line: one clear line, the true exit code, no debris, the rest done.

`pytest tests/cli/test_bad_inputs.py -s` prints the table.
"""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sepcli.audio import write
from tests import passthrough

STEMS = {"drums.wav", "bass.wav", "other.wav", "vocals.wav", "stems.json"}
TABLE: list[tuple[str, int, str]] = []


@dataclass
class Case:
    """`make` puts the bad input into a folder and gives its name; `words` stand in the line; `code` is the exit code.

    `stems` says whether the bad input is in truth a good one, whose stems are there.
    """

    name: str
    make: Callable[[Path], str]
    code: int
    words: str
    stems: bool = False


def sound(frames: int = 30_000, channels: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, (frames, channels)).astype(np.float32)


def file(name: str, samples: Any, rate: int = 44100, cut: int | None = None, **encoder: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        soundfile.write(folder / name, samples, rate, **encoder)
        if cut is not None:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) * cut // 100])
        return name

    return make


def plain(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return name

    return make


def with_value(value: float) -> np.ndarray:
    samples = sound()
    samples[22_050, 1] = value
    return samples


def lying_header(folder: Path) -> str:
    soundfile.write(folder / "lies.wav", sound(), 44100)
    content = bytearray((folder / "lies.wav").read_bytes())
    content[40:44] = struct.pack("<I", 40_000_000)
    (folder / "lies.wav").write_bytes(content)
    return "lies.wav"


def empty_folder(folder: Path) -> str:
    (folder / "nothing").mkdir()
    (folder / "nothing" / "notes.txt").write_text("no song")
    return "nothing"


def link_to_itself(folder: Path) -> str:
    (folder / "loop.wav").symlink_to("loop.wav")
    return "loop.wav"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.wav")
    return "pipe.wav"


CASES = [
    Case("missing file", lambda folder: "missing.wav", 1, "missing.wav: no such file"),
    Case("folder without audio", empty_folder, 1, "nothing: no song in this folder"),
    Case("empty file", plain("empty.wav", b""), 1, "empty.wav: is empty"),
    Case("text renamed .wav", plain("text.wav", b"no sound at all\n" * 50), 1, "text.wav: is not audio"),
    Case("truncated FLAC", file("cut.flac", sound(), cut=60), 1, "cut.flac: damaged or cut off"),
    Case("truncated MP3", file("cut.mp3", sound(90_000), cut=60), 0, "", stems=True),
    Case("header that lies", lying_header, 1, "lies.wav: cut off: 30,000 of 10,000,000 frames"),
    Case("zero frames", file("zero.wav", sound(0)), 1, "zero.wav: "),
    Case("one sample", file("one.wav", sound(1)), 0, "", stems=True),
    Case("silence", file("silence.wav", sound() * 0), 0, "", stems=True),
    Case("DC", file("dc.wav", sound() * 0 + 0.5), 0, "", stems=True),
    Case("NaN", file("nan.wav", with_value(np.nan), subtype="FLOAT"), 1, "nan.wav: a sample is not a number at 0.50 s"),
    Case("Inf", file("inf.wav", with_value(np.inf), subtype="FLOAT"), 1, "inf.wav: a sample is not a number at 0.50 s"),
    Case("64-bit float", file("double.wav", sound(), subtype="DOUBLE"), 0, "", stems=True),
    Case("8 bit", file("8bit.wav", sound(), subtype="PCM_U8"), 0, "", stems=True),
    Case("A-law", file("alaw.wav", sound(), 8000, subtype="ALAW"), 0, "", stems=True),
    Case("8 channels", file("eight.wav", sound(channels=8)), 0, "", stems=True),
    Case("3 Hz", file("3hz.wav", sound(30), 3), 0, "", stems=True),
    Case("384 kHz", file("384k.wav", sound(), 384_000), 0, "", stems=True),
    Case("link to itself", link_to_itself, 1, "loop.wav"),
    Case("a pipe in place of a file", pipe, 1, "pipe.wav: is not a regular file"),
    Case("newline and quotes", file("a\n'b' \"c\".wav", sound()), 0, "", stems=True),
    Case("invisible character in a name", lambda folder: "no\u200bwhere.wav", 1, "no such file"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_one_line_and_the_rest_is_done(case: Case, sepcli, song, tmp_path: Path) -> None:
    song("good.wav", seconds=0.5)
    bad = case.make(tmp_path)
    done = sepcli(bad, "good.wav", "--out", "o")
    told(case.name, done)
    assert done.code == case.code, done.err
    lines = [line for line in done.err.splitlines() if not line.startswith(("[src/libmpg123", "Warning: Xing"))]
    assert "Traceback" not in done.err
    if case.code:
        assert len(lines) == 1, done.err
        assert lines[0].startswith("sepcli: error: ")
        assert case.words in lines[0]
    else:
        assert lines == [], done.err
    songs = {path.relative_to(tmp_path / "o/pass").parts[0] for path in (tmp_path / "o").rglob("*.wav")}
    assert len(songs) == 1 + case.stems
    assert {path.name for path in (tmp_path / "o/pass/good").iterdir()} == STEMS
    for folder in (tmp_path / "o/pass").iterdir():
        assert {path.name for path in folder.iterdir()} == STEMS, "nothing half made is left"


def told(name: str, done: Any) -> None:
    """A row of the table."""
    line = next((line for line in done.err.splitlines() if line.startswith("sepcli: error")), "")
    TABLE.append((name, done.code, line or done.err.strip().split("\n")[0]))


@pytest.mark.parametrize("name", ["missing.wav", "nothing"])
def test_a_bad_input_alone_is_refused_before_anything_is_begun(name: str, sepcli, tmp_path: Path) -> None:
    empty_folder(tmp_path)
    done = sepcli(name, "--out", "o")
    told(f"{name} alone", done)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert not (tmp_path / "o").exists()


def test_names_that_begin_with_a_dash_follow_two_dashes(sepcli, song, tmp_path: Path) -> None:
    song("-n.wav", seconds=0.1)
    assert sepcli("--out", "o", "--", "-n.wav").code == 0
    assert (tmp_path / "o/pass/-n/drums.wav").exists()
    refused = sepcli("--out", "o", "-x.wav")
    told("name beginning with -, without --", refused)
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_one_file_named_twice_is_separated_once(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", seconds=0.1)
    (tmp_path / "link.wav").symlink_to("a.wav")
    done = sepcli(path, path, "link.wav", "--json")
    assert done.code == 0
    assert len(done.lines) == 1


def test_a_folder_that_links_to_itself_ends(sepcli, song, tmp_path: Path) -> None:
    song("in/a.wav", seconds=0.1)
    (tmp_path / "in/again").symlink_to(tmp_path / "in")
    done = sepcli("in", "--recursive", "--json")
    assert done.code == 0
    assert len(done.lines) == 1


def test_a_file_that_may_not_be_read_is_told_and_the_rest_is_done(sepcli, song, monkeypatch) -> None:
    locked, good = song("locked.wav", seconds=0.2), song("good.wav", seconds=0.2)
    real = Path.open

    def refusing(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "locked.wav":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refusing)
    done = sepcli(locked, good)
    told("unreadable file", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "locked.wav: cannot be read: Permission denied" in done.err


@pytest.mark.parametrize("end", ["grows", "disappears"])
def test_a_file_that_changes_during_the_run_fails_and_leaves_nothing(end, sepcli, song, tmp_path, monkeypatch) -> None:
    path, good = song("moving.wav", seconds=30), song("good.wav", seconds=0.5)
    real = write._Stem.write

    def meanwhile(self: Any, *arguments: Any) -> None:
        if path.exists() and "moving" in str(self.path):
            if end == "grows":
                with path.open("ab") as more:
                    more.write(b"more")
            else:
                path.unlink(missing_ok=True)  # stems are written side by side: another may just have done it
        real(self, *arguments)

    monkeypatch.setattr(write._Stem, "write", meanwhile)
    done = sepcli(path, good, "--bit-depth", "32f", "--filename", "{track}/{stem}.{ext}")
    told(f"file that {end}", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert ("has changed" if end == "grows" else "has disappeared") in done.err
    assert {path.name for path in (tmp_path / "separated").iterdir()} == {"good"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_separated_told_and_known_again(sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", seconds=0.1).rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    for container in ("wav", "mp3"):
        done = sepcli(path, "--json", "--format", container)
        assert (done.code, done.err) == (0, "")
        stem = json.loads(done.out.encode())["stems"]["drums"]
        assert Path(stem).exists()
        assert json.loads(sepcli(path, "--json", "--format", container).out)["status"] == "skipped"
    assert soundfile.read(os.fsencode(tmp_path / os.fsdecode(b"separated/pass/caf\xe9/drums.wav")))[0].shape[1] == 2


def test_names_that_are_too_long_fail_alone(sepcli, song, tmp_path: Path) -> None:
    good = song("good.wav", seconds=0.1)
    done = sepcli(tmp_path / ("x" * 300), good)
    told("name too long", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "File name too long" in done.err
    done = sepcli(good, "--out", "y" * 300)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "File name too long" in done.err


def test_a_folder_that_may_not_be_read_is_told_and_the_rest_is_done(sepcli, song, tmp_path, monkeypatch) -> None:
    song("in/good.wav", seconds=0.1)
    song("in/closed/a.wav", seconds=0.1)
    real = os.scandir

    def refusing(path: Any = ".") -> Any:
        if "closed" in Path(path).parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    done = sepcli("in", "--recursive")
    told("unreadable folder", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "in/closed: cannot be read: Permission denied" in done.err


def test_an_output_folder_that_may_not_be_written_is_told(sepcli, song, tmp_path, monkeypatch) -> None:
    real = Path.mkdir

    def refusing(self: Path, *arguments: Any, **named: Any) -> None:
        if "closed" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refusing)
    done = sepcli(song("a.wav"), "--out", tmp_path / "closed")
    told("output folder read-only", done)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "stems cannot be written: Permission denied" in done.err


def test_a_song_whose_output_folder_may_not_be_read_fails_and_the_rest_is_done(sepcli, song, monkeypatch) -> None:
    locked, good = song("locked.wav", seconds=0.2), song("good.wav", seconds=0.2)
    real = {name: getattr(Path, name) for name in ("stat", "mkdir", "iterdir")}

    def refusing(name: str) -> Any:
        def call(self: Path, *arguments: Any, **named: Any) -> Any:
            if "locked" in self.parts:
                raise PermissionError(13, "Permission denied", str(self))
            return real[name](self, *arguments, **named)

        return call

    for name in real:
        monkeypatch.setattr(Path, name, refusing(name))
    done = sepcli(locked, good, "--journal", "j.jsonl")
    told("output folder unreadable", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "locked.wav: separated/pass/locked: stems cannot be written: Permission denied" in done.err
    assert "report it" not in done.err
    rows = [json.loads(line) for line in Path("j.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows if row.get("status") == "failed"] == ["io"]


def test_an_output_path_that_is_a_file_is_told(sepcli, song, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = sepcli(song("a.wav"), "--out", "taken")
    told("output path a file", done)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "taken" in done.err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_disk_that_is_too_small_is_noticed_before_the_work(sepcli, song, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    done = sepcli(song("long.wav", seconds=2), song("short.wav", seconds=0.2))
    told("disk too small", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "long.wav: its stems want 4 MiB on the way" in done.err, "4 stems x 2 s x 2 channels x (4 + 2) bytes"


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(sepcli, song, tmp_path, monkeypatch) -> None:
    real = write._Stem.write

    def full(self: Any, *arguments: Any) -> None:
        if not getattr(full, "done", False):
            full.done = True  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    monkeypatch.setattr(write._Stem, "write", full)
    done = sepcli(song("a.wav"), song("b.wav"))
    told("disk full in the work", done)
    assert (done.code, done.err.count("\n"), len(done.lines)) == (1, 1, 4)
    assert "the disk is full" in done.err
    assert not (tmp_path / "separated/pass/a").exists()


def test_a_network_without_numbers_names_song_and_second(sepcli, song, tmp_path: Path) -> None:
    broken = passthrough.save(tmp_path / "broken.safetensors", settings={"fault": "nan"})
    done = sepcli(song("loud.wav", peak=0.9), "--model", broken)
    told("NaN from the network", done)
    assert done.code == 1
    assert "loud.wav: " in done.err
    assert "gave no numbers for drums at 0.00 s" in done.err


def test_the_table_of_bad_inputs() -> None:
    """Prints what the tests before it have seen."""
    for name, code, line in TABLE:
        print(f"{code}  {name:34}  {line}")
    assert all("\n" not in line for _, _, line in TABLE)
