"""CDE-HTCN: sizes of the ablation, golden numbers, the public code and where it is wrong, and what is refused."""

import re

import pytest
import torch
from torch.nn import functional

from sepcli.errors import UsageError
from sepcli.models import build
from sepcli.models.cde_htcn import CDEHTCN, CrossDomainEncoder, FeatureCalibration, Spectrum, SwitchNorm
from sepcli.weights.catalog import shipped
from sepcli.weights.seeded import fill
from tests.models.public_code import module

BAND = {
    "sources": ["drums", "bass", "other", "vocals"],
    "channels": 2,
    "sample_rate": 44100,
    "segment": 8.0,
    "level": {},
}
STFT = 2 * 129 * 2 * 88  # the public code counts its frozen kernels, the DC row among them; here they are constants
ROWS = {  # entry -> all parameters of the public layout, those that train (table I's rows)
    "cde-htcn-base": (8_921_664, 8_921_664),
    "cde-htcn-i": (9_843_264, 9_843_264),
    "cde-htcn-ii": (11_283_420, 11_283_420),
    "cde-htcn-iii": (12_205_020, 12_205_020),
    "cde-htcn-iv": (12_512_572, 12_467_164),
    "cde-htcn-v": (12_337_372, 12_337_372),
    "cde-htcn": (12_644_924, 12_599_516),
}
PARTS = {  # of the full model
    "encoder.conv1d": 45_056,
    "encoder.linear1": 65_536,
    "encoder.linear2": 65_536,
    "encoder.linear3": 131_072,
    "norm": 512,
    "bottleneck": 65_536,
    "masks": 1_048_576,
    "decoders": 180_224,
}
STAGE = {"blocks": 8_503_744, "fuse": 2_361_372, "calibrate": 132_352}  # four together


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def full_size(**settings: object) -> CDEHTCN:
    with torch.device("meta"):
        return CDEHTCN(**settings, **BAND)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_ablation_has_its_number_of_parameters(row):
    model = full_size(**shipped()[row].settings)
    total, trained = ROWS[row]
    assert count(model) == trained
    assert count(model) + STFT * isinstance(model.encoder, CrossDomainEncoder) == total


def test_the_full_model_has_each_parts_number_of_parameters():
    model = full_size()
    assert {name: count(model.get_submodule(name)) for name in PARTS} == PARTS
    assert {name: sum(count(getattr(stage, name)) for stage in model.stages) for name in STAGE} == STAGE
    running = [buffer.numel() for name, buffer in model.named_buffers() if "running" in name]
    assert sum(running) == 67_584


def test_spectra_of_both_channels_cost_65536_more():
    assert count(full_size(spectrum="stereo")) - count(full_size()) == 65_536


def test_without_stages_there_is_one_decoder_and_one_mask_layer():
    model = full_size(multi_stage=False)
    assert (len(model.decoders), len(model.masks), len(model.stages)) == (1, 1, 4)


# -- golden numbers ---------------------------------------------------------------------------------------------------
# Made with the public code in float64: tensors filled by rank of their published name, sines as sound.

PUBLISHED = (  # published name <- ours
    (r"^encoder\.", "CDEncoder."),
    (r"^norm\.", "separator.layer_norm."),
    (r"^bottleneck\.", "separator.bottleneck_conv1x1."),
    (r"^stages\.(\d+)\.blocks\.", r"separator.multi_stage_TCN.\1."),
    (r"^stages\.(\d+)\.fuse\.", r"separator.fuse.\1."),
    (r"^stages\.(\d+)\.calibrate\.gate\.", r"separator.SE_block.\1.0.SEblock."),
    (r"^masks\.", "separator.out_conv1x1."),
    (r"^decoders\.", "stage_decoder."),
    (r"\.res_conv\.", ".net.3."),
)
KERNELS = ("CDEncoder.stft.encoder_r.weight", "CDEncoder.stft.encoder_i.weight")
SMALL = {"filters": 16, "kernel": 8, "bottleneck": 8, "hidden": 12, "depth": 3, "stages": 2}
TRIO = {**BAND, "sources": ["a", "b", "c"]}
GOLDEN = {  # (spectrum, stage) -> mean of magnitudes, root mean square, four samples
    ("random", 0): (0.000984727, 0.0019619, (-0.00065716, -0.000116973, 0.000609668), 0.002431),
    ("random", 1): (0.00050422, 0.000804277, (0.000437776, 4.18736e-05, -0.000420775), 0.00332831),
    ("left", 1): (0.00173504, 0.00252127, (0.00133592, -0.00191064, -0.00211166), 0.00104141),
    ("mid", 1): (0.00103107, 0.00169026, (0.000973047, -0.00163971, -0.00163878), 0.00104188),
}


