"""`sepcli demo`: a song made, separated and scored without a network, with nothing but the base dependencies."""

import json
import socket
from pathlib import Path

import pytest
import soundfile

from sepcli import models
from sepcli.cli import run
from tests import passthrough


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


def test_sources_that_the_song_does_not_have_are_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "find", passthrough.find)
    shares = dict.fromkeys(("drums", "bass", "other", "vocals", "guitar", "piano"), 1 / 6)
    weights = passthrough.save(tmp_path / "six.safetensors", shares)
    assert run(["demo", "--out", str(tmp_path / "demo"), "--seconds", "2", "--model", str(weights), "--json"]) == 0
    taken = capsys.readouterr()
    told = json.loads(taken.out)
    assert set(told["stems"]) == set(shares)
    assert set(told["scores"]) == {"drums", "bass", "other", "vocals"}
    assert "guitar, piano" in taken.err


def test_what_a_model_calls_otherwise_is_scored_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "find", passthrough.find)
    weights = passthrough.save(tmp_path / "two.safetensors", {"vocals": 0.5, "accompaniment": 0.5})
    assert run(["demo", "--out", str(tmp_path / "demo"), "--seconds", "2", "--model", str(weights), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) == {"vocals", "accompaniment"}


def test_a_length_that_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path), "--seconds", "0"]) == 2
    assert "--seconds 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
