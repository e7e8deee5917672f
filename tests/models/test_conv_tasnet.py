"""Conv-TasNet, its bands, fronts and bridges: sizes, golden numbers, public code, and what is refused."""

import math
import re
import sys
import types

import pytest
import torch

from sepcli.errors import ModelError, UsageError
from sepcli.models import build
from sepcli.models.conv_tasnet import ConvTasNet, XConvTasNet, filter_order
from sepcli.weights.catalog import shipped
from sepcli.weights.load import load_separator
from sepcli.weights.seeded import fill
from tests.models.public_code import centre, module

VOICE = {"sources": ["accompaniment", "vocals"], "channels": 2, "sample_rate": 22050, "segment": 4.0, "level": {}}
BAND = {**VOICE, "sources": ["drums", "bass", "other", "vocals"], "sample_rate": 44100}
WINDOW = 1024  # the spectrogram's window, which public code counts and stores among the parameters

ROWS = {  # settings -> parameters: multi-band masking, table II; the music and X settings
    "M1": (VOICE, {}, 6_595_120),
    "M2": (VOICE, {"bands": 2}, 6_582_880),
    "M3 of the text": (VOICE, {"bands": 2, "full_band": True}, 13_288_592),
    "M3 as released": (VOICE, {"bands": 2, "full_band": True, "full_band_bottleneck": 128}, 10_044_560),
    "M4": (VOICE, {"bands": 4}, 6_705_856),
    "S1": (VOICE, {"front_end": "strong"}, 7_324_464 - WINDOW),
    "S2": (VOICE, {"front_end": "strong", "bands": 2}, 7_312_224 - WINDOW),
    "two bands of 256": (VOICE, {"bands": 2, "bottleneck": 256}, 12_972_640),
    "demucs, X = 10": (BAND, {"depth": 10, "repeats": 4}, 10_977_872),
    "demucs, X = 8": (BAND, {"depth": 8, "repeats": 4}, 8_852_032),
}
X_ROWS = {(10, 4): 43_125_056, (8, 3): 26_118_336, (8, 4): 34_621_696}
KEYS = {"M1": 222, "M2": 442, "M3 as released": 663, "M4": 882, "S1": 238, "S2": 458, "demucs, X = 10": 366}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_the_papers_number_of_parameters(row):
    traits, settings, wanted = ROWS[row]
    with torch.device("meta"):
        assert count(ConvTasNet(**settings, **traits)) == wanted


@pytest.mark.parametrize("row", KEYS)
def test_each_published_layout_has_its_number_of_tensors(row):
    traits, settings, _ = ROWS[row]
    with torch.device("meta"):
        tensors = ConvTasNet(**settings, **traits).state_dict()
    assert len(tensors) + (settings.get("front_end") == "strong") == KEYS[row]  # the window is a constant here


@pytest.mark.parametrize("sizes", X_ROWS)
def test_x_conv_tasnet_has_four_whole_networks(sizes):
    depth, repeats = sizes
    with torch.device("meta"):
        assert count(XConvTasNet(depth=depth, repeats=repeats, **BAND)) == X_ROWS[sizes]


def test_frozen_front_ends_leave_the_papers_trainable_number():
    with torch.device("meta"):
        model = ConvTasNet(bands=2, **VOICE)
    frozen = count(model.encoder) + count(model.decoder)
    assert count(model) - frozen == 6_562_400  # M5 and M6: 6.56 M


# -- golden numbers -------------------------------------------------------------------------------------------------
# Made with the public code in float64: tensors filled by rank of their published name, sines as sound.

DEMUCS = (  # published name <- ours
    (r"^separators\.0\.network\.", "separator.network."),
    (r"^separators\.0\.temporal_conv_net\.", "separator.network.2."),
    (r"^separators\.0\.mask_conv1x1\.", "separator.network.3."),
    (r"\.res_conv\.", ".net.3."),
)
SMALL = {"filters": 64, "kernel": 20, "hidden": 12, "depth": 3, "repeats": 2, "bottleneck": 8}
GOLDEN = {
    "M1": ({}, 1.05234, 1.43586, (0.0155039, 0.594851, 0.798132), -2.84486),
    "M2": ({"bands": 2}, 0.0418244, 0.0567854, (0.0357093, 0.0386436, 0.0171473), 0.0872274),
    "M3": (
        {"bands": 2, "full_band": True, "full_band_bottleneck": 8},
        0.546204, 0.798233, (-0.223485, -0.211668, -0.0660344), 0.745779,
    ),
    "M4": ({"bands": 4}, 0.0105862, 0.0162132, (0.00928426, -0.000115852, -0.00944272), -0.00833907),
    "S1": ({"front_end": "strong"}, 18.735, 21.1958, (25.5362, 10.4852, -9.49721), -30.4816),
    "S2": (
        {"front_end": "strong", "bands": 2},
        0.700018, 0.821575, (-0.467972, 0.308358, 0.939662), 0.79133,
    ),
    "demucs": ({}, 0.997422, 1.32976, (-0.836868, -0.903359, -0.398744), 2.19996),
}  # fmt: skip


