"""Bidirectional LSTM over time, whole or in frames of limited span."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BLSTM(nn.Module):
    """Two-layer bidirectional LSTM and a linear layer back to its width: (B, H, T) -> (B, H, T).

    With a `span`, longer inputs are cut into frames of `span` steps, half overlapping, and each step is taken from the
    frame in which it lies furthest from an edge (Hybrid Demucs, "Compressed residual branches"; span 200 there).
    `skip` adds the input.
    """

    def __init__(self, width: int, *, layers: int = 2, span: int | None = None, skip: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=layers, bidirectional=True)
        self.linear = nn.Linear(2 * width, width)
        self.span = span
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[-1]
        if self.span is None or steps <= self.span:
            y = self.recur(x)
        else:
            stride = self.span // 2
            count = math.ceil(steps / stride)
            padded = F.pad(x, (0, (count - 1) * stride + self.span - steps))
            frames = padded.unfold(-1, self.span, stride).movedim(2, 1)  # (B, n, H, span)
            frames = torch.unflatten(self.recur(frames.flatten(0, 1)), 0, (-1, count))
            edge = stride // 2
            middles = frames[..., edge : edge + stride].movedim(1, 2).flatten(2)  # (B, H, n * stride)
            y = torch.cat([frames[:, 0, :, :edge], middles, frames[:, -1, :, edge + stride :]], dim=-1)[..., :steps]
        return y + x if self.skip else y

    def recur(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.permute(2, 0, 1))  # (T, B, 2H)
        out: Tensor = self.linear(y)
        return out.permute(1, 2, 0)
