"""The training loop: excerpts, augmentation, mixture, network, loss, step, averages, validation, checkpoint."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sepcli.errors import SepcliError, UsageError
from sepcli.inference.device import PRECISIONS
from sepcli.models.separator import Separator
from sepcli.training.augment import augment
from sepcli.training.data import Excerpts, Material
from sepcli.training.losses import LossFunction, make_loss
from sepcli.training.optim import Average, learning_rate, make_optimiser, svd_penalty
from sepcli.training.recipe import Recipe
from sepcli.training.run import Progress, Run, random_state, read_state, restore, save_state
from sepcli.training.sync import synchronise
from sepcli.training.validate import scores, validate

BAD_STEPS = 10
"""So many bad steps in a row lead back to the last good state, and so often that is done."""
ROLLBACKS = 3
EXPLODED = 100.0
"""A loss so many times the usual one is bad, as one that is no number."""
SAVE_SECONDS = 600.0


class Interrupted(Exception):  # noqa: N818
    """Asked to stop; everything is saved."""


@dataclass(frozen=True)
class Where:
    """Where it runs: the device, its precision, the number of processes and of this one, processes that read ahead.

    `sync_batchnorm`: batch norms take the statistics of all processes, not of their own part of the batch; `again`:
    torchrun has begun the processes anew, one having died.
    """

    device: torch.device
    precision: str = "float32"
    rank: int = 0
    world: int = 1
    workers: int = 0
    compile: bool = False
    sync_batchnorm: bool = False
    again: bool = False


@dataclass(frozen=True)
class Tell:
    """Whom to tell: notices in words, progress as (steps done, steps in all), and who says that it should stop."""

    notice: Callable[[str], None] = lambda _: None
    progress: Callable[[float, float | None], None] = lambda _done, _total: None
    interrupted: Callable[[], bool] = lambda: False


@dataclass
class Training:
    """What the loop works on. `network` is the model as it is called: compiled, or with gradients averaged."""

    model: Separator
    network: nn.Module
    run: Run
    loss: LossFunction
    optimiser: torch.optim.Optimizer
    averages: Sequence[Average]
    scaler: GradScaler
    progress: Progress
    where: Where
    tell: Tell

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def step_averages(self) -> Sequence[Average]:
        return self.averages[: len(self.recipe.ema.steps)]

    @property
    def epoch_averages(self) -> Sequence[Average]:
        return self.averages[len(self.recipe.ema.steps) :]

    def save(self) -> None:
        """By all processes together: the first one writes, and the others tell it their random states."""
        randoms = gathered(random_state(), self.where)
        if self.where.rank == 0:
            save_state(self.run, self.model, self.optimiser, self.averages, self.progress, self.scaler, randoms)


def fit(
    model: Separator,
    run: Run,
    train: Excerpts,
    valid: Sequence[Material],
    where: Where,
    tell: Tell,
    *,
    resume: bool = False,
) -> Progress:
    """Train a network that has what it begins with, until the recipe says stop. Returns how far it came.

    Raises Interrupted after saving where `tell.interrupted` says so; SepcliError where it diverges, or what is to be
    written cannot be.
    """
    training = begun(model, run, where, tell, resume)
    recipe, progress = run.recipe, training.progress
    batches = max(1, len(train) // recipe.data.batch)
    loader = load(train, recipe, where, progress, batches)
    total = last_step(recipe, batches)
    if not valid:
        tell.notice("there are no songs to validate with: best.safetensors gets the newest weights each time")
    began = saved = time.monotonic()
    before = progress.seconds
    while True:
        if progress.owed:
            assess(training, valid, total)
            progress.owed = False
            training.save()
        if finished(recipe, progress):
            return progress
        rate = learning_rate(recipe, progress.step, progress.epoch, progress.losses, total)
        value, why = one_step(training, loader, rate)
        progress.step += 1
        progress.batch += 1
        progress.seconds = before + time.monotonic() - began
        if why:
            after_a_bad_step(training, why)
        else:
            for average in training.step_averages:
                average.update(model.state_dict())
        if where.rank == 0 and (progress.step % 10 == 0 or progress.step in (1, total) or why):
            run.log(**line("train", progress, value, rate), **({"skipped": why} if why else {}))
        if ended := progress.batch == batches:
            progress.epoch, progress.batch = progress.epoch + 1, 0
            for average in training.epoch_averages:
                average.update(model.state_dict())
        progress.owed = due(recipe, progress, ended)
        tell.progress(progress.step, total)
        stopping, late = agreed([tell.interrupted(), time.monotonic() - saved > SAVE_SECONDS], where)
        if not progress.bad and (stopping or late):
            training.save()
            saved = time.monotonic()
        if stopping:
            raise Interrupted


def begun(model: Separator, run: Run, where: Where, tell: Tell, resume: bool) -> Training:
    """Everything in place for the first step, or for the one after the last that was saved."""
    recipe = run.recipe
    model.to(where.device).train()
    optimiser = make_optimiser([p for p in model.parameters() if p.requires_grad], recipe.optimiser)
    averages = [Average(decay) for decay in (*recipe.ema.steps, *recipe.ema.epochs)]
    scaler = GradScaler(where.device.type, enabled=where.precision == "float16")
    progress = Progress()
    if resume:
        tensors, metadata = read_state(run.state)
        progress = restore(tensors, metadata["extra"]["state"], model, optimiser, averages, scaler, where.rank)
        progress.owed |= finished(recipe, progress) and progress.validated < progress.step
        if where.rank == 0:
            run.forget_after(progress)
    loss = make_loss(recipe.loss, model.sources)
    network = wrapped(model, where)
    training = Training(model, network, run, loss, optimiser, averages, scaler, progress, where, tell)
    if not resume:
        if where.rank == 0:
            run.write_recipe()
        training.save()
    return training


def one_step(training: Training, loader: Iterator[tuple[Tensor, list[str]]], rate: float) -> tuple[float, str]:
    """One step of the optimiser over a batch in its parts: the loss, and why the step was not made, "" if it was.

    What normalisation layers counted on a bad batch is forgotten.
    """
    model, recipe, where, scaler = training.model, training.recipe, training.where, training.scaler
    optimiser, progress = training.optimiser, training.progress
    length = round(recipe.data.excerpt * model.sample_rate)
    parts = recipe.optimiser.accumulate
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    total = torch.zeros((), device=where.device)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    for part in range(parts):
        stems, keys = next(loader)
        stems = stems.to(where.device, non_blocking=True)
        stems = augment(stems, recipe.augment, length, model.sample_rate, keys)
        last = part == parts - 1
        network = training.network
        with nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync():
            value = loss_of(training, stems)
            total += value.detach() / parts
            if recipe.penalty.weight and part == 0:
                value = value + parts * recipe.penalty.weight * svd_penalty(model, recipe.penalty)
            scaler.scale(value / parts).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimiser)
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(trained, recipe.optimiser.clip or math.inf)
    found = float(mean_of(total, where))
    why = fault(found, float(norm), progress, scaler)
    if why:
        for buffer, old in kept:
            buffer.copy_(old)
        optimiser.zero_grad(set_to_none=True)
        scaler.update()
        return found, why
    scaler.step(optimiser)
    scaler.update()
    progress.usual = found if progress.step == 0 else 0.98 * progress.usual + 0.02 * found
    progress.bad = 0
    return found, ""


def loss_of(training: Training, stems: Tensor) -> Tensor:
    """The loss of stems (B, rows, C, T), whose sum is the mixture; the first rows are the network's sources."""
    mixture = stems.sum(dim=1)
    where, model = training.where, training.model
    precision = PRECISIONS[where.precision]
    with torch.autocast(where.device.type, precision, enabled=precision is not None):
        estimate = training.network(mixture)
    with torch.no_grad():
        reference = model.reference(stems[:, : len(model.sources)])
    return training.loss(estimate, reference, mixture)


