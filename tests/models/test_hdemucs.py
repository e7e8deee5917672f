"""Hybrid Demucs against published counts, its formulas, and the two public implementations."""

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.models.hdemucs import BandedDecoder, BandedEncoder, HDemucs, band_edges
from sepcli.models.hdemucs_fast import FastHDemucs
from sepcli.models.separator import Traits
from sepcli.nn.attention import LocalState
from sepcli.nn.hybrid import (
    Axis,
    DecoderLayer,
    EncoderLayer,
    Level,
    ScaledEmbedding,
    aligned_istft,
    aligned_stft,
    as_channels,
    as_complex,
    normalised,
)
from sepcli.nn.lstm import BLSTM
from sepcli.nn.residual import DConv, LayerScale
from sepcli.nn.tiled import inside
from sepcli.weights.catalog import find
from sepcli.weights.seeded import fill, seeded
from tests.nn.test_folded import altered

TRAITS: Traits = {
    "sources": ["drums", "bass", "other", "vocals"],
    "channels": 2,
    "sample_rate": 44100,
    "segment": 44.0,
    "level": {"deviation": 1.0},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "complex": {},
    "magnitude": {"cac": False},
    "old": {"cac": False, "hybrid_old": True, "norm_starts": 999},
    "bands": {"multi_freqs": [0.1, 0.3], "multi_freqs_depth": 2, "norm_starts": 999},
    "spectral": {"hybrid": False},
    "rescaled": {"cac": False, "wiener_iterations": -1},
    "filtered": {"cac": False, "wiener_iterations": 1},
    "plain": {"rewrite": False, "dconv_mode": 3, "freq_emb": 0},
}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())


def ours(width: int = 8, **settings: Any) -> HDemucs:
    model = HDemucs(width=width, **settings, **TRAITS)
    fill(model, seed=1)
    return model.eval()


def mixture(length: int, batch: int = 1) -> Tensor:
    return 0.3 * seeded("mixture", (batch, 2, length))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_published_sizes_are_met() -> None:
    for settings, parameters, entries in [
        ({}, 83_637_832, 395),
        ({"hybrid": False}, 75_293_768, None),
        ({"nfft": 2048}, 78_908_488 - 2 * 768, None),  # torchaudio makes a norm of 2 * 768 that it never uses
        ({"nfft": 1024, "depth": 5}, 20_040_296, None),
        ({"cac": False, "norm_starts": 999}, 83_607_872, None),
        ({"cac": False}, 83_633_984, None),
        ({"norm_starts": 999, "multi_freqs": [0.1, 0.3], "multi_freqs_depth": 2}, 83_884_248, None),
    ]:
        with torch.device("meta"):
            model = HDemucs(**settings, **TRAITS)  # type: ignore[arg-type]
        assert sum(p.numel() for p in model.parameters()) == parameters, settings
        assert entries in (None, len(model.state_dict()))


def test_each_layer_has_its_published_size() -> None:
    with torch.device("meta"):
        model = HDemucs(**TRAITS)
    sizes = {
        f"{name}.{index}": sum(p.numel() for p in layer.parameters())
        for name in ("encoder", "tencoder", "decoder", "tdecoder")
        for index, layer in enumerate(getattr(model, name))
    }
    assert sizes == {
        "encoder.0": 12_792,
        "encoder.1": 80_112,
        "encoder.2": 316_896,
        "encoder.3": 1_260_480,
        "encoder.4": 8_444_192,
        "encoder.5": 28_979_744,
        "tencoder.0": 12_024,
        "tencoder.1": 80_112,
        "tencoder.2": 316_896,
        "tencoder.3": 1_260_480,
        "tencoder.4": 2_360_064,
        "decoder.0": 18_885_888,
        "decoder.1": 12_981_888,
        "decoder.2": 3_244_992,
        "decoder.3": 811_488,
        "decoder.4": 202_992,
        "decoder.5": 47_728,
        "tdecoder.0": 2_360_448,
        "tdecoder.1": 1_475_520,
        "tdecoder.2": 369_120,
        "tdecoder.3": 92_400,
        "tdecoder.4": 17_000,
    }


