"""sepcli/models/cws_unet.py: the authors' U-Nets exactly, and pieces of one length."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli.errors import UsageError
from sepcli.inference.stream import cut_for, estimates, overlap_add, pieces
from sepcli.models import build
from sepcli.models.cws_unet import CwsUnet, UNet
from sepcli.models.separator import Traits
from sepcli.weights import catalog
from sepcli.weights.seeded import fill
from tests.models import public_code


def traits(segment: float = 3.0) -> Traits:
    return Traits(sources=("vocals", "accompaniment"), channels=2, sample_rate=44100, segment=segment, level={})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (5, [13_396_100, 13_398_664, 13_403_792, 13_414_048]),
        (6, [53_516_420, 53_518_984, 53_524_112, 53_534_368]),
    ],
)
def test_parameters_of_one_network_for_1_2_4_and_8_bands(scales: int, expected: list[int]) -> None:
    with torch.device("meta"):
        assert [count(UNet(4 * bands, scales)) for bands in (1, 2, 4, 8)] == expected


def fill_by_formula(network: nn.Module) -> None:
    """Weights in closed form, by index of stored order, float64."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            n = module.weight.numel()
            i = torch.arange(n, dtype=torch.float64)
            values = math.sqrt(4 / (n // module.weight.shape[0])) * torch.sin(0.7 * i + 0.0003 * i**2 + 0.01 * n)
            module.weight.data.copy_(values.view_as(module.weight))
            assert module.bias is not None
            module.bias.data.copy_(0.1 * torch.cos(i[: len(module.bias)]))
        elif isinstance(module, nn.BatchNorm2d):
            i = torch.arange(module.num_features, dtype=torch.float64)
            module.weight.data.copy_(1 + 0.1 * torch.sin(i))
            module.bias.data.copy_(0.1 * torch.cos(2 * i))
            module.get_buffer("running_mean").copy_(0.1 * torch.sin(3 * i))
            module.get_buffer("running_var").copy_(1 + 0.5 * torch.cos(i) ** 2)


@pytest.mark.parametrize(
    ("scales", "mean", "deviation", "row", "corner", "edge"),
    [
        (
            5,
            0.01624400,
            0.28089746,
            [-0.27418827, -0.27821805, -0.28391210, -0.28960217],
            0.40075304,
            [-0.20800421, -0.26086679],
        ),
        (
            6,
            0.01655805,
            0.27921036,
            [-0.26647546, -0.27376526, -0.28194837, -0.28948537],
            0.40073199,
            [-0.20832095, -0.26078237],
        ),
    ],
)
@torch.no_grad()
def test_networks_filled_by_a_formula_give_the_public_networks_values(
    scales: int, mean: float, deviation: float, row: list[float], corner: float, edge: list[float]
) -> None:
    with torch.device("meta"):
        net = UNet(8, scales).double().eval()
    net.to_empty(device="cpu")
    fill_by_formula(net)
    c, f, t = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (8, 65, 45)), indexing="ij")
    x = torch.sin(0.3 * c + 0.11 * f + 0.07 * t) * torch.cos(0.013 * f * t)
    y = net(x.unsqueeze(0))[0]
    assert y.shape == x.shape
    assert float(y.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(y.std()) == pytest.approx(deviation, abs=1e-5)
    assert y[0, 10, 10:14].tolist() == pytest.approx(row, abs=1e-6)
    assert float(y[7, 64, 44]) == pytest.approx(corner, abs=1e-6)
    assert y[3, 0, 0:2].tolist() == pytest.approx(edge, abs=1e-6)


def name_of_ours(public: str, scales: int) -> str:
    """A public name in ours: inc, down1.., up1.. (U-Net-6: up2..), outc."""
    block, _, rest = public.partition(".")
    rest = re.sub(r"^(maxpool_conv\.1\.|conv\.)?(double_conv\.)?", "", rest)
    kind, number = re.fullmatch(r"([a-z]+)(\d*)", block).groups()  # type: ignore[union-attr]
    if kind == "down":
        return f"down.{int(number) - 1}.1.{rest}"
    if kind == "up":
        return f"up.{int(number) - (scales - 4)}.convolution.{rest}"
    return {"inc": "first", "outc": "last"}[kind] + f".{rest}"


@pytest.mark.reference
@pytest.mark.parametrize("scales", [5, 6])
@torch.no_grad()
def test_networks_equal_the_public_classes(scales: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """haoheliu/Subband-Music-Separation at d82acea."""
    public = public_code.module("Subband-Music-Separation/models/_unet.py", monkeypatch)
    theirs, ours = getattr(public, f"UNet_{scales}")(8, 8), UNet(8, scales)
    fill(theirs).eval()
    ours.load_state_dict({name_of_ours(name, scales): value for name, value in theirs.state_dict().items()})
    x = torch.randn(1, 8, 65, 45, generator=torch.Generator().manual_seed(0))
    expected = theirs(x.clone())
    assert float((ours.eval()(x) - expected).abs().max()) < 1e-6
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("scales", [5, 6])
@pytest.mark.parametrize("length", [1, 5632, 30_017])
@torch.no_grad()
def test_any_length_comes_back_with_the_masked_subbands(scales: int, length: int) -> None:
    network = fill(CwsUnet(bands=8, scales=scales, width=2, **traits())).eval()
    mixture = noise(2, 2, length)
    estimate = network(mixture)
    assert estimate.waveforms.shape == (2, 2, 2, length)
    reference = network.reference(mixture.unsqueeze(1).expand(-1, 2, -1, -1))
    assert estimate.spectrograms.shape == reference.spectrograms.shape
    assert bool(estimate.waveforms.isfinite().all())


def test_a_short_piece_is_filled_to_the_one_length() -> None:
    with torch.device("meta"):
        network = CwsUnet(bands=4, **traits())
    assert (network.piece, network.context, network.grid) == (132_300, None, 352)
    assert network.margins(132_300) == (0, 0)
    assert network.margins(1) == (0, 132_299)


@torch.no_grad()
def test_every_window_of_a_song_has_the_same_length() -> None:
    network = fill(CwsUnet(bands=8, width=2, **traits(segment=0.5))).eval()
    song = noise(2, 50_001)
    lengths = []

    def forward(windows: Tensor) -> Tensor:
        lengths.append(windows.shape[-1])
        return network(windows).waveforms

    cut = cut_for(network)
    joined = torch.cat(list(overlap_add(estimates(pieces(song.split(777, dim=-1), cut), forward), cut)), dim=-1)
    assert set(lengths) == {22_050}
    assert joined.shape == (2, 2, 50_001)


@torch.no_grad()
def test_what_comes_out_depends_on_the_length_of_the_piece() -> None:
    """Interpolation with aligned corners: the reason for pieces of one length."""
    network = fill(UNet(4, width=4, dropout=0.0))
    x = noise(1, 4, 33, 512)
    for _ in range(30):
        network.train()(x)  # statistics for batch norm, so that deep layers have their say
    network.eval()
    whole, part = network(x)[..., 118:138], network(x[..., :256])[..., 118:138]
    assert 0.1 < float((whole - part).abs().max() / whole.std()) < 5


@torch.no_grad()
def test_dropout_takes_whole_channels_in_training_only() -> None:
    network = fill(UNet(4, width=2, dropout=0.5))
    x = noise(1, 4, 32, 32)
    assert bool((network.eval()(x) == network(x)).all())
    network.last = nn.Conv2d(2, 2, 1, bias=False)
    nn.init.dirac_(network.last.weight)
    network.train()
    torch.manual_seed(0)
    zeros = [float((channel == 0).float().mean()) for _ in range(8) for channel in network(x + 1)[0]]
    assert zeros.count(1.0) >= 2
    assert network.state_dict().keys() == {**UNet(4, width=2, dropout=0.0).state_dict()}.keys() - {"last.bias"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": 4}, "scales = 4: must be 5 or 6"),
        ({"bands": 16}, "bands = 16: must be 1, 2, 4 or 8"),
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"dropout": -0.1}, "dropout = -0.1: must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("cws_unet.CwsUnet", settings, traits())


@pytest.mark.parametrize("name", ["cws-unet", "cws-unet6"])
def test_entries_build_networks_of_their_parameters(name: str) -> None:
    entry = catalog.find(name)
    with torch.device("meta"):
        assert count(build(entry.architecture, entry.settings, traits())) == entry.parameters
