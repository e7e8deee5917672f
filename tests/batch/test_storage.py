"""Songs and stems in object storage: a real S3 server, started here, that fails when it is told to."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepcli.batch import storage
from sepcli.errors import AudioError, UsageError
from tests.batch.s3 import Door

pytest.importorskip("s3fs", reason="the extra `cloud` is not installed")
pytest.importorskip("moto", reason="the S3 server is part of the extra `dev`")


@pytest.fixture(scope="module")
def server() -> Iterator[Door]:
    from tests.batch.s3 import serving

    with serving() as door:
        yield door


@pytest.fixture
def door(server: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Door]:
    """The server with a new bucket `music` and nothing wrong; clients that wait little."""
    import fsspec

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(storage, "DELAY", 0.01)
    quick = {"retries": {"max_attempts": 0}, "read_timeout": 5.0}
    settings = {"endpoint_url": server.address, "config_kwargs": quick}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    fs = fsspec.filesystem("s3")
    fs.retries = 1
    server.fault = lambda *_: ""
    fs.mkdir("music")
    yield server
    server.fault = lambda *_: ""
    fs.rm("music", recursive=True)


@pytest.fixture
def bucket(door: Door) -> Any:
    import fsspec

    return fsspec.filesystem("s3")


@pytest.fixture
def songs(bucket: Any, song, tmp_path: Path) -> list[Path]:
    """Three songs here, and the same in the bucket."""
    paths = [song(f"songs/{name}.wav", seconds=0.2, seed=seed) for seed, name in enumerate(("a", "b", "deep/c"))]
    for path in paths:
        bucket.put_file(str(path), f"music/in/{path.relative_to(tmp_path / 'songs')}")
    return paths


def stems(bucket: Any, prefix: str) -> dict[str, str]:
    """Every stem below a prefix with its digest."""
    names = [name for name in bucket.find(prefix) if name.endswith(".wav")]
    return {name.removeprefix(f"{prefix}/"): hashlib.sha256(bucket.cat_file(name)).hexdigest() for name in names}


def sets(folder: Path) -> dict[str, str]:
    paths = folder.rglob("*.wav")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_batch_there_equals_one_here_and_a_rerun_finds_it(sepcli, door, bucket, songs, tmp_path, monkeypatch) -> None:
    assert sepcli("songs", "-r", "--out", "here").code == 0
    made = sepcli("s3://music/in/", "-r", "--out", "s3://music/out", "--scratch", "scratch", "--json")
    assert made.code == 0, made.err
    assert stems(bucket, "music/out") == sets(tmp_path / "here")
    assert len(sets(tmp_path / "here")) == 12
    document = json.loads(made.lines[0])
    assert document["input"] == "s3://music/in/a.wav"
    assert document["stems"]["drums"] == "s3://music/out/pass/a/drums.wav"
    assert not list((tmp_path / "scratch").iterdir())
    puts = [path for method, path, _ in door.seen if method == "PUT" and "/out/pass/a/" in path]
    assert puts[-1] == "/music/out/pass/a/stems.json"

    monkeypatch.setattr(storage, "separate_song", None)  # nothing is separated again
    again = sepcli("s3://music/in/", "-r", "--out", "s3://music/out", "--json")
    assert again.code == 0, again.err
    assert [json.loads(line)["status"] for line in again.lines] == ["skipped"] * 3
    bucket.pipe("music/out/pass/b/bass.wav", b"cut")
    assert sepcli("s3://music/in/b.wav", "--out", "s3://music/out").code == 1


def test_with_a_digest_in_the_list_a_finished_song_is_not_even_fetched(sepcli, door, songs, tmp_path) -> None:
    digest = hashlib.sha256(songs[0].read_bytes()).hexdigest()
    (tmp_path / "list.jsonl").write_text(json.dumps({"uri": "s3://music/in/a.wav", "digest": digest}))
    call = ("--input-list", "list.jsonl", "--out", "s3://music/out", "--json")
    assert sepcli(*call).code == 0
    door.seen.clear()
    assert json.loads(sepcli(*call).out)["status"] == "skipped"
    assert not [path for method, path, _ in door.seen if method == "GET" and path.endswith("a.wav")]


def test_a_song_that_is_not_the_one_of_its_list_is_refused(sepcli, songs, tmp_path) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"uri": "s3://music/in/a.wav", "digest": "0" * 64}))
    done = sepcli("--input-list", "list.jsonl")
    assert done.code == 1
    assert "s3://music/in/a.wav: is not the file of its list" in done.err


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_lost_when_requests_fail(seed: int, sepcli, door, bucket, songs, tmp_path) -> None:
    """Each fifth request, drawn by seed, is answered with an error of the server, one with silence."""
    draw = np.random.default_rng(seed)
    assert sepcli("songs", "--out", "here").code == 0
    first = len(door.seen)
    door.fault = lambda number, *_: "stall" if number == first + 4 else "500" if draw.uniform() < 0.2 else ""
    done = sepcli("s3://music/in/a.wav", "s3://music/in/b.wav", "--out", "s3://music/out")
    door.fault = lambda *_: ""
    assert done.code == 0, done.err
    assert stems(bucket, "music/out") == sets(tmp_path / "here")
    assert len([fault for _, _, fault in door.seen if fault]) >= 5


def test_a_storage_that_stays_broken_fails_that_song_and_leaves_no_sidecar(sepcli, door, bucket, songs) -> None:
    door.fault = lambda _number, method, path: "503" if method == "PUT" and "/a/vocals" in path else ""
    done = sepcli("s3://music/in/", "--out", "s3://music/out", "--journal", "j.jsonl")
    assert done.code == 1
    assert "s3://music/out/pass/a/vocals.wav" in done.err
    assert "6 times" in done.err
    assert bucket.exists("music/out/pass/b/stems.json")
    assert not bucket.exists("music/out/pass/a/stems.json")
    rows = [json.loads(line) for line in Path("j.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows if row.get("status") == "failed"] == ["io"]


def test_a_replaced_set_is_not_called_whole_on_the_way(sepcli, door, bucket, songs) -> None:
    assert sepcli("s3://music/in/a.wav", "--out", "s3://music/out").code == 0
    door.fault = lambda _number, method, path: "503" if method == "PUT" and "/a/bass" in path else ""
    assert sepcli("s3://music/in/a.wav", "--out", "s3://music/out", "--seed", "1").code == 1
    assert json.loads(bucket.cat_file("music/out/pass/a/stems.json"))["sets"] == []


def test_an_object_with_brackets_in_its_name_is_no_pattern(sepcli, bucket, songs) -> None:
    bucket.put_file(str(songs[0]), "music/in/song [live].wav")
    done = sepcli("s3://music/in/song [live].wav", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["input"] for line in done.lines] == ["s3://music/in/song [live].wav"]
    assert len(sepcli("s3://music/in/[ab].wav", "--json").lines) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["songs", "--out", "s3://none/out"], "--out s3://none/out: no such object or bucket"),
        (["songs", "--out", "https://example.org/out"], "stems cannot be written there"),
        (["songs", "--out", "nowhere://bucket/out"], "Protocol not known: nowhere"),
        (["s3://none/in/"], "no such object or bucket"),
        (["s3://music/out/*.mp3"], "no song there"),
    ],
)
def test_a_bucket_that_cannot_be_is_refused_before_work(arguments, words: str, sepcli, songs, door) -> None:
    done = sepcli(*arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_bucket_that_refuses_says_so(sepcli, songs, door) -> None:
    door.fault = lambda _number, _method, path: "403" if "/music" in path else ""
    assert "access is refused" in sepcli("s3://music/in/").err
    done = sepcli("songs/a.wav", "--out", "s3://music/out")
    assert done.code == 1
    assert "access is refused" in done.err


def test_a_full_scratch_disk_is_an_error_of_that_song(sepcli, songs, monkeypatch) -> None:
    monkeypatch.setattr("sepcli.batch.storage.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    done = sepcli("s3://music/in/a.wav")
    assert done.code == 1
    assert "s3://music/in/a.wav: the scratch disk is full" in done.err
    assert "--scratch" in done.err


def test_a_storage_without_its_package_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="dropbox") as caught:
        storage.open_storage("dropbox://a/b")
    assert "sepcli[cloud]" in caught.value.hint


def test_what_another_attempt_does_not_change_is_not_tried_again() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(AudioError, match="access is refused") as caught:
        storage.patiently(refuse, "s3://b/a")
    assert len(calls) == 1
    assert caught.value.reason == "io"
