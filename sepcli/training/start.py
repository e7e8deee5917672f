"""Weights to begin with: of another model, of some of its parts, frozen or sorted."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sepcli.errors import ModelError, UsageError
from sepcli.models.separator import Separator
from sepcli.training.recipe import Start
from sepcli.weights.load import load_separator


def begin(
    model: Separator,
    start: Start | None,
    mixtures: Callable[[], Iterable[Tensor]],
    notice: Callable[[str], None],
) -> None:
    """Give a network what it begins with: weights of another, or statistics of the training mixtures (C, T).

    Raises ModelError where the other model cannot be had or is of another kind, UsageError.
    """
    if start is not None:
        take(model, start, notice)
    standardise = getattr(model, "standardise", None)
    if callable(standardise) and start is None:
        standardise(mixtures())


def take(model: Separator, start: Start, notice: Callable[[str], None]) -> None:
    """Copy weights that have the same names and shapes; of named `parts` every one must have them."""
    loaded = load_separator(start.model, notice=notice)
    other = loaded.separator
    if type(other) is not type(model):
        raise ModelError(
            f"{start.model}: is a {type(other).__name__}, not a {type(model).__name__}", "name weights of the same kind"
        )
    tensors: dict[str, Tensor] = dict(other.state_dict())
    if start.sort:
        tensors = sorted_front_end(model, tensors)
    own = model.state_dict()
    wanted = [name for name in own if within(name, start.parts)]
    if unknown := [part for part in start.parts if not any(within(name, (part,)) for name in own)]:
        children = ", ".join(name for name, _ in model.named_children())
        raise UsageError(f"start.parts: {unknown[0]!r} is no part of {type(model).__name__}", f"it has {children}")
    fresh = [name for name in wanted if name not in tensors or tensors[name].shape != own[name].shape]
    if start.parts and fresh:
        raise ModelError(f"{start.model}: its {fresh[0]} does not fit", "the parts taken over must be of one size")
    if len(fresh) == len(wanted):
        raise ModelError(f"{start.model}: none of its weights fits this network")
    with torch.no_grad():
        for name in wanted:
            if name not in fresh:
                own[name].copy_(tensors[name])
    if fresh:
        told = ", ".join(sorted({name.rsplit(".", 1)[0] for name in fresh})[:6])
        notice(f"{start.model}: {len(wanted) - len(fresh)} of {len(wanted)} tensors taken; new are {told}")
    if start.freeze:
        freeze(model, start.parts)


def freeze(model: Separator, parts: tuple[str, ...]) -> None:
    """Keep the parameters of these parts as they are. Raises UsageError where none is left to train."""
    for name, parameter in model.named_parameters():
        if within(name, parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("start.freeze: no parameter is left to train", "name the parts that stay as they are")


def within(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to one of the parts; no parts: it does."""
    return not parts or any(name == part or name.startswith(f"{part}.") for part in parts)


def sorted_front_end(model: Separator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sort = getattr(model, "sort_front_end", None)
    if not callable(sort):
        raise UsageError(f"start.sort: {type(model).__name__} has no front end to sort")
    result: dict[str, Tensor] = sort(tensors)
    return result