def published(name: str, layout: str) -> str:
    for pattern, replacement in DEMUCS if layout == "demucs" else ():
        name = re.sub(pattern, replacement, name)
    return name


def fill_by_rank(model: torch.nn.Module, layout: str) -> None:
    """Element n of the i-th published name, in sorted order, is 0.3 sin(0.7 n + 0.3 i)."""
    tensors = {published(name, layout): tensor for name, tensor in model.state_dict().items()}
    names = sorted([*tensors, *(["encoder.spectrogram.window"] if hasattr(model.encoder, "spectrogram") else [])])
    for i, name in enumerate(names):
        if name in tensors:
            n = torch.arange(tensors[name].numel(), dtype=torch.float64)
            tensors[name].copy_((0.3 * torch.sin(0.7 * n + 0.3 * i)).view_as(tensors[name]))


def sines(length: int) -> torch.Tensor:
    """(2, 2, T): sin(0.05 (c + 1) t + b) cos(0.013 t)"""
    t = torch.arange(length, dtype=torch.float64)
    return torch.stack(
        [torch.stack([torch.sin(0.05 * (c + 1) * t + b) * torch.cos(0.013 * t) for c in (0, 1)]) for b in (0, 1)]
    )


@pytest.mark.parametrize("row", GOLDEN)
@torch.no_grad()
def test_golden_numbers_of_the_public_code_are_reproduced(row):
    settings, mean_abs, rms, first, one = GOLDEN[row]
    traits = {**VOICE, "sources": ["a", "b", "c"]} if row == "demucs" else VOICE
    model = ConvTasNet(**SMALL, **settings, **traits).eval().double()
    fill_by_rank(model, row)
    y = model(sines(1210)).waveforms
    relative = 1e-4 if row.startswith("S") else 1e-5
    assert y.abs().mean().item() == pytest.approx(mean_abs, rel=relative)
    assert y.square().mean().sqrt().item() == pytest.approx(rms, rel=relative)
    assert y[0, 0, 0, 100:103].tolist() == pytest.approx(first, rel=relative, abs=relative * rms)
    assert y[1, 1, 1, 250].item() == pytest.approx(one, rel=relative)


@pytest.mark.parametrize("row", ["M3", "S2"])
@torch.no_grad()
def test_single_precision_stays_within_a_ten_thousandth(row):
    model = ConvTasNet(**SMALL, **GOLDEN[row][0], **VOICE).eval()
    fill_by_rank(model, row)
    x = noise(1210)
    single = model(x).waveforms.double()
    assert difference(single, model.double()(x.double()).waveforms) < 1e-4


# -- public code ------------------------------------------------------------------------------------------------------


def svs(monkeypatch):
    nothing = dict.fromkeys(("ConvEncoder", "Synthesis", "generate_mpgtf"))
    keep = {"capture_init": lambda init: init, "center_trim": centre}
    return module(
        "svs-multiband/tasnet/tasnet.py", monkeypatch,
        mend=(("return_complex=False", "return_complex=True"), ("(stft**2).sum(-1)", "stft.abs().pow(2).contiguous()")),
        cls_basic_conv1ds=nothing, cls_fe_nnct=nothing, gammatone=nothing, utils=keep,
    )  # fmt: skip


PUBLIC = {  # ours -> the public constructor's
    "M1": ({}, {}),
    "M2": ({"bands": 2, "bottleneck": 8}, {"band_num": 2}),
    "M3": (
        {"bands": 2, "bottleneck": 8, "full_band": True, "full_band_bottleneck": 8},
        {"band_num": 2, "full_band": True},
    ),
    "M4": ({"bands": 4, "bottleneck": 8}, {"band_num": 4}),
    "S1": ({"front_end": "strong"}, {"stronger_enc": True}),
    "S2": ({"front_end": "strong", "bands": 2, "bottleneck": 8}, {"stronger_enc": True, "band_num": 2}),
}


