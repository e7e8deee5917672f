"""The norms against their formulas."""

import pytest
import torch

from sepcli.nn.norm import ChannelNorm, GlobalNorm


def features() -> torch.Tensor:
    return 3 + 2 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("norm", "axes"), [(ChannelNorm, (1,)), (GlobalNorm, (1, 2))])
def test_a_norm_is_the_papers_formula(norm, axes):
    layer, x = norm(5), features()
    with torch.no_grad():
        layer.gamma.copy_(torch.linspace(0.5, 2, 5).view(1, 5, 1))
        layer.beta.copy_(torch.linspace(-1, 1, 5).view(1, 5, 1))
    mean = x.mean(axes, keepdim=True)
    deviation = (x.var(axes, keepdim=True, unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(layer(x), layer.gamma * (x - mean) / deviation + layer.beta, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", [ChannelNorm, GlobalNorm])
def test_the_small_constant_stands_inside_the_root(norm):
    x = 1e-4 * torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])  # variance 1e-8, so the root is 1.4142e-4
    torch.testing.assert_close(norm(2)(x), x / 2e-8**0.5, rtol=1e-4, atol=0)


def test_a_channel_norm_sees_one_frame_and_a_global_norm_sees_all():
    x = features()
    changed = x.clone()
    changed[:, :, -1] += 1
    assert torch.equal(ChannelNorm(5)(x)[..., :-1], ChannelNorm(5)(changed)[..., :-1])
    assert (GlobalNorm(5)(x)[..., 0] - GlobalNorm(5)(changed)[..., 0]).abs().min() > 1e-4


@pytest.mark.parametrize("norm", [ChannelNorm, GlobalNorm])
def test_silence_stays_silent(norm):
    assert torch.equal(norm(3)(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))
