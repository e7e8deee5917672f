"""`sepcli demo`: a song made, separated and scored without a network, with nothing but the base dependencies."""

import json
import socket
from pathlib import Path

import pytest
import soundfile

from sepcli.cli import run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("no_network")
def test_a_song_is_made_separated_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path), "--seconds", "6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    song = Path(told["song"])
    assert {path.name for path in song.glob("*.wav")} == {f"{n}.wav" for n in ("mixture", *told["stems"])}
    assert set(told["stems"]) == set(told["scores"]) == {"drums", "bass", "other", "vocals"}
    for path in told["stems"].values():
        assert soundfile.info(path).frames == 6 * 44100
    gains = [scores["nSDR"] - scores["mixture"] for scores in told["scores"].values()]
    assert sum(gains) / 4 > 3, "dB better than the mixture itself"
    if told["picture"]:
        assert Path(told["picture"]).read_bytes()[:4] == b"\x89PNG"


def test_a_length_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path), "--seconds", "0"]) == 2
    assert "--seconds 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
