"""Open-Unmix and X-UMX: counts, golden numbers, bridges, published layouts, and parity with two public packages."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli.dsp.stft import stft
from sepcli.errors import UsageError
from sepcli.models.umx import GAPS, OpenUnmix
from sepcli.weights.catalog import FileSpec, find
from sepcli.weights.seeded import fill, seeded
from tests.models.public_code import module

STEMS = ("vocals", "drums", "bass", "other")
SMALL = {"n_fft": 512, "hop": 128, "bins": 200, "hidden": 16}


def network(sources: tuple[str, ...] = STEMS, channels: int = 2, **settings: Any) -> OpenUnmix:
    model = OpenUnmix(
        sources=sources, channels=channels, sample_rate=44100, segment=60.0, level={}, **{**SMALL, **settings}
    )
    fill(model, seed=1)
    return model.eval()


def sound(length: int, batch: int = 1) -> Tensor:
    return 0.3 * seeded("mixture", (batch, 2, length))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def mapped(names: list[str], file: FileSpec) -> list[str]:
    """The names of a published file as the network's, by the rules of its entry."""
    kept = [name for name in names if not any(re.search(pattern, name) for pattern in file.drop)]
    for pattern, replacement in file.rename:
        kept = [re.sub(pattern, replacement, name) for name in kept]
    return [f"{file.part}.{name}" if file.part else name for name in kept]


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({"hidden": 512}, 8_893_348),
        ({"hidden": 1024}, 28_257_188),
        ({"hidden": 512, "bidirectional": False}, 10_466_212),
        ({"hidden": 512, "bridging": "BP7"}, 8_893_348),
    ],
)
def test_each_source_has_the_published_number_of_parameters(settings: dict[str, Any], each: int) -> None:
    with torch.device("meta"):
        model = network(n_fft=4096, hop=1024, bins=1487, **settings)
    assert [sum(p.numel() for p in part.parameters()) for part in model.networks.values()] == [each] * 4


def test_the_tensors_of_a_source_have_the_published_bytes() -> None:
    with torch.device("meta"):
        model = network(n_fft=4096, hop=1024, bins=1487, hidden=512)
    tensors = model.networks["bass"].state_dict().values()
    assert len(tensors) == 46
    assert sum(t.numel() * t.element_size() for t in tensors) == 35_614_392


GOLDEN = {  # energy of all sources, one sample of each
    "umx": (4359.080078, [0.0371642, 0.0834725, 0.0732262, 0.1318794]),
    "x-umx": (4310.804688, [0.0749837, 0.0265604, 0.0231612, 0.1386264]),
}


@pytest.mark.parametrize(("name", "settings"), [("umx", {}), ("x-umx", {"bridging": "BP4", "wiener_window": 0})])
def test_it_gives_the_numbers_stored_for_its_seed(name: str, settings: dict[str, Any]) -> None:
    with torch.inference_mode():
        waveforms = network(**settings)(sound(50_000)).waveforms
    energy, samples = GOLDEN[name]
    assert float(waveforms.square().sum()) == pytest.approx(energy, rel=1e-5)
    assert waveforms[0, :, 1, 40_000].tolist() == pytest.approx(samples, rel=1e-4)


def test_it_takes_the_files_of_2019_with_their_extras() -> None:
    entry = find("umx")
    file = entry.files[0]
    with torch.device("meta"):
        model = OpenUnmix(
            sources=entry.sources, channels=2, sample_rate=44100, segment=60.0, level={}, **entry.settings
        )
    published = [*model.networks["vocals"].state_dict(), "sample_rate", "stft.window", "transform.0.window"]
    names = [name for f in entry.files for name in mapped(published, f)]
    assert file.part == "networks.vocals"
    assert sorted(names) == sorted(model.state_dict())


def test_every_published_source_is_a_file_of_its_part_named_by_its_digest() -> None:
    for name in ("umx", "umxhq", "umxl", "umxse"):
        entry = find(name)
        assert [file.part for file in entry.files] == [f"networks.{source}" for source in entry.sources]
        for file in entry.files:
            assert len(file.sha256) == 8
            assert file.sha256 in file.url


def test_asteroids_names_map_onto_the_network() -> None:
    entry = find("x-umx")
    names = ["encoder.0.window", "decoder.window"]
    gates = [f"{kind}_l{i}{way}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for i in range(3)
             for way in ("", "_reverse")]  # fmt: skip
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for source in entry.sources:
        names += [f"layer_enc.{source}.enc.0.weight"] + [f"layer_enc.{source}.enc.1.{x}" for x in norm]
        names += [f"layer_lstm.{source}.{gate}" for gate in gates]
        names += [f"layer_dec.{source}.dec.{i}.weight" for i in (0, 3)]
        names += [f"layer_dec.{source}.dec.{i}.{x}" for i in (1, 4) for x in norm]
        names += [f"mean_scale.{end}_{kind}_{source}" for end in ("input", "output") for kind in ("mean", "scale")]
    assert len(names) == 186
    with torch.device("meta"):
        model = OpenUnmix(
            sources=entry.sources, channels=2, sample_rate=44100, segment=60.0, level={}, **entry.settings
        )
    assert sorted(mapped(names, entry.files[0])) == sorted(model.state_dict())


