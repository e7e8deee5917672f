"""What stands beside the gradient: learning rates over time, running averages of weights, the SVD penalty."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sepcli.training.recipe import Optimiser, Penalty, Recipe


def make_optimiser(parameters: Sequence[nn.Parameter], settings: Optimiser) -> torch.optim.Optimizer:
    """Adam, whose decay is added to the gradient, or AdamW, whose decay is not; in one pass over memory (`fused`)."""
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return kind(parameters, lr=settings.rate, betas=settings.betas, weight_decay=settings.decay, fused=fused)


def learning_rate(recipe: Recipe, step: int, epoch: int, losses: Sequence[float], last: int | None) -> float:
    """The rate of a step, both counted from 0, after validations with these losses; the run ends with `last` steps.

    A function of what it is told here alone: nothing else has to be kept for a resumed run.
    """
    first, schedule = recipe.optimiser.rate, recipe.schedule
    if schedule.name == "step":
        every = schedule.every_steps or max(1, round(schedule.every_hours / recipe.hours_a_step))
        return first * float(schedule.factor ** (step // every))
    if schedule.name == "milestones":
        passed = [factor for start, factor in zip(schedule.epochs, schedule.factors, strict=True) if epoch >= start]
        return first * passed[-1] if passed else first
    if schedule.name == "plateau":
        return first * schedule.factor ** plateaus(losses, schedule.patience, schedule.cooldown)
    if schedule.name == "cosine":
        if step < schedule.warmup:
            return first * (step + 1) / schedule.warmup
        assert last is not None, "the recipe is refused otherwise"
        done = (step - schedule.warmup) / max(1, last - schedule.warmup)
        return first * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return first


def plateaus(losses: Sequence[float], patience: int, cooldown: int, threshold: float = 1e-4) -> int:
    """How often more than `patience` losses in a row were no better than the best by the relative threshold.

    As torch's ReduceLROnPlateau counts, `cooldown` losses after each time not at all.
    """
    best, bad, pause, count = math.inf, 0, 0, 0
    for loss in losses:
        if loss < best * (1 - threshold) or (math.isinf(best) and math.isfinite(loss)):
            best, bad = loss, 0
        else:
            bad += 1
        if pause:
            pause, bad = pause - 1, 0
        if bad > patience:
            count, pause, bad = count + 1, cooldown, 0
    return count


class Average:
    """A running average of a network's floating tensors, without bias towards where it began.

    The weight of what was seen before shrinks by `decay` with each update: c <- c decay + 1, a <- a + (x - a) / c.
    Tensors that are not floating are the newest.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.count = 0.0
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        self.count = self.count * self.decay + 1
        for name, tensor in state.items():
            if name in self.tensors and tensor.is_floating_point():
                self.tensors[name].add_((tensor - self.tensors[name]) / self.count)
            else:
                self.tensors[name] = tensor.detach().clone()


def svd_penalty(network: nn.Module, settings: Penalty, *, exact: bool = False) -> Tensor:
    """The sum of the squared largest singular values of a network's large weights (Hybrid Demucs' recipe).

    Large: `min_size` times 2^18 values or more, two axes at least; as matrices (out, rest). Not yet times the weight.
    The randomised decomposition, with `dimensions` and `iterations`, never gives more than the exact one.
    """
    total = torch.zeros(())
    for module in network.modules():
        if settings.convolutions_only and not isinstance(module, CONVOLUTIONS):
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() < 2 or weight.numel() < settings.min_size * 2**18:
                continue
            turned = settings.transposed and isinstance(module, TRANSPOSED)
            matrix = (weight.transpose(0, 1) if turned else weight).flatten(1)
            if exact:
                largest = torch.linalg.svdvals(matrix)[0]
            else:
                rank = min(settings.dimensions, *matrix.shape)
                largest = torch.svd_lowrank(matrix, rank, settings.iterations)[1][0]
            total = total.to(largest) + largest.square()
    return total


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, *TRANSPOSED)
