"""What a run will take: memory, steps and hours, from one excerpt that is trained with for the trial."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sepcli.models.separator import Separator
from sepcli.training.fit import Where
from sepcli.training.losses import make_loss
from sepcli.training.recipe import Recipe

ADAM = 2
"""Numbers that Adam keeps for each parameter."""


@dataclass(frozen=True)
class Forecast:
    """For each process: bytes of weights and what belongs to them, of activations; seconds of one step."""

    weights: int
    activations: int
    step_seconds: float


def forecast(model: Separator, recipe: Recipe, where: Where, trial_seconds: float = 1.0) -> Forecast:
    """Measure one short excerpt, forward and back, and scale it to a step. The model stays as it is."""
    seconds = min(trial_seconds, recipe.data.excerpt)
    trial = copy.deepcopy(model).to(where.device).train()
    loss = make_loss(recipe.loss, model.sources)
    samples = max(1, round(seconds * model.sample_rate))
    draw = torch.Generator().manual_seed(0)
    sources = 0.1 * torch.randn(1, len(model.sources), model.channels, samples, generator=draw)
    sources = sources.to(where.device)
    kept: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def once() -> float:
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            mixture = sources.sum(1)
            loss(trial(mixture), trial.reference(sources), mixture).backward()  # type: ignore[no-untyped-call]
        if where.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()  # what is made once is not counted
    kept.clear()
    spent = once()
    own = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    activations = sum(size for place, size in kept.items() if place not in own)
    items = recipe.data.batch // (where.world * recipe.optimiser.accumulate)
    scale = recipe.data.excerpt / seconds
    parameters = sum(parameter.numel() for parameter in model.parameters())
    averages = len(recipe.ema.steps) + len(recipe.ema.epochs)
    return Forecast(
        weights=4 * parameters * (2 + ADAM + averages),
        activations=round(activations * items * scale),
        step_seconds=spent * items * recipe.optimiser.accumulate * scale,
    )
