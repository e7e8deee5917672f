"""Temporal blocks (tcn.py) for float32 inference on a CPU, equal to rounding: frames as rows, in tiles that stay in the
cache. A tile's share of a norm's statistics is taken while the tile is at hand; the first norm is applied just ahead of
the dilated convolution, the second is a part of the last product's weights.
"""

import copy
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.nn.folded import about
from sepcli.nn.tcn import DepthwiseSeparable, TemporalBlock
from sepcli.nn.tiled import tiles

ROWS = 256
"""Frames of a tile."""

Moments = tuple[Tensor, Tensor]
"""Each channel's mean and biased variance over the frames of a tile."""


@runtime_checkable
class OverTime(Protocol):
    """A norm that is the same line for all frames of a channel."""

    def line(self, mean: Tensor, variance: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """From each channel's mean and biased variance over all frames, (B, C, 1): what to subtract from the channel,
        what to multiply it with and what to add."""


def tiled(network: nn.Module) -> nn.Module:
    """A network with its temporal blocks in tiles, all else shared with it; itself where their norms see one frame."""
    if isinstance(network, TemporalBlock):
        return TiledBlock(network) if isinstance(network.net[2], OverTime) else network
    parts = {name: tiled(part) for name, part in network.named_children()}
    if all(part is network.get_submodule(name) for name, part in parts.items()):
        return network
    form = copy.copy(network)
    form._modules = {**network._modules, **parts}
    return form


class TiledBlock(nn.Module):
    """The fast form of a TemporalBlock. Holds the weights as they are when it is made."""

    def __init__(self, block: TemporalBlock) -> None:
        super().__init__()
        widen, slope, self.norm, inner = block.net
        assert isinstance(inner, DepthwiseSeparable)
        dilated, inner_slope, self.inner_norm = inner.net
        assert isinstance(widen, nn.Conv1d)
        assert isinstance(dilated, nn.Conv1d)
        assert isinstance(slope, nn.PReLU)
        assert isinstance(inner_slope, nn.PReLU)
        self.slopes = slope.weight.item(), inner_slope.weight.item()
        self.widen = widen.weight.detach()[..., 0].T  # (C, H)
        self.taps = dilated.weight.detach()[:, 0].T.contiguous()  # (P, H)
        self.narrow = inner.res_conv.weight.detach()[..., 0]  # (C, H)
        self.dilation = dilated.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N), in memory (B, N, C)"""
        rows = x.transpose(1, 2).contiguous()
        out = torch.empty_like(rows)
        for item, result in zip(rows, out, strict=True):
            self.over_rows(item, result)
        return out.transpose(1, 2)

    def over_rows(self, x: Tensor, out: Tensor) -> None:
        """One item (N, C). The hidden frames stand between rows of zeros, as far as the dilated convolution looks; what
        it makes of a frame stands where the first frame that it looks at stood, which no later one needs.
        """
        parts, reach = tiles(len(x), ROWS), self.dilation * (len(self.taps) - 1)
        rows = x.new_empty(len(x) + reach, self.widen.shape[1])  # (N + reach, H)
        h = rows[reach // 2 : reach // 2 + len(x)]
        rows[: reach // 2], rows[reach // 2 + len(x) :] = 0, 0
        moments = [rectified(torch.mm(x[tile], self.widen, out=h[tile]), self.slopes[0]) for tile in parts]
        mean, scale, bias = line(self.norm, moments, parts)
        moments, ready = [], 0
        for tile in parts:
            ahead = h[ready : tile.stop + reach // 2]
            torch.addcmul(bias, ahead.sub_(mean), scale, out=ahead)
            ready += len(ahead)
            z = rows[tile] * self.taps[0]
            for index, tap in enumerate(self.taps[1:], 1):
                z.addcmul_(rows[index * self.dilation :][tile], tap)
            moments.append(rectified(z, self.slopes[1]))
            rows[tile] = z
        mean, scale, bias = line(self.inner_norm, moments, parts)
        weight, shift = (self.narrow * scale).T, self.narrow @ bias
        for tile in parts:
            torch.add(x[tile], shift, out=out[tile]).addmm_(rows[tile].sub_(mean), weight)


def rectified(rows: Tensor, slope: float) -> Moments:
    """PReLU of a tile (n, H) in place, and its moments then."""
    mean = F.leaky_relu_(rows, slope).mean(dim=0)
    return mean, (rows - mean).square_().mean(dim=0)


def line(norm: nn.Module, moments: Sequence[Moments], parts: Sequence[slice]) -> tuple[Tensor, ...]:
    """What a norm subtracts, multiplies with and adds, (H,) each, from the moments of all tiles."""
    assert isinstance(norm, OverTime)
    lengths = torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64)[:, None]
    means, variances = (torch.stack(values).double() for values in zip(*moments, strict=True))
    mean, apart = about(means, lengths)
    frames = parts[-1].stop
    variance = ((variances + apart.square()) * lengths).sum(0, keepdim=True) / frames
    found = norm.line(mean[..., None], variance[..., None], frames)  # (1, H, 1) or less
    return tuple(values.float().flatten() for values in found)
