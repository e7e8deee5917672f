"""What happens where a device lacks memory or an operator: said once, and the song goes on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli.errors import AudioError, UsageError
from sepcli.inference.device import Runner, TooLong, choose
from sepcli.models.separator import Estimate, Separator

TRAITS = {"sources": ["a"], "channels": 2, "sample_rate": 1000, "segment": 1.0, "level": {}}


class Faulty(Separator):
    """Fails with `error` while `fails` says so; counts the sizes of the batches that it was given."""

    def __init__(self, error: Exception, fails: Any) -> None:
        super().__init__(**TRAITS)
        self.error, self.fails, self.sizes, self.places = error, fails, [], []

    def to(self, device: Any) -> "Faulty":  # a device that this machine lacks is only pretended
        self.places.append(str(device))
        return self

    def forward(self, mixture: Tensor) -> Estimate:
        self.sizes.append(len(mixture))
        if self.fails(self):
            raise self.error
        return Estimate(mixture[:, None] * 2)


def runner(model: Faulty, device: str, told: list[str]) -> Runner:
    made = Runner(model, torch.device("cpu"), notice=told.append)
    made.device = torch.device(device)
    return made


@pytest.fixture(autouse=True)
def windows_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tensor.to
    monkeypatch.setattr(
        Tensor, "to", lambda self, *a, **k: self if str(a[:1]).find("mps") >= 0 else real(self, *a, **k)
    )


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::_fft_r2c' is not currently implemented for the MPS device."),
        RuntimeError("Output channels > 65536 not supported at the MPS device."),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."),
    ],
)
def test_an_operator_that_the_device_lacks_moves_the_network_to_the_cpu(error: Exception) -> None:
    told: list[str] = []
    model = Faulty(error, lambda m: m.places[-1] != "cpu" or len(m.places) == 1)
    run = runner(model, "mps", told)
    windows = torch.ones(2, 2, 10)
    assert torch.equal(run(windows), windows[:, None] * 2)
    assert torch.equal(run(windows), windows[:, None] * 2)
    assert len(told) == 1
    assert "mps cannot run this network" in told[0]
    assert "going on with the CPU" in told[0]
    assert run.device.type == "cpu"


def test_out_of_memory_halves_the_batch_for_the_rest_of_the_song() -> None:
    told: list[str] = []
    model = Faulty(torch.OutOfMemoryError("CUDA out of memory"), lambda m: m.sizes[-1] > 2)
    run = runner(model, "cpu", told)
    windows = torch.arange(8.0)[:, None, None].expand(8, 2, 10)
    assert torch.equal(run(windows), windows[:, None] * 2)
    assert model.sizes == [8, 4, 2, 2, 2, 2]
    run(windows)
    assert model.sizes[6:] == [2, 2, 2, 2]
    assert [text.rsplit(" with ", 1)[1] for text in told] == ["4 pieces at a time", "2 pieces at a time"]


def test_a_single_piece_that_does_not_fit_goes_to_the_cpu() -> None:
    told: list[str] = []
    model = Faulty(torch.OutOfMemoryError("MPS backend out of memory"), lambda m: len(m.places) == 1)
    run = runner(model, "mps", told)
    assert run(torch.ones(1, 2, 10)).shape == (1, 1, 2, 10)
    assert told == ["mps is out of memory: going on with the CPU"]


def test_a_piece_that_does_not_fit_is_made_shorter_before_the_cpu_is_taken() -> None:
    told: list[str] = []
    model = Faulty(torch.OutOfMemoryError("CUDA out of memory"), lambda m: m.segment > 2)
    model.segment = 8.0
    run = runner(model, "mps", told)
    for segment in (4.0, 2.0):
        with pytest.raises(TooLong):
            run(torch.ones(1, 2, 10))
        assert model.segment == segment
    assert run(torch.ones(1, 2, 10)).shape == (1, 1, 2, 10)
    assert told == run.limits
    assert [text.rsplit(" ", 2)[1] for text in told] == ["4", "2"]
    assert run.device.type == "mps"


def test_a_network_of_one_length_is_not_made_shorter_and_goes_to_the_cpu() -> None:
    told: list[str] = []
    model = Faulty(torch.OutOfMemoryError("CUDA out of memory"), lambda m: len(m.places) == 1)
    model.segment = 8.0
    model.margins = lambda length: (0, 8000 - length)  # type: ignore[method-assign]
    run = runner(model, "mps", told)
    assert run(torch.ones(1, 2, 10)).shape == (1, 1, 2, 10)
    assert model.segment == 8.0
    assert told == ["mps is out of memory: going on with the CPU"]


def test_out_of_memory_on_the_cpu_at_last_fails_the_song_in_one_line() -> None:
    model = Faulty(RuntimeError("DefaultCPUAllocator: can't allocate memory"), lambda m: True)
    with pytest.raises(AudioError, match=r"out of memory, and pieces of 1 s cannot be shorter"):
        runner(model, "cpu", [])(torch.ones(1, 2, 10))


def test_a_fault_of_the_network_itself_is_not_hidden() -> None:
    model = Faulty(RuntimeError("sizes of tensors must match"), lambda m: True)
    with pytest.raises(RuntimeError, match="must match"):
        runner(model, "mps", [])(torch.ones(1, 2, 10))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x", "xpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}"):
        choose(name)


def test_auto_is_a_device_that_is_there() -> None:
    assert choose("auto").type in ("cpu", "cuda", "mps")
    assert choose("cpu").type == "cpu"


class Quick(Separator):
    """A network that is told from its fast form by what comes out."""

    def forward(self, mixture: Tensor) -> Estimate:
        return Estimate(mixture[:, None])

    def fast(self) -> nn.Module:
        return Doubling()


class Doubling(nn.Module):
    def forward(self, mixture: Tensor) -> Estimate:
        return Estimate(2 * mixture[:, None])


@pytest.mark.parametrize(
    ("options", "gain"),
    [({}, 2), ({"plain": True}, 1), ({"precision": "bfloat16"}, 1)],
    ids=["default", "plain", "half"],
)
def test_the_fast_form_runs_in_single_precision_on_the_cpu(options: dict[str, Any], gain: int) -> None:
    run = Runner(Quick(**TRAITS), torch.device("cpu"), **options)
    assert torch.equal(run(torch.ones(1, 2, 10)), torch.full((1, 1, 2, 10), float(gain)))


def test_on_another_device_the_network_itself_runs_until_it_moves_to_the_cpu() -> None:
    run = Runner(Quick(**TRAITS), torch.device("meta"))
    assert isinstance(run.form, Quick)
    run.fall_back(NotImplementedError("could not run"))
    assert isinstance(run.form, Doubling)
