"""Augmentation: each rule does what it says, by seed, whatever the batch around an item."""

import random

import pytest
import torch
from torch import Tensor

from sepcli.training.augment import augment, remixed, repitch, stretched
from sepcli.training.recipe import Augment, Repitch

KEYS = [f"0 0 {index}" for index in range(8)]


def stems(batch: int = 8, length: int = 1000) -> Tensor:
    """Every sample says which item, source, channel and place it is."""
    b, s, c, t = torch.meshgrid(*(torch.arange(n) for n in (batch, 3, 2, length)), indexing="ij")
    return (1 + b + 10 * s + 100 * c + 1000 * t).double()


def test_nothing_asked_is_the_beginning_of_the_excerpt() -> None:
    assert torch.equal(augment(stems(), Augment(), 600, 100, KEYS), stems()[..., :600])


@pytest.mark.parametrize("together", [False, True])
def test_a_shift_moves_each_source_or_all_together(together: bool) -> None:
    out = augment(stems(), Augment(shift=4.0, together=together), 600, 100, KEYS)
    assert out.shape == (8, 3, 2, 600)
    offsets = (out[:, :, 0, 0] - stems()[:, :, 0, 0]) / 1000
    assert bool(((offsets >= 0) & (offsets <= 400)).all())
    assert len(offsets.unique()) > 5
    assert bool((offsets == offsets[:, :1]).all()) is together
    assert torch.equal(out.diff(dim=-1), torch.full((8, 3, 2, 599), 1000.0, dtype=torch.float64))


def test_channels_and_signs_turn_half_the_time() -> None:
    many = stems().repeat(40, 1, 1, 1)[..., :4]
    keys = [f"0 1 {index}" for index in range(320)]
    out = augment(many, Augment(swap=0.5, sign=0.5), 4, 100, keys)
    swapped = (out.abs() == many.flip(2)).all(-1).all(-1)
    assert bool((swapped | (out.abs() == many).all(-1).all(-1)).all())
    turned = (out < 0).all(-1).all(-1)
    assert bool((turned | (out > 0).all(-1).all(-1)).all())
    for share in (swapped, turned):
        assert float(share.double().mean()) == pytest.approx(0.5, abs=0.06)  # 960 draws: four deviations


def test_a_factor_lies_within_its_range() -> None:
    out = augment(stems(), Augment(scale=(0.25, 1.25)), 1000, 100, KEYS) / stems()
    factors = out[:, :, 0, 0]
    assert torch.allclose(out, factors[..., None, None].expand_as(out), rtol=1e-12)
    assert 0.25 <= float(factors.min()) < 0.6
    assert 0.9 < float(factors.max()) <= 1.25


def test_a_gain_is_drawn_in_decibels() -> None:
    factors = (augment(stems(), Augment(gain=(-8.0, 8.0)), 1000, 100, KEYS) / stems())[:, :, 0, 0]
    decibels = 20 * factors.log10()
    assert -8 <= float(decibels.min()) < -4
    assert 4 < float(decibels.max()) <= 8


def test_sources_are_dropped_as_often_as_asked() -> None:
    many = stems().repeat(40, 1, 1, 1)[..., :4]
    out = augment(many, Augment(drop=0.1), 4, 100, [f"0 1 {index}" for index in range(320)])
    dropped = (out == 0).all(-1).all(-1)
    assert torch.equal(torch.where(dropped[..., None, None], many, out), many)
    assert float(dropped.double().mean()) == pytest.approx(0.1, abs=0.04)  # 960 draws: four deviations


def test_the_peak_rule_looks_at_the_largest_signed_sample() -> None:
    sound = torch.tensor([[[[0.1, -0.9, 0.2, 0.0]]], [[[0.0005, 0.0, -1.0, 0.0]]]])
    out = augment(sound, Augment(peak=0.4), 4, 100, KEYS[:2])
    assert out[0, 0, 0].tolist() == pytest.approx([0.2, -1.8, 0.4, 0.0])
    assert torch.equal(out[1], sound[1]), "silence stays as it is"


def test_whole_items_become_mono_as_often_as_asked() -> None:
    many = stems().repeat(40, 1, 1, 1)[..., :4]
    keys = [f"0 1 {index}" for index in range(320)]
    out = augment(many, Augment(mono=0.25, remix=4), 4, 100, keys)
    same = augment(many, Augment(remix=4), 4, 100, keys)
    folded = (out[:, :, 0] == out[:, :, 1]).all(-1).all(-1)
    assert torch.equal(out[~folded], same[~folded])
    assert torch.equal(out[folded], same[folded].mean(dim=2, keepdim=True).expand(-1, -1, 2, -1))
    assert float(folded.double().mean()) == pytest.approx(0.25, abs=0.1)  # 320 draws: four deviations


def test_remix_permutes_each_source_within_groups() -> None:
    out = remixed(stems(), 4, [random.Random(key) for key in KEYS])
    numbers = (out[:, :, 0, 0] - 1) % 10
    for group in (numbers[:4], numbers[4:]):
        for source in range(3):
            assert sorted(group[:, source].tolist()) == sorted(group[:, source].unique().tolist())
    assert set(numbers[:4].flatten().tolist()) == {0, 1, 2, 3}
    assert bool((numbers != numbers[:, :1]).any())
    assert torch.equal(((out[:, :, 0, 0] - 1) // 10) % 10, torch.arange(3).expand(8, 3).double())


def test_an_item_is_the_same_in_any_batch() -> None:
    rules = Augment(shift=2.0, swap=0.5, sign=0.5, scale=(0.25, 1.25), remix=4)
    whole = augment(stems(), rules, 600, 100, KEYS)
    halves = [augment(stems()[part], rules, 600, 100, KEYS[part]) for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, augment(stems(), rules, 600, 100, [f"1 {key}" for key in KEYS]))


@pytest.mark.parametrize(("pitch", "tempo"), [(2 ** (2 / 12), 1.0), (1.0, 1.12), (2 ** (-1 / 12), 0.9)])
def test_pitch_and_tempo_change_each_on_its_own(pitch: float, tempo: float) -> None:
    pytest.importorskip("torchaudio")
    rate, frequency = 44100, 1000.0
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(2 * rate) / rate).expand(1, 2, -1)
    out = stretched(tone, rate, pitch, tempo)
    assert out.shape[-1] == pytest.approx(2 * rate / tempo, abs=2)
    middle = out[0, 0, 20_000 : 20_000 + 32_768] * torch.hann_window(32_768)
    peak = int(torch.fft.rfft(middle).abs().argmax()) * rate / 32_768
    assert peak == pytest.approx(frequency * pitch, abs=1.5)


def test_what_is_not_repitched_is_only_cut() -> None:
    sound = torch.arange(100.0).expand(3, 2, 100)
    assert torch.equal(repitch(sound, Repitch(chance=0.0), 100, 88, random.Random(0)), sound[..., :88])
    changed = repitch(torch.randn(3, 2, 20_000), Repitch(chance=1.0), 100, 17_600, random.Random(0))
    assert changed.shape == (3, 2, 17_600)
