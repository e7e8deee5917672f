"""The limited span of the BLSTM, step by step."""

import pytest
import torch

from sepcli.nn.lstm import BLSTM
from sepcli.weights.seeded import fill, seeded


@pytest.mark.parametrize("steps", [1, 150, 200, 201, 300, 301, 1895])
@torch.inference_mode()
def test_each_step_comes_from_the_frame_in_which_it_lies_furthest_from_an_edge(steps: int) -> None:
    network = BLSTM(4, span=200, skip=True)
    fill(network)
    x = seeded("x", (2, 4, steps))
    whole = BLSTM(4)
    whole.load_state_dict(network.state_dict())

    expected = torch.empty_like(x)
    if steps <= 200:
        expected = whole(x)
    else:
        starts = range(0, steps, 100)
        padded = torch.nn.functional.pad(x, (0, 200))
        frames = {start: whole(padded[..., start : start + 200]) for start in starts}
        for step in range(steps):
            holding = [start for start in starts if start <= step < start + 200]
            start = max(holding, key=lambda start: (min(step - start, start + 199 - step), start))
            expected[..., step] = frames[start][..., step - start]
    torch.testing.assert_close(network(x), expected + x, atol=2e-6, rtol=0)


def test_without_span_and_skip_it_is_lstm_and_linear() -> None:
    network = BLSTM(6, layers=1)
    fill(network)
    x = seeded("x", (2, 6, 450))
    y = network.linear(network.lstm(x.permute(2, 0, 1))[0]).permute(1, 2, 0)
    assert torch.equal(network(x), y)


@pytest.mark.reference
@torch.inference_mode()
def test_it_is_the_blstm_of_demucs() -> None:
    pytest.importorskip("demucs")
    from demucs import demucs as public

    for ours, theirs in (
        (BLSTM(8, span=200, skip=True), public.BLSTM(8, layers=2, max_steps=200, skip=True)),
        (BLSTM(8), public.BLSTM(8, layers=2)),
    ):
        fill(ours)
        theirs.load_state_dict(ours.state_dict())
        for steps in (1, 200, 201, 523):
            x = seeded("x", (2, 8, steps))
            torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)