@torch.inference_mode()
def test_with_equal_networks_bridges_change_nothing() -> None:
    plain = network()
    for part in plain.networks.values():
        part.load_state_dict(plain.networks["vocals"].state_dict())
    mixture = sound(20_000)
    expected = plain(mixture).waveforms
    for bridging in GAPS:
        bridged = network(bridging=bridging)
        bridged.load_state_dict(plain.state_dict())
        assert distance(bridged(mixture).waveforms, expected) < 1e-6, bridging


@pytest.mark.parametrize("bridging", GAPS)
@torch.inference_mode()
def test_a_bridge_couples_what_comes_before_it(bridging: Any) -> None:
    model = network(bridging=bridging, wiener_iterations=0)
    magnitudes = stft(sound(9_000), model.window, model.hop).abs()
    before = model.masks(magnitudes)[:, 0]
    coupled = set()
    for gap, weight in [(1, "fc1.weight"), (2, "lstm.weight_ih_l0"), (3, "fc2.weight")]:
        changed = network(bridging=bridging, wiener_iterations=0)
        changed.networks["drums"].get_parameter(weight).mul_(2)
        if not torch.equal(changed.masks(magnitudes)[:, 0], before):
            coupled.add(gap)
    assert coupled == set(range(1, max(GAPS[bridging], default=0) + 1))


@torch.inference_mode()
def test_the_seven_bridgings_are_seven_networks_and_the_skip_matters_only_before_the_second_gap() -> None:
    magnitudes = stft(sound(9_000), torch.hann_window(512), 128).abs()
    masks = {bridging: network(bridging=bridging).masks(magnitudes) for bridging in GAPS}
    for first in masks:
        for second in masks:
            assert first == second or distance(masks[first], masks[second]) > 1e-3
    for bridging, gaps in GAPS.items():
        change = distance(network(bridging=bridging, bridged_skip=True).masks(magnitudes), masks[bridging])
        assert (change > 1e-3) == (1 in gaps and 2 not in gaps), bridging


