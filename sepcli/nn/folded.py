"""Residual branches for inference, equal to those of residual.py to rounding: in tiles that stay in the cache, and
with the second norm folded into the convolution before it, so that its output is written once.

GroupNorm(1) of z = W h + b needs the mean and the deviation of z, which has eight times the channels of h. Both follow
from h: with m its mean over time and G its centred Gram matrix, z's channels have the means W m + b, and z's variance
is the mean of w G w' over the rows w of W, plus the variance of those means. Both are means of squares, so nothing
cancels, also where half of the sound is silent; they are summed in float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.nn.attention import LocalState, attended
from sepcli.nn.residual import LayerScale


class FoldedBranch(nn.Module):
    """One branch of a DConv, computed in place: x += branch(x). Copies the weights when it is made."""

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        first, norm, _, *self.inner, last, last_norm, _, scale = branch
        assert isinstance(first, nn.Conv1d)
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(last_norm, nn.GroupNorm)
        assert isinstance(scale, LayerScale)
        self.hidden, self.channels, self.dilation = first.out_channels, first.in_channels, first.dilation[0]
        taps, bias = parameters(first)
        self.taps, self.bias = taps.movedim(2, 0).flatten(0, 1).contiguous(), bias[:, None]  # (3 H', H)
        self.norm = norm
        # The last convolution and what follows it, in float64: the second norm, and LayerScale before the GLU's gate.
        weight, bias = parameters(last)
        self.weight, self.last_bias = weight[..., 0].double(), bias.double()  # (2 H, H')
        self.gram = self.weight.T @ self.weight / len(self.weight)
        scales = torch.cat([scale.scale.detach(), torch.ones(self.channels)]).double()
        self.gain, self.shift = last_norm.weight.detach() * scales, last_norm.bias.detach() * scales
        self.eps = last_norm.eps

    def forward(self, x: Tensor) -> None:
        """(B, H, N), each item by itself over all of its steps."""
        count, _, steps = x.shape
        h = self.summed(torch.bmm(self.taps.expand(count, -1, -1), x), 0, steps)
        h = F.gelu(self.norm(h))
        for part in self.inner:
            h = attended(part, h) if isinstance(part, LocalState) else part(h)
        mean = h.mean(dim=2)
        h = h - mean[..., None]
        wide = h.double()  # a click in silence: in float32 its square swallows those of all that is constant
        weight, bias = self.folded(mean, torch.bmm(wide, wide.transpose(1, 2)) / steps)
        z = torch.baddbmm(bias[..., None], weight, h)
        x.addcmul_(z[:, : self.channels], z[:, self.channels :].sigmoid_())

    def over_rows(self, rows: Tensor, tiles: Sequence[slice]) -> None:
        """One item (T, H), tile by tile, for branches without a part inside: the norms are over all of its rows."""
        h = torch.empty(self.hidden, len(rows))
        for tile in tiles:
            first = max(0, tile.start - self.dilation)
            seen = rows[first : tile.stop + self.dilation]
            steps = tile.stop - tile.start
            h[:, tile] = self.summed((self.taps @ seen.T)[None], tile.start - first, steps)[0]
        lengths = torch.tensor([tile.stop - tile.start for tile in tiles], dtype=torch.float64)[:, None]
        self.normalise(h, tiles, lengths)

        means, grams = [], []
        for tile in tiles:
            y = F.gelu(h[:, tile])
            means.append(y.mean(dim=1))
            wide = torch.sub(y, means[-1][:, None], out=h[:, tile]).double()
            grams.append(wide @ wide.T)
        mean, apart = about(torch.stack(means).double(), lengths)
        gram = torch.stack(grams).sum(0) + (apart * lengths).T @ apart
        weight, bias = self.folded(mean, gram[None] / len(rows))
        up, gate = weight[0].T.contiguous().tensor_split(2, dim=1)
        biases = torch.addmm(bias, apart.float(), weight[0].T)
        for tile, (up_bias, gate_bias) in zip(tiles, torch.unflatten(biases, 1, (2, -1)), strict=True):
            y = h[:, tile].T
            rows[tile].addcmul_(torch.addmm(up_bias, y, up), torch.addmm(gate_bias, y, gate).sigmoid_())

    def summed(self, taps: Tensor, first: int, steps: int) -> Tensor:
        """The three taps' products (B, 3 H', N) as the convolution (B, H', steps) that begins at step `first`."""
        left, middle, right = taps.tensor_split(3, dim=1)
        h = middle[..., first : first + steps] + self.bias
        begin = min(steps, max(0, self.dilation - first))  # before it there is no step so far to the left
        h[..., begin:] += left[..., max(0, first - self.dilation) : max(0, first + steps - self.dilation)]
        end = max(0, min(steps, taps.shape[-1] - first - self.dilation))
        h[..., :end] += right[..., first + self.dilation : first + self.dilation + end]
        return h

    def normalise(self, h: Tensor, tiles: Sequence[slice], lengths: Tensor) -> None:
        """The first norm over all of h (H', T), in place. A tile's sums are about its own mean."""
        means = torch.stack([h[:, tile].mean() for tile in tiles]).double()[:, None]
        squares = sum(
            torch.linalg.vector_norm(h[:, tile] - mean.float(), dtype=torch.float64) ** 2
            for tile, mean in zip(tiles, means, strict=True)
        )
        mean, apart = about(means, lengths)
        variance = squares / h.numel() + (apart.square() * lengths).sum() / lengths.sum()
        gain = self.norm.weight.detach() / (variance + self.norm.eps).sqrt()
        shift = (self.norm.bias.detach() - mean[0] * gain).float()
        for tile in tiles:
            torch.addcmul(shift[:, None], h[:, tile], gain.float()[:, None], out=h[:, tile])

    def folded(self, mean: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (B, 2 H, H') and bias (B, 2 H) that take h, less its mean (B, H'), to what the GLU is given.

        `gram` (B, H', H') is the mean over time of the products of the channels of h, less its mean.
        """
        means = mean.double() @ self.weight.T + self.last_bias
        apart = means - means.mean(dim=1, keepdim=True)
        variance = (gram * self.gram).sum((1, 2)).clamp_min(0) + apart.square().mean(dim=1)
        scale = self.gain / (variance[:, None] + self.eps).sqrt()
        return (scale[..., None] * self.weight).float(), (scale * apart + self.shift).float()


def parameters(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias, without gradients."""
    assert isinstance(convolution, nn.Conv1d | nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight.detach(), convolution.bias.detach()


def about(means: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (1, H') of tiles' means (tiles, H') of these lengths (tiles, 1), and how far each is from it."""
    mean = (means * lengths).sum(0, keepdim=True) / lengths.sum()
    return mean, means - mean
