"""Validation: whole songs, separated as a user would separate them, scored and compared with the truth."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepcli.inference.bag import Bag, Member
from sepcli.inference.song import Clip, every_source, separate_clip
from sepcli.metrics.sdr import decibels
from sepcli.models.separator import Separator
from sepcli.training.data import Material, brought, mixture_between, mixture_blocks
from sepcli.training.losses import LossFunction


@torch.no_grad()
def validate(
    model: Separator,
    loss: LossFunction,
    songs: Sequence[Material],
    device: torch.device,
    *,
    seconds: float,
    precision: str = "float32",
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Sums that `scores` makes means of: loss and samples, then nSDR of each source and songs that have it; float64.

    The loss compares what comes out with the truth in the network's own domain, over stretches of `seconds`, at the
    level that the network works at. nSDR leaves out sources that a song does not have. `tick` is called now and then.
    """
    bag = Bag(
        [Member(model, dict.fromkeys(model.sources, 1.0))], "the network", device, precision=precision, plain=True
    )
    length = max(4096, round(seconds * model.sample_rate))
    sums = torch.zeros(2 + 2 * len(model.sources), dtype=torch.float64)
    for song in songs:
        _, scale = brought(song, model.level)
        energies = torch.zeros(2, len(model.sources), dtype=torch.float64)
        start = 0
        for found in stretches(separate_clip(bag, clip_of(song, model), every_source(bag)), model.sources, length):
            stop = start + found.shape[-1]
            true = truth(song, model, start, stop)
            mixture = torch.from_numpy(mixture_between(song, start, stop).T)
            energies[0] += true.double().square().sum((1, 2))
            energies[1] += (true - found).double().square().sum((1, 2))
            estimate, reference = (model.reference((sound / scale).unsqueeze(0).to(device)) for sound in (found, true))
            value = float(loss(estimate, reference, (mixture / scale).unsqueeze(0).to(device)))
            sums[:2] += torch.tensor([value * (stop - start), stop - start], dtype=torch.float64)
            start = stop
            tick()
        ratio = decibels(energies[0] + 1e-7, energies[1] + 1e-7)
        there = torch.tensor([any(stem.peak for stem in song.rows.get(source, ())) for source in model.sources])
        sums[2:] += torch.cat([torch.where(there, ratio, 0.0), there.double()])
    return sums


def scores(sums: Tensor, sources: Iterable[str]) -> dict[str, Any]:
    """Means of `validate`'s sums: {"loss": x, "nsdr": {source: dB}}."""
    ratios, counts = sums[2:].chunk(2)
    nsdr = {name: float(r / n) for name, r, n in zip(sources, ratios, counts, strict=True) if n}
    return {"loss": float(sums[0] / sums[1]) if sums[1] else math.nan, "nsdr": nsdr}


def clip_of(song: Material, model: Separator) -> Clip:
    return Clip(lambda: mixture_blocks(song), model.sample_rate, model.channels, song.frames)


def truth(song: Material, model: Separator, start: int, stop: int) -> Tensor:
    """A song's true sources (S, C, n)."""
    empty = np.zeros((stop - start, model.channels), np.float32)
    blocks = [song.read(source, start, stop) for source in model.sources]
    return torch.from_numpy(np.stack([(empty if block is None else block).T for block in blocks]))


def stretches(blocks: Iterator[Mapping[str, Any]], sources: Sequence[str], length: int) -> Iterator[Tensor]:
    """Blocks of stems joined to (S, C, length), the last one shorter."""
    held: list[Tensor] = []
    count = 0
    for block in blocks:
        held.append(torch.from_numpy(np.stack([block[source].T for source in sources])))
        count += held[-1].shape[-1]
        if count >= length:
            joined = torch.cat(held, dim=-1)
            yield from (joined[..., first : first + length] for first in range(0, count - count % length, length))
            held, count = ([joined[..., count - count % length :]], count % length) if count % length else ([], 0)
    if held:
        yield torch.cat(held, dim=-1)