def pair(row: str, monkeypatch):
    """Our network and the public one with the same random weights."""
    ours, theirs = PUBLIC[row]
    small = {"enc_dim": 64, "bottle_dim": 8, "hidden_dim": 12, "stacks": 3, "racks": 2, "pad": True}
    public = svs(monkeypatch).ConvTasNet(**small, **theirs).eval()
    fill(public, seed=3)
    if "stronger_enc" in theirs:
        public.encoder.spectrogram.window.data = torch.hann_window(WINDOW)
    model = ConvTasNet(**{**SMALL, **ours}, **VOICE).eval()
    dropped = re.compile("|".join(shipped()["multiband-s1"].files[0].drop))
    model.load_state_dict({name: tensor for name, tensor in public.state_dict().items() if not dropped.search(name)})
    return model, public


def noise(length: int, channels: int = 2) -> torch.Tensor:
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(length))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.reference
@pytest.mark.parametrize("row", PUBLIC)
@pytest.mark.parametrize("length", [1220, 4400])
@torch.no_grad()
def test_the_public_multi_band_code_agrees_on_random_weights(row, length, monkeypatch):
    model, public = pair(row, monkeypatch)
    x = noise(length)
    assert difference(model(x).waveforms, public(x)) < 1e-5


@pytest.mark.reference
@torch.no_grad()
def test_the_public_multi_band_code_pads_some_whole_lengths_and_one_too_few(monkeypatch):
    model, public = pair("M1", monkeypatch)
    assert public.valid_length(1210) == 1220  # ten samples more than the filters need
    assert public.valid_length(1221) == 1221  # none, where nine are needed: the estimate is one sample short
    assert public(noise(1221)).shape[-1] == 1220
    assert model(noise(1210)).waveforms.shape[-1] == 1210
    assert model(noise(1221)).waveforms.shape[-1] == 1221


@pytest.mark.reference
def test_the_public_multi_band_code_fails_on_a_few_samples_and_ours_does_not(monkeypatch):
    model, public = pair("M1", monkeypatch)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        public(noise(5))
    assert model(noise(5)).waveforms.shape == (2, 2, 2, 5)


@pytest.mark.reference
def test_public_first_values_are_drawn_for_gains_too_and_ours_only_on_request(monkeypatch):
    public = svs(monkeypatch).ConvTasNet(enc_dim=256, stacks=1, racks=1, pad=True)
    sizes = {"depth": 1, "repeats": 1}
    ours, as_public = ConvTasNet(**sizes, **VOICE), ConvTasNet(**sizes, init="public", **VOICE)
    gain = "separators.0.network.0.gamma"
    wanted = pytest.approx((2 / 257) ** 0.5, rel=0.2)
    assert ours.state_dict()[gain].unique().tolist() == [1.0]
    assert public.state_dict()[gain].std().item() == wanted
    assert as_public.state_dict()[gain].std().item() == wanted


def demucs(monkeypatch, **sizes: int):
    public = module("demucs-v2/demucs/tasnet.py", monkeypatch, utils={"capture_init": lambda init: init})
    network = public.ConvTasNet(BAND["sources"], N=64, B=8, H=12, **sizes).eval()
    fill(network, seed=5)
    return network


@pytest.mark.reference
@pytest.mark.parametrize("length", [1220, 3000])
@torch.no_grad()
def test_demucs_v2_agrees_on_random_weights_through_the_entrys_renames(length, monkeypatch):
    public = demucs(monkeypatch, X=3, R=2)
    weights = {renamed(name, "conv-tasnet"): tensor for name, tensor in public.state_dict().items()}
    model = ConvTasNet(**SMALL, **BAND).eval()
    model.load_state_dict(weights)
    x = noise(length)
    assert difference(model(x).waveforms, public(x)) < 1e-5


@pytest.mark.reference
@torch.no_grad()
def test_demucs_v2_ends_in_silence_where_ours_does_not_unless_asked(monkeypatch):
    public = demucs(monkeypatch, X=3, R=2)
    weights = {renamed(name, "conv-tasnet"): tensor for name, tensor in public.state_dict().items()}
    x = noise(1229)
    theirs = public(x)
    assert torch.equal(theirs[..., -9:], torch.zeros(2, 4, 2, 9))
    for tail in ("public", "pad"):
        model = ConvTasNet(**SMALL, tail=tail, **BAND).eval()
        model.load_state_dict(weights)
        y = model(x).waveforms
        if tail == "public":
            assert difference(y, theirs) < 1e-5
        else:
            assert y[..., -9:].abs().amin() > 0


