"""Attention over time."""

import torch
from torch import Tensor, nn

from sepcli.errors import UsageError


class LocalState(nn.Module):
    """Attention without positions, whose reach the data controls: (B, H, T) -> (B, H, T), the input added.

    Of each head, with query s and key t: softmax over t of k_t.q_s / sqrt(d) - |t - s| * sum_f f * sigmoid(g_fs) / 4,
    f = 1...4, where g comes from the query's own step; a step does not look at itself. (Hybrid Demucs, "Local
    attention"; the scaling by sqrt(d), the sigmoid's range and the masked self are those of its public code.) Raises
    UsageError where the heads do not divide the width.
    """

    def __init__(self, width: int, *, heads: int = 4, decays: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"local attention over {width} channels: must be a multiple of its {heads} heads")
        self.heads = heads
        self.content = nn.Conv1d(width, width, 1)
        self.query = nn.Conv1d(width, width, 1)
        self.key = nn.Conv1d(width, width, 1)
        self.query_decay = nn.Conv1d(width, heads * decays, 1)
        self.proj = nn.Conv1d(width, width, 1)
        self.register_buffer("slopes", torch.arange(1.0, decays + 1) / (2 * decays**0.5), persistent=False)
        self.slopes: Tensor
        with torch.no_grad():  # a wide window at first
            self.query_decay.weight.mul_(0.01)
            assert self.query_decay.bias is not None
            self.query_decay.bias.fill_(-2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, content, decay = (
            torch.unflatten(layer(x), 1, (self.heads, -1))  # (B, heads, d, T)
            for layer in (self.query, self.key, self.content, self.query_decay)
        )
        step = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32)
        distance = (step[:, None] - step).abs()  # (keys, queries)
        slope = torch.einsum("f,bhfs->bhs", self.slopes, decay.sigmoid())
        scores = key.transpose(2, 3) @ (query / query.shape[2] ** 0.5) - distance * slope[:, :, None]
        weights = scores.masked_fill(distance == 0, -100.0).softmax(dim=2)
        out: Tensor = self.proj((content @ weights).flatten(1, 2))
        return x + out


def attended(layer: LocalState, x: Tensor, block: int = 256) -> Tensor:
    """`layer(x)` for inference, to rounding: a block of queries at a time, so that memory grows with T and not T²."""
    steps = x.shape[-1]
    query, key, content, decay = (
        torch.unflatten(part(x), 1, (layer.heads, -1)).flatten(0, 1)  # (B * heads, d, T)
        for part in (layer.query, layer.key, layer.content, layer.query_decay)
    )
    query = query.transpose(1, 2) / query.shape[1] ** 0.5
    slope = -torch.einsum("f,bfs->bs", layer.slopes, decay.sigmoid())[..., None]
    content = content.transpose(1, 2).contiguous()
    step = torch.arange(steps, dtype=torch.float32)
    out = torch.empty_like(content)
    for first in range(0, steps, block):
        rows = slice(first, min(first + block, steps))
        scores = (slope[:, rows] * (step[rows, None] - step).abs()).baddbmm_(query[:, rows], key)
        scores[:, step[rows].long() - first, step[rows].long()] = -100.0  # a step does not look at itself
        out[:, rows] = scores.softmax(dim=2) @ content
    joined = torch.unflatten(out.transpose(1, 2), 0, (-1, layer.heads)).flatten(1, 2)
    added: Tensor = x + layer.proj(joined)
    return added
