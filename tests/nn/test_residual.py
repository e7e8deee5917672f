"""Compressed residual branches and the rescaling of first weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sepcli.errors import UsageError
from sepcli.nn.attention import LocalState
from sepcli.nn.residual import DConv, rescale_convolutions
from sepcli.weights.seeded import fill, seeded


@torch.inference_mode()
def test_a_branch_is_squeeze_norm_gelu_widen_norm_glu_and_scale() -> None:
    network = DConv(8, depth=1)
    fill(network)
    p = {name.removeprefix("layers.0."): tensor for name, tensor in network.state_dict().items()}
    x = seeded("x", (2, 8, 50))
    y = F.conv1d(x, p["0.weight"], p["0.bias"], padding=1)
    y = F.gelu(F.group_norm(y, 1, p["1.weight"], p["1.bias"]))
    y = F.group_norm(F.conv1d(y, p["3.weight"], p["3.bias"]), 1, p["4.weight"], p["4.bias"])
    y = y[:, :8] * torch.sigmoid(y[:, 8:])
    torch.testing.assert_close(network(x), x + p["6.scale"][:, None] * y, atol=1e-6, rtol=0)


def test_branches_look_further_from_one_to_the_next() -> None:
    network = DConv(8, depth=3)
    assert [layer[0].dilation for layer in network.layers] == [(1,), (2,), (4,)]  # type: ignore[index]


def test_the_first_scale_is_the_one_asked_for() -> None:
    scales = [p for name, p in DConv(8, initial=0.02).named_parameters() if name.endswith("scale")]
    assert len(scales) == 2
    assert all(bool((scale == 0.02).all()) for scale in scales)


def test_a_branch_of_a_single_channel_is_refused() -> None:
    with pytest.raises(UsageError, match="4 / 4 channels: must be at least 2"):
        DConv(4)
    with pytest.raises(UsageError, match="0 residual branches"):
        DConv(8, depth=0)


def test_rescaling_takes_the_root_of_the_deviation() -> None:
    layer = nn.Conv1d(64, 64, 8)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # type: ignore[union-attr]
    rescale_convolutions(nn.Sequential(layer), 0.1)
    scale = float((weight.std() / 0.1).sqrt())
    torch.testing.assert_close(layer.weight, weight / scale, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.bias, bias / scale, atol=1e-6, rtol=1e-5)


def test_rescaling_shuts_the_decay_of_attention() -> None:
    network = LocalState(192)
    rescale_convolutions(network, 0.1)
    assert float(network.query_decay.bias.detach().mean()) == pytest.approx(-30.9, abs=0.5)


@pytest.mark.reference
@torch.inference_mode()
def test_they_are_the_branches_of_demucs() -> None:
    pytest.importorskip("demucs")
    from demucs.demucs import DConv as Theirs

    for inside in (False, True):
        ours = DConv(32, lstm=inside, attention=inside)
        theirs = Theirs(32, lstm=inside, attn=inside)
        fill(ours)
        theirs.load_state_dict(ours.state_dict())
        for steps in (1, 200, 301):
            x = seeded("x", (2, 32, steps))
            torch.testing.assert_close(ours(x), theirs(x), atol=2e-6, rtol=0)
