"""A recipe's recordings against a server of our own: brought, proven, cut, joined, summed, and held out."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.cli import run
from sepcli.errors import UsageError
from sepcli.training import sources
from sepcli.training.effects import RATE
from sepcli.weights.fetch import digest_of
from tests.training.songs import sound


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A list of sources, and a server that has their files."""
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEPCLI_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "www" / "act" / "songs" / "c0ffee"
    files.mkdir(parents=True)
    for index, name in enumerate(("one", "two words", "low")):
        rate = 22050 if name == "low" else RATE
        soundfile.write(files / f"{name}.wav", sound(1.0, index, rate), rate)
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    one, two, low = (digest_of(files / f"{name}.wav") for name in ("one", "two words", "low"))
    listing = tmp_path / "small.toml"
    listing.write_text(f"""
address = "http://127.0.0.1:{server.server_port}/{{repository}}/{{commit}}/{{file}}"
[held_out]
songs = ["kept"]
voices = ["vera"]
[[repository]]
name = "act/songs"
commit = "c0ffee"
sounds = [
    {{ to = "songs/a/drums", from = [["one.wav", "{one}"], ["two words.wav", "{two}", 0.5, 0.25]] }},
    {{ to = "songs/kept/drums", start = 0.25, seconds = 0.5, gain = 0.5, fade = true, from = [["one.wav", "{one}"]] }},
    {{ to = "voices/singing/vera", channels = 1, from = [["low.wav", "{low}"]] }},
    {{ to = "voices/singing/anna", channels = 1, gap = 0.3, even = true, peak = 0.7, from = [
        ["one.wav", "{one}", 1.0, 1.0, 0.4], ["low.wav", "{low}"],
    ] }},
]
""")
    yield listing
    server.shutdown()
    server.server_close()


def read(path: Path) -> np.ndarray:
    wave, rate = soundfile.read(path, always_2d=True)
    assert rate == RATE
    return wave


def test_recordings_are_summed_cut_joined_and_held_out(published: Path, tmp_path: Path) -> None:
    assert run(["data", "fetch", str(published), "--out", "out"]) == 0
    out = tmp_path / "out"
    one, two = (read(tmp_path / "www/act/songs/c0ffee" / f"{name}.wav") for name in ("one", "two words"))
    assert np.allclose(read(out / "songs/a/drums.flac"), one + two * [0.5, 0.25], atol=1e-6)
    kept = read(out / "held-out/songs/kept/drums.flac")
    assert len(kept) == RATE // 2
    inside = slice(1000, -1000)
    assert np.allclose(kept[inside], 0.5 * one[RATE // 4 : RATE // 4 + RATE // 2][inside], atol=1e-6)
    assert np.abs(kept[[0, -1]]).max() == 0
    assert len(read(out / "held-out/voices/singing/vera.flac")) == RATE
    anna = read(out / "voices/singing/anna.flac")
    assert anna.shape == (round(0.4 * RATE) + round(0.3 * RATE) + RATE, 1)
    assert np.abs(anna).max() == pytest.approx(0.7, abs=1e-6)
    assert np.abs(anna[round(0.4 * RATE) : round(0.7 * RATE)]).max() == 0
    assert not (out / "songs" / "kept").exists()
    assert not (out / "voices" / "singing" / "vera.flac").exists()


def test_a_wrong_digest_is_refused_and_the_others_are_made(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "www/act/songs/c0ffee/low.wav"
    soundfile.write(changed, sound(1.0, 9, 22050), 22050)
    assert run(["data", "fetch", str(published), "--out", "out"]) == 3
    told = capsys.readouterr().err
    assert "held-out/voices/singing/vera: cannot download low.wav" in told
    assert "wrong digest" in told
    assert "2 of 4 recordings could not be had" in told
    assert (tmp_path / "out/songs/a/drums.flac").is_file()
    assert not (tmp_path / "out/held-out/voices").exists()


def test_what_is_there_stays_and_the_cache_serves_offline(published: Path, tmp_path: Path) -> None:
    assert run(["data", "fetch", str(published), "--out", "out"]) == 0
    (tmp_path / "out/songs/a/drums.flac").write_bytes(b"mine")
    assert run(["data", "fetch", str(published), "--out", "out", "--offline"]) == 0
    assert (tmp_path / "out/songs/a/drums.flac").read_bytes() == b"mine"
    assert run(["data", "fetch", str(published), "--out", "again", "--offline"]) == 0
    assert (tmp_path / "again/songs/a/drums.flac").is_file()


def test_lists_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such list of sources"):
        sources.read("nothing")
    (tmp_path / "bad.toml").write_text("[[repository]]\nname = 'a'\n")
    with pytest.raises(UsageError, match=r"bad.toml: is no list of sources \(KeyError"):
        sources.read(str(tmp_path / "bad.toml"))
    row = "[[repository]]\nname = 'a'\ncommit = 'b'\nsounds = [{ to = '../x', from = [['f', 'd']] }]"
    (tmp_path / "out.toml").write_text(row)
    with pytest.raises(UsageError, match="leads out of the folder"):
        sources.read(str(tmp_path / "out.toml"))


def test_the_list_of_mini_names_digests_and_holds_out_whole_acts_and_singers() -> None:
    listed = sources.read("mini")
    files = [source.file for recording in listed.recordings for source in recording.sources]
    assert len(listed.recordings) == 686
    assert all(len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef") for file in files)
    assert all(file.url.startswith("https://raw.githubusercontent.com/") for file in files)
    assert {"bristol7s-political-captain", "mdn-multitrack-demo"} == listed.songs
    for recording in listed.recordings:
        name = Path(recording.to)
        held = bool({name.name, name.parent.name} & (listed.songs | listed.voices))
        assert recording.to.startswith("held-out/") == held
    assert len({recording.to for recording in listed.recordings}) == len(listed.recordings)
    singers = [name for name in listed.voices if name.startswith(("csd-alto-1", "csd-tenor-1"))]
    assert len(singers) == 4  # both recordings of one person


def test_a_digest_is_that_of_the_file(published: Path) -> None:
    file = sources.read(str(published)).recordings[0].sources[0].file
    path = published.parent / "www/act/songs/c0ffee/one.wav"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