# -- published files --------------------------------------------------------------------------------------------------


def renamed(name: str, entry: str) -> str:
    for pattern, replacement in shipped()[entry].files[0].rename:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("entry", ["conv-tasnet", "conv-tasnet-extra", "conv-tasnet-v1", "conv-tasnet-extra-v1"])
def test_renames_take_every_demucs_name_to_ours(entry):
    with torch.device("meta"):
        ours = build(shipped()[entry].architecture, shipped()[entry].settings, BAND).state_dict()
    assert [renamed(published(name, "demucs"), entry) for name in ours] == list(ours)
    assert len({published(name, "demucs") for name in ours}) == 366


@pytest.mark.parametrize(
    ("entry", "klass"),
    [
        ("multiband-tasnet", "tasnet.tasnet"),
        ("multiband-m3", "tasnet.tasnet"),
        ("multiband-s1", "tasnet.tasnet"),
        ("conv-tasnet-v1", "demucs.tasnet"),
    ],
)
def test_a_tuple_as_the_public_code_saves_it_loads_from_its_path(entry, klass, tmp_path, monkeypatch):
    stub = types.ModuleType(klass)
    stub.ConvTasNet = type("ConvTasNet", (), {"__module__": klass})
    monkeypatch.setitem(sys.modules, klass.split(".")[0], types.ModuleType(klass.split(".")[0]))
    monkeypatch.setitem(sys.modules, klass, stub)
    traits = BAND if entry == "conv-tasnet-v1" else VOICE
    model = build(shipped()[entry].architecture, shipped()[entry].settings, traits)
    layout = "demucs" if klass == "demucs.tasnet" else "svs"
    tensors = {published(name, layout): tensor for name, tensor in model.state_dict().items()}
    if hasattr(model.encoder, "spectrogram"):
        tensors["encoder.spectrogram.window"] = model.encoder.spectrogram.window
    torch.save((stub.ConvTasNet, (), {"pad": True, "racks": 3}, tensors), tmp_path / "model.th")
    loaded = load_separator(str(tmp_path / "model.th"), architecture=entry)
    assert loaded.entry.sources == tuple(traits["sources"])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.separator.state_dict().items())


def test_weights_of_other_sources_or_bands_are_refused(tmp_path):
    small = {**ConvTasNet.tiny, "bands": 2}
    torch.save(ConvTasNet(**small, **BAND).state_dict(), tmp_path / "four.pth")
    with pytest.raises(ModelError, match=r"other shapes: separators\.0\.mask_conv1x1\.weight"):
        load_separator(str(tmp_path / "four.pth"), architecture="multiband-tasnet", settings=small)


# -- behaviour --------------------------------------------------------------------------------------------------------


def small(**settings: object) -> ConvTasNet:
    model = ConvTasNet(**{**ConvTasNet.tiny, **settings}, **VOICE).eval()
    fill(model, seed=1)
    return model


def test_one_band_is_the_plain_network_and_bands_hear_only_themselves():
    model = small(bands=2)
    latent = torch.rand(1, 64, 9)
    changed = torch.cat([latent[:, :32], latent[:, 32:].flip(1)], dim=1)
    masks, others = model.masks(latent), model.masks(changed)
    assert torch.equal(masks[:, :, :32], others[:, :, :32])
    assert (masks[:, :, 32:] - others[:, :, 32:]).abs().max() > 1e-3


def test_a_full_band_mixes_bands_first_then_itself_and_may_be_negative():
    model = small(bands=2, full_band=True)
    latent = torch.rand(1, 64, 9)
    bands = torch.cat([model.separators[0](latent[:, :32]), model.separators[1](latent[:, 32:])], dim=2)
    joined = torch.cat([bands, model.separators[2](latent)], dim=2)
    wanted = torch.einsum("bsfn,gf->bsgn", joined, model.linear_mask_combinator.weight)
    torch.testing.assert_close(model.masks(latent), wanted, rtol=0, atol=1e-5)
    assert wanted.min() < 0


