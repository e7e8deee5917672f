"""Folded residual branches against the plain ones, part by part."""

import pytest
import torch
from torch import Tensor

from sepcli.nn.attention import LocalState, attended
from sepcli.nn.folded import FoldedBranch
from sepcli.nn.residual import DConv
from sepcli.weights.seeded import fill, seeded

SOUNDS = ["noise", "silence", "half silent", "click", "loud", "quiet", "offset"]
every_sound = pytest.mark.parametrize("sound", SOUNDS)


def altered(x: Tensor, sound: str) -> Tensor:
    if sound == "half silent":
        return torch.where(torch.arange(x.shape[-1]) < x.shape[-1] / 2, x, 0.0)
    if sound == "click":
        return torch.where(torch.arange(x.shape[-1]) == 0, 10 * x, 0.1)
    factor, offset = {"silence": (0, 0), "loud": (100, 0), "quiet": (1e-4, 0), "offset": (0.01, 100)}.get(sound, (1, 0))
    return factor * x + offset


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def branches(**settings: bool) -> DConv:
    return fill(DConv(32, **settings), seed=1)  # type: ignore[return-value]


@every_sound
@pytest.mark.parametrize("inner", [False, True], ids=["plain", "with BLSTM and attention"])
@torch.inference_mode()
def test_a_folded_branch_is_the_branch(sound: str, inner: bool) -> None:
    plain = branches(lstm=inner, attention=inner)
    for steps in (1, 2, 3, 64, 403):
        x = altered(seeded("x", (2, 32, steps)), sound)
        found = x.clone()
        for branch in plain.layers:
            FoldedBranch(branch)(found)
        assert relative(found - x, plain(x) - x) < 2e-6 * max(1.0, float(x.norm() / (plain(x) - x).norm())), steps


@every_sound
@torch.inference_mode()
def test_over_rows_the_norms_are_those_of_all_tiles_together(sound: str) -> None:
    plain = branches()
    for steps in (1, 2, 69, 70, 71, 403):
        x = altered(seeded("x", (1, 32, steps)), sound)
        rows = x[0].T.clone(memory_format=torch.contiguous_format)
        tiles = [slice(start, min(start + 70, steps)) for start in range(0, steps, 70)]
        for branch in plain.layers:
            FoldedBranch(branch).over_rows(rows, tiles)
        assert relative(rows.T, plain(x)[0]) < 1e-6, steps


@torch.inference_mode()
def test_attention_a_block_at_a_time_is_attention() -> None:
    layer = LocalState(32)
    fill(layer, seed=1)
    for steps in (1, 2, 31, 32, 33, 150):
        x = seeded("x", (2, 32, steps))
        torch.testing.assert_close(attended(layer, x, block=32), layer(x), atol=2e-6, rtol=0)
