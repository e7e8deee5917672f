"""D3Net and X-D3Net: counts, blocks, patches, bridges, the published layout, and numbers of the public code.

The public code is written for NNabla. The numbers under GOLDEN are what its functions gave, run as they are over torch
in double precision, for the weights and the sound that are made here by seed.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sepcli.dsp.stft import istft, stft
from sepcli.dsp.wiener import initial_estimates, wiener, wiener_one_pass
from sepcli.errors import ModelError, UsageError
from sepcli.models.d3net import D2, D3, SIZES, D3Net, Network
from sepcli.weights.catalog import find
from sepcli.weights.load import fill as load
from sepcli.weights.load import mapped, skeleton
from sepcli.weights.seeded import fill, seeded

STEMS = ("vocals", "drums", "bass", "other")
FULL = {"sizes": "own", "n_fft": 4096, "hop": 1024, "bins": 1600, "patch": 0}


def built(sources: tuple[str, ...] = STEMS, channels: int = 2, segment: float = 1.0, **settings: Any) -> D3Net:
    return D3Net(
        sources=sources, channels=channels, sample_rate=44100, segment=segment, level={}, **{**D3Net.tiny, **settings}
    )


def network(*args: Any, **changes: Any) -> D3Net:
    model = built(*args, **changes)
    model.load_state_dict({name: weights()[name] for name in model.state_dict()})
    return model.eval()


@functools.cache
def weights() -> Mapping[str, Tensor]:
    return fill(built(), seed=1).state_dict()


def full_size(**changes: Any) -> D3Net:
    with torch.device("meta"):
        return built(**{**FULL, **changes})


def parts(model: D3Net) -> dict[str, Network]:
    return {name: part for name, part in model.networks.items() if isinstance(part, Network)}


def sound(length: int, batch: int = 1) -> Tensor:
    return 0.3 * seeded("mixture", (batch, 2, length))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("source", "total", "low", "high", "full", "final"),
    [
        ("vocals", 2_967_407, 1_330_964, 454, 1_614_385, 12_810),
        ("other", 2_967_407, 1_330_964, 454, 1_614_385, 12_810),
        ("drums", 2_873_284, 1_231_106, 454, 1_620_120, 12_810),
        ("bass", 2_419_822, 1_174_514, 600, 1_224_082, 11_832),
    ],
)
def test_each_source_has_the_released_number_of_parameters_in_each_part(
    source: str, total: int, low: int, high: int, full: int, final: int
) -> None:
    part = parts(full_size())[source]
    found = [count(part.get_submodule(f"{name}.dense")) for name in ("low", "high", "full")]
    assert [count(part), *found, count(part.final_dense)] == [total, low, high, full, final]


def test_a_source_that_was_not_released_has_the_sizes_of_vocals() -> None:
    assert count(full_size(sources=("piano", "guitar"))) == 2 * 2_967_407
    assert count(full_size(sizes="vocals", bridging="bands+full")) == 11_869_628


@torch.inference_mode()
def test_a_d2_block_sums_convolutions_dilated_by_the_layer_that_they_come_from() -> None:
    block = fill(D2(5, growth=3, layers=4), seed=1).eval()
    x = seeded("x", (2, 5, 40, 36))
    groups = list(block.initial_layer(x).split(3, dim=1))
    for i, unit in enumerate(block.layers.values(), start=1):
        convolution = unit.conv1
        for j, (weight, bias) in enumerate(zip(convolution.weight.split(3), convolution.bias.split(3), strict=True)):
            finished = torch.relu(unit.norm1(groups[i - 1]))
            groups[i + j] = groups[i + j] + functional.conv2d(finished, weight, bias, dilation=2**i, padding=2**i)
    assert len(block.layers) == 3
    assert distance(block(x), groups[-1]) < 1e-6


@torch.inference_mode()
def test_blocks_of_one_layer_are_that_layer() -> None:
    x = seeded("x", (1, 5, 12, 16))
    single = fill(D2(5, growth=3, layers=1), seed=1).eval()
    assert torch.equal(single(x), single.initial_layer(x))
    nested = fill(D3(5, (3, 4), blocks=1), seed=1).eval()
    assert torch.equal(nested(x), nested.initial_block(x))


@torch.inference_mode()
def test_a_d3_block_connects_its_blocks_as_a_d2_block_its_layers() -> None:
    block = fill(D3(5, (3, 2), blocks=3), seed=1).eval()
    x = seeded("x", (1, 5, 12, 16))
    first, second, third = block.initial_block(x).split(3, dim=1)
    more = block.layers["layer1"](first)
    second, third = second + more[:, :3], third + more[:, 3:]
    assert distance(block(x), third + block.layers["layer2"](second)) < 1e-6


GOLDEN = {  # of the public code: energy of all sources, one sample of each
    "magnitudes": (427006.298227, [1.9110522, 0.0491158, 0.0, 0.0]),
    "unfiltered": (6379.697350616, [0.0168192, 0.0541604, 0.0978908, 0.0328929]),
    "filtered": (364.149651659, [-0.0340517, 0.0853175, -0.1023421, -0.029095]),
}
EVEN = (343.2413807762, [-0.0330437, 0.086624, -0.10356, -0.0301917])


@torch.inference_mode()
def test_with_the_halved_tail_it_gives_the_numbers_of_the_public_code() -> None:
    filtered, plain = network(patch=16, halved_tail=True), network(patch=16, halved_tail=True, wiener_iterations=0)
    magnitudes = filtered(sound(3000)).spectrograms
    assert magnitudes is not None
    found = {
        "magnitudes": (magnitudes, magnitudes[0, :, 1, 20, 20]),
        "unfiltered": (waveforms := plain(sound(3000)).waveforms, waveforms[0, :, 1, 2000]),
        "filtered": (waveforms := filtered(sound(3000)).waveforms, waveforms[0, :, 1, 2000]),
    }
    for name, (energy, samples) in GOLDEN.items():
        assert float(found[name][0].double().square().sum()) == pytest.approx(energy, rel=1e-5), name
        assert found[name][1].tolist() == pytest.approx(samples, rel=2e-5, abs=1e-6), name


@torch.inference_mode()
def test_without_it_it_gives_the_numbers_stored_for_its_seed() -> None:
    waveforms = network(patch=16)(sound(3000)).waveforms
    assert float(waveforms.double().square().sum()) == pytest.approx(EVEN[0], rel=1e-5)
    assert waveforms[0, :, 1, 2000].tolist() == pytest.approx(EVEN[1], rel=1e-4)


@pytest.mark.parametrize("frames", [1, 100, 129, 255, 256, 500, 1000])
def test_patches_of_a_network_that_changes_nothing_are_the_mixture(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    even, halved = network(), network(halved_tail=True)
    monkeypatch.setattr(D3Net, "estimated", lambda self, networks, mixture: mixture.unsqueeze(1))
    mixture = seeded("magnitudes", (1, 2, 3, frames)).abs()
    assert torch.equal(even.patched([], 256, mixture)[:, 0], mixture)
    gain = torch.ones(frames)
    if frames % 256 > 128:
        gain[frames - (frames % 256 - 128) :] = 0.5
    assert torch.equal(halved.patched([], 256, mixture)[:, 0], gain * mixture)


@torch.inference_mode()
def test_above_the_estimated_bins_every_source_has_the_mixtures_magnitudes() -> None:
    model, mixture = network(), sound(9_000)
    magnitudes = stft(mixture, model.window, model.hop).abs()
    estimates = model.magnitudes(magnitudes)
    assert estimates.shape == (1, 4, 2, 65, 141)
    assert torch.equal(estimates[:, :, :, 48:], magnitudes[:, None, :, 48:].expand(-1, 4, -1, -1, -1))
    assert distance(estimates[:, :, :, :48], magnitudes[:, None, :, :48].expand(-1, 4, -1, -1, -1)) > 0.1


@torch.inference_mode()
def test_averaging_over_both_orders_of_the_channels_treats_them_alike() -> None:
    mixture = sound(4_000)
    for swap, alike in ((True, True), (False, False)):
        model = network(swap_channels=swap)
        apart = distance(model(mixture.flip(1)).waveforms.flip(2), model(mixture).waveforms)
        assert (apart < 1e-5) == alike
        assert (apart > 1e-2) != alike


@torch.inference_mode()
def test_the_filter_sees_the_whole_piece() -> None:
    mixture = sound(9_000)
    plain = network(wiener_iterations=0)
    spectrum = stft(mixture, plain.window, plain.hop)
    magnitudes = plain.magnitudes(spectrum.abs())
    for settings, expected in (
        ({"wiener_iterations": 0}, initial_estimates(magnitudes, spectrum)),
        ({}, wiener_one_pass(magnitudes, spectrum)),
        ({"wiener_filter": "em", "wiener_iterations": 2}, wiener(magnitudes, spectrum, iterations=2, window=0)),
    ):
        found = network(**settings)(mixture).waveforms
        assert distance(found, istft(expected, plain.window, plain.hop, 9_000)) < 1e-6, settings


@torch.inference_mode()
def test_the_patches_of_a_piece_lie_where_those_of_the_song_do() -> None:
    model = network(("vocals", "bass"), wiener_iterations=0)
    assert model.grid == 32 * 64
    assert model.piece == 44_100 // model.grid * model.grid
    assert full_size(sources=("vocals", "bass"), segment=72.0).grid == 384 * 1024
    mixture = sound(7 * model.grid)
    song = model(mixture).waveforms
    piece = model(mixture[..., model.grid : 6 * model.grid]).waveforms
    start, stop = 2 * model.grid + model.hop, 3 * model.grid - model.hop  # out of reach of the piece's ends
    inside = song[..., model.grid + start : model.grid + stop]
    assert distance(piece[..., start:stop], inside) < 1e-6


@torch.inference_mode()
def test_with_equal_networks_bridges_change_nothing() -> None:
    plain = network()
    for part in plain.networks.values():
        part.load_state_dict(plain.networks["vocals"].state_dict())
    mixture = sound(4_000)
    for bridging in ("bands", "bands+full"):
        bridged = network(bridging=bridging)
        bridged.load_state_dict(plain.state_dict())
        assert distance(bridged(mixture).waveforms, plain(mixture).waveforms) < 1e-5, bridging


@pytest.mark.parametrize(
    ("bridging", "coupled"),
    [("none", set()), ("bands", {"low", "high", "match"}), ("bands+full", {"low", "high", "match", "full"})],
)
def test_a_bridge_couples_the_parts_before_it(bridging: str, coupled: set[str]) -> None:
    model = network(bridging=bridging)
    networks = parts(model)
    magnitudes = stft(sound(1_000), model.window, model.hop).abs()  # 16 frames
    model.estimated(list(networks.values()), magnitudes[..., :16])[:, 0].square().sum().backward()
    other = {n.split(".")[0] for n, p in networks["drums"].named_parameters() if p.grad is not None and p.grad.any()}
    assert other - {"in_offset", "in_scale"} == coupled


@torch.inference_mode()
def test_a_bridge_is_the_plain_mean_of_the_sources_features() -> None:
    model = network(bridging="bands")
    networks = list(parts(model).values())
    magnitudes = stft(sound(1_000), model.window, model.hop).abs()[..., :16]
    features = [part.features(magnitudes) for part in networks]
    mean = sum(bands for bands, _ in features) / 4
    expected = [part.decode(mean, full, magnitudes) for part, (_, full) in zip(networks, features, strict=True)]
    assert features[0][0].shape == (1, 4, 16, 48)
    assert distance(model.estimated(networks, magnitudes), torch.stack(expected, dim=1)) < 1e-6


@torch.inference_mode()
def test_only_networks_that_nothing_couples_are_independent() -> None:
    plain = network(wiener_iterations=0)
    assert plain.independent
    alone = network(("bass",), wiener_iterations=0)
    alone.networks["bass"].load_state_dict(plain.networks["bass"].state_dict())
    mixture = sound(3_000)
    assert torch.equal(alone(mixture).waveforms[:, 0], plain(mixture).waveforms[:, 2])
    assert not network().independent
    assert not network(bridging="bands", wiener_iterations=0).independent


@pytest.mark.parametrize(("name", "frames"), [("d3net", 256), ("x-d3net", 352)])
def test_training_sees_the_frames_that_its_authors_train_on(name: str, frames: int) -> None:
    seconds = find(name).training["data"]["excerpt"]
    for samples in (int(seconds * 44100), round(seconds * 44100)):
        assert samples // 1024 + 1 == frames


@pytest.mark.parametrize("length", [5_000, 6_000])
@torch.no_grad()
def test_in_training_networks_see_the_piece_at_once_and_nothing_is_filtered(length: int) -> None:
    model = network()
    mixture = sound(length, batch=2)
    magnitudes = stft(mixture, model.window, model.hop).abs()
    frames = magnitudes.shape[-1]
    padded = functional.pad(magnitudes, (0, frames % 2))
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model.estimated(list(parts(model).values()), padded)[..., :frames]
    model.load_state_dict(state)  # the norms keep count of what they saw
    estimate = model(mixture)
    assert estimate.waveforms.shape == (2, 4, 2, length)
    assert distance(estimate.spectrograms, expected) < 1e-6
    phase = stft(mixture, model.window, model.hop).angle().unsqueeze(1).expand_as(expected)
    assert distance(estimate.waveforms, istft(torch.polar(expected, phase), model.window, model.hop, length)) < 1e-5


def test_inputs_are_standardised_by_the_statistics_of_whole_mixtures() -> None:
    model = network()
    mixtures = [sound(9_000)[0], 2 * sound(5_000)[0]]
    model.standardise(mixtures)
    frames = torch.cat([stft(m, model.window, model.hop).abs().mean(dim=0) for m in mixtures], dim=-1)
    part = parts(model)["other"]
    assert torch.allclose(part.in_offset, frames.mean(dim=-1), rtol=1e-5)
    assert torch.allclose(part.in_scale, frames.std(dim=-1, correction=0), rtol=1e-4)


# -- the published files -----------------------------------------------------------------------------------------------

Shape = tuple[int, ...]
NORM = ("beta", "gamma", "mean", "var")


def unit(path: str, channels: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield from (
        (f"{path}/bottleneck/norm1/bn/{name}", (1, channels, 1, 1)) for name in ("beta", "gamma", "mean", "var")
    )
    yield f"{path}/bottleneck/conv1/conv/W", (width, channels, 3, 3)
    yield f"{path}/bottleneck/conv1/conv/b", (width,)


def d2(path: str, channels: int, growth: int, layers: int) -> Iterator[tuple[str, Shape]]:
    yield from unit(f"{path}/initial_layer", channels, growth * layers)
    for i in range(1, layers):
        yield from unit(f"{path}/layers/layer{i}", growth, growth * (layers - i))


def d3(path: str, channels: int, growth: int, layers: int, blocks: int) -> Iterator[tuple[str, Shape]]:
    yield from d2(f"{path}/initial_block", channels, growth * blocks, layers)
    for i in range(1, blocks):
        yield from d2(f"{path}/layers/layer{i}", growth, growth * (blocks - i), layers)


def md3(path: str, channels: int, sizes: tuple[tuple[int, int], ...], blocks: int) -> Iterator[tuple[str, Shape]]:
    scales = len(sizes) // 2
    for i, (growth, layers) in enumerate(sizes):
        place = "ds_layers/dense_block%d" if i < scales else "us_layers/dense_block%d"
        if i > scales:
            up = f"{path}/us_layers/upsample{i - scales - 1}/upsample"
            yield from ((f"{up}/norm/bn/{name}", (1, channels, 1, 1)) for name in NORM)
            yield f"{up}/transconv/deconv/W", (channels, channels, 2, 2)
            yield f"{up}/transconv/deconv/b", (channels,)
            channels += sizes[2 * scales - i][0]
        yield from d3(f"{path}/{'bottleneck_block' if i == scales else place % i}", channels, growth, layers, blocks)
        channels = growth


def published(source: str) -> dict[str, Tensor]:
    """Names and shapes of a source's file, as its authors' code makes them; no values."""

    def all_of() -> Iterator[tuple[str, Shape]]:
        sizes = SIZES.get(source, SIZES["vocals"])
        yield from ((name, (1, 1, 1, 2049)) for name in ("in_offset", "in_scale"))
        yield from ((name, (1, 1, 1, 1600)) for name in ("decode_scale", "decode_bias"))
        for place, width in (("features_init/0", 32), ("features_init/1", 8), ("features_init_full", 32)):
            yield f"{place}/conv/W", (width, 2, 3, 3)
            yield f"{place}/conv/b", (width,)
        yield from md3("dense_band/0", 32, sizes.low, 2)
        yield from md3("dense_band/1", 8, sizes.high, 1)
        yield from md3("dense_full", 32, sizes.full, 2)
        for place, channels in (("match_fm_conv/1/norm", 2), ("out_gate/bn", 12)):
            yield from ((f"{place}/bn/{name}", (1, channels, 1, 1)) for name in NORM)
        yield from (("match_fm_conv/1/conv/conv/W", (16, 2, 1, 1)), ("match_fm_conv/1/conv/conv/b", (16,)))
        for place in ("out_gate/conv_gate/conv/conv", "out_gate/conv_filt/conv/conv"):
            yield from ((f"{place}/W", (2, 12, 1, 1)), (f"{place}/b", (2,)))
        yield from d2("final_dense", 16 + sizes.full[-1][0], 12, 3)

    return {f"{source}/{name}": torch.empty(shape, device="meta") for name, shape in all_of()}


def test_the_published_files_of_all_sources_fit_the_network() -> None:
    entry = find("d3net")
    names: dict[str, Tensor] = {}
    for source, entries in (("vocals", 1098), ("drums", 1098), ("bass", 1128), ("other", 1098)):
        assert len(published(source)) == entries
        names |= published(source)
    expected = {name: tuple(tensor.shape) for name, tensor in full_size().state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in mapped(entry.files[0], names, "zip").items()}
    assert found == expected


def test_kernels_keep_their_values_and_norms_lose_their_axes() -> None:
    kernel, gain = seeded("kernel", (3, 2, 3, 3)), seeded("gain", (1, 2, 1, 1))
    tensors = {
        "bass/final_dense/initial_layer/bottleneck/conv1/conv/W": kernel,
        "bass/final_dense/initial_layer/bottleneck/norm1/bn/gamma": gain,
        "bass/final_dense/initial_layer/bottleneck/norm1/bn/mean": -gain,
    }
    found = mapped(find("d3net").files[0], tensors, "bass.h5")
    assert torch.equal(found.pop("networks.bass.final_dense.initial_layer.conv1.weight"), kernel)
    assert torch.equal(found.pop("networks.bass.final_dense.initial_layer.norm1.weight"), gain.flatten())
    assert torch.equal(found.pop("networks.bass.final_dense.initial_layer.norm1.running_mean"), -gain.flatten())
    assert list(found) == ["networks.bass.final_dense.initial_layer.norm1.num_batches_tracked"]


@pytest.mark.parametrize(
    ("sources", "changes", "told"),
    [
        (("vocals", "drums", "other"), {}, r"missing networks\.bass\.in_offset"),
        (STEMS, {"channels": 1, "settings": {"wiener_iterations": 0}}, r" \(32, 2, 3, 3\) in place of \(32, 1, 3, 3\)"),
        (STEMS, {"settings": {"n_fft": 8192, "hop": 2048}}, r"in_offset is \(2049,\) in place of \(4097,\)"),
        (STEMS, {"sources": ("vocals", "drums", "bass", "piano")}, r"networks\.piano\..*unexpected networks\.other"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_what_is_wrong(
    sources: tuple[str, ...], changes: dict[str, Any], told: str
) -> None:
    entry = find("d3net")
    tensors = {name: tensor for source in sources for name, tensor in published(source).items()}
    with pytest.raises(ModelError, match=told):
        load(skeleton(replace(entry, **changes)), mapped(entry.files[0], tensors, "zip"), "zip")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("n_fft", {"n_fft": 127}),
        ("hop", {"hop": 65}),
        ("bins", {"bins": 66}),
        ("bins", {"bins": 47}),
        ("bins", {"bins": 16}),
        ("patch", {"patch": -1}),
        ("patch", {"patch": 15}),
        ("patch = 0", {**FULL, "bridging": "bands"}),
        ("bridging", {**FULL, "patch": 352, "bridging": "bands+full"}),
        ("wiener_iterations", {"wiener_iterations": -1}),
        ("wiener_iterations", {"wiener_iterations": 2}),
        ("wiener_iterations", {"sources": ("vocals",)}),
        ("channels = 1", {"channels": 1}),
        ("channels = 3", {"channels": 3, "wiener_filter": "em"}),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=field), torch.device("meta"):
        built(**changes)