def extent(model, length: int, at: int) -> tuple[int, int]:
    """First and last sample of the mixture that sample `at` of an estimate depends on."""
    x = torch.randn(1, model.channels, length, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(x).waveforms[..., at].sum().backward()
    heard = x.grad.abs().sum((0, 1)).nonzero().flatten()
    return int(heard[0]), int(heard[-1])


@pytest.mark.parametrize(("depth", "repeats", "reach"), [(8, 3, 7_669), (10, 4, 40_939)])
def test_channel_norms_hear_exactly_as_far_as_the_published_sizes_reach(depth, repeats, reach):
    narrow = {"filters": 8, "hidden": 4, "depth": depth, "repeats": repeats, "norm": "channel"}
    model = ConvTasNet(**narrow, **VOICE)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.0)  # nothing is cut by a ReLU, nothing cancels
    at = 41_000 if depth == 10 else 8_000
    model.double()
    x = torch.rand(1, 2, 2 * at, dtype=torch.float64).requires_grad_()
    furthest = 0
    for sample in (at, at + 9):  # the phases of the stride that see furthest right and left
        (gradient,) = torch.autograd.grad(model(x).waveforms[..., sample].sum(), x)
        heard = gradient.abs().sum((0, 1)).nonzero().flatten()
        furthest = max(furthest, sample - int(heard[0]), int(heard[-1]) - sample)
    assert furthest == reach
    assert model.context == reach + 1


def test_a_global_norm_hears_everything():
    model = small()
    assert model.context is None
    assert extent(model, 800, 400) == (0, 799)


@torch.no_grad()
def test_pieces_with_context_equal_one_pass_where_norms_see_one_frame():
    model = small(norm="channel", bands=2)
    x = noise(2_003)
    whole, context = model(x).waveforms, model.context
    pieces = []
    for start in range(0, 2_003, 400):
        left, right = max(0, start - context), min(2_003, start + 400 + context)
        piece = model(x[..., left:right]).waveforms[..., start - left :]
        pieces.append(piece[..., :400])
    torch.testing.assert_close(torch.cat(pieces, dim=-1)[..., :2_003], whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"bands": 4}, {"front_end": "strong"}, {"bands": 2, "full_band": True}])
@pytest.mark.parametrize("length", [1, 3, 4, 513, 1025])
@torch.no_grad()
def test_any_length_comes_back_whole(settings, length):
    y = small(**settings)(noise(length)).waveforms
    assert y.shape == (2, 2, 2, length)
    assert torch.isfinite(y).all()


@torch.no_grad()
def test_a_seeded_network_gives_stored_numbers():
    y = small(bands=2, full_band=True)(sines(500).float()).waveforms
    assert y.square().mean().sqrt().item() == pytest.approx(0.3266973, rel=1e-5)
    assert y[1, 1, 0, 100:103].tolist() == pytest.approx([0.117845, 0.0142117, 0.0149473], rel=1e-4)


# -- sorted front ends ------------------------------------------------------------------------------------------------


def test_filters_sort_by_base_frequency_then_centroid_then_index():
    t = torch.arange(20) / 20
    waves = torch.stack([torch.cos(2 * math.pi * cycles * t) for cycles in (7, 2, 9, 2, 5)])
    waves[3] += 0.3 * torch.cos(2 * math.pi * 8 * t)  # the same base as filter 1, a higher centroid
    weight = torch.stack([waves, 0.5 * waves], dim=1)
    assert filter_order(weight).tolist() == [1, 3, 4, 0, 2]
    assert filter_order(torch.cat([weight, weight[:1]])).tolist() == [1, 3, 4, 0, 5, 2]


def test_sorting_moves_encoder_rows_and_decoder_columns_together():
    tensors = small().state_dict()
    order = filter_order(tensors["encoder.conv1d_U.weight"])
    again = ConvTasNet.sort_front_end(tensors)
    assert filter_order(again["encoder.conv1d_U.weight"]).tolist() == list(range(64))
    assert torch.equal(again["decoder.basis_signals.weight"], tensors["decoder.basis_signals.weight"][:, order])
    kept = tensors.keys() - {"encoder.conv1d_U.weight", "decoder.basis_signals.weight"}
    assert all(again[name] is tensors[name] for name in kept)


def test_sorted_bands_split_at_one_frequency():
    weight = ConvTasNet.sort_front_end(small().state_dict())["encoder.conv1d_U.weight"]
    base = torch.fft.rfft(weight, 512).abs().square().sum(1).argmax(1)
    assert base[:32].max() <= base[32:].min()


