"""sepcli/models/scnet.py: counts, keys and bands of the published files, and the public class's own figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sepcli.errors import ModelError, UsageError
from sepcli.inference.bag import Bag, Member
from sepcli.inference.song import Clip, every_source, separate_clip
from sepcli.models.scnet import SCNet
from sepcli.models.separator import Traits
from sepcli.weights.catalog import find
from sepcli.weights.load import load_separator
from sepcli.weights.seeded import fill
from tests.models import public_code

TRAINER = "Music-Source-Separation-Training"


def traits(segment: float = 11.0, **changes: Any) -> Traits:
    usual = {"sources": ("drums", "bass", "other", "vocals"), "channels": 2, "sample_rate": 44100, "level": {}}
    return Traits(**{**usual, "segment": segment, **changes})


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decibels(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum().clamp_min(1e-30)))


@pytest.mark.parametrize(
    ("name", "parameters", "entries", "bins"),
    [
        ("scnet", 10_578_768, 372, [616, 186, 57]),
        ("scnet-large", 42_181_232, 372, [705, 243, 85]),
        ("scnet-xl", 54_006_896, 420, [714, 249, 88]),
        ("scnet-xl-ihf", 53_466_800, 510, [867, 368, 156]),
    ],
)
def test_parameters_entries_and_bins_are_those_of_the_files(name, parameters: int, entries: int, bins) -> None:
    with torch.device("meta"):
        network = SCNet(**find(name).settings, **traits())
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert len(network.state_dict()) == entries
        assert network.piece == 485_100
        x = torch.empty(1, 4, 2049, 2)
        found = []
        for encoder in network.encoder:
            x, _, lengths = encoder(x)
            found.append(sum(lengths))
    assert found == bins
    assert {"encoder.0.SDlayer.convs.2.bias", "decoder.2.1.convtrs.0.weight"} < network.state_dict().keys()
    assert "separation_net.dp_modules.5.lstm_layers.1.weight_hh_l0_reverse" in network.state_dict()


def test_the_large_networks_bands_are_those_of_the_reference() -> None:
    with torch.device("meta"):
        network = SCNet(**find("scnet-large").settings, **traits())
    assert [encoder.SDlayer.lengths(bins) for encoder, bins in zip(network.encoder, (2049, 705, 243), strict=True)] == [
        [462, 762, 825],
        [159, 262, 284],
        [55, 91, 97],
    ]


def test_a_piece_has_an_even_number_of_frames_and_zeros_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = SCNet(**SCNet.tiny, **traits()).eval()
    seen = []
    monkeypatch.setattr(network, "separate", lambda x: seen.append(x.shape[-1]) or x.repeat(1, 4, 1, 1))
    for samples in (1, 1023, 1024, 1025, 2048, 3072, 485_100):
        mixture = noise(1, 2, samples)
        found = network(mixture).waveforms
        assert seen[-1] % 2 == 0
        assert (seen[-1] - 1) * 1024 - samples > 0
        assert seen[-1] == min(n for n in range(2, 999, 2) if (n - 1) * 1024 > samples)
        torch.testing.assert_close(found, mixture[:, None].repeat(1, 4, 1, 1), rtol=0, atol=1e-6)
    assert seen[-1] == 476


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 5}, "layers = 5"),
        ({"shares": (0.6, 0.4)}, "shares"),
        ({"kernels": (3, 4, 8)}, "kernels"),
        ({"widths": (2, 8, 8)}, "widths = 2"),
        ({"strides": (0, 4, 16)}, "strides = 0"),
        ({"n_fft": 1024}, "n_fft = 1024"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SCNet(**settings, **traits())


def test_a_standardised_piece_may_be_of_any_loudness() -> None:
    network = SCNet(**SCNet.tiny, standardise=True, **traits())
    fill(network.eval(), seed=2)
    mixture = noise(1, 2, 20_000)
    with torch.inference_mode():
        once, louder = network(mixture).waveforms, network(8 * mixture).waveforms
        assert decibels(louder / 8, once) > 60, "1e-5 beside the deviation is all that loudness changes"
        assert bool(network(torch.zeros(1, 2, 5000)).waveforms.isfinite().all())


def test_the_stored_output_of_seeded_weights_comes_back() -> None:
    network = SCNet(**SCNet.tiny, **traits())
    fill(network.eval())
    with torch.inference_mode():
        waveforms = network(noise(1, 2, 30_000)).waveforms[0]
    places = waveforms[[0, 1, 2, 3], [0, 1, 0, 1], [5_000, 12_345, 20_000, 29_999]]
    found = [float(waveforms.square().mean().sqrt()), *places.tolist()]
    assert found == pytest.approx(GOLDEN, rel=2e-4, abs=2e-6)


GOLDEN = [0.162441, -0.004805, 0.015262, 0.031647, -0.019232]


def public(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> torch.nn.Module:
    """The public trainer's class at the sizes of one of ours."""
    separation = public_code.module(f"{TRAINER}/models/scnet/separation.py", monkeypatch)
    members = {"SeparationNet": separation.SeparationNet}
    code = public_code.module(f"{TRAINER}/models/scnet/scnet.py", monkeypatch, separation=members)
    network = code.SCNet(**settings)
    return network.eval()


