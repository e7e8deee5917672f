"""Augmentation of stems before they are summed, on the device that they are on, repeatable item by item."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from sepcli.training.recipe import Augment, Repitch


def augment(stems: Tensor, rules: Augment, length: int, sample_rate: int, keys: Sequence[str]) -> Tensor:
    """(B, S, C, T) -> (B, S, C, length): shift, channel swap, sign, scale, peak, remix, mono.

    `keys` seed each item's draws, so that they do not depend on how a batch is shared out.
    """
    batch, sources = stems.shape[:2]
    draws = [random.Random(f"{key} augment") for key in keys]
    reach = min(round(rules.shift * sample_rate), stems.shape[-1] - length) if rules.shift else 0
    offsets = [
        [draw.randint(0, reach)] * sources if rules.together else [draw.randint(0, reach) for _ in range(sources)]
        for draw in draws
    ]
    stems = torch.stack(
        [
            torch.stack([row[:, first : first + length] for row, first in zip(item, firsts, strict=True)])
            for item, firsts in zip(stems, offsets, strict=True)
        ]
    )

    def drawn(low: float, high: float) -> Tensor:
        """One number for each item and source, (B, S, 1, 1)."""
        values = torch.tensor([[draw.uniform(low, high) for _ in range(sources)] for draw in draws])
        return values.reshape(batch, sources, 1, 1).to(stems)

    if rules.swap:
        stems = torch.where(drawn(0, 1) < rules.swap, stems.flip(2), stems)
    if rules.sign:
        stems = torch.where(drawn(0, 1) < rules.sign, -stems, stems)
    if rules.scale != (1.0, 1.0):
        stems = stems * drawn(*rules.scale)
    if rules.gain != (0.0, 0.0):
        stems = stems * 10 ** (drawn(*rules.gain) / 20)
    if rules.drop:
        stems = torch.where(drawn(0, 1) < rules.drop, torch.zeros_like(stems), stems)
    if rules.peak:
        peaks = stems.amax(dim=(2, 3), keepdim=True)
        stems = torch.where(peaks > 1e-3, stems * (rules.peak / peaks.clamp_min(1e-3)), stems)
    if rules.remix > 1:
        stems = remixed(stems, rules.remix, draws)
    if rules.mono:
        folded = torch.tensor([draw.random() < rules.mono for draw in draws], device=stems.device)
        stems = torch.where(folded[:, None, None, None], stems.mean(dim=2, keepdim=True), stems)
    return stems


def remixed(stems: Tensor, group: int, draws: Sequence[random.Random]) -> Tensor:
    """(B, S, C, T): each source permuted on its own among the items of a group; a group's first item draws."""
    batch, sources = stems.shape[:2]
    order = torch.empty(batch, sources, dtype=torch.long)
    for first in range(0, batch, group):
        for source in range(sources):
            members = list(range(first, min(first + group, batch)))
            draws[first].shuffle(members)
            order[first : first + group, source] = torch.tensor(members)
    return stems[order.to(stems.device), torch.arange(sources, device=stems.device)]


def repitch(stems: Tensor, rules: Repitch, sample_rate: int, length: int, draw: random.Random) -> Tensor:
    """(S, C, T) -> (S, C, length), sometimes at another pitch and tempo; what is too long is cut, in any case.

    A phase vocoder changes the duration, resampling then moves pitch and duration together. Where a slow tempo is
    drawn the end is cut; T must be length / (1 - tempo / 100) or more for fast ones.
    """
    if draw.random() < rules.chance:
        semitones = draw.randint(-rules.semitones, rules.semitones)
        change = max(-rules.tempo, min(rules.tempo, draw.gauss(0, rules.deviation)))
        stems = stretched(stems, sample_rate, 2 ** (semitones / 12), 1 + change / 100)
    if stems.shape[-1] < length:
        stems = torch.nn.functional.pad(stems, (0, length - stems.shape[-1]))
    return stems[..., :length].contiguous()


def stretched(stems: Tensor, sample_rate: int, pitch: float, tempo: float) -> Tensor:
    """(..., T) -> (..., about T / tempo) with every frequency times `pitch`."""
    import numpy as np
    import soxr
    from torchaudio.functional import phase_vocoder

    size, hop = 2048, 512
    rows = stems.flatten(0, -2)
    window = torch.hann_window(size)
    if (rate := tempo / pitch) != 1:
        spectrum = torch.stft(rows, size, hop, window=window, return_complex=True)
        advance = torch.linspace(0, torch.pi * hop, spectrum.shape[1])[:, None]
        spectrum = phase_vocoder(spectrum, rate, advance)
        rows = torch.istft(spectrum, size, hop, window=window, length=round(rows.shape[-1] / rate))
    if pitch != 1:  # played faster: shorter and higher
        frames = np.ascontiguousarray(rows.T.numpy())
        rows = torch.from_numpy(np.ascontiguousarray(soxr.resample(frames, sample_rate * pitch, sample_rate).T))
    return rows.reshape(*stems.shape[:-1], -1)