def test_full_size_is_planned_within_a_second() -> None:
    times = []
    for _ in range(2):  # the first one imports what the meta device needs
        started = time.process_time()
        with torch.device("meta"):
            HDemucs(**TRAITS)
        times.append(time.process_time() - started)
    assert times[1] < 1


GOLDEN = {  # root mean square; the four sources, left, at sample 2500; the last sample of vocals, right
    "complex": [0.066587, 0.030901, -0.065401, -0.007282, 0.057694, 0.019332],
    "magnitude": [0.233412, 0.439862, 0.340709, 0.388234, 0.545702, 0.028639],
    "old": [0.195523, -0.014338, -0.115093, -0.018758, 0.004901, 0.189553],
    "bands": [0.067191, 0.075276, -0.032545, 0.019963, 0.058405, 0.02318],
    "spectral": [0.02292, 0.035715, -0.030781, 0.025988, 0.008843, -0.021829],
    "rescaled": [0.233412, 0.439862, 0.340709, 0.388234, 0.545702, 0.028639],
    "filtered": [0.096649, 0.093355, -0.015582, 0.053238, 0.152387, -0.024927],
    "plain": [0.155802, -0.091654, -0.105916, -0.11249, -0.034209, 0.072028],
}


@every_variant
@torch.inference_mode()
def test_the_output_of_seeded_weights_stays(settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    waveforms = ours(**settings)(mixture(5000)).waveforms[0]
    found = [float(waveforms.square().mean().sqrt()), *waveforms[:, 0, 2500].tolist(), float(waveforms[3, 1, 4999])]
    name = request.node.callspec.id
    assert found == pytest.approx(GOLDEN[name], abs=2e-5)


@every_variant
@torch.inference_mode()
def test_silence_gives_exactly_zero(settings: dict[str, Any]) -> None:
    assert float(ours(**settings)(torch.zeros(1, 2, 3000)).waveforms.abs().max()) == 0


@torch.inference_mode()
def test_one_sample_of_one_channel_gives_a_number() -> None:
    model = HDemucs(width=8, **{**TRAITS, "channels": 1}).eval()
    assert bool(model(torch.ones(1, 1, 1)).waveforms.isfinite().all())


@torch.inference_mode()
def test_frames_lie_as_a_convolution_of_this_window_and_hop() -> None:
    x = mixture(5000)
    found = ours().analyse(x)
    assert found.shape == (1, 2, 2048, 5)
    padded = np.pad(x[0].double().numpy(), ((0, 0), (1536, 1536 + 120)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(4096) / 4096)
    for k in range(5):
        expected = np.fft.rfft(padded[:, 1024 * k : 1024 * k + 4096] * window)[:, :-1] / 64
        np.testing.assert_allclose(found[0, :, :, k].numpy(), expected, atol=1e-6)


@torch.inference_mode()
def test_the_spectrogram_gives_the_sound_back_but_for_its_ends() -> None:
    x = torch.sin(2 * torch.pi * 440 / 44100 * torch.arange(20_000)).expand(1, 2, -1)
    model = ours()
    error = (model.synthesise(model.analyse(x).unsqueeze(1), 20_000)[:, 0] - x).abs()
    assert float(error[..., 1536:-1536].max()) < 5e-6
    assert float(error.max()) > 0.03, "the outer frames are taken as zero, as the published networks learnt it"


@torch.inference_mode()
def test_the_old_padding_makes_the_spectral_branch_late() -> None:
    x = torch.sin(2 * torch.pi * 440 / 44100 * torch.arange(20_000)).expand(1, 2, -1)
    model = ours(cac=False, hybrid_old=True)
    y = model.synthesise(model.analyse(x).unsqueeze(1), 20_000)[:, 0]
    assert float((y[..., 3072:-1536] - x[..., 1536:-3072]).abs().max()) < 5e-6


@torch.inference_mode()
def test_magnitudes_take_the_phase_of_the_mixture_and_may_be_negative() -> None:
    model = ours(cac=False)
    magnitudes, spectrogram = seeded("m", (1, 4, 2, 30, 7)), torch.complex(*seeded("z", (2, 1, 2, 30, 7)))
    found = model.as_complex(magnitudes, spectrogram)
    expected = magnitudes * (spectrogram / spectrogram.abs())[:, None]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    model.wiener_iterations = -1
    torch.testing.assert_close(model.as_complex(magnitudes, spectrogram), expected, atol=2e-6, rtol=0)


def test_bands_begin_and_end_where_the_published_ones_do() -> None:
    assert band_edges(2048, [0.1, 0.3]) == ([0, 51, 153, 512], [0, 51, 154, 512])
    assert band_edges(512, [0.1, 0.3]) == ([0, 12, 38, 128], [0, 13, 38, 128])


@torch.inference_mode()
def test_bands_with_equal_weights_are_the_plain_layer() -> None:
    plain, unpadded = Axis(spectral=True), Axis(spectral=True, padding=0)

    def level() -> Level:
        return Level(8, 0, True, DConv(8))

    reduced, given = band_edges(512, [0.1, 0.3])
    encoder = EncoderLayer(4, level(), plain)
    decoder = DecoderLayer(level(), 4, plain, reach=(0, 1))
    fill(encoder), fill(decoder)
    encoders = BandedEncoder([EncoderLayer(4, level(), unpadded) for _ in range(3)], reduced)
    decoders = BandedDecoder(
        [DecoderLayer(level(), 4, unpadded, reach=(0, 1), last=True) for _ in range(3)], given, last=False
    )
    for copy in encoders.layers:
        copy.load_state_dict(encoder.state_dict())
    for other in decoders.layers:
        other.load_state_dict(decoder.state_dict())
    x = seeded("x", (2, 4, 512, 9))
    y = encoder(encoder.reduce(x))
    torch.testing.assert_close(encoders(encoders.reduce(x)), y, atol=2e-6, rtol=0)
    torch.testing.assert_close(decoders(decoders.mix(y), 512), decoder(decoder.mix(y), 512), atol=2e-6, rtol=0)


def test_the_frequency_embedding_begins_as_a_random_walk_at_unit_deviation() -> None:
    embedding = ScaledEmbedding(512, 48, scale=10, smooth=True)
    walk = embedding().detach() * torch.arange(1.0, 513).sqrt()[:, None]
    assert float(walk.diff(dim=0).std()) == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(embedding.embedding.weight * 10, embedding())


def test_layer_scale_begins_as_in_the_paper() -> None:
    model = HDemucs(width=8, **TRAITS)
    scales = [p for name, p in model.named_parameters() if name.endswith(".scale")]
    assert len(scales) == 20  # two branches in ten layers
    assert all(bool((scale == 1e-3).all()) for scale in scales)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"width": 4}, "4 / 4 channels: must be at least 2"),
        ({"width": 8, "dconv_attn": 0}, "2 channels: must be a multiple of its 4 heads"),
        ({"nfft": 4000}, "nfft = 4000: must be a power of two"),
        ({"depth": 4}, "depth = 4: must be at least 5"),
        ({"dconv_mode": 4}, "dconv_mode = 4"),
        ({"norm_groups": 5}, "norm_groups = 5: must divide"),
        ({"hybrid": False, "hybrid_old": True}, "hybrid_old"),
        ({"wiener_iterations": 2}, "wiener_iterations = 2: must be 0 with cac"),
        ({"multi_freqs": [0.1], "norm_starts": 1}, "multi_freqs_depth = 2: must be at most 1"),
        ({"multi_freqs": [0.3, 0.1]}, r"multi_freqs = \[0.3, 0.1\]: must rise"),
        ({"multi_freqs": [0.3, 1.5]}, r"multi_freqs = \[0.3, 1.5\]: must rise"),
    ],
)
def test_the_impossible_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HDemucs(**{"width": 8, **settings}, **TRAITS)