SMALL = {"widths": (16, 24, 32), "layers": 4}
THEIRS = {"dims": [4, 16, 24, 32], "num_dplayer": 4}
IHF = {"strides": (1, 4, 4), "kernels": (3, 4, 4), "depths": (3, 3, 3), "shares": (0.23, 0.37)}
THEIRS_IHF = {"band_stride": [1, 4, 4], "band_kernel": [3, 4, 4], "conv_depths": [3] * 3, "band_SR": [0.23, 0.37, 0.4]}


@pytest.mark.reference
@pytest.mark.parametrize(("ours", "theirs"), [({}, {}), (IHF, THEIRS_IHF)], ids=["small", "ihf"])
@pytest.mark.parametrize("seconds", [1.0, 0.9984, 1.0217])
def test_the_public_class_gives_the_same(ours, theirs, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SCNet(**SMALL, **ours, **traits()).eval()
    reference = public(monkeypatch, **THEIRS, **theirs)
    fill(network)
    reference.load_state_dict(network.state_dict())
    mixture = noise(2, 2, round(44100 * seconds), seed=3)
    with torch.inference_mode():
        found, expected = network(mixture).waveforms, reference(mixture)
    print(f"{decibels(found, expected):.1f} dB, largest difference {float((found - expected).abs().max()):.1e}")
    assert decibels(found, expected) > 120


@pytest.mark.reference
@pytest.mark.parametrize("overlaps", [2, 4])
def test_a_song_in_pieces_is_that_of_the_public_runner(overlaps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path, level and all: 30 s of noise in pieces of 11 s, by a small network."""
    network = SCNet(**SCNet.tiny, **traits(level={"deviation": 1.0})).eval()
    fill(network)
    reference = public(monkeypatch, dims=[4, *SCNet.tiny["widths"]], num_dplayer=2)
    reference.load_state_dict(network.state_dict())
    runner = f"{TRAINER}/utils/model_utils.py"
    code = public_code.module(runner, monkeypatch, ml_collections={"ConfigDict": dict}, muon={"Muon": None})
    song = noise(2, 30 * 44100, seed=4).numpy() + 0.01
    mono = song.mean(0)
    mean, deviation = mono.mean(), mono.std()
    settings = {
        "training": {"instruments": list(network.sources), "target_instrument": None, "use_amp": False},
        "inference": {"num_overlap": overlaps, "batch_size": 1},
        "audio": {"chunk_size": network.piece},
    }
    whole = code.demix(public_code.Settings(settings), reference, (song - mean) / deviation, "cpu", "scnet")
    bag = Bag([Member(network, dict.fromkeys(network.sources, 1.0))], "x", torch.device("cpu"), 1 - 1 / overlaps)
    clip = Clip(lambda: iter([song.T]), 44100, 2, song.shape[1])
    blocks = list(separate_clip(bag, clip, every_source(bag)))
    for source in network.sources:
        found = torch.cat([torch.from_numpy(block[source]) for block in blocks]).T
        expected = torch.from_numpy(whole[source] * deviation + mean)
        print(f"{source}: {decibels(found, expected):.1f} dB, {float((found - expected).abs().max()):.1e}")
        assert float((found - expected).abs().max()) < 1e-5
        assert decibels(found, expected) > 100


def test_a_users_file_is_read_in_every_wrapping_and_another_networks_is_refused(tmp_path: Path) -> None:
    tensors = fill(SCNet(**traits())).state_dict()
    for wrapped in (tensors, {"state": tensors}, {"model_state_dict": {f"module.{k}": v for k, v in tensors.items()}}):
        torch.save(wrapped, tmp_path / "own.ckpt")
        loaded = load_separator(str(tmp_path / "own.ckpt"), architecture="scnet")
        assert loaded.entry.level == {"deviation": 1.0}
        assert torch.equal(
            loaded.separator.get_parameter("encoder.0.globalconv.bias"), tensors["encoder.0.globalconv.bias"]
        )
    del tensors["encoder.0.globalconv.bias"]
    torch.save(tensors | {"mask_estimators.0.weight": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(
        ModelError, match=r"missing encoder\.0\.globalconv\.bias; unexpected mask_estimators\.0\.weight"
    ):
        load_separator(str(tmp_path / "other.ckpt"), architecture="scnet")
    torch.save(fill(SCNet(**traits(sources=("vocals", "other")))).state_dict(), tmp_path / "two.ckpt")
    with pytest.raises(ModelError, match=r"other shapes: decoder\.2\.1\.convtrs\.0\.weight"):
        load_separator(str(tmp_path / "two.ckpt"), architecture="scnet")


def yaml(instruments: str = "[vocals, other]", **changes: Any) -> str:
    """A yaml of the public trainer for a small network of two sources that normalises the song."""
    model: dict[str, Any] = {"sources": ["vocals", "other"], "audio_channels": 2, "dims": [4, 4, 8, 8], "nfft": 2048}
    model |= {"hop_size": 512, "win_size": 2048, "normalized": True, "band_SR": [0.25, 0.35, 0.4]}
    model |= {"band_stride": [1, 2, 8], "band_kernel": [3, 2, 8], "conv_depths": [1, 2, 1], "compress": 2}
    model |= {"conv_kernel": 3, "num_dplayer": 2, "expand": 1} | changes
    lines = [f"  {name}: {json.dumps(value)}" for name, value in model.items()]
    tables = [f"training: {{instruments: {instruments}, target_instrument: null}}", "inference: {normalize: true}"]
    return "\n".join(["audio: {chunk_size: 88200, sample_rate: 44100}", "model:", *lines, *tables])


def users_file(folder: Path, text: str) -> tuple[SCNet, Path]:
    shape = {"widths": (4, 8, 8), "shares": (0.25, 0.35), "strides": (1, 2, 8), "kernels": (3, 2, 8)}
    more = {"depths": (1, 2, 1), "compress": 2, "layers": 2, "n_fft": 2048, "hop": 512}
    network = fill(SCNet(**shape, **more, **traits(2.0, sources=("vocals", "other"))), 3)  # type: ignore[arg-type]
    torch.save({"state_dict": network.state_dict()}, folder / "mine.ckpt")
    (folder / "mine.yaml").write_text(text)
    return network, folder / "mine.ckpt"


def test_a_users_file_is_built_as_its_yaml_says(tmp_path: Path) -> None:
    network, path = users_file(tmp_path, yaml())
    loaded = load_separator(str(path))
    assert loaded.entry.sources == ("vocals", "other")
    assert loaded.entry.level == {"deviation": 1.0}, "the song is normalised"
    assert loaded.entry.licence == ""
    assert loaded.separator.piece == 88_200
    sound = noise(1, 2, 88_200)
    with torch.inference_mode():
        assert torch.equal(loaded.separator(sound).waveforms, network.eval()(sound).waveforms)
    (tmp_path / "mine.yaml").write_text(yaml().replace("normalize: true", "num_overlap: 4"))
    assert load_separator(str(path)).entry.level == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (yaml("[vocals]"), "has weights for 2 sources, and mine.yaml names 1 (vocals) for a network of 2"),
        (yaml(dims=[2, 4, 8, 8]), "dims = [2, 4, 8, 8] must begin with 4, for 2 channels"),
        (yaml(dims=[4, 4, 8]), "dims must be four numbers and band_SR three"),
        (yaml(band_SR=[0.25, 0.35, 0.5]), "band_SR = [0.25, 0.35, 0.5] must sum to 1"),
        (yaml(win_size=1024), "win_size = 1024 must be nfft, 2048"),
        (yaml(normalized=False), "normalized = False of SCNet has no counterpart here"),
        (yaml(num_dplayer=3), "layers = 3: must be an even number above 0"),
        (yaml(conv_depths=[1, 2, 2]), "missing encoder.0.conv_modules.2.layers.1"),
    ],
)
def test_a_yaml_of_another_network_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ModelError) as error:
        load_separator(str(users_file(tmp_path, text)[1]))
    assert words in str(error.value)