def fault(loss: float, norm: float, progress: Progress, scaler: GradScaler) -> str:
    """What is wrong with a step, in words; nothing, if it can be made."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if progress.step > 20 and loss > EXPLODED * progress.usual > 0:
        return f"the loss is {loss:.4g}, usual is {progress.usual:.4g}"
    if not math.isfinite(norm) and not scaler.is_enabled():  # a scaler looks for its scale that way
        return "a gradient is no number"
    return ""


def after_a_bad_step(training: Training, why: str) -> None:
    """Count it; after several in a row go back to the last good weights, and give up when that does not help."""
    progress, notice = training.progress, training.tell.notice
    progress.bad += 1
    progress.skipped += 1
    if progress.bad == 1:
        notice(f"step {progress.step} is skipped: {why}")
    if progress.bad < BAD_STEPS:
        return
    hint = "a lower --lr, or --set optimiser.clip=5, may help"
    if progress.rollbacks == ROLLBACKS:
        raise SepcliError(f"training diverges at step {progress.step}: {why}, {progress.skipped} steps skipped", hint)
    tensors, metadata = read_state(training.run.state)
    good = restore(
        tensors, metadata["extra"]["state"], training.model, training.optimiser, training.averages, training.scaler
    )
    progress.bad, progress.usual, progress.rollbacks = 0, good.usual, progress.rollbacks + 1
    torch.manual_seed(hash((progress.step, progress.rollbacks, training.where.rank)))
    notice(f"{BAD_STEPS} steps in a row: {why}; back to the weights of step {good.step} ({hint})")


# The order of batches


def load(
    train: Excerpts, recipe: Recipe, where: Where, progress: Progress, batches: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Parts of batches for ever, from where a run stands on: stems (B, rows, C, T), and each item's key."""
    data, parts = recipe.data, recipe.optimiser.accumulate
    size = data.batch // (where.world * parts)
    if size * where.world * parts != data.batch or size % recipe.augment.remix:
        what = f"batch = {data.batch}: cannot be shared by {where.world} processes in {parts} parts"
        raise UsageError(f"{what}, remixed in groups of {recipe.augment.remix}")

    def keys() -> Iterator[list[tuple[int, int]]]:
        first = progress.batch
        for epoch in itertools.count(progress.epoch):
            for batch in range(first, batches):
                start = batch * data.batch + where.rank * size * parts
                for part in range(parts):
                    yield [(epoch, start + part * size + item) for item in range(size)]
            first = 0

    loader: Any = DataLoader(
        Keyed(train),  # type: ignore[arg-type]
        batch_sampler=keys(),
        num_workers=where.workers,
        collate_fn=joined,
        pin_memory=where.device.type == "cuda",
        generator=torch.Generator(),  # its own: the network's random numbers must not depend on when it was made
    )
    return iter(loader)