# -- The fast form ---------------------------------------------------------------------------------------------------


SMALLER = {"nfft": 1024, "depth": 5}


@pytest.mark.parametrize(
    ("settings", "sound"),
    [
        *(({}, sound) for sound in ("noise", "silence", "half silent", "click", "loud", "offset")),
        (SMALLER, "noise"),
        ({"nfft": 2048, "depth": 5, "freq_emb": 0, "dconv_depth": 3}, "half silent"),
    ],
)
@torch.inference_mode()
def test_the_fast_form_is_the_network_to_rounding(settings: dict[str, Any], sound: str) -> None:
    model = ours(**settings)
    fast = model.fast()
    assert isinstance(fast, FastHDemucs)
    for length in (1, 1025, 20_011):
        x = altered(mixture(length, batch=2), sound)
        expected, found = model(x).waveforms, fast(x).waveforms
        assert relative(found, expected) < 2e-6 if sound != "silence" else torch.equal(found, expected)
        assert torch.equal(found, fast(x).waveforms), "bit for bit"


@pytest.mark.parametrize(
    "settings",
    [
        *(VARIANTS[name] for name in ("magnitude", "old", "bands", "spectral", "rescaled", "filtered", "plain")),
        {"norm_starts": 0},
        {"dconv_lstm": 1},
        {"dconv_attn": 2},
        {"dconv_mode": 3},
        {"dconv_mode": 0},
    ],
)
def test_what_the_fast_form_does_not_cover_is_left_to_the_network(settings: dict[str, Any]) -> None:
    model = HDemucs(**{"width": 16, **settings}, **TRAITS)
    assert model.fast() is model


