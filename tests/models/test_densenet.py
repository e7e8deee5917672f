"""sepcli/models/densenet.py: the authors' networks exactly, their published file, and pieces that equal one pass."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli.dsp import pqmf
from sepcli.errors import UsageError
from sepcli.inference.stream import cut_for, estimates, overlap_add, pieces
from sepcli.models import build
from sepcli.models.densenet import MDenseNet, MMDenseNet, MultiTrunk, SingleTrunk
from sepcli.models.separator import Separator, Traits
from sepcli.weights import catalog
from sepcli.weights.seeded import fill
from tests.models import public_code

SOURCES = ("vocals", "accompaniment")


def traits(sources: tuple[str, ...] = SOURCES, segment: float = 10.0) -> Traits:
    return Traits(sources=sources, channels=2, sample_rate=44100, segment=segment, level={})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# -- the network of one source ----------------------------------------------------------------------------------------

MULTI_AS_IN_THE_CODE = partial(MultiTrunk, full_kernel=(4, 3))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (SingleTrunk, [274_390, 275_674, 278_242, 283_378]),
        (MultiTrunk, [297_998, 301_970, 309_914, 325_802]),
        (MULTI_AS_IN_THE_CODE, [298_382, 302_738, 311_450, 328_874]),
    ],
)
def test_parameters_of_one_network_for_1_2_4_and_8_bands(network: Any, expected: list[int]) -> None:
    with torch.device("meta"):
        assert [count(network(4 * bands)) for bands in (1, 2, 4, 8)] == expected


def fill_by_formula(network: nn.Module) -> None:
    """Weights in closed form, by index of stored order, float64."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            n = module.weight.numel()
            i = torch.arange(n, dtype=torch.float64)
            values = math.sqrt(4 / (n // module.weight.shape[0])) * torch.sin(0.7 * i + 0.0003 * i**2 + 0.01 * n)
            module.weight.data.copy_(values.view_as(module.weight))
            if module.bias is not None:
                module.bias.data.copy_(0.1 * torch.cos(i[: len(module.bias)]))
        elif isinstance(module, nn.BatchNorm2d):
            i = torch.arange(module.num_features, dtype=torch.float64)
            module.weight.data.copy_(1 + 0.1 * torch.sin(i))
            module.bias.data.copy_(0.1 * torch.cos(2 * i))
            module.get_buffer("running_mean").copy_(0.1 * torch.sin(3 * i))
            module.get_buffer("running_var").copy_(1 + 0.5 * torch.cos(i) ** 2)


@pytest.mark.parametrize(
    ("network", "mean", "deviation", "row", "corner", "edge"),
    [
        (
            SingleTrunk,
            -0.04107275,
            0.15790172,
            [0.27534711, 0.19895654, 0.25658316, 0.21262358],
            0.02681292,
            [-0.14163752, -0.16650484],
        ),
        (
            MULTI_AS_IN_THE_CODE,
            0.00988473,
            0.08797944,
            [0.20913426, 0.21860858, 0.21151732, 0.21067150],
            0.11459246,
            [-0.03738437, -0.03877320],
        ),
        (
            MultiTrunk,
            0.01021625,
            0.08564941,
            [0.20873094, 0.21628116, 0.21158276, 0.21364515],
            0.13564915,
            [-0.03387837, -0.03026500],
        ),
    ],
)
@torch.no_grad()
def test_networks_filled_by_a_formula_give_the_public_networks_values(
    network: Any, mean: float, deviation: float, row: list[float], corner: float, edge: list[float]
) -> None:
    net = network(8).double().eval()
    fill_by_formula(net)
    c, f, t = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (8, 65, 45)), indexing="ij")
    x = torch.sin(0.3 * c + 0.11 * f + 0.07 * t) * torch.cos(0.013 * f * t)
    assert float(x.mean()) == pytest.approx(0.05380498, abs=1e-8)
    y = net(x.unsqueeze(0))[0]
    assert y.shape == x.shape
    assert float(y.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(y.std()) == pytest.approx(deviation, abs=1e-5)
    assert y[0, 10, 10:14].tolist() == pytest.approx(row, abs=1e-6)
    assert float(y[7, 64, 44]) == pytest.approx(corner, abs=1e-6)
    assert y[3, 0, 0:2].tolist() == pytest.approx(edge, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "rows", "period", "before", "after"), [(SingleTrunk, 18, 16, 203, 201), (MultiTrunk, 22, 8, 99, 97)]
)
def test_an_output_frame_sees_the_frames_that_context_counts(
    network: Any, rows: int, period: int, before: int, after: int
) -> None:
    """Averages for maxima and positive weights: no path is closed, so the gradient shows the whole reach."""
    net = network(2).double().eval()
    for parameter in net.parameters():
        parameter.data.abs_()
    for module in net.modules():
        if isinstance(module, nn.Sequential) and isinstance(module[1], nn.MaxPool2d):
            module[1] = nn.AvgPool2d(2)
    frames = 480 + 2
    x = torch.ones(1, 2, rows, frames, dtype=torch.float64, requires_grad=True)
    y = net(x)
    offsets = []
    for frame in range(240, 240 + period):
        (gradient,) = torch.autograd.grad(y[0, :, :, frame].sum(), x, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten() - frame
        offsets.append((int(seen.min()), int(seen.max())))
    assert (min(first for first, _ in offsets), max(last for _, last in offsets)) == (-before, after)


@pytest.mark.parametrize("network", [SingleTrunk, MultiTrunk])
def test_without_dropout_the_names_are_the_same_and_only_training_drops(network: Any) -> None:
    assert network(4, dropout=0.0).state_dict().keys() == network(4).state_dict().keys()
    net = fill(network(4, dropout=0.5))
    x = torch.ones(1, 4, 40, 34)
    assert bool((net.eval()(x) == net(x)).all())
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.reference
@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_networks_equal_the_public_classes(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """haoheliu/Subband-Music-Separation at d82acea; of MMDenseNet only the trunks' names differ."""
    folder = "Subband-Music-Separation/models"
    public = public_code.module(f"{folder}/_mdensenet.py", monkeypatch)
    if several:
        stubs = {"models": {}, "models._mdensenet": vars(public)}
        public = public_code.module(f"{folder}/_mmdensenet.py", monkeypatch, **stubs)
        theirs, ours = public.MMDenseNet(8), MULTI_AS_IN_THE_CODE(8)
    else:
        theirs, ours = public.MDenseNet(8, 8), SingleTrunk(8)
    fill(theirs).eval()
    ours.load_state_dict({re.sub(r"^(low|high|full)Net\.", r"\1.", k): v for k, v in theirs.state_dict().items()})
    x = torch.randn(2, 8, 65, 45, generator=torch.Generator().manual_seed(0))
    expected = theirs(x.clone())
    assert float((ours.eval()(x) - expected).abs().max()) < 1e-6
    assert float(expected.std()) > 0.1


# -- the separators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MDenseNet, MMDenseNet])
@torch.no_grad()
def test_each_source_has_a_network_of_its_own(model: type[Separator]) -> None:
    both = fill(model(bands=8, **traits())).eval()
    alone = model(bands=8, **traits(("accompaniment",))).eval()
    prefix = "networks.accompaniment."
    alone.load_state_dict({name: value for name, value in both.state_dict().items() if name.startswith(prefix)})
    mixture = 0.1 * torch.randn(2, 2, 7001, generator=torch.Generator().manual_seed(1))
    estimate, single = both(mixture), alone(mixture)
    assert estimate.waveforms.shape == (2, 2, 2, 7001)
    assert float((estimate.waveforms[:, 1] - single.waveforms[:, 0]).abs().max()) < 1e-6
    assert float((estimate.waveforms[:, 1] - estimate.waveforms[:, 0]).abs().max()) > 1e-3


@pytest.mark.parametrize("model", [MDenseNet, MMDenseNet])
@torch.no_grad()
def test_the_reference_lies_in_the_domain_of_the_estimate(model: type[Separator]) -> None:
    network = fill(model(bands=4, **traits())).eval()
    sources = 0.1 * torch.randn(1, 2, 2, 6000, generator=torch.Generator().manual_seed(2))
    estimate, reference = network(sources.sum(dim=1)), network.reference(sources)
    assert reference.waveforms is sources
    assert (
        estimate.spectrograms.shape == reference.spectrograms.shape == (1, 2, 16, 257, 34 if model is MDenseNet else 26)
    )
    mixture = network.reference(sources.sum(dim=1, keepdim=True)).spectrograms
    assert float((reference.spectrograms.sum(dim=1, keepdim=True) - mixture).abs().max()) < 1e-4


@pytest.mark.parametrize("model", [MDenseNet, MMDenseNet])
def test_gradients_reach_all_but_the_convolution_that_the_authors_left_over(model: type[Separator]) -> None:
    network = fill(model(bands=8, **traits(("vocals",)))).train()
    network(0.1 * torch.randn(1, 2, 12_000)).waveforms.square().sum().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    spare = {name for name, _ in network.named_parameters() if any(re.search(rule, name) for rule in network.unused)}
    assert without == spare
    assert len(without) == (2 if model is MDenseNet else 6)


def in_pieces(network: Separator, song: Tensor) -> tuple[Tensor, int]:
    cut = cut_for(network)
    blocks = song.split(65_536, dim=-1)
    parts = list(overlap_add(estimates(pieces(blocks, cut), lambda x: network(x).waveforms), cut))
    return torch.cat(parts, dim=-1), len(parts)


def noise_song(length: int) -> Tensor:
    """Noise that swells and fades, (2, length)."""
    swell = torch.sin(torch.arange(length) / 9000.0) ** 2 + 0.05
    return 0.2 * swell * torch.randn(2, length, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("model", "bands"), [(MDenseNet, 8), (MMDenseNet, 8), (MMDenseNet, 1)])
@torch.no_grad()
def test_pieces_equal_one_pass(model: type[Separator], bands: int) -> None:
    network = fill(model(bands=bands, **traits(("vocals",))), gain=1.4).eval()
    assert isinstance(network, Separator)
    song = noise_song(32 * network.grid + 777)
    network.segment = (15 * network.grid - 100) / 44100
    whole = network(song.unsqueeze(0)).waveforms[0]
    joined, number = in_pieces(network, song)
    assert number == 3
    assert joined.shape == whole.shape
    assert float((whole - song).square().mean() / song.square().mean()) > 0.05  # the masks do something
    error = (joined - whole).square().mean()
    assert 10 * math.log10(float(whole.square().mean() / error.clamp_min(1e-20))) > 100


@torch.no_grad()
def test_pieces_off_the_grid_do_not_equal_one_pass() -> None:
    """So that the comparison above is known to see it."""
    network = fill(MDenseNet(bands=8, **traits(("vocals",))), gain=1.4).eval()
    song = noise_song(36 * 5632)
    whole = network(song.unsqueeze(0)).waveforms[0]
    late = network(song[:, 352:].unsqueeze(0)).waveforms[0]
    error = (late - whole[..., 352:])[..., 90_000:100_000].square().mean()
    assert 10 * math.log10(float(whole[..., 90_000:100_000].square().mean() / error)) < 60


def test_context_covers_the_frames_the_window_and_the_filters() -> None:
    with torch.device("meta"):
        for bands in (1, 8):
            single, multi = MDenseNet(bands=bands, **traits()), MMDenseNet(bands=bands, **traits())
            assert (single.grid, multi.grid) == (16 * 352, 8 * 352)
            taps = 0 if bands == 1 else 128
            assert single.context == 203 * 352 + 2048 + taps
            assert multi.context == 99 * 352 + 2048 + taps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 3}, "bands = 3: must be 1, 2, 4 or 8"),
        ({"dropout": 1.0}, "dropout = 1.0: must be at least 0 and below 1"),
        ({"full_kernel": [5, 3]}, r"full_kernel = \[5, 3\]: must be \[3, 3\] or \[4, 3\]"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("densenet.MMDenseNet", settings, traits())


@pytest.mark.parametrize("name", ["cws-mdensenet", "cws-mdensenet-paper", "cws-mmdensenet"])
def test_entries_build_networks_of_their_parameters(name: str) -> None:
    entry = catalog.find(name)
    with torch.device("meta"):
        network = build(entry.architecture, entry.settings, traits(entry.sources))
    assert count(network) == entry.parameters


# -- the published file, with the values of the authors' code ---------------------------------------------------------


@pytest.fixture(scope="module")
def hum() -> Tensor:
    """Three seconds of two tones, a vibrato and noise from a linear congruential generator, (2, 132300)."""
    t = torch.arange(132_300, dtype=torch.float64) / 44_100

    def tone(frequency: float) -> Tensor:
        return torch.sin(2 * torch.pi * frequency * t)

    def hiss(state: int) -> Tensor:
        values = []
        for _ in range(132_300):
            state = (1_664_525 * state + 1_013_904_223) % 2**32
            values.append(state / 2**32 - 0.5)
        return torch.tensor(values, dtype=torch.float64)

    vibrato = 0.20 * torch.sin(2 * torch.pi * 440 * t * (1 + 0.004 * tone(5)))
    left = 0.30 * tone(110) + vibrato + 0.10 * tone(3000) + 0.05 * hiss(1)
    right = 0.25 * tone(165) + vibrato + 0.10 * tone(7000) + 0.05 * hiss(2)
    return torch.stack([left, right]).float()


def test_the_sound_of_the_stored_values_is_the_right_one(hum: Tensor) -> None:
    assert hum.square().mean(dim=-1).sqrt().tolist() == pytest.approx([0.26499374, 0.23759052], abs=1e-7)
    assert hum[0, 1000:1004].tolist() == pytest.approx([0.04423562, 0.07393296, 0.1208216, 0.1242393], abs=1e-7)


BANDS = {
    2: (
        [0.2647828, 0.0105963],
        [-0.3763623, -0.2764457, -0.2353443, -0.2586861],
        [-0.07719418, -0.07666612, 0.05467388, -0.06512191],
    ),
    4: (
        [0.2647647, 0.0158257, 0.0178800, 0.0074440],
        [-0.2677851, -0.3150111, -0.4318461, -0.3278144],
        [-0.3644976, -0.3614348, -0.3553303, -0.3299851],
    ),
    8: (
        [0.2580154, 0.0611069, 0.0072822, 0.0125883, 0.0062724, 0.0063686, 0.0056064, 0.0057331],
        [-0.04371159, -0.1308974, -0.1984711, -0.2178221],
        [-0.08152221, -0.1446047, -0.2220647, -0.2664478],
    ),
}


@pytest.mark.parametrize("bands", BANDS)
def test_bands_have_the_authors_values(hum: Tensor, bands: int) -> None:
    rms, left, right = BANDS[bands]
    subbands = pqmf.analyse(hum, pqmf.filters(bands)[0])
    assert subbands[0].square().mean(dim=-1).sqrt().tolist() == pytest.approx(rms, abs=2e-7)
    assert subbands[0, 0, 1000:1004].tolist() == pytest.approx(left, abs=3e-6)
    assert subbands[1, 0, 1000:1004].tolist() == pytest.approx(right, abs=3e-6)


SPECTRA = {
    1: (
        5.692132,
        [-11.19046, -10.68167, -3.76325, 4.719082],
        [-3.083397, 4.59101, 9.441594, 9.572948],
    ),
    2: (
        2.844579,
        [-5.72898, -3.549083, 0.7413841, 4.541139],
        [0.893218, 4.16854, 4.975627, 3.337271],
    ),
    4: (
        1.455360,
        [-2.876387, -1.843011, 0.2935431, 2.21097],
        [0.3762129, 2.036052, 2.500399, 1.720212],
    ),
    8: (
        0.710421,
        [-1.452981, -0.9944113, 0.04788095, 1.032754],
        [0.09955574, 0.9590608, 1.252118, 0.9261659],
    ),
}


@pytest.mark.parametrize("bands", SPECTRA)
def test_spectra_have_the_authors_values(hum: Tensor, bands: int) -> None:
    rms, real, imaginary = SPECTRA[bands]
    network = MDenseNet(bands=bands, **traits(("vocals",)))
    spectrum = network.subbands.analyse(hum)
    assert spectrum.shape == (4 * bands, 1024 // bands + 1, 376)
    assert float(spectrum.square().mean().sqrt()) == pytest.approx(rms, rel=1e-6)
    assert spectrum[0, 3, 100:104].tolist() == pytest.approx(real, abs=1e-5 * rms)
    assert spectrum[1, 3, 100:104].tolist() == pytest.approx(imaginary, abs=1e-5 * rms)


def published(shared: Path) -> MDenseNet:
    entry = catalog.find("cws-mdensenet")
    path = shared / "weights" / "cws_mdensenet_k8_model155700.pth"
    if not path.exists():
        pytest.skip("the published file is not here")
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    for pattern, replacement in entry.files[0].rename:
        tensors = {re.sub(pattern, replacement, name): value for name, value in tensors.items()}
    assert path.stat().st_size == entry.files[0].bytes
    network = build(entry.architecture, entry.settings, traits(entry.sources))
    network.load_state_dict(tensors, strict=True)
    assert isinstance(network, MDenseNet)
    return network


PUBLISHED = {
    "accompaniment": (
        (0.948902, 0.195328),
        [0.05235278, 0.08471067, 0.05261309, 0.009224924],
        [1.0, 1.0],
        [0.223947, 0.190893],
        [-0.2388909, -0.2163956, -0.1962385, -0.2231261, -0.2177675, -0.2347368, -0.296319, -0.3084511],
        [-0.3285689, -0.3402056, -0.2511872, -0.1549515],
    ),
    "vocals": (
        (0.062514, 0.207349),
        [0.9774245, 0.9541789, 0.9710746, 0.9956911],
        [7.088e-11, 7.266e-11],
        [0.141461, 0.141351],
        [-0.2006088, -0.2013485, -0.1974621, -0.198144, -0.1963211, -0.189959, -0.1937775, -0.1850397],
        [0.1141086, 0.09983405, 0.0919916, 0.07270062],
    ),
}


@pytest.mark.shared
@pytest.mark.parametrize("source", PUBLISHED)
@torch.no_grad()
def test_the_published_file_gives_the_authors_masks_and_waves(shared: Path, hum: Tensor, source: str) -> None:
    """One pass over the sound at its own level, without the zeros that forward appends."""
    (mean, deviation), row, corner, rms, left, right = PUBLISHED[source]
    network = published(shared)
    spectrum = network.subbands.analyse(hum.unsqueeze(0))
    mask = network.networks[source](spectrum).sigmoid()
    assert float(mask.mean()) == pytest.approx(mean, abs=1e-5)
    assert float(mask.std()) == pytest.approx(deviation, abs=1e-5)
    assert mask[0, 16, 20, 200:204].tolist() == pytest.approx(row, abs=1e-5)
    assert mask[0, 0, 3, 100:102].tolist() == pytest.approx(corner, abs=1e-6)
    wave = network.subbands.synthesise(mask * spectrum, 132_000)[0]
    assert wave.shape == (2, 132_000)
    assert wave.square().mean(dim=-1).sqrt().tolist() == pytest.approx(rms, abs=2e-6)
    assert wave[0, 40_000:40_008].tolist() == pytest.approx(left, abs=2e-5)
    assert wave[1, 90_000:90_004].tolist() == pytest.approx(right, abs=2e-5)


@pytest.mark.shared
@torch.no_grad()
def test_with_the_published_weights_pieces_equal_one_pass(shared: Path, hum: Tensor) -> None:
    network = published(shared)
    song = torch.cat([hum, noise_song(60_000), hum], dim=-1)[:, :300_017]
    network.segment = 14 * 5632 / 44100
    whole = network(song.unsqueeze(0)).waveforms[0]
    joined, number = in_pieces(network, song)
    assert number == 4
    assert float((joined - whole).abs().max()) < 2e-6
    error = (joined - whole).square().mean()
    assert 10 * math.log10(float(whole.square().mean() / error)) > 120