@torch.inference_mode()
def test_the_tail_is_complete_at_any_length() -> None:
    model = network((*STEMS, "residual"), residual=True, wiener_iterations=0)
    for length in (1, 127, 128, 5_000):
        mixture = sound(length)
        estimate = model(mixture)
        assert distance(estimate.waveforms.sum(dim=1), mixture) < 1e-5
        assert estimate.spectrograms.shape == (1, 5, 2, 257, length // 128 + 1)


@torch.inference_mode()
def test_the_residual_takes_part_in_the_refinement() -> None:
    with_residual = network((*STEMS, "residual"), residual=True)
    without = network()
    mixture = sound(20_000)
    first, second = with_residual(mixture).waveforms, without(mixture).waveforms
    assert first.shape == (1, 5, 2, 20_000)
    assert distance(first[:, :4], second) > 1e-2


def test_pieces_hold_whole_windows_of_the_filter() -> None:
    assert network().grid == 300 * 128
    assert network().piece == 60 * 44100 // 38_400 * 38_400
    assert network(wiener_iterations=0).grid == network(wiener_window=0).grid == 128
    assert network(wiener_window=100_000).piece == 2 * 100_000 * 128, "two, so that pieces can overlap"


@torch.inference_mode()
def test_only_networks_that_nothing_couples_are_independent() -> None:
    plain = network(wiener_iterations=0)
    assert plain.independent
    mixture = sound(9_000)
    alone = network(("bass",), wiener_iterations=0)
    alone.networks["bass"].load_state_dict(plain.networks["bass"].state_dict())
    assert torch.equal(alone(mixture).waveforms[:, 0], plain(mixture).waveforms[:, 2])
    for settings in ({}, {"bridging": "BP1", "wiener_iterations": 0}, {"softmask": True, "wiener_iterations": 0}):
        assert not network(**settings).independent
    assert not network((*STEMS, "residual"), residual=True, wiener_iterations=0).independent


@pytest.mark.parametrize(("settings", "frames"), [({}, 255), ({"bridging": "BP4"}, 259)])
def test_training_sees_the_frames_that_its_authors_train_on(settings: dict[str, Any], frames: int) -> None:
    model = network(n_fft=4096, hop=1024, **settings).train()
    mixture = sound(264_600, batch=2)
    estimate = model(mixture)
    reference = model.reference(mixture.unsqueeze(1))
    assert estimate.waveforms.shape == (2, 4, 2, 264_600)
    assert estimate.spectrograms.shape == (2, 4, 2, 2049, frames)
    assert reference.spectrograms is not None
    whole = stft(mixture, model.window, 1024, centre=frames == 259).abs()
    assert distance(reference.spectrograms[:, 0], whole) < 1e-6
    model.eval()
    assert model.reference(mixture.unsqueeze(1)).spectrograms.shape[-1] == 259  # type: ignore[union-attr]


def test_in_training_a_spectrogram_is_the_mask_times_the_mixtures_magnitudes() -> None:
    model = network(bridging="BP4").train()
    for part in model.modules():
        if isinstance(part, nn.LSTM):
            part.dropout = 0.0  # so that two passes agree
    mixture = sound(9_000)
    with torch.no_grad():
        magnitudes = stft(mixture, model.window, model.hop).abs()
        expected = model.masks(magnitudes) * magnitudes.unsqueeze(1)
        assert distance(model(mixture).spectrograms, expected) < 1e-6


def test_inputs_are_standardised_by_the_statistics_of_whole_mixtures() -> None:
    model = network()
    mixtures = [sound(9_000)[0], 2 * sound(5_000)[0]]
    model.standardise(mixtures)
    frames = torch.cat([stft(m, model.window, model.hop).abs().mean(dim=0) for m in mixtures], dim=-1)
    part = model.networks["other"]
    assert torch.allclose(part.get_parameter("input_mean"), -frames.mean(dim=-1)[:200], rtol=1e-5)
    deviation = frames.std(dim=-1, correction=0)
    assert torch.allclose(part.get_parameter("input_scale"), 1 / deviation[:200], rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("n_fft", {"n_fft": 511}),
        ("hop", {"hop": 300}),
        ("bins", {"bins": 258}),
        ("hidden", {"hidden": 15}),
        ("layers", {"layers": 0}),
        ("wiener_iterations", {"wiener_iterations": -1}),
        ("wiener_iterations", {"sources": ("vocals",)}),
        ("channels = 3", {"channels": 3}),
        ("wiener_window", {"wiener_window": -1}),
        ("wiener_eps", {"wiener_eps": 0.0}),
        ("residual", {"sources": ("residual",), "residual": True, "wiener_iterations": 0}),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=field):
        network(**changes)


@pytest.mark.reference
@pytest.mark.parametrize("settings", [{"hidden": 32}, {"hidden": 32, "bidirectional": False, "layers": 1}])
@torch.inference_mode()
def test_a_network_equals_openunmix(settings: dict[str, Any]) -> None:
    openunmix = pytest.importorskip("openunmix.model")
    ours = network(("vocals", "drums"), n_fft=4096, hop=1024, bins=1487, **settings)
    magnitudes = 30 * seeded("magnitudes", (2, 2, 2049, 130)).abs()
    masks = ours.masks(magnitudes)
    for index, part in enumerate(ours.networks.values()):
        theirs = openunmix.OpenUnmix(
            nb_bins=2049,
            nb_channels=2,
            hidden_size=32,
            nb_layers=settings.get("layers", 3),
            unidirectional=not settings.get("bidirectional", True),
            max_bin=1487,
        )
        theirs.load_state_dict(part.state_dict(), strict=True)
        assert distance(masks[:, index] * magnitudes, theirs.eval()(magnitudes)) < 1e-6


@pytest.mark.reference
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("softmask", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 2])
@torch.inference_mode()
def test_separation_equals_openunmix_over_three_windows(iterations: int, softmask: bool, residual: bool) -> None:
    openunmix = pytest.importorskip("openunmix.model")
    sources = (*STEMS, "residual") if residual else STEMS
    ours = network(sources, wiener_iterations=iterations, softmask=softmask, residual=residual)
    targets = {}
    for source, part in ours.networks.items():
        targets[source] = openunmix.OpenUnmix(nb_bins=257, nb_channels=2, hidden_size=16, max_bin=200)
        targets[source].load_state_dict(part.state_dict(), strict=True)
    theirs = openunmix.Separator(
        targets, niter=iterations, softmask=softmask, residual=residual, n_fft=512, n_hop=128, nb_channels=2
    ).eval()
    mixture = sound(700 * 128 + 45, batch=2)
    assert distance(ours(mixture).waveforms, theirs(mixture.clone())) < 1e-5


@pytest.mark.reference
@torch.inference_mode()
def test_x_umx_equals_asteroid(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(nn.Module):
        def __init__(self, sample_rate: float) -> None:
            super().__init__()

    code = module("asteroid/asteroid/models/x_umx.py", monkeypatch, base_models={"BaseModel": Base})
    entry = find("x-umx")
    settings = {**entry.settings, "hidden": 32, "wiener_iterations": 0}
    ours = network(entry.sources, n_fft=4096, hop=1024, bins=1487, **settings)
    theirs = code.XUMX(list(entry.sources), hidden_size=32, max_bin=1487, return_time_signals=True).eval()
    published = theirs.state_dict()
    kept = [name for name in published if not name.endswith("window")]
    names = mapped(kept, entry.files[0])
    assert len(published) == 186
    theirs.load_state_dict({**published, **{a: ours.state_dict()[b] for a, b in zip(kept, names, strict=True)}})
    mixture = sound(132_096)
    estimate = ours(mixture)
    spectrograms, waveforms = theirs(mixture)
    assert distance(estimate.spectrograms, spectrograms.permute(2, 0, 3, 4, 1)) < 1e-6
    assert distance(estimate.waveforms, waveforms.movedim(0, 1)) < 1e-6
