"""Demucs in the time domain against published counts and lengths, and the public implementations of each version."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.inference.stream import cut_for, estimates, overlap_add, pieces
from sepcli.models.demucs import Demucs
from sepcli.models.separator import Traits
from sepcli.weights.catalog import find
from sepcli.weights.foreign import describe
from sepcli.weights.load import load_separator
from sepcli.weights.read import Published
from sepcli.weights.seeded import fill, seeded
from tests.models.public_code import centre, module
from tests.weights import published_files as files

TRAITS: Traits = {
    "sources": ["drums", "bass", "other", "vocals"],
    "channels": 2,
    "sample_rate": 44100,
    "segment": 0.5,
    "level": {"deviation": 1.0},
}
V2: dict[str, Any] = {
    "gelu": False,
    "lstm_layers": 2,
    "context_padding": False,
    "norm_starts": 999,
    "dconv_mode": 0,
    "normalise": False,
}
V1: dict[str, Any] = {**V2, "oversample": False}

IMPROVED: dict[str, dict[str, Any]] = {
    "improved": {},
    "plain": {"rewrite": False},
    "both ways": {"dconv_mode": 3, "dconv_comp": 2, "dconv_depth": 1, "norm_starts": 2, "norm_groups": 2},
    "as version 2": {**V2, "context_padding": True},
}
VARIANTS = {**IMPROVED, "version 2": V2, "version 1": V1}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
every_improved = pytest.mark.parametrize("settings", IMPROVED.values(), ids=IMPROVED.keys())
every_old = pytest.mark.parametrize("settings", [V2, V1], ids=["version 2", "version 1"])


GAIN = 1.6  # so that what comes out tells of what goes in, through every layer, and not of biases


def ours(width: int = 8, **settings: Any) -> Demucs:
    model = Demucs(width=width, **settings, **TRAITS)
    fill(model, seed=1, gain=GAIN)
    return model.eval()


def mixture(length: int, batch: int = 1) -> Tensor:
    return 0.3 * seeded("mixture", (batch, 2, length))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_published_sizes_are_met() -> None:
    for settings, parameters, entries in [
        ({}, 133_753_064, 284),
        ({"rewrite": False}, 88_984_040, 252),
        (V2, 265_679_496, 66),
        ({**V2, "width": 48}, 149_462_504, 66),
        ({**V2, "width": 4}, 1_043_376, 66),
        ({**V1, "width": 100}, 648_548_208, 66),
    ]:
        with torch.device("meta"):
            model = Demucs(**settings, **TRAITS)  # type: ignore[arg-type]
        assert sum(p.numel() for p in model.parameters()) == parameters, settings
        assert len(model.state_dict()) == entries, settings


def test_valid_lengths_are_the_published_ones() -> None:
    rate = 44100
    for settings, lengths in [
        ({}, {rate: 45_738, 10 * rate: 441_002, 40 * rate: 1_764_010, 44 * rate: 1_942_186}),
        (V2, {10 * rate: 447_146, 40 * rate: 1_770_154}),
        (V1, {10 * rate: 451_924, 40 * rate: 1_774_932}),
    ]:
        model = ours(width=8, **settings)
        for length, valid in lengths.items():
            assert model.valid_length(length) == valid
            left, right = model.margins(length)
            assert (left, right) == ((valid - length) // 2, valid - length - (valid - length) // 2)


GOLDEN = {  # root mean square; the four sources, left, at sample 2500; the last sample of vocals, right
    "improved": [0.215816, 0.034549, -0.36002, 0.022915, 0.27676, -0.137176],
    "plain": [0.272174, 0.017335, 0.255189, 0.279118, -0.887829, -0.14249],
    "both ways": [0.218, 0.046821, 0.385356, -0.017478, -0.128336, -0.101633],
    "as version 2": [0.37098, 0.194107, 0.130916, 0.315596, -0.065529, 0.24932],
    "version 2": [0.371578, 0.141991, 0.140154, 0.374881, -0.06009, 0.278343],
    "version 1": [0.524573, 0.691473, -0.198902, 0.151622, 0.04819, 0.919142],
}


@every_variant
@torch.inference_mode()
def test_the_output_of_seeded_weights_stays(settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    waveforms = ours(**settings)(mixture(5000)).waveforms[0]
    found = [float(waveforms.square().mean().sqrt()), *waveforms[:, 0, 2500].tolist(), float(waveforms[3, 1, 4999])]
    assert found == pytest.approx(GOLDEN[request.node.callspec.id], abs=2e-5)


@every_variant
@torch.inference_mode()
def test_a_window_of_valid_length_is_used_as_it_is(settings: dict[str, Any]) -> None:
    model = ours(**{**settings, "normalise": False})
    for length in (1, 700, 5001, 9000):
        x = mixture(length)
        left, right = model.margins(length)
        window = model(F.pad(x, (left, right))).waveforms
        assert torch.equal(window[..., left : left + length], model(x).waveforms), length


@every_old
@torch.inference_mode()
def test_what_the_output_does_not_reach_of_a_window_is_zero(settings: dict[str, Any]) -> None:
    model = ours(**settings)
    waveforms = model(mixture(model.valid_length(9000))).waveforms
    lost = 4 * sum(4**i for i in range(6)) // (1 if settings is V1 else 2)  # a step of each layer
    assert float(waveforms[..., :lost].abs().max()) == float(waveforms[..., -lost:].abs().max()) == 0
    assert float(waveforms[..., lost:-lost].abs().min(dim=-1).values.max()) > 0


@torch.inference_mode()
def test_without_context_padding_only_the_ends_differ() -> None:
    padded, unpadded = ours(**V2 | {"depth": 4, "context_padding": True}), ours(**V2 | {"depth": 4})
    x = mixture(unpadded.valid_length(4000))
    one, other = padded(x).waveforms, unpadded(x).waveforms
    edge = 4 * (1 + 4 + 16 + 64) + 26  # a step of each layer on either side of the seam, and the resampling filter
    torch.testing.assert_close(one[..., edge:-edge], other[..., edge:-edge], atol=1e-6, rtol=0)
    assert float((one - other)[..., : edge // 2].abs().max()) > 0.01


@torch.inference_mode()
def test_silence_gives_exactly_zero_where_the_input_is_normalised() -> None:
    assert float(ours()(torch.zeros(1, 2, 3000)).waveforms.abs().max()) == 0


@torch.inference_mode()
def test_one_sample_of_one_channel_gives_a_number() -> None:
    model = Demucs(width=8, **{**TRAITS, "channels": 1}).eval()
    assert bool(model(torch.ones(1, 1, 1)).waveforms.isfinite().all())


@torch.inference_mode()
def test_the_output_follows_the_level_and_offset_of_the_input() -> None:
    model = ours()
    x = mixture(5000)
    torch.testing.assert_close(
        model(3 * x + 0.5).waveforms, 3 * model(x).waveforms + 0.5, atol=1e-3, rtol=0
    )  # up to the 1e-5 that is added to the deviation


def test_layer_scale_begins_as_in_the_public_code() -> None:
    scales = [p for name, p in Demucs(width=8, **TRAITS).named_parameters() if name.endswith(".scale")]
    assert len(scales) == 12  # two branches in six layers
    assert all(bool((scale == 1e-4).all()) for scale in scales)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
        ({"lstm_layers": -1}, "lstm_layers = -1: must be at least 0"),
        ({"width": 4}, "4 / 4 channels: must be at least 2"),
        ({"width": 8, "dconv_attn": 0}, "2 channels: must be a multiple of its 4 heads"),
        ({"dconv_mode": 4}, "dconv_mode = 4: must be 0, 1, 2 or 3"),
        ({"norm_groups": 5}, "norm_groups = 5: must divide"),
    ],
)
def test_the_impossible_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Demucs(**{"width": 8, **settings}, **TRAITS)


# -- Published files ---------------------------------------------------------------------------------------------------


def published(model: nn.Module) -> dict[str, Tensor]:
    """The state of versions 1 and 2 under the names of their own files."""
    return {re.sub(r"^(..coder\.\d+)\.3\.", r"\1.2.", name): tensor for name, tensor in model.state_dict().items()}


def test_the_bags_of_the_paper_have_all_their_members() -> None:
    for bag in ("mdx", "mdx_extra", "repro_mdx_a", "repro_mdx_a_time_only"):
        for vote in find(bag).bag:
            assert find(vote.model).files, vote.model


@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["th", "th.gz"])
@torch.inference_mode()
def test_a_file_of_version_1_loads_with_the_settings_that_it_says(tmp_path: Path, wrap: Any) -> None:
    model = ours(**V1)
    arguments = {"sources": 4, "channels": 8, "upsample": False, "samplerate": 44100, "context": 3}
    with files.stand_in("demucs.model.Demucs") as kind:
        data = files.saved((kind, (), arguments, published(model)), old=True)
    path = tmp_path / "demucs.th"
    path.write_bytes(wrap(data))
    loaded = load_separator(str(path), architecture="demucs")
    assert loaded.separator.sources == tuple(TRAITS["sources"])
    assert loaded.separator.segment == 40
    assert torch.equal(loaded.separator(mixture(3000)).waveforms, model(mixture(3000)).waveforms)


@torch.inference_mode()
def test_a_file_of_version_2_loads_by_its_tensors(tmp_path: Path) -> None:
    model = ours(width=4, **V2)
    path = tmp_path / "demucs_unittest.th"
    path.write_bytes(files.saved(published(model)))
    loaded = load_separator(str(path), architecture="demucs_unittest")
    assert torch.equal(loaded.separator(mixture(3000)).waveforms, model(mixture(3000)).waveforms)


@torch.inference_mode()
def test_a_package_of_version_3_loads_with_the_settings_that_it_says(tmp_path: Path) -> None:
    model = ours(rewrite=False)
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    arguments = {"sources": TRAITS["sources"], "channels": 8, "rewrite": False, "segment": 112}
    path = tmp_path / "0d19c1c6.th"
    path.write_bytes(files.package(model.state_dict(), arguments, klass="demucs.demucs.Demucs"))
    loaded = load_separator(str(path))
    assert loaded.separator.segment == 44, "the smaller of the file's and the catalog's"
    assert torch.equal(loaded.separator(mixture(3000)).waveforms, model(mixture(3000)).waveforms)


def test_a_package_of_version_2_says_how_it_is_resampled() -> None:
    arguments = {"sources": ["a", "b"], "resample": True, "normalize": True, "segment_length": 1000}
    said = describe(Published({}, "demucs.model.Demucs", arguments), "x.th")
    assert said is not None
    settings = {**V2, "normalise": True, "oversample": True, "width": 64, "growth": 2.0, "depth": 6, "rewrite": True}
    assert said.settings == {**settings, "rescale": 0.1}
    assert said.traits == {"sources": ["a", "b"], "channels": 2, "sample_rate": 44100}


# -- Public implementations --------------------------------------------------------------------------------------------

THEIRS = {"normalise": "normalize", "oversample": "resample"}


def demucs(width: int = 8, **settings: Any) -> nn.Module:
    """demucs.demucs.Demucs with weights filled by the same names."""
    public = pytest.importorskip("demucs.demucs")
    settings = {THEIRS.get(name, name): value for name, value in settings.items() if name != "context_padding"}
    segment, rate = TRAITS["segment"], TRAITS["sample_rate"]
    model = public.Demucs(TRAITS["sources"], channels=width, segment=segment, samplerate=rate, **settings).eval()
    fill(model, seed=1, gain=GAIN)
    return model  # type: ignore[no-any-return]


@pytest.mark.reference
@every_improved
@torch.inference_mode()
def test_it_is_the_network_of_demucs(settings: dict[str, Any]) -> None:
    theirs, model = demucs(**settings), ours(**settings)
    assert sorted(theirs.state_dict()) == sorted(model.state_dict())
    for length in (2, 100, 5000, 12_345, 52_920):
        x = mixture(length, batch=2)
        expected, found = theirs(x), model(x).waveforms
        assert float((found - expected).abs().max()) < 1e-5, length
        assert relative(found, expected) < 2e-6, length


@pytest.mark.reference
@pytest.mark.slow
@torch.inference_mode()
def test_it_is_the_network_of_demucs_at_full_width() -> None:
    x = mixture(44_100)
    expected = demucs(64)(x)
    assert relative(ours(64)(x).waveforms, expected) < 1e-5


@pytest.mark.reference
def test_every_weight_begins_as_in_demucs() -> None:
    public = pytest.importorskip("demucs.demucs")
    torch.manual_seed(0)
    theirs = public.Demucs(TRAITS["sources"], channels=16).state_dict()
    found = Demucs(width=16, **TRAITS).state_dict()
    for name, expected in theirs.items():
        spread, size = float(expected.std(correction=0)), float(expected.abs().mean())
        slack = 6 / expected.numel() ** 0.5  # of a sample's deviation, and of the rescaling that it goes through
        assert float(found[name].std(correction=0)) == pytest.approx(spread, rel=slack, abs=1e-5), name
        assert float(found[name].abs().mean()) == pytest.approx(size, rel=slack, abs=1e-5), name


def separated(model: Demucs, song: Tensor) -> Tensor:
    """A song (C, T) in pieces."""
    cut = cut_for(model)
    parts = estimates(pieces(song.split(7777, dim=-1), cut), lambda windows: model(windows).waveforms)
    return torch.cat(list(overlap_add(parts, cut)), dim=-1)


STRIDE = int(0.75 * 22_050)
LENGTHS = [1, 700, 22_050, STRIDE + 1, 2 * STRIDE + 1, 2 * STRIDE + 15_000, 60_000]


@pytest.mark.reference
@pytest.mark.parametrize("settings", [{}, {"rewrite": False}], ids=["improved", "plain"])
@torch.inference_mode()
def test_a_song_in_pieces_is_what_demucs_makes_of_it(settings: dict[str, Any]) -> None:
    apply = pytest.importorskip("demucs.apply")
    theirs, model = demucs(**settings), ours(**settings)
    for length in LENGTHS:
        song = mixture(length)
        expected = apply.apply_model(theirs, song, shifts=0, overlap=0.25)[0]
        assert relative(separated(model, song[0]), expected) < 1e-5, length


def version(number: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> nn.Module:
    """demucs.model.Demucs of version 1 or 2, with the weights of our network of width 8."""
    pytest.importorskip("julius")
    stubs = {"capture_init": lambda init: init, "center_trim": centre}
    public = module(f"demucs-v{number}/demucs/model.py", monkeypatch, utils=stubs)
    model = public.Demucs(4 if number == 1 else TRAITS["sources"], channels=8, **settings).eval()
    model.load_state_dict(published(ours(**(V1 if number == 1 else V2))), strict=True)
    return model  # type: ignore[no-any-return]


@pytest.mark.reference
@pytest.mark.parametrize("number", [1, 2])
@torch.inference_mode()
def test_it_is_the_network_of_versions_1_and_2(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = version(number, monkeypatch)
    model = ours(**(V1 if number == 1 else V2))
    for length in (1, 100, 5000, 12_345, 52_920):
        assert theirs.valid_length(length) == model.valid_length(length)
        x = mixture(length, batch=2)
        left, right = model.margins(length)
        gain = 1 if number == 1 else 1 + 1e-5  # by which version 2 divides what it does not normalise
        expected = theirs(F.pad(gain * x, (left, right)))
        expected = centre(expected, x)
        found = model(x).waveforms
        assert float((found - expected).abs().max()) < 1e-5, length
        assert relative(found, expected) < 2e-6, length


@pytest.mark.reference
@torch.inference_mode()
def test_a_song_in_pieces_is_what_version_2_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = version(2, monkeypatch, segment_length=22_050)
    stub = {"UniformQuantizer": None, "DiffQuantizer": None}
    public = module("demucs-v2/demucs/utils.py", monkeypatch, diffq=stub)
    model = ours(**V2)
    for length in LENGTHS:
        song = mixture(length)[0]
        expected = public.apply_model(theirs, (1 + 1e-5) * song, split=True, overlap=0.25)
        assert relative(separated(model, song), expected) < 1e-5, length


@pytest.mark.reference
@torch.inference_mode()
def test_weights_of_version_2_in_the_network_of_demucs_differ_at_the_ends_only() -> None:
    theirs, model = demucs(**V2), ours(**V2)
    x = mixture(model.valid_length(30_000))
    expected, found = theirs(x), model(x).waveforms
    edge = 4 * sum(4**i for i in range(6)) + 26
    assert relative(found[..., edge:-edge], expected[..., edge:-edge]) < 1e-6
    assert relative(found, expected) > 0.01
