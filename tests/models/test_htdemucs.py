"""Hybrid Transformer Demucs against published counts, its rules of length, its files, and demucs 4.1.0."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli.errors import ModelError, UsageError
from sepcli.inference.stream import cut_for, estimates, overlap_add, pieces
from sepcli.models import build
from sepcli.models.htdemucs import HTDemucs, line_positions, plane_positions
from sepcli.models.htdemucs_fast import FastHTDemucs
from sepcli.models.separator import Traits
from sepcli.weights.catalog import catalog, find
from sepcli.weights.load import load_separator
from sepcli.weights.seeded import fill, seeded
from sepcli.weights.votes import candidates
from tests.nn.test_folded import altered, relative
from tests.weights import published_files as files

SOURCES = ["drums", "bass", "other", "vocals"]
TRAITS: Traits = {"sources": SOURCES, "channels": 2, "sample_rate": 44100, "segment": 0.5, "level": {}}
SMALL: dict[str, Any] = {"trained": 0.5, "width": 16}
KLASS = "demucs.htdemucs.HTDemucs"


def ours(**settings: Any) -> HTDemucs:
    model = HTDemucs(**{**SMALL, **settings}, **TRAITS)
    fill(model, seed=1)
    return model.eval()


def mixture(length: int, batch: int = 1) -> Tensor:
    return 0.3 * seeded("mixture", (batch, 2, length))


def decibels(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [("htdemucs", 41_984_456, 533), ("htdemucs_6s", 27_414_996, 525)]
    + [(name, 41_984_456, 533) for name in ("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d")],
)
def test_the_published_sizes_are_met(name: str, parameters: int, entries: int) -> None:
    entry = find(name)
    traits: Traits = {**TRAITS, "sources": entry.sources, "segment": entry.segment}
    with torch.device("meta"):
        model = build(entry.architecture, entry.settings, traits)
    assert sum(p.numel() for p in model.parameters()) == parameters == entry.parameters
    assert len(model.state_dict()) == entries
    assert model.piece == 343_980


@torch.inference_mode()
def test_positions_are_sines_of_the_frame_and_of_the_bin() -> None:
    plane = plane_positions(torch.zeros(1, 7, 5, 16))
    assert plane.shape == (7, 5, 16)
    assert float(plane[3, 2, 2]) == pytest.approx(torch.sin(torch.tensor(3 / 10_000**0.25)).item(), abs=1e-6)
    assert float(plane[3, 2, 9]) == pytest.approx(torch.cos(torch.tensor(2.0)).item(), abs=1e-6)
    line = line_positions(torch.zeros(1, 7, 16))
    assert float(line[3, 1]) == pytest.approx(torch.cos(torch.tensor(3 / 10_000 ** (1 / 7))).item(), abs=1e-6)
    assert float(line[3, 8]) == pytest.approx(torch.sin(torch.tensor(3.0)).item(), abs=1e-6)


@torch.inference_mode()
def test_less_than_it_was_trained_on_is_filled_with_zeros_and_more_is_refused() -> None:
    model = ours()
    short = mixture(9000)
    whole = torch.cat([short, torch.zeros(1, 2, 22_050 - 9000)], dim=-1)
    assert torch.equal(model(short).waveforms, model(whole).waveforms[..., :9000])
    with pytest.raises(UsageError, match="22051 samples at once: must be at most 22050"):
        model(mixture(22_051))


def test_in_training_any_length_is_taken_as_it_is() -> None:
    model = ours().train()
    short = mixture(9000)
    whole = torch.cat([short, torch.zeros(1, 2, 22_050 - 9000)], dim=-1)
    found = model(short).waveforms.detach()
    assert found.shape[-1] == 9000
    assert decibels(found, model(whole).waveforms.detach()[..., :9000]) < 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"width": 8}, "8 / 8 channels: must be at least 2"),
        ({"nfft": 1024}, "nfft = 1024: must be a power of two, 2048 or more with 4 layers"),
        ({"nfft": 5000}, "nfft = 5000: must be a power of two"),
        ({"dconv_mode": 4}, "dconv_mode = 4"),
        ({"t_layers": 0}, "t_layers = 0: must be at least 1"),
        ({"t_heads": 7}, "128 channels of the transformer: must be a multiple of 4 and of t_heads = 7"),
        ({"trained": 0.25}, r"segment = 0\.5: must be at most 0\.25 s, on which the network was trained"),
    ],
)
def test_the_impossible_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HTDemucs(**{**SMALL, **settings}, **TRAITS)


def test_only_the_specialists_of_the_wanted_stems_have_a_vote() -> None:
    found = {candidate.model: candidate.votes for candidate in candidates("htdemucs_ft")}
    assert {model: [s for s, vote in votes.items() if vote] for model, votes in found.items()} == {
        "f7e0c4bc": ["drums"],
        "d12395a8": ["bass"],
        "92cfc3b6": ["other"],
        "04573f0d": ["vocals"],
    }
    assert all(catalog()[model].sources == tuple(SOURCES) for model in found)


# -- files -------------------------------------------------------------------------------------------------------------

SAID = {"sources": SOURCES, "channels": 16, "dconv_mode": 3, "multi_freqs": [], "t_dropout": 0.02, "t_lr": None}


@pytest.mark.parametrize("form", ["th", "safetensors"])
@torch.inference_mode()
def test_a_file_of_its_authors_is_built_as_it_says(tmp_path: Path, form: str) -> None:
    made = ours(trained=7.8)
    path = tmp_path / f"x.{form}"
    if form == "th":
        path.write_bytes(files.package(made.state_dict(), SAID, klass=KLASS))
    else:
        files.demucs_safetensors(path, made.state_dict(), SAID, klass=KLASS)
    loaded = load_separator(str(path))
    assert loaded.entry.name == "htdemucs"
    assert loaded.separator.segment == loaded.separator.trained == 7.8
    made.load_state_dict({name: tensor.half().float() for name, tensor in made.state_dict().items()})
    sound = mixture(5000)
    assert torch.equal(loaded.separator(sound).waveforms, made(sound).waveforms)


def test_a_longer_segment_than_the_files_is_refused_and_another_family_named(tmp_path: Path) -> None:
    path = tmp_path / "x.th"
    path.write_bytes(files.package(ours().state_dict(), SAID, klass=KLASS))
    with pytest.raises(UsageError, match=r"segment = 8: must be at most 7\.8 s.*; give --segment 7\.8 or less"):
        load_separator(str(path), segment=8.0)
    with pytest.raises(UsageError, match=r"segment = 8: must be at most 7\.8 s"):
        load_separator("htdemucs", segment=8.0, offline=True)  # before a download
    with pytest.raises(ModelError, match=r"the catalog has no htdemucs\.HTDemucs"):
        load_separator(str(path), architecture="hdemucs_mmi")
    path.write_bytes(files.package(ours().state_dict(), {**SAID, "t_emb": "cape"}, klass=KLASS))
    with pytest.raises(ModelError, match=r"t_emb = cape of demucs\.htdemucs\.HTDemucs has no counterpart here"):
        load_separator(str(path))


# -- the public implementation -----------------------------------------------------------------------------------------


def theirs(**settings: Any) -> nn.Module:
    public = pytest.importorskip("demucs.htdemucs")
    model = public.HTDemucs(SOURCES, channels=16, dconv_mode=3, segment=Fraction(1, 2), **settings).eval()
    fill(model, seed=1)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("sound", ["noise", "half silent", "click", "loud"])
@pytest.mark.parametrize("settings", [{}, {"dconv_mode": 1, "freq_emb": 0.0}], ids=["published", "no branches back"])
@torch.inference_mode()
def test_the_fast_form_is_the_network_to_rounding(settings: dict[str, Any], sound: str) -> None:
    model = ours(**settings)
    fast = model.fast()
    assert isinstance(fast, FastHTDemucs)
    for length in (1, 22_050):
        x = model.filled(altered(mixture(length, batch=2), sound))  # errors are of the size of the whole output
        expected, found = model(x).waveforms, fast(x).waveforms
        assert relative(found, expected) < 1e-5
        assert torch.equal(found, fast(x).waveforms), "bit for bit"


@pytest.mark.reference
@pytest.mark.parametrize("bottom", [0, 24])
@torch.inference_mode()
def test_it_is_the_network_of_demucs(bottom: int) -> None:
    public, model = theirs(bottom_channels=bottom), ours(bottom_channels=bottom)
    assert sorted(public.state_dict()) == sorted(model.state_dict())
    for length in (1, 10, 3072, 13_353, 22_050):
        x = mixture(length, batch=2)
        expected, found = public(x), model(x).waveforms
        assert decibels(found, expected) > 120, length
        assert float((found - expected).abs().max()) < 1e-6, length


@pytest.mark.reference
@torch.inference_mode()
def test_parity_would_break_without_any_layer_of_the_transformer() -> None:
    x, model = mixture(13_353), ours()
    expected = theirs()(x)
    for layer in (*model.crosstransformer.layers, *model.crosstransformer.layers_t):
        kept = layer.gamma_1.scale.detach().clone()
        layer.gamma_1.scale.zero_()
        assert decibels(model(x).waveforms, expected) < 80
        layer.gamma_1.scale.copy_(kept)
    assert decibels(model(x).waveforms, expected) > 120


@pytest.mark.reference
@pytest.mark.parametrize("segment", [0.5, 0.3])
@torch.inference_mode()
def test_a_song_in_pieces_is_what_demucs_makes_of_it(segment: float) -> None:
    apply = pytest.importorskip("demucs.apply")
    public = theirs()
    model = HTDemucs(**SMALL, **{**TRAITS, "segment": segment}).eval()
    fill(model, seed=1)
    cut = cut_for(model)
    for length in (1, 9000, 22_050, 40_001):
        song = mixture(length)
        expected = apply.apply_model(public, song, shifts=0, overlap=0.25, segment=segment)[0]
        parts = estimates(pieces(song[0].split(7777, dim=-1), cut), lambda windows: model(windows).waveforms)
        assert decibels(torch.cat(list(overlap_add(parts, cut)), dim=-1), expected) > 100, length


@pytest.mark.reference
def test_every_weight_begins_as_in_demucs() -> None:
    torch.manual_seed(0)
    public = pytest.importorskip("demucs.htdemucs")
    begun = public.HTDemucs(SOURCES, channels=16, dconv_mode=3, bottom_channels=24).state_dict()
    found = HTDemucs(width=16, bottom_channels=24, **TRAITS).state_dict()
    for name, expected in begun.items():
        if name.startswith("freq_emb") or expected.numel() < 8:
            continue  # neighbours are alike, or they are few: a single draw says little
        spread, size = float(expected.std(correction=0)), float(expected.abs().mean())
        slack = 6 / expected.numel() ** 0.5  # of a sample's deviation
        assert float(found[name].std(correction=0)) == pytest.approx(spread, rel=slack, abs=1e-5), name
        assert float(found[name].abs().mean()) == pytest.approx(size, rel=slack, abs=1e-5), name
