"""Learning rates, running averages, and the SVD penalty, against torch and demucs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sepcli.training.optim import Average, learning_rate, make_optimiser, plateaus, svd_penalty
from sepcli.training.recipe import Data, Loss, Optimiser, Penalty, Recipe, Schedule, Stop

RECIPE = Recipe(Data(excerpt=1.5, batch=16), (Loss("l1"),), Stop(epochs=1), optimiser=Optimiser(rate=1e-3))


def rates(schedule: Schedule, steps: list[tuple[int, int]]) -> list[float]:
    recipe = replace(RECIPE, schedule=schedule)
    return [learning_rate(recipe, step, epoch, [], None) for step, epoch in steps]


def test_thirty_hours_of_the_cws_recipe_are_4500_steps() -> None:
    schedule = Schedule("step", every_hours=30, factor=0.87)
    assert rates(schedule, [(0, 0), (4499, 0), (4500, 0), (9000, 0)]) == pytest.approx(
        [1e-3, 1e-3, 0.87e-3, 0.7569e-3], rel=1e-12
    )


def test_milestones_are_factors_of_the_first_rate() -> None:
    schedule = Schedule("milestones", epochs=(40, 60), factors=(0.3, 0.1))
    assert rates(schedule, [(0, 39), (0, 40), (0, 60)]) == pytest.approx([1e-3, 3e-4, 1e-4], rel=1e-12)


def test_a_cosine_rises_then_falls_to_nothing() -> None:
    recipe = replace(RECIPE, schedule=Schedule("cosine", warmup=10), stop=Stop(epochs=11))
    found = [learning_rate(recipe, step, 0, [], 110) for step in (0, 4, 9, 10, 60, 110)]
    assert found == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3, 5e-4, 0], abs=1e-12)


@pytest.mark.parametrize(("patience", "cooldown"), [(1, 0), (3, 2), (4, 7)])
def test_plateaus_are_where_torch_sees_them(patience: int, cooldown: int) -> None:
    draw = torch.Generator().manual_seed(1)
    losses = [1 / (1 + k) + 0.3 * float(torch.rand((), generator=draw)) for k in range(80)]
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.5, patience=patience, cooldown=cooldown, eps=0
    )
    counts = []
    for loss in losses:
        schedule.step(loss)
        counts.append(-math.log2(optimiser.param_groups[0]["lr"]))
    assert [plateaus(losses[: k + 1], patience, cooldown) for k in range(80)] == pytest.approx(counts)
    assert counts[-1] >= 2


def test_an_average_has_no_bias_towards_its_beginning() -> None:
    average = Average(0.9)
    values = [1.0, 2.0, 4.0]
    for value in values:
        average.update({"w": torch.tensor([value]), "n": torch.tensor(int(value))})
    weights = [0.9**2, 0.9, 1.0]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert float(average.tensors["w"]) == pytest.approx(expected, rel=1e-6)
    assert int(average.tensors["n"]) == 4, "what is not floating is the newest"


def test_adam_adds_its_decay_to_the_gradient_and_adamw_does_not() -> None:
    def moved(name: str) -> float:
        weight = nn.Parameter(torch.tensor([2.0]))
        optimiser = make_optimiser([weight], Optimiser(name, rate=0.1, decay=0.5))  # type: ignore[arg-type]
        weight.grad = torch.tensor([0.0])
        optimiser.step()
        return float(weight.detach())

    assert moved("adam") == pytest.approx(1.9, abs=1e-6)  # a gradient of 1 is one step of the rate
    assert moved("adamw") == pytest.approx(2 * (1 - 0.05), abs=1e-6)


def test_one_pass_over_memory_gives_the_steps_of_torchs_plain_loop() -> None:
    ours, plain = (nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    optimiser = make_optimiser([ours], Optimiser("adamw", rate=0.01, decay=0.1))
    loop = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.1, foreach=False)
    assert optimiser.defaults["fused"]
    for step in range(20):
        ours.grad, plain.grad = (torch.sin(17 * (step + 1) * weight.detach()) for weight in (ours, plain))
        optimiser.step()
        loop.step()
    assert float((ours - plain).detach().abs().max()) < 1e-6


def filled(module: nn.Module) -> nn.Module:
    weight = next(module.parameters())
    i, j, k = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in weight.shape), indexing="ij")
    weight.data = torch.sin(0.1 * (i + 1) * (j + 1) + 0.3 * k)
    return module


SMALL = Penalty(min_size=0.1, dimensions=1, iterations=2)


@pytest.mark.parametrize(
    ("module", "transposed", "expected"),
    [
        (nn.Conv1d(32, 64, 16), True, 578.811040418),
        (nn.ConvTranspose1d(64, 32, 16), True, 684.167912535),
        (nn.ConvTranspose1d(64, 32, 16), False, 578.811040418),
    ],
    ids=["convolution", "transposed", "transposed taken as it is"],
)
def test_the_exact_penalty_is_the_squared_largest_singular_value(
    module: nn.Module, transposed: bool, expected: float
) -> None:
    settings = replace(SMALL, transposed=transposed)
    assert svd_penalty(filled(module), settings, exact=True).item() == pytest.approx(expected, rel=1e-9)
    for rank, rounds in ((1, 2), (32, 4)):
        torch.manual_seed(0)
        found = svd_penalty(filled(module), replace(settings, dimensions=rank, iterations=rounds)).item()
        assert 0.5 * expected <= found <= expected * (1 + 1e-9)
    assert float(svd_penalty(filled(module), replace(settings, min_size=1.0))) == 0


def test_the_penalty_has_a_gradient_and_may_leave_out_linear_layers() -> None:
    linear = nn.Linear(600, 600)
    assert float(svd_penalty(linear, Penalty(convolutions_only=True), exact=True)) == 0
    svd_penalty(linear, Penalty(dimensions=10)).backward()
    assert linear.weight.grad is not None
    assert float(linear.weight.grad.norm()) > 0


@pytest.mark.reference
def test_demucs_penalty_is_the_same() -> None:
    svd = pytest.importorskip("demucs.svd")
    demucs = pytest.importorskip("demucs.hdemucs")
    torch.manual_seed(0)
    network = demucs.HDemucs(["a", "b"], channels=8, depth=6)
    for transposed in (True, False):
        settings = replace(SMALL, min_size=0.02, transposed=transposed)
        expected = svd.svd_penalty(network, min_size=0.02, convtr=transposed, exact=True).item()
        assert svd_penalty(network, settings, exact=True).item() == pytest.approx(expected, rel=1e-6)
        assert expected > 0


@pytest.mark.reference
def test_demucs_average_is_the_same() -> None:
    ema = pytest.importorskip("demucs.ema")
    network = nn.Linear(5, 3)
    theirs, ours = ema.ModelEMA(network, decay=0.95, device=None), Average(0.95)
    for seed in range(20):
        torch.manual_seed(seed)
        nn.init.normal_(network.weight)
        theirs.update()
        ours.update(network.state_dict())
    found: Tensor = ours.tensors["weight"]
    assert torch.allclose(found, theirs.state["weight"], rtol=1e-5, atol=1e-6)
