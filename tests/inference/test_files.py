"""A call's plan: what is refused, what is finished, what it would take, and what memory it gives up."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from sepcli import models
from sepcli.audio.paths import Found
from sepcli.errors import UsageError
from sepcli.inference import forecast
from sepcli.inference.files import loader, separate_song
from sepcli.inference.plan import Plan, check_plan
from sepcli.models.separator import Estimate
from sepcli.weights.catalog import find
from tests import passthrough


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(models, "find", passthrough.find)
    path = passthrough.save(tmp_path / "pass.safetensors", segment=4.0)
    return Plan(model=str(path), out=tmp_path / "out", device="cpu")


@pytest.fixture
def found(tmp_path: Path, noise) -> Found:
    soundfile.write(tmp_path / "a.wav", noise(44100 * 9), 44100)
    return Found(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "mp3", "consistent": True},
        {"stems": ("vocals",), "consistent": True},
        {"clip": "rescale", "consistent": True},
        {"format": "flac", "bit_depth": "32f"},
        {"bitrate": 320},
        {"filename": "{track}.{ext}"},
        {"filename": "{stem}/{what}"},
        {"end": 1.0, "start": 2.0},
        {"segment": float("nan")},
        {"upper_band": "share", "stems": ("vocals",)},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(changes: dict, plan: Plan) -> None:
    with pytest.raises(UsageError):
        check_plan(Plan(**{**vars(plan), **changes}))


def test_out_of_memory_shortens_the_pieces_and_the_sidecar_tells(plan, found, tmp_path, monkeypatch) -> None:
    """A network that takes 1.5 s at once: 4 s do not fit, nor do 2; 1 s does, and every sample is there."""
    real = passthrough.PassThrough.forward
    sizes = []

    def limited(self: passthrough.PassThrough, mixture: Tensor) -> Estimate:
        sizes.append(mixture.shape[-1])
        if mixture.shape[-1] > 66_150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, mixture)

    monkeypatch.setattr(passthrough.PassThrough, "forward", limited)
    told: list[str] = []
    record = separate_song(found, 1, plan, loader(plan, told.append), notice=told.append)
    assert record.status == "done"
    assert sizes[:3] == [176_400, 88_200, 44_100]
    assert told == record.warnings
    assert [text.rsplit(" ", 2)[1] for text in told] == ["2", "1"]
    sidecar = json.loads((tmp_path / "out/pass/a/stems.json").read_text())["sets"][0]
    assert sidecar["warnings"] == told
    drums, _ = soundfile.read(record.stems["drums"])
    mixture, _ = soundfile.read(found.path)
    assert np.abs(drums - 0.5 * mixture).max() < 2 / 32768


def test_what_a_song_would_take_is_said_without_weights(plan: Plan, found: Found) -> None:
    seen = forecast.outlook(found, 1, plan)
    assert (seen.status, seen.device, seen.segments) == ("planned", "cpu", 3)
    assert list(seen.stems) == ["drums", "bass", "other", "vocals"]
    assert seen.stems["bass"].endswith("out/pass/a/bass.wav")
    assert not plan.out.exists()
    separate_song(found, 1, plan, loader(plan, lambda text: None))
    assert forecast.outlook(found, 1, plan).status == "skipped"


@pytest.mark.parametrize(("name", "operations"), [("umxhq", 165e9), ("hdemucs_mmi", 870e9)])
def test_the_arithmetic_of_a_piece_is_counted_without_memory_or_time(name: str, operations: float) -> None:
    """A tenth is allowed for: parts of it grow with the window in another way than in proportion."""
    cost = forecast.cost(find(name), 0.25)
    assert cost.operations == pytest.approx(operations, rel=0.1)
    parameters = find(name).parameters
    assert cost.weights == pytest.approx(4 * parameters, rel=0.05)


def test_an_lstm_is_counted_as_if_its_steps_were_taken() -> None:
    """Products of one direction and layer: 4 gates, (inputs + hidden) columns, two operations each."""
    from torch import nn

    class Recurrent(passthrough.PassThrough):
        def __init__(self) -> None:
            super().__init__(sources=["a"], channels=2, sample_rate=100, segment=1.0, level={})
            self.lstm = nn.LSTM(2, 8, num_layers=3, bidirectional=True, batch_first=True)

        def forward(self, mixture: Tensor) -> Estimate:
            return Estimate(self.lstm(mixture.transpose(1, 2))[0].transpose(1, 2)[:, None, :2])

    network = Recurrent()
    operations, _ = forecast.measured(network, 100)
    first, deeper = 2 * (2 * 4 * 8 * (2 + 8)), 2 * (2 * 4 * 8 * (16 + 8))
    assert operations == 100 * (first + 2 * deeper)