def joined(items: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([sound for sound, _ in items]), [key for _, key in items]


class Keyed:
    """Excerpts together with the key that seeds their augmentation."""

    def __init__(self, excerpts: Excerpts) -> None:
        self.excerpts = excerpts

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, str]:
        return self.excerpts[key], f"{self.excerpts.seed} {key[0]} {key[1]}"


def last_step(recipe: Recipe, batches: int) -> int | None:
    """The step that ends it, as far as that is known."""
    ends = [recipe.stop.steps or math.inf, recipe.stop.epochs * batches or math.inf]
    return None if math.isinf(min(ends)) else int(min(ends))


def finished(recipe: Recipe, progress: Progress) -> bool:
    stop = recipe.stop
    if (stop.steps and progress.step >= stop.steps) or (stop.epochs and progress.epoch >= stop.epochs):
        return True
    losses = progress.losses
    return bool(stop.patience and losses and len(losses) - 1 - losses.index(min(losses)) >= stop.patience)


def due(recipe: Recipe, progress: Progress, ended: bool) -> bool:
    """Whether it is time to validate: by hours of sound, or after an epoch; and at the end."""
    if finished(recipe, progress):
        return True
    if recipe.stop.validate_hours:
        heard = (progress.step - progress.validated) * recipe.hours_a_step
        return heard >= recipe.stop.validate_hours
    return ended


# Validation


def assess(training: Training, valid: Sequence[Material], total: int | None) -> None:
    """Validate the network's weights and every average's; the first process keeps the best and tells the others.

    Raises Interrupted, after saving, in the middle of it.
    """
    model, recipe, where, tell = training.model, training.recipe, training.where, training.tell
    other = copy.deepcopy(model).eval()
    kinds = [f"average by step, {decay}" for decay in recipe.ema.steps]
    kinds += [f"average by epoch, {decay}" for decay in recipe.ema.epochs]
    averages = zip(kinds, training.averages, strict=True)
    candidates = [("raw", dict(model.state_dict())), *((kind, a.tensors) for kind, a in averages if a.tensors)]

    def tick() -> None:
        if where.world == 1 and tell.interrupted():
            training.save()
            raise Interrupted

    judged = []
    for kind, tensors in candidates:
        of_the_first([tensors[name] for name, _ in model.named_buffers() if name in tensors], where)
        other.load_state_dict(tensors)
        sums = validate(
            other,
            training.loss,
            valid[where.rank :: where.world],
            where.device,
            seconds=recipe.data.excerpt,
            precision=where.precision,
            tick=tick,
        )
        judged.append((kind, tensors, scores(summed(sums, where), model.sources)))
    if where.rank == 0:
        settle(training, judged, total, compared=bool(valid))
    share(training.progress, where)