@torch.inference_mode()
def test_the_fast_transforms_are_those_of_the_network() -> None:
    model = ours()
    fast = FastHDemucs(model).nets
    for length in (1, 1024, 1025, 100_000):
        x = mixture(length)
        spectra, mean, deviation = fast.analysed(x[0])
        expected, *undo = normalised(as_channels(aligned_stft(x, model.window)))
        assert relative(inside(spectra).transpose(0, 1), expected[0]) < 1e-6
        assert [mean, deviation] == pytest.approx([float(value) for value in undo], rel=1e-5, abs=1e-9)
        y = seeded("y", (2048, 16, expected.shape[-1]))
        whole = torch.unflatten((0.1 + 0.5 * y).transpose(0, 1), 0, (4, -1))
        expected = aligned_istft(as_complex(whole[None]), model.window, length)
        assert relative(fast.synthesised(y, 0.1, 0.5, length).reshape(1, 4, 2, -1), expected) < 1e-6


# -- Public implementations ------------------------------------------------------------------------------------------


def demucs(width: int = 8, **settings: Any) -> Callable[[Tensor], Tensor]:
    """demucs.hdemucs.HDemucs with weights filled by the same names."""
    public = pytest.importorskip("demucs.hdemucs")
    if "wiener_iterations" in settings:
        settings["wiener_iters"] = settings["end_iters"] = settings.pop("wiener_iterations")
    model = public.HDemucs(TRAITS["sources"], channels=width, **settings).eval()
    fill(model, seed=1)
    return model  # type: ignore[no-any-return]


@pytest.mark.reference
@every_variant
@torch.inference_mode()
def test_it_is_the_network_of_demucs(settings: dict[str, Any]) -> None:
    theirs, model = demucs(**settings), ours(**settings)
    assert isinstance(theirs, nn.Module)
    assert sorted(theirs.state_dict()) == sorted(model.state_dict())
    # Their inverse of nearly singular covariances is the less exact one.
    bound = 1e-4 if settings.get("wiener_iterations", 0) > 0 else 1e-5
    for length in (1, 10, 600, 1025, 3072, 30_011, 133_534):
        if length == 133_534 and settings not in (VARIANTS["complex"], VARIANTS["bands"]):
            continue
        if length < 2049 and settings.get("hybrid") is False:
            continue  # theirs cannot
        x = mixture(length, batch=2)
        expected, found = theirs(x), model(x).waveforms
        assert float((found - expected).abs().max()) < bound, length
        assert relative(found, expected) < bound, length


