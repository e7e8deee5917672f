"""Mean and deviation of a set of recordings' magnitudes, bin by bin: what Open-Unmix and D3Net standardise with."""

from collections.abc import Iterable

import torch
from torch import Tensor


def bin_statistics(recordings: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (F,) over all frames of magnitudes (C, F, N), of the mean over the channels.

    Deviations are at least 1e-4 of the largest. Sums are in double precision on the CPU. Raises ValueError without a
    single frame.
    """
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for magnitudes in recordings:
        frames = magnitudes.mean(dim=0).cpu().double()  # (F, N)
        count += frames.shape[-1]
        total = total + frames.sum(dim=-1)
        squares = squares + frames.square().sum(dim=-1)
    if not count:
        raise ValueError("no frame to take statistics of")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), deviation.clamp(min=1e-4 * float(deviation.max())).float()
