"""The whole command against the authors' code: the same file of weights, the same song, the same stems.

Files are written in the published formats from networks of the authors' own classes with seeded weights; the command
reads them with --model PATH, and its float stems are compared with demucs' apply_model and its normalisation around.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from sepcli.weights.seeded import fill
from tests.cli.conftest import Answer

pytestmark = pytest.mark.reference

SOURCES = ["drums", "bass", "other", "vocals"]
VARIANTS: dict[str, dict[str, Any]] = {
    "hdemucs_mmi": {},
    "c511e2ab": {"cac": False, "hybrid_old": True, "norm_starts": 999},
    "7d865c68": {"multi_freqs": [0.1, 0.3], "multi_freqs_depth": 2, "norm_starts": 999},
    "a1d90b5c": {"cac": False, "hybrid_old": True},
    "5d2d6c55": {"cac": False},
}


def theirs(width: int = 8, **settings: Any) -> nn.Module:
    """demucs' HDemucs with weights filled by name, no branch of it near zero."""
    hdemucs = pytest.importorskip("demucs.hdemucs")
    network = hdemucs.HDemucs(SOURCES, channels=width, segment=1.5, **settings)
    fill(network, seed=7)
    return network.eval()


def package(network: nn.Module, path: Path) -> Path:
    """The format of the published .th files: class, arguments, half-precision state, in a zip pickle."""
    args, kwargs = network._init_args_kwargs
    state = {name: tensor.half() for name, tensor in network.state_dict().items()}
    torch.save(
        {"klass": type(network), "args": args, "kwargs": kwargs, "state": state, "training_args": {"lr": 3e-4}}, path
    )
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return path


def exported(network: nn.Module, path: Path) -> Path:
    """The format of demucs 4.1.0's safetensors: class and arguments as JSON in the metadata."""
    from safetensors.torch import save_file

    args, kwargs = network._init_args_kwargs
    metadata = {"klass": "demucs.hdemucs.HDemucs", "args": json.dumps(list(args)), "kwargs": json.dumps(kwargs)}
    save_file(dict(network.state_dict()), str(path), metadata)
    return path


def song(path: Path, length: int, rate: int = 44100) -> Tensor:
    """A float song with a beat, tones, an offset, and noise as a recording has it.

    Without that noise some bins would hold nothing but rounding, and the networks that work on magnitudes take their
    phase from there: the authors' own result then changes by 1e-5 with the last bit of the song's mean.
    """
    draw = np.random.default_rng(length)
    time = np.arange(length)[:, None] / rate
    beat = np.exp(-((time * 2) % 1) * 8) * draw.standard_normal((length, 2)) * 0.2
    sound = (
        beat
        + 1e-3 * draw.standard_normal((length, 2))
        + 0.2 * np.sin(2 * np.pi * np.array([220.0, 331.0]) * time)
        + 0.01
    )
    soundfile.write(path, sound.astype(np.float32), rate, subtype="FLOAT")
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T.copy())


def expected(network: nn.Module, mixture: Tensor, segment: float) -> Tensor:
    """demucs.api's normalisation around apply_model, shifts 0, overlap 0.25."""
    apply = pytest.importorskip("demucs.apply")
    mono = mixture.mean(0)
    mean, deviation = mono.mean(), mono.std() + 1e-8
    normal = (mixture - mean) / deviation
    estimate = apply.apply_model(network, normal[None], shifts=0, overlap=0.25, segment=segment)[0]
    return estimate * deviation + mean


def compare(sepcli: Callable[..., Answer], weights: Path, network: nn.Module, mixture: Tensor, segment: float) -> float:
    """The largest relative L2 difference of a stem."""
    arguments = ["--bit-depth", "32f", "--clip", "none", "--segment", str(segment), "--existing", "overwrite"]
    done = sepcli("song.wav", "--model", weights, *arguments)
    assert done.code == 0, done.err
    truth = expected(network, mixture, segment)
    differences = []
    for line in done.lines:
        stem = torch.from_numpy(soundfile.read(line, dtype="float32", always_2d=True)[0].T.copy())
        wanted = truth[SOURCES.index(Path(line).stem)]
        assert stem.shape == wanted.shape
        differences.append(float((stem - wanted).norm() / wanted.norm()))
    assert len(differences) == 4
    return max(differences)


@pytest.mark.parametrize("length", [30_011, 66_151, 150_001], ids=["short", "one", "three pieces"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_gives_the_stems_of_demucs(sepcli, tmp_path: Path, variant: str, length: int) -> None:
    network = theirs(**VARIANTS[variant])
    weights = package(network, tmp_path / "published.th")
    assert compare(sepcli, weights, network, song(tmp_path / "song.wav", length), 1.5) < 1e-5


def test_the_same_from_safetensors(sepcli, tmp_path: Path) -> None:
    network = theirs(**VARIANTS["hdemucs_mmi"])
    weights = exported(network, tmp_path / "published.safetensors")
    assert compare(sepcli, weights, network, song(tmp_path / "song.wav", 100_003), 1.5) < 1e-5


@pytest.mark.parametrize("branch", ["dconv.layers.0.6.scale", "dconv.layers.1.3.linear", "dconv.layers.0.4.proj"])
def test_a_branch_taken_out_breaks_that_bound(sepcli, tmp_path: Path, branch: str) -> None:
    network = theirs()
    layer = "encoder.0." if branch.endswith("scale") else "encoder.4."
    changed = theirs()
    state = changed.state_dict()
    names = [name for name in state if name.startswith(layer) and branch.removeprefix("dconv.") in name]
    if branch.endswith("scale"):
        names = [f"{layer}dconv.layers.0.6.scale"]
    assert names
    for name in names:
        state[name].zero_()
    weights = package(changed, tmp_path / "published.th")
    network.load_state_dict({name: tensor.half().float() for name, tensor in network.state_dict().items()})
    assert compare(sepcli, weights, network, song(tmp_path / "song.wav", 66_151), 1.5) > 1e-4


@pytest.mark.slow
def test_the_full_network_from_a_state_dict_of_torchaudio(sepcli, tmp_path: Path) -> None:
    hdemucs = pytest.importorskip("torchaudio.models")

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.sources, self.samplerate, self.audio_channels, self.segment = SOURCES, 44100, 2, 1.5

        def forward(self, mixture: Tensor) -> Tensor:
            return self.inner(mixture)

    network = hdemucs.hdemucs_high(SOURCES).eval()
    fill(network, seed=7)
    weights = tmp_path / "published.pt"
    torch.save(network.state_dict(), weights)
    assert compare(sepcli, weights, Wrapped(network), song(tmp_path / "song.wav", 90_001), 1.5) < 1e-5