@torch.no_grad()
def test_a_network_whose_every_layer_is_sorted_alike_is_unchanged():
    model, x = small(), noise(300)
    before, tensors = model(x).waveforms, model.state_dict()
    order = filter_order(tensors["encoder.conv1d_U.weight"])
    rows = "separators.0.mask_conv1x1.weight"
    model.load_state_dict(
        {
            **ConvTasNet.sort_front_end(tensors),
            "separators.0.network.0.gamma": tensors["separators.0.network.0.gamma"][:, order],
            "separators.0.network.0.beta": tensors["separators.0.network.0.beta"][:, order],
            "separators.0.network.1.weight": tensors["separators.0.network.1.weight"][:, order],
            rows: tensors[rows].unflatten(0, (2, 64))[:, order].flatten(0, 1),
        }
    )
    assert difference(model(x).waveforms, before) < 1e-6


# -- bridges ----------------------------------------------------------------------------------------------------------


def bridged(*bridges: str) -> XConvTasNet:
    model = XConvTasNet(**XConvTasNet.tiny, bridges=bridges, **BAND).eval()
    fill(model, seed=2)
    return model


@torch.no_grad()
def test_without_bridges_four_networks_stand_alone():
    model, x = bridged(), noise(203)
    y = model(x).waveforms
    for j, net in enumerate(model.nets):
        alone = ConvTasNet(**XConvTasNet.tiny, **{**BAND, "sources": ["one"]}).eval()
        names = {name.replace("separator.", "separators.0."): tensor for name, tensor in net.state_dict().items()}
        alone.load_state_dict(names)
        assert difference(y[:, j : j + 1], alone(x).waveforms) < 1e-6


@torch.no_grad()
def test_bridges_between_equal_networks_change_nothing():
    x = noise(203)
    outputs = []
    for bridges in ((), ("bottleneck",), ("tcn",), ("bottleneck", "tcn")):
        model = bridged(*bridges)
        for net in model.nets[1:]:
            net.load_state_dict(model.nets[0].state_dict())
        outputs.append(model(x).waveforms)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@torch.no_grad()
def test_bridges_between_different_networks_change_every_source():
    alone, both = bridged()(noise(203)).waveforms, bridged("bottleneck", "tcn")(noise(203)).waveforms
    assert ((alone - both).square().mean((0, 2, 3)) / alone.square().mean((0, 2, 3))).min() > 1e-3


def test_a_loss_on_one_source_reaches_the_others_up_to_the_last_bridge():
    model = bridged("bottleneck", "tcn")
    model(noise(203)).waveforms[:, 0].square().sum().backward()
    other = model.nets[1]
    assert other.encoder.conv1d_U.weight.grad.abs().max() > 0
    assert other.separator.temporal_conv_net[1][0].net[0].weight.grad.abs().max() > 0
    assert other.separator.mask_conv1x1.weight.grad.abs().max() == 0
    assert other.decoder.basis_signals.weight.grad.abs().max() == 0


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 3}, "bands = 3: must divide the 256 filters"),
        ({"bands": 0}, "bands = 0: must divide the 256 filters"),
        ({"bands": -2}, "bands = -2: must divide"),
        ({"filters": -256}, "filters = -256: must be at least 1"),
        ({"hidden": -1}, "hidden = -1: must be at least 1"),
        ({"bottleneck": 0}, "bottleneck = 0: must be at least 1"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
        ({"repeats": 0}, "repeats = 0: must be at least 1"),
        ({"kernel": 21}, "kernel = 21: must be even"),
        ({"block_kernel": 2}, "block_kernel = 2: must be odd"),
        ({"full_band": True}, "full_band = true: needs at least 2 bands"),
        ({"full_band_bottleneck": 64}, "full_band_bottleneck = 64: is allowed only with full_band"),
        ({"bands": 2, "full_band": True, "full_band_bottleneck": 0}, "full_band_bottleneck = 0: must be at least 1"),
        ({"front_end": "strong", "filters": 96}, "filters = 96, kernel = 20: the strong front end wants"),
        ({"norm": "batch"}, "norm = 'batch'"),
        ({"band": 2}, "did you mean 'bands'"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        build("conv_tasnet.ConvTasNet", settings, VOICE)


@pytest.mark.parametrize("bridges", [["tcn", "tcn"], ["mask"]])
def test_unknown_or_repeated_bridges_are_refused(bridges):
    with pytest.raises(UsageError, match="bridges = "):
        build("conv_tasnet.XConvTasNet", {"bridges": bridges}, BAND)


def test_only_a_plain_front_end_can_be_sorted():
    with pytest.raises(UsageError, match="only the plain front end"):
        ConvTasNet.sort_front_end(small(front_end="strong").state_dict())
