"""Local attention, head by head and query by query."""

import pytest
import torch
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.nn.attention import LocalState
from sepcli.weights.seeded import fill, seeded


def spelled_out(network: LocalState, x: Tensor) -> Tensor:
    """The formula of the docstring in float64, one query at a time."""
    weights = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def layer(name: str, values: Tensor) -> Tensor:
        return weights[f"{name}.weight"][..., 0] @ values + weights[f"{name}.bias"][:, None]

    values = x.double()
    query, key, content, decay = (layer(name, values) for name in ("query", "key", "content", "query_decay"))
    out = torch.empty_like(values)
    size = len(values) // 4
    step = torch.arange(values.shape[-1])
    for head in range(4):
        rows = slice(head * size, head * size + size)
        for s in step:
            scores = key[rows].T @ query[rows, s] / size**0.5
            for f in range(4):
                scores = scores - (f + 1) * (step - s).abs() * torch.sigmoid(decay[head * 4 + f, s]) / 4
            scores[s] = -100
            out[rows, s] = content[rows] @ torch.softmax(scores, 0)
    return values + layer("proj", out)


@pytest.mark.parametrize("steps", [1, 2, 150, 301])
@torch.inference_mode()
def test_it_is_the_formula(steps: int) -> None:
    network = LocalState(8)
    fill(network)
    x = seeded("x", (1, 8, steps))
    torch.testing.assert_close(network(x)[0].double(), spelled_out(network, x[0]), atol=2e-6, rtol=0)


def test_it_begins_with_a_wide_window() -> None:
    network = LocalState(192)
    assert bool((network.query_decay.bias == -2).all())
    assert float(network.query_decay.weight.detach().std()) == pytest.approx(0.01 / (3 * 192) ** 0.5, rel=0.05)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="10 channels"):
        LocalState(10)


@pytest.mark.reference
@torch.inference_mode()
def test_it_is_the_attention_of_demucs() -> None:
    pytest.importorskip("demucs")
    from demucs.demucs import LocalState as Theirs

    ours, theirs = LocalState(16), Theirs(16)
    fill(ours)
    theirs.load_state_dict(ours.state_dict())
    for steps in (1, 2, 200, 1895):
        x = seeded("x", (2, 16, steps))
        torch.testing.assert_close(ours(x), theirs(x), atol=2e-6, rtol=0)