def settle(
    training: Training,
    judged: Sequence[tuple[str, dict[str, Tensor], dict[str, Any]]],
    total: int | None,
    *,
    compared: bool,
) -> None:
    """Keep the best weights, remember the losses, say how it goes. Not `compared`, without songs, the newest are kept.

    A loss that is no number is worse than any other.
    """
    run, progress = training.run, training.progress
    by_loss = run.recipe.stop.measure == "loss"

    def value(found: Mapping[str, Any]) -> float:
        """Lower is better."""
        if by_loss:
            return float(found["loss"])
        return -float(sum(found["nsdr"].values())) / max(1, len(found["nsdr"]))

    progress.validated = progress.step
    rate = learning_rate(run.recipe, progress.step, progress.epoch, progress.losses, total)
    for name, _, found in judged:
        run.log(**line("valid", progress, found["loss"], rate), weights=name, nsdr=found["nsdr"])
    usable = [item for item in judged if math.isfinite(value(item[2]))] or judged[:1]
    name, tensors, found = min(usable, key=lambda item: value(item[2]))
    now = value(found)
    progress.losses.append(now if math.isfinite(now) else 1e30)
    before = progress.best.get("value", math.inf)
    if not run.best.is_file() or not compared or now < (before if math.isfinite(before) else math.inf):
        progress.best = {"value": now, "step": progress.step, "weights": name, **found}
        run.save_best(tensors, progress.best)
    nsdr = ", ".join(f"{source} {score:.2f}" for source, score in found["nsdr"].items())
    left = ""
    if total and progress.step < total:
        left = f", {duration(progress.seconds / progress.step * (total - progress.step))} left"
    how = f"validation loss {found['loss']:.5g} ({name}), nSDR {nsdr} dB" if compared else "the newest weights are kept"
    training.tell.notice(f"step {progress.step}{f' of {total}' if total else ''}, epoch {progress.epoch}: {how}{left}")


def line(split: str, progress: Progress, loss: float, rate: float) -> dict[str, Any]:
    return {
        "split": split,
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": loss,
        "lr": rate,
        "seconds": round(progress.seconds, 3),
    }


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


# Several processes


def wrapped(model: Separator, where: Where) -> nn.Module:
    """The network as the loop calls it: compiled, and with its gradients averaged over the processes."""
    if where.sync_batchnorm and where.world > 1:
        synchronise(model)
    network: nn.Module = torch.compile(model) if where.compile else model  # type: ignore[assignment]
    if where.world == 1:
        return network
    devices = [where.device] if where.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=bool(model.unused))


def summed(values: Tensor, where: Where) -> Tensor:
    if where.world == 1:
        return values
    moved = values.to(where.device)
    torch.distributed.all_reduce(moved)
    return moved.cpu()


def mean_of(value: Tensor, where: Where) -> Tensor:
    return value if where.world == 1 else summed(value, where) / where.world


def agreed(flags: Sequence[bool], where: Where) -> list[bool]:
    """Of each, whether any process says so."""
    return [count > 0 for count in summed(torch.tensor(flags, dtype=torch.float32), where).tolist()]


def gathered(value: Any, where: Where) -> list[Any]:
    """The values of all processes, in order."""
    values = [value] * where.world
    if where.world > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def of_the_first(buffers: Sequence[Tensor], where: Where) -> None:
    """The first process's buffers in all: it is its batch norms that are kept, and the others' are their own."""
    if where.world > 1:
        for buffer in buffers:
            torch.distributed.broadcast(buffer, src=0)


def share(progress: Progress, where: Where) -> None:
    """What the first process learned in validation, told to all."""
    if where.world > 1:
        told: list[Any] = [progress.losses, progress.validated]
        torch.distributed.broadcast_object_list(told, src=0)
        progress.losses, progress.validated = told