@pytest.mark.reference
@torch.inference_mode()
def test_parity_would_break_without_any_single_part() -> None:
    x = mixture(30_011)
    model = ours()
    expected = demucs()(x)
    assert relative(model(x).waveforms, expected) < 1e-5
    tried = 0
    for parent in [*model.modules()]:
        for name, part in [*parent.named_children()]:
            if not isinstance(part, BLSTM | LocalState | LayerScale):
                continue
            nothing = Nothing() if isinstance(part, LayerScale) else nn.Identity()
            setattr(parent, name, nothing)
            assert relative(model(x).waveforms, expected) > 1e-4, (type(part), tried)
            setattr(parent, name, part)
            tried += 1
    assert tried == 20 + 4 + 4, "every residual branch, BLSTM and attention"


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.reference
@pytest.mark.slow
@torch.inference_mode()
def test_it_is_the_network_of_demucs_at_full_width() -> None:
    x = mixture(88_200)
    expected = demucs(48)(x)
    assert relative(ours(48)(x).waveforms, expected) < 1e-5


@pytest.mark.reference
def test_every_weight_begins_as_in_demucs() -> None:
    public = pytest.importorskip("demucs.hdemucs")
    torch.manual_seed(0)
    theirs = public.HDemucs(TRAITS["sources"], channels=16, dconv_init=1e-3, **VARIANTS["bands"]).state_dict()
    found = HDemucs(width=16, **VARIANTS["bands"], **TRAITS).state_dict()
    for name, expected in theirs.items():
        if name.startswith("freq_emb"):
            continue  # neighbours are alike: a single draw says little, and the next test says all
        spread, size = float(expected.std(correction=0)), float(expected.abs().mean())
        slack = 6 / expected.numel() ** 0.5  # of a sample's deviation, and of the rescaling that it goes through
        assert float(found[name].std(correction=0)) == pytest.approx(spread, rel=slack, abs=1e-5), name
        assert float(found[name].abs().mean()) == pytest.approx(size, rel=slack, abs=1e-5), name


@pytest.mark.reference
@torch.inference_mode()
def test_the_frequency_embedding_is_that_of_demucs() -> None:
    public = pytest.importorskip("demucs.hdemucs")
    torch.manual_seed(3)
    theirs = public.ScaledEmbedding(64, 8, scale=10, smooth=True)
    torch.manual_seed(3)
    found = ScaledEmbedding(64, 8, scale=10, smooth=True)
    torch.testing.assert_close(found(), theirs(torch.arange(64)), atol=1e-6, rtol=0)


@pytest.mark.reference
@pytest.mark.parametrize("settings", [{}, {"nfft": 2048}, {"nfft": 1024, "depth": 5}], ids=["high", "medium", "low"])
@torch.inference_mode()
def test_it_is_the_network_of_torchaudio_under_the_names_of_the_catalog(settings: dict[str, Any]) -> None:
    public = pytest.importorskip("torchaudio.models")
    theirs = public.HDemucs(TRAITS["sources"], channels=8, **settings).eval()
    fill(theirs)
    model = HDemucs(width=8, **settings, **TRAITS).eval()
    spec = find("hdemucs_high_musdb").files[0]
    state = {}
    for name, tensor in theirs.state_dict().items():
        if any(re.search(pattern, name) for pattern in spec.drop):
            continue
        for pattern, replacement in spec.rename:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    model.load_state_dict(state, strict=True)
    for length in (2048, 5000, 30_011):
        x = mixture(length, batch=2)
        expected, found = theirs(x), model(x).waveforms
        assert float((found - expected).abs().max()) < 1e-5, length
        assert relative(found, expected) < 1e-5, length