def published(name: str) -> str:
    for pattern, replacement in PUBLISHED:
        name = re.sub(pattern, replacement, name)
    return name


def sines(length: int) -> torch.Tensor:
    """(2, 2, T): sin(0.05 (c + 1) t + b) cos(0.013 t)"""
    t = torch.arange(length, dtype=torch.float64)
    return torch.stack(
        [torch.stack([torch.sin(0.05 * (c + 1) * t + b) * torch.cos(0.013 * t) for c in (0, 1)]) for b in (0, 1)]
    )


def filled_by_rank(spectrum: str) -> CDEHTCN:
    """Element n of the i-th published name, in sorted order, is 0.3 sin(0.7 n + 0.3 i); running variances one more."""
    model = CDEHTCN(**SMALL, spectrum=spectrum, **TRIO).eval().double()
    tensors = {published(name): tensor for name, tensor in model.state_dict().items() if "kernels" not in name}
    shapes = {name: tensor.shape for name, tensor in tensors.items()} | dict.fromkeys(KERNELS, (9, 2, 8))
    assert len(shapes) == 139
    values = {}
    for i, name in enumerate(sorted(shapes)):
        wave = 0.3 * torch.sin(0.7 * torch.arange(torch.Size(shapes[name]).numel(), dtype=torch.float64) + 0.3 * i)
        values[name] = wave.view(shapes[name]) + name.endswith("running_var")
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
    if spectrum == "random":
        model.encoder.spectrum.kernels.copy_(torch.cat([values[name][1:] for name in KERNELS]))
    return model


def every_stage(model: CDEHTCN, x: torch.Tensor) -> list[torch.Tensor]:
    """Waveforms of all stages with eval mode's statistics: only the model itself is told to train, not its norms."""
    model.eval().training = True
    estimate = model(x)
    model.training = False
    return [*estimate.stages, estimate.waveforms]


@pytest.mark.parametrize("case", GOLDEN)
@torch.no_grad()
def test_golden_numbers_of_the_public_code_are_reproduced(case):
    spectrum, stage = case
    mean_abs, rms, first, one = GOLDEN[case]
    y = every_stage(filled_by_rank(spectrum), sines(404))[stage]
    assert y.abs().mean().item() == pytest.approx(mean_abs, rel=1e-5)
    assert y.square().mean().sqrt().item() == pytest.approx(rms, rel=1e-5)
    assert y[0, 0, 0, 100:103].tolist() == pytest.approx(first, rel=1e-5)
    assert y[1, 1, 1, 250].item() == pytest.approx(one, rel=1e-5)


@torch.no_grad()
def test_single_precision_stays_within_a_ten_thousandth():
    model = filled_by_rank("mid")
    double = model(sines(404)).waveforms
    single = model.float()(sines(404).float()).waveforms
    assert difference(single.double(), double) < 1e-4


# -- public code ------------------------------------------------------------------------------------------------------


def public(monkeypatch, **sizes: object):
    """The public class, mended where it does not parse, with random weights and statistics."""
    code = module(
        "Music-Source-Separation-master/CDE-HTCN/model.py", monkeypatch,
        mend=(("return return GlobalLayerNorm", "return GlobalLayerNorm"),),
        thop={"clever_format": None, "profile": None}, utils={"capture_init": lambda init: init},
    )  # fmt: skip
    network = code.CDEHTCN(TRIO["sources"], **{"N": 16, "L": 8, "B": 8, "H": 12, "X": 3, "R": 2, **sizes}).eval()
    return network


def pair(monkeypatch, spectrum: str = "random", **settings: object):
    """Our network and the public one with the same random weights; STFT kernels as the public code leaves them."""
    theirs = public(monkeypatch)
    kernels = {name: tensor.clone() for name, tensor in theirs.state_dict().items() if name in KERNELS}
    fill(theirs, seed=4)
    theirs.load_state_dict(kernels, strict=False)
    ours = CDEHTCN(**SMALL, spectrum=spectrum, **settings, **TRIO).eval()
    weights = {name: theirs.state_dict()[published(name)] for name in ours.state_dict() if "kernels" not in name}
    if spectrum == "random":
        weights["encoder.spectrum.kernels"] = torch.cat([kernels[name][1:] for name in KERNELS])
    ours.load_state_dict(weights)
    return ours, theirs


def noise(length: int) -> torch.Tensor:
    return torch.randn(2, 2, length, generator=torch.Generator().manual_seed(length))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.reference
