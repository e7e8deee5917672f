"""The shared parts of Conv-TasNet: framing, overlap-add, blocks, first values."""

import pytest
import torch
from torch import nn

from sepcli.errors import UsageError
from sepcli.nn.norm import ChannelNorm
from sepcli.nn.tcn import (
    Decoder,
    Encoder,
    TemporalBlock,
    check_sizes,
    finite_context,
    fit_length,
    initialise,
    pad_to_frames,
    temporal_blocks,
)


def test_the_encoder_is_a_strided_product_with_its_filters():
    encoder, x = Encoder(2, 3, 8), torch.randn(1, 2, 24)
    frames = x.unfold(2, 8, 4)  # (B, C, N, kernel)
    wanted = torch.einsum("bcnk,fck->bfn", frames, encoder.conv1d_U.weight).relu()
    torch.testing.assert_close(encoder(x), wanted, rtol=0, atol=1e-6)


def test_the_decoder_overlap_adds_basis_signals_channel_by_channel():
    decoder, latent = Decoder(2, 3, 8), torch.randn(1, 2, 3, 5)
    frames = decoder.basis_signals(latent.transpose(2, 3)).unflatten(-1, (2, 8))  # (B, S, N, C, kernel)
    wanted = torch.zeros(1, 2, 2, 24)
    for n in range(5):
        wanted[..., 4 * n : 4 * n + 8] += frames[:, :, n]
    torch.testing.assert_close(decoder(latent), wanted, rtol=0, atol=1e-6)


def test_a_block_adds_what_it_hears_at_its_own_dilation():
    block = TemporalBlock(2, 4, 3, 4, ChannelNorm)
    x = torch.randn(1, 2, 31, requires_grad=True)
    (block(x) - x)[0, :, 15].sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum(0).nonzero().flatten().tolist() == [11, 15, 19]


def test_a_repeat_doubles_its_dilation_from_one():
    dilations = [block.net[3].net[0].dilation for block in temporal_blocks(2, 4, 3, 5, ChannelNorm)]
    assert dilations == [(1,), (2,), (4,), (8,), (16,)]


@pytest.mark.parametrize(
    ("length", "tail", "padded"),
    [(1, "pad", 20), (20, "pad", 20), (21, "pad", 30), (1205, "pad", 1210), (1205, "public", 1205), (7, "public", 20)],
)
def test_padding_reaches_whole_strides_and_a_whole_filter(length, tail, padded):
    x = torch.ones(1, 1, length)
    heard = pad_to_frames(x, stride=10, least=20, tail=tail)
    assert heard.shape[-1] == padded
    assert heard.sum() == length


def test_a_length_is_cut_or_filled():
    assert fit_length(torch.ones(2, 5), 3).tolist() == [[1, 1, 1]] * 2
    assert fit_length(torch.ones(1, 2), 4).tolist() == [[1, 1, 0, 0]]


def test_the_context_of_published_sizes_is_765_and_4092_frames_and_a_filter():
    assert finite_context(kernel=20, block_kernel=3, depth=8, repeats=3) == 7_670
    assert finite_context(kernel=20, block_kernel=3, depth=10, repeats=4) == 40_940


def test_first_gains_are_one_unless_as_public_code_draws_them():
    standard, public = ((nn.ModuleList([ChannelNorm(256), nn.Conv1d(4, 4, 1)])) for _ in range(2))
    torch.manual_seed(0)
    initialise(standard, "standard")
    initialise(public, "public")
    assert standard[0].gamma.unique().tolist() == [1.0]
    assert public[0].gamma.std().item() == pytest.approx((2 / 257) ** 0.5, rel=0.15)
    assert public[0].beta.std().item() == pytest.approx((2 / 257) ** 0.5, rel=0.15)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernel": 21, "block_kernel": 3}, "kernel = 21: must be even"),
        ({"kernel": 20, "block_kernel": 4}, "block_kernel = 4: must be odd"),
        ({"kernel": 20, "block_kernel": 3, "hidden": -1}, "hidden = -1: must be at least 1"),
        ({"kernel": 0, "block_kernel": 3}, "kernel = 0: must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes, message):
    with pytest.raises(UsageError, match=message):
        check_sizes(**sizes)
