"""The command line in this process, with a network that hands the mixture on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli import models
from sepcli.cli import console, run
from tests import passthrough


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the pass-through network, in a cache of its own."""
    monkeypatch.setattr(models, "find", passthrough.find)
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    return passthrough.save(tmp_path / "weights" / "pass.safetensors")


@pytest.fixture
def sepcli(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Answer]:
    """sepcli("song.wav", "--format", "flac"): `separate` with the pass-through network; any other command as it is."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(console, "state", console.State())
        words = [str(argument) for argument in arguments]
        if words[0] not in ("models", "--version", "--help"):
            named = {"--model", "-n", "--name", "-s", "--sig"} & {word.partition("=")[0] for word in words}
            words = ["separate", *([] if named else ["--model", str(weights)]), *words]
        capfdbinary.readouterr()
        code = run(words)
        taken = capfdbinary.readouterr()
        return Answer(code, taken.out.decode("utf-8", "surrogateescape"), taken.err.decode())

    return call


@pytest.fixture
def song(tmp_path: Path) -> Callable[..., Path]:
    """song("a.wav", seconds=1.0, rate=44100, channels=2, peak=0.5): a file of noise, by seed."""

    def make(
        name: str,
        *,
        seconds: float = 1.0,
        rate: int = 44100,
        channels: int = 2,
        peak: float = 0.5,
        seed: int = 0,
        **kind: str,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(seed).uniform(-peak, peak, (round(seconds * rate), channels))
        soundfile.write(path, drawn.astype(np.float32), rate, **kind)
        return path

    return make