@torch.no_grad()
def test_the_public_code_does_not_parse_as_published(monkeypatch):
    with pytest.raises(SyntaxError):
        module("Music-Source-Separation-master/CDE-HTCN/model.py", monkeypatch)


@pytest.mark.reference
@pytest.mark.parametrize("length", [404, 2000])
@torch.no_grad()
def test_the_mended_public_code_agrees_at_every_stage_on_random_weights(length, monkeypatch):
    ours, theirs = pair(monkeypatch)
    for mine, their in zip(every_stage(ours, noise(length)), theirs(noise(length)), strict=True):
        assert difference(mine, their) < 1e-5


@pytest.mark.reference
@torch.no_grad()
def test_the_public_code_agrees_in_training_mode_too_and_moves_its_statistics_alike(monkeypatch):
    ours, theirs = pair(monkeypatch)
    estimate, wanted = ours.train()(noise(404)), theirs.train()(noise(404))
    assert difference(estimate.waveforms, wanted[1]) < 1e-5
    assert difference(estimate.stages[0], wanted[0]) < 1e-5
    for name, tensor in ours.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, theirs.state_dict()[published(name)], rtol=0, atol=1e-6)


@pytest.mark.reference
def test_the_public_codes_frozen_spectrum_is_noise_and_ours_only_on_request(monkeypatch):
    theirs = public(monkeypatch, N=256, L=88, X=1, R=1).state_dict()[KERNELS[0]]
    assert theirs.std().item() == pytest.approx(0.01317, rel=0.02)
    drawn = Spectrum(2, 256, 88, "random").kernels
    assert drawn.std().item() == pytest.approx(0.01317, rel=0.02)


@pytest.mark.reference
@torch.no_grad()
def test_the_public_codes_intended_spectrum_is_of_the_left_channel(monkeypatch):
    code = public(monkeypatch).CDEncoder.stft.__class__
    x, intended = noise(404), code(16, 8, 4)
    torch.testing.assert_close(Spectrum(2, 16, 8, "left")(x), intended(x), rtol=0, atol=2e-6)
    swapped = torch.stack([x[:, 0], torch.zeros(2, 404)], dim=1)
    torch.testing.assert_close(intended(swapped), intended(x), rtol=0, atol=2e-6)


@pytest.mark.reference
def test_public_first_gains_lie_near_zero_and_ours_at_one_unless_asked(monkeypatch):
    theirs = public(monkeypatch, B=256, X=1, R=1).state_dict()["separator.fuse.0.2.weight"]
    sizes = {**SMALL, "bottleneck": 256, "depth": 1, "stages": 1}
    gain = "stages.0.fuse.2.weight"
    as_public = CDEHTCN(**sizes, init="public", **TRIO).state_dict()[gain]
    near = pytest.approx((2 / 257) ** 0.5, rel=0.2)
    assert (theirs.std().item(), as_public.std().item()) == (near, near)
    assert CDEHTCN(**sizes, **TRIO).state_dict()[gain].unique().tolist() == [1.0]


@pytest.mark.reference
@torch.no_grad()
def test_the_public_code_ends_in_silence_where_ours_does_not_unless_asked(monkeypatch):
    x = noise(407)
    as_public, theirs = pair(monkeypatch, tail="public")
    assert torch.equal(theirs(x)[1][..., -3:], torch.zeros(2, 3, 2, 3))
    assert difference(as_public(x).waveforms, theirs(x)[1]) < 1e-5
    ours, _ = pair(monkeypatch)
    assert ours(x).waveforms[..., -3:].abs().amax(dim=(0, 2, 3)).min() > 0


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:var")
@torch.no_grad()
def test_the_public_code_gives_no_numbers_below_two_frames_and_ours_does(monkeypatch):
    ours, theirs = pair(monkeypatch)
    assert torch.isnan(theirs(noise(8))[1]).all()
    assert torch.isfinite(ours(noise(8)).waveforms).all()


