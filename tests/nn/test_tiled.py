"""Hybrid Demucs' tiled layers against the plain ones, one by one."""

import pytest
import torch
from torch import Tensor

from sepcli.nn.hybrid import Axis, DecoderLayer, EncoderLayer, Level
from sepcli.nn.residual import DConv
from sepcli.nn.tiled import (
    SpectralDecoder,
    SpectralEncoder,
    WaveformDecoder,
    WaveformEncoder,
    bordered,
    bordered_rows,
    inside,
    windows,
)
from sepcli.weights.seeded import fill, seeded
from tests.nn.test_folded import altered, every_sound, relative

WIDTH = 16


def encoder(axis: Axis) -> EncoderLayer:
    return fill(EncoderLayer(4, Level(WIDTH, 0, True, DConv(WIDTH)), axis), seed=1)  # type: ignore[return-value]


def decoder(axis: Axis, *, last: bool) -> DecoderLayer:
    """With residual branches, as Hybrid Transformer Demucs has them, where it is not the last one."""
    residual = None if last else DConv(WIDTH)
    return fill(DecoderLayer(Level(WIDTH, 0, True, residual), 6, axis, last=last), seed=1)  # type: ignore[return-value]


def spectral(x: Tensor) -> Tensor:
    """(F, C, N) in a buffer."""
    buffer = bordered(*x.shape)
    inside(buffer).copy_(x)
    return buffer


@every_sound
@torch.inference_mode()
def test_a_tiled_encoder_over_bins_is_the_layer(sound: str) -> None:
    layer, embedding = encoder(Axis(spectral=True)), seeded("embedding", (8, WIDTH, 1))
    for frames in (1, 2, 5, 130):
        x = altered(seeded("x", (1, 4, 32, frames)), sound)
        found = SpectralEncoder(layer, embedding)(spectral(x[0].transpose(0, 1)))
        expected = layer(layer.reduce(x))[0].transpose(0, 1) + embedding
        assert relative(inside(found), expected) < 1e-6
        assert not found[:2].any()
        assert not found[-2:].any()
        assert not found[..., [0, -1]].any(), "the borders are zero: the next layer reads them"


@every_sound
@pytest.mark.parametrize("last", [False, True], ids=["added to a skip connection", "last"])
@torch.inference_mode()
def test_a_tiled_decoder_over_bins_is_the_layer(sound: str, last: bool) -> None:
    layer = decoder(Axis(spectral=True), last=last)
    for frames in (1, 2, 130):
        x, skip = altered(seeded("x", (1, WIDTH, 8, frames)), sound), seeded("skip", (32, 6, frames))
        found = skip.clone()
        SpectralDecoder(layer)(spectral(x[0].transpose(0, 1)), found)
        expected = layer(layer.mix(x), 32)[0].transpose(0, 1) + (0 if last else skip)
        assert relative(found, expected) < 2e-6


@every_sound
@torch.inference_mode()
def test_a_tiled_encoder_over_samples_is_the_layer(sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepcli.nn.tiled.ROWS", 50 * WIDTH)
    layer = encoder(Axis(spectral=False))
    for length in (1, 3, 4, 5, 399, 400, 401, 1203):
        x = altered(seeded("x", (1, 4, length)), sound)
        found = WaveformEncoder(layer)(bordered_rows(x[0].T), length)
        expected = layer(layer.reduce(x))[0].T
        assert relative(found[2 : 2 + len(expected)], expected) < 1e-6, length
        assert not found[:2].any()
        assert not found[2 + len(expected) :].any()
        assert len(found) >= 4 * -(-len(expected) // 4) + 4, "a stride's rest is there as zeros"


@every_sound
@pytest.mark.parametrize("last", [False, True], ids=["added to a skip connection", "last"])
@torch.inference_mode()
def test_a_tiled_decoder_over_samples_is_the_layer(sound: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepcli.nn.tiled.ROWS", 50 * WIDTH)
    layer = decoder(Axis(spectral=False), last=last)
    for length, size in ((1, 1), (1, 4), (2, 5), (49, 196), (50, 200), (51, 202), (120, 478)):
        x, skip = altered(seeded("x", (1, WIDTH, length)), sound), seeded("skip", (size, 6))
        found = skip.clone()
        WaveformDecoder(layer)(bordered_rows(x[0].T), length, found)
        expected = layer(layer.mix(x), size)[0].T + (0 if last else skip)
        assert relative(found, expected) < 1e-6, (length, size)


def test_windows_are_views_of_neighbouring_rows() -> None:
    x = torch.arange(30.0).reshape(10, 3)
    found = windows(x, 1, 2, 4, 3)
    assert found.tolist() == [list(range(3, 15)), list(range(12, 24))]
    assert found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
