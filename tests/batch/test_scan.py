"""`sepcli data scan`: what it writes, and that `sepcli separate` reads it."""

import hashlib
import json
from pathlib import Path

import pytest

from sepcli.batch.manifest import read_list
from sepcli.cli import run


@pytest.fixture
def songs(song, tmp_path: Path) -> list[Path]:
    return [
        song("in/a.wav", seconds=0.5),
        song("in/deep/b.flac", seconds=0.25, rate=48000, channels=1),
        song("in/c.ogg", seconds=0.3),
    ]


def rows(path: Path) -> dict[str, dict]:
    return {Path(row["uri"]).name: row for row in map(json.loads, path.read_text().splitlines())}


def test_a_list_holds_what_is_known_of_each_song(sepcli, songs, tmp_path: Path) -> None:
    assert run(["data", "scan", "in", "-r", "-o", "list.jsonl"]) == 0
    found = rows(tmp_path / "list.jsonl")
    assert found["b.flac"] == {
        "uri": "in/deep/b.flac",
        "seconds": 0.25,
        "rate": 48000,
        "channels": 1,
        "bytes": songs[1].stat().st_size,
        "digest": hashlib.sha256(songs[1].read_bytes()).hexdigest(),
        "reldir": "deep",
    }
    assert found["c.ogg"]["seconds"] == 0.3
    done = sepcli("--input-list", "list.jsonl", "--shard", "1/2", "--json")
    assert done.code == 0
    assert "unknown length" not in done.err
    assert [Path(json.loads(line)["input"]).name for line in done.lines] == ["a.wav"]
    assert sepcli("--input-list", "list.jsonl", "--out", "listed").code == 0
    assert (tmp_path / "listed/pass/deep/b/vocals.wav").exists()


def test_patterns_are_searched_and_digests_may_be_left_out(sepcli, songs, tmp_path: Path) -> None:
    assert run(["data", "scan", "in/**/*.flac", "in/a.wav", "--no-digests", "-o", "list.jsonl"]) == 0
    found = rows(tmp_path / "list.jsonl")
    assert sorted(found) == ["a.wav", "b.flac"]
    assert "digest" not in found["a.wav"]


def test_an_address_with_brackets_that_is_there_is_a_song_and_no_pattern(sepcli, song, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    place = f"file://{song('in/song [live].wav', seconds=0.2).parent}"
    song("in/song l.wav", seconds=0.2)  # what the brackets would mean
    assert run(["data", "scan", f"{place}/*e].wav", "-o", "list.jsonl"]) == 0
    assert rows(tmp_path / "list.jsonl")["song [live].wav"]["uri"] == f"{place}/song [live].wav"
    for words in (["--input-list", "list.jsonl"], [f"{place}/song [live].wav"]):
        done = sepcli(*words, "--json", "--existing", "overwrite")
        assert done.code == 0, done.err
        assert [json.loads(line)["input"] for line in done.lines] == [f"{place}/song [live].wav"]
    assert run(["data", "scan", f"{place}/song [lm].wav", "-o", "list.jsonl"]) == 0
    assert list(rows(tmp_path / "list.jsonl")) == ["song l.wav"]


def test_a_name_that_is_no_utf_8_is_written_and_read(sepcli, song, tmp_path: Path) -> None:
    song("in/a.wav", seconds=0.2).rename(tmp_path / "in/\udcff.wav")
    assert run(["data", "scan", "in", "-o", "list.jsonl"]) == 0
    items, problems = read_list(tmp_path / "list.jsonl")
    assert [item.uri for item in items] == ["in/\udcff.wav"]
    assert not problems


def test_a_scratch_that_is_a_file_is_refused(sepcli, song, tmp_path: Path, capfdbinary) -> None:
    pytest.importorskip("fsspec")
    place = song("in/a.wav", seconds=0.2).as_uri()
    (tmp_path / "afile").touch()
    done = sepcli(place, "--scratch", "afile")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--scratch afile: cannot be made: File exists" in done.err
    assert run(["data", "scan", place, "--scratch", "afile"]) == 2
    assert b"--scratch afile: cannot be made: File exists" in capfdbinary.readouterr().err


def test_what_cannot_be_read_is_told_and_the_others_listed(sepcli, songs, tmp_path: Path) -> None:
    (tmp_path / "in/bad.wav").write_bytes(b"no sound")
    assert run(["data", "scan", "in", "-o", "list.jsonl"]) == 1
    assert sorted(rows(tmp_path / "list.jsonl")) == ["a.wav", "c.ogg"]
    assert run(["data", "scan", "nothing", "-o", "list.jsonl"]) == 2


@pytest.mark.parametrize(("place", "why"), [("no/such/list.jsonl", "no/such is no folder"), ("in", "it is a folder")])
def test_a_list_that_cannot_be_written_is_refused_before_songs_are_read(
    place: str, why: str, sepcli, songs, monkeypatch, capfdbinary
) -> None:
    monkeypatch.setattr("sepcli.batch.scan.facts_of", None)
    assert run(["data", "scan", "in/a.wav", "-o", place]) == 2
    assert capfdbinary.readouterr().err.decode().count(f"--out {place}: cannot be written: {why}") == 1