@pytest.mark.reference
def test_the_public_code_breaks_on_its_causal_option_which_is_not_offered_here(monkeypatch):
    with pytest.raises(RuntimeError, match="must match the size"):
        public(monkeypatch, causal=True)(noise(404))
    with pytest.raises(UsageError, match="'causal' is not a setting"):
        build("cde_htcn.CDEHTCN", {"causal": True}, BAND)


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("filters", "kernel"), [(256, 88), (16, 8)])
def test_the_spectrum_is_a_transform_of_padded_windowed_frames(filters, kernel):
    x = noise(1000)
    window = torch.hann_window(kernel, periodic=False, dtype=torch.float64).sqrt().float()
    frames = x.mean(1).unfold(1, kernel, kernel // 2) * window  # (B, N, kernel)
    bins = torch.fft.rfft(frames, filters)[..., 1:]
    wanted = torch.cat([bins.real, bins.imag], dim=-1).transpose(1, 2)
    torch.testing.assert_close(Spectrum(2, filters, kernel, "mid")(x), wanted, rtol=0, atol=1e-5)
    both = Spectrum(2, filters, kernel, "stereo")(x)
    torch.testing.assert_close((both[:, :filters] + both[:, filters:]) / 2, wanted, rtol=0, atol=1e-5)


def test_first_values_leave_the_spectrum_alone_and_it_does_not_train():
    model = CDEHTCN(**SMALL, **BAND)
    assert torch.equal(model.encoder.spectrum.kernels, Spectrum(2, 16, 8, "mid").kernels)
    assert not [name for name in [*dict(model.named_parameters()), *model.state_dict()] if "kernels" in name]
    assert "encoder.spectrum.kernels" in CDEHTCN(**SMALL, spectrum="random", **BAND).state_dict()


def test_the_gate_weighs_the_filters_and_leaves_the_spectrum_the_rest():
    encoder, x = CrossDomainEncoder(2, 16, 8, "mid"), noise(100)
    with torch.no_grad():
        encoder.linear3.weight.zero_()
        encoder.linear3.weight[:, 0, 0] = 1e6  # the gate opens where the spectrum's first row is positive
        seen, heard = encoder.linear1(encoder.spectrum(x)), encoder.linear2(encoder.conv1d(x))
        gate = (seen[:, :1] > 0).float()
        wanted = (seen + heard + gate * heard + (1 - gate) * seen).relu()
        torch.testing.assert_close(encoder(x), wanted, rtol=0, atol=1e-5)


def test_the_calibration_unit_is_the_papers_formula():
    unit, x = FeatureCalibration(8, 4), 20 * noise(50).reshape(2, 2, 50).repeat(1, 4, 1)
    inner = functional.relu6(unit.gate[0](x.mean(-1)))
    outer = unit.gate[2](inner)
    gate = outer * functional.relu6(outer + 3) / 6
    torch.testing.assert_close(unit(x), x * gate[..., None], rtol=0, atol=1e-5)


def test_switchable_norm_is_its_formula_in_training_and_moves_its_statistics_by_a_tenth():
    norm, x = SwitchNorm(3), 2 + 3 * torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(0))
    fill(norm, seed=6)
    norm.running_mean.zero_()
    norm.running_var.zero_()
    mean, square = x.mean(2, keepdim=True), x.var(2, keepdim=True) + x.mean(2, keepdim=True) ** 2
    means = [mean, mean.mean(1, keepdim=True), mean.mean(0, keepdim=True)]
    variances = [
        square - mean**2,
        square.mean(1, keepdim=True) - means[1] ** 2,
        square.mean(0, keepdim=True) - means[2] ** 2,
    ]
    centre = sum(share * value for share, value in zip(norm.mean_weight.softmax(0), means, strict=True))
    spread = sum(share * value for share, value in zip(norm.var_weight.softmax(0), variances, strict=True))
    wanted = (x - centre) / (spread + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm.train()(x), wanted, rtol=0, atol=2e-6)
    torch.testing.assert_close(norm.running_mean, 0.1 * means[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(norm.running_var, 0.1 * variances[2], rtol=0, atol=1e-5)


@torch.no_grad()
def test_switchable_norm_keeps_items_apart_once_it_does_not_train():
    norm, x = SwitchNorm(3).eval(), noise(30).repeat(1, 2, 1)[:, :3]
    together, alone = norm(x), norm(x[:1])
    assert torch.equal(together[:1], alone)
    norm.train()
    assert (norm(x)[:1] - norm(x[:1])).abs().max() > 1e-3


def test_switchable_norm_keeps_whole_precision_where_its_input_is_half():
    whole, half, x = SwitchNorm(3), SwitchNorm(3), noise(30).repeat(1, 2, 1)[:, :3].bfloat16()
    assert torch.equal(half(x), whole(x.float()))
    assert torch.equal(half.running_var, whole.running_var)


# -- behaviour --------------------------------------------------------------------------------------------------------


def small(**settings: object) -> CDEHTCN:
    model = CDEHTCN(**{**SMALL, **settings}, **BAND).eval()
    fill(model, seed=1)
    return model


def test_earlier_stages_are_estimated_in_training_only():
    model = small(stages=3)
    assert model(noise(404)).stages == ()
    calls = []
    for decoder in model.decoders:
        decoder.register_forward_hook(lambda *_: calls.append(1))
    model(noise(404))
    assert len(calls) == 1
    estimate = model.train()(noise(404))
    assert [stage.shape for stage in estimate.stages] == [estimate.waveforms.shape] * 2
    assert len(small(stages=3, multi_stage=False).train()(noise(404)).stages) == 0


@torch.no_grad()
def test_skipping_earlier_decoders_leaves_the_last_stage_as_it_is():
    model = small()
    assert torch.equal(model(noise(404)).waveforms, every_stage(model, noise(404))[-1])


def test_a_loss_on_every_stage_reaches_every_parameter():
    model = small().train()
    estimate = model(noise(404))
    sum(waveforms.abs().mean() for waveforms in (*estimate.stages, estimate.waveforms)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_a_stage_gathers_its_input_before_the_first_features_are_added_again():
    model = small(depth=1, fcu=False, norm="channel")
    heard = []
    model.stages[1].fuse[0].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    starts = []
    model.stages[1].blocks[0].register_forward_pre_hook(lambda _, inputs: starts.append(inputs[0]))
    firsts = []
    model.bottleneck.register_forward_hook(lambda _, __, output: firsts.append(output))
    model(noise(404))
    torch.testing.assert_close(starts[0], heard[0][:, :8] + firsts[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_whole_number_of_frames_or_a_fraction_more_comes_back_whole():
    model = small(kernel=88, filters=88)
    assert model(noise(44_088)).waveforms.shape[-1] == 44_088
    as_public = small(kernel=88, filters=88, tail="public")(noise(44_100)).waveforms
    assert torch.equal(as_public[..., -12:], torch.zeros(2, 4, 2, 12))
    assert as_public[..., -13].abs().max() > 0


@pytest.mark.parametrize("settings", [{}, {"encoder": "conv", "separator": "tcn", "fcu": False}])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 13])
@torch.no_grad()
def test_any_length_comes_back_whole(settings, length):
    y = small(**settings)(noise(length)).waveforms
    assert y.shape == (2, 4, 2, length)
    assert torch.isfinite(y).all()


def test_channel_norms_without_calibration_hear_exactly_1020_frames_and_a_filter():
    model = CDEHTCN(**{**SMALL, "depth": 8, "stages": 4, "norm": "channel", "fcu": False}, **TRIO).double()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.0)  # nothing is cut by a ReLU, nothing cancels
    at, reach = 4_400, 1_020 * 4 + 7
    x = torch.rand(1, 2, 2 * at, dtype=torch.float64).requires_grad_()
    furthest = 0
    for sample in (at, at + 3):  # the phases of the stride that see furthest right and left
        (gradient,) = torch.autograd.grad(model.eval()(x).waveforms[..., sample].sum(), x)
        heard = gradient.abs().sum((0, 1)).nonzero().flatten()
        furthest = max(furthest, sample - int(heard[0]), int(heard[-1]) - sample)
    assert furthest == reach
    assert model.context == reach + 1


def test_published_sizes_would_hear_44967_samples():
    assert full_size(norm="channel", fcu=False).context == 44_968  # in whole strides of 44
    assert full_size().context is None
    assert full_size(norm="channel").context is None


@torch.no_grad()
def test_a_seeded_network_gives_stored_numbers():
    y = small()(sines(404).float()).waveforms
    assert y.square().mean().sqrt().item() == pytest.approx(0.09272233, rel=1e-5)
    assert y[1, 1, 0, 100:103].tolist() == pytest.approx([-0.0131661, -0.00149847, 0.00923461], rel=1e-4)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "stages = 0: must be at least 1"),
        ({"depth": -1}, "depth = -1: must be at least 1"),
        ({"hidden": 0}, "hidden = 0: must be at least 1"),
        ({"reduction": 0}, "reduction = 0: must be at least 1"),
        ({"kernel": 87}, "kernel = 87: must be even"),
        ({"block_kernel": 4}, "block_kernel = 4: must be odd"),
        ({"filters": 255}, "filters = 255: the spectrum wants an even number"),
        ({"filters": 64}, "filters = 64: the spectrum wants an even number, at least kernel = 88"),
        ({"bottleneck": 2}, "bottleneck = 2: must be at least 4"),
        ({"separator": "tcn"}, "fcu = true: belongs to separator = 'htcn'"),
        ({"norm": "batch"}, "norm = 'batch'"),
        ({"spectrum": "right"}, "spectrum = 'right'"),
        ({"stage": 2}, "did you mean 'stages'"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        build("cde_htcn.CDEHTCN", settings, BAND)
