"""From names and paths to networks: whose settings count, what must fit, and what is said where it does not."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sepcli import models
from sepcli.errors import ModelError, UsageError
from sepcli.models.separator import Separator
from sepcli.weights import catalog, checkpoint
from sepcli.weights.catalog import Entry, FileSpec, Vote
from sepcli.weights.foreign import CLASSES, describe
from sepcli.weights.load import load_separator, skeleton
from sepcli.weights.read import Published
from sepcli.weights.seeded import fill
from tests.weights import published_files as files

SOURCES = ["drums", "bass", "other", "vocals"]
HDEMUCS = Entry(
    "hd",
    architecture="hdemucs.HDemucs",
    sources=tuple(SOURCES),
    sample_rate=44100,
    channels=2,
    segment=44.0,
    level={"deviation": 1.0},
    settings={"width": 8},
)
UMX = Entry(
    "um",
    architecture="umx.OpenUnmix",
    sources=("vocals", "other"),
    sample_rate=44100,
    channels=1,
    segment=6.0,
    settings={"n_fft": 64, "hop": 16, "bins": 20, "hidden": 8, "layers": 2},
)
TORCHAUDIO = (
    ("^freq_(encoder|decoder)\\.", r"\1."),
    ("^time_(encoder|decoder)\\.", r"t\1."),
)


def network(entry: Entry, seed: int = 0) -> Separator:
    traits: Any = {name: getattr(entry, name) for name in ("sources", "channels", "sample_rate", "segment", "level")}
    return fill(models.build(entry.architecture, entry.settings, traits), seed).eval()  # type: ignore[return-value]


def know(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    monkeypatch.setattr(catalog, "catalog", lambda: {entry.name: entry for entry in entries})


def kept(path: Path, data: bytes) -> FileSpec:
    path.write_bytes(data)
    return FileSpec(str(path), hashlib.sha256(data).hexdigest())


def same_output(one: Separator, other: Separator, tolerance: float = 0.0) -> None:
    sound = torch.randn(1, one.channels, 5000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = one(sound).waveforms, other(sound).waveforms
    assert a.abs().max() > 1e-6
    assert (a - b).abs().max() <= tolerance


def halved(made: Separator) -> Separator:
    """The network with its weights as 16 bit leave them."""
    made.load_state_dict({name: tensor.half().to(tensor.dtype) for name, tensor in made.state_dict().items()})
    return made


@pytest.fixture(scope="module")
def hdemucs() -> Separator:
    return halved(network(HDEMUCS))


ARGUMENTS: Mapping[str, Any] = {
    "sources": SOURCES,
    "audio_channels": 2,
    "samplerate": 44100,
    "segment": 40,
    "channels": 8,
    "dconv_init": 1e-3,
}


# -- by name -----------------------------------------------------------------------------------------------------------


def test_a_name_of_the_catalog_gives_its_network_with_the_files_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    spec = kept(tmp_path / "x.th", files.package(hdemucs.state_dict(), ARGUMENTS))
    know(monkeypatch, replace(HDEMUCS, files=(spec,), licence="ask first"))
    loaded = load_separator("hd", offline=True)
    assert loaded.separator.segment == 44.0  # the entry's, not the file's 40
    same_output(loaded.separator, hdemucs)
    assert loaded.digest == spec.sha256
    assert loaded.entry.licence == "ask first"
    assert not loaded.separator.training
    assert next(loaded.separator.parameters()).requires_grad


def test_each_file_fills_its_part_and_what_is_no_parameter_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(UMX)
    specs = []
    for source in UMX.sources:
        prefix = f"networks.{source}."
        state = {n.removeprefix(prefix): t for n, t in made.state_dict().items() if n.startswith(prefix)}
        state["sample_rate"] = torch.tensor(44100.0)
        spec = kept(tmp_path / f"{source}.pth", files.saved(state, old=True))
        specs.append(replace(spec, part=f"networks.{source}", drop=("^sample_rate$",)))
    know(monkeypatch, replace(UMX, files=tuple(specs)))
    loaded = load_separator("um")
    same_output(loaded.separator, made)
    assert loaded.digest == f"{specs[0].sha256}+{specs[1].sha256}"
    with pytest.raises(ModelError, match="one of the 2 files of um; use --model um"):
        load_separator(specs[0].url)


def test_a_bag_and_an_entry_without_files_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, HDEMUCS, Entry("both", bag=(Vote("hd"), Vote("um"))))
    with pytest.raises(ModelError, match="hd has no published weights; train it with `sepcli train --model hd`"):
        load_separator("hd")
    with pytest.raises(ModelError, match="both is a bag of hd, um"):
        load_separator("both")


def test_a_name_that_is_not_there_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, replace(HDEMUCS, name="hdemucs"))
    with pytest.raises(ModelError, match="unknown model 'hdemuks'; did you mean hdemucs"):
        load_separator("hdemuks")


# -- by path -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["package", "old package", "safetensors"])
def test_an_unknown_demucs_file_is_built_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator, form: str
) -> None:
    know(monkeypatch, UMX, replace(HDEMUCS, settings={"width": 12, "norm_starts": 3}))
    arguments = {**ARGUMENTS, "segment": Fraction(39, 5), "sources": SOURCES[::-1]}
    path = tmp_path / "x"
    if form == "safetensors":
        files.demucs_safetensors(path, hdemucs.state_dict(), {k: v for k, v in arguments.items() if k != "segment"})
    else:
        path.write_bytes(files.package(hdemucs.state_dict(), arguments, old=form == "old package"))
    loaded = load_separator(str(path))
    same_output(loaded.separator, hdemucs)
    assert loaded.separator.sources == tuple(SOURCES[::-1])
    assert loaded.separator.segment == 7.8  # the smaller of the file's 39/5 and the entry's 44
    assert loaded.separator.level == {"deviation": 1.0}
    assert loaded.entry.settings["norm_starts"] == 4


def test_the_catalogs_segment_is_followed_where_the_file_has_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    know(monkeypatch, HDEMUCS)
    (tmp_path / "x.th").write_bytes(files.package(hdemucs.state_dict(), {**ARGUMENTS, "segment": 112}))  # 4 x 28
    assert load_separator(str(tmp_path / "x.th")).separator.segment == 44.0
    assert load_separator(str(tmp_path / "x.th"), segment=5.0).separator.segment == 5.0


def test_a_file_known_by_its_digest_has_its_entry_and_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    state = {name.replace("encoder.", "enc_"): tensor for name, tensor in hdemucs.state_dict().items()}
    spec = kept(tmp_path / "x.pt", files.saved(state))
    published = replace(spec, url="https://example.invalid/x.pt", rename=(("enc_", "encoder."),))
    know(monkeypatch, UMX, replace(HDEMUCS, files=(published,)))
    loaded = load_separator(spec.url, require_digest=True)
    assert (loaded.entry.name, loaded.digest) == ("hd", spec.sha256)
    same_output(loaded.separator, hdemucs)


def test_a_bare_state_dict_is_recognised_by_what_it_fits_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    know(monkeypatch, UMX, replace(HDEMUCS, name="wide", settings={"width": 12}), HDEMUCS)
    (tmp_path / "x.pt").write_bytes(files.saved(hdemucs.state_dict()))
    said: list[str] = []
    loaded = load_separator(str(tmp_path / "x.pt"), notice=said.append)
    assert loaded.entry.name == "hd"
    same_output(loaded.separator, hdemucs)
    assert said == [f"{tmp_path}/x.pt: taken for hd (hdemucs.HDemucs); --architecture says otherwise"]


def test_the_names_of_torchaudio_are_recognised_by_the_entrys_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    def theirs(name: str) -> str:
        first, rest = name.split(".", 1)
        words = {"encoder": "freq_encoder", "decoder": "freq_decoder", "tencoder": "time_encoder"}
        return f"{words.get(first, 'time_decoder' if first == 'tdecoder' else first)}.{rest}"

    state = {theirs(name): tensor for name, tensor in hdemucs.state_dict().items()}
    state["time_encoder.4.norm1.weight"] = torch.ones(64)
    spec = FileSpec("https://example.invalid/y.pt", rename=TORCHAUDIO, drop=(r"^time_encoder\.4\.norm1\.",))
    know(monkeypatch, replace(HDEMUCS, files=(spec,)))
    (tmp_path / "x.pt").write_bytes(files.saved(state))
    same_output(load_separator(str(tmp_path / "x.pt")).separator, hdemucs)


def test_architecture_says_what_a_bare_file_is_and_settings_go_over_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    know(monkeypatch, replace(HDEMUCS, settings={}), UMX)
    path = tmp_path / "x.pt"
    path.write_bytes(files.saved(hdemucs.state_dict()))
    loaded = load_separator(str(path), architecture="hd", settings={"width": 8})
    same_output(loaded.separator, hdemucs)
    with pytest.raises(ModelError, match=r"x.pt: does not fit umx.OpenUnmix: missing networks.vocals.input_mean"):
        load_separator(str(path), architecture="um")
    with pytest.raises(UsageError, match="'witdh' is not a setting of HDemucs; did you mean 'width'"):
        load_separator(str(path), architecture="hd", settings={"width": 8, "witdh": 4})


def test_our_own_checkpoint_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)
    made, run = network(UMX), tmp_path / "run"
    checkpoint.save(run / "best.safetensors", made.state_dict(), {"name": "mine", **catalog.as_table(UMX)}, {})
    for named in (run, run / "best.safetensors"):
        loaded = load_separator(str(named))
        same_output(loaded.separator, made)
        assert loaded.entry == replace(UMX, name="mine")


def test_a_path_without_a_published_digest_is_refused_where_one_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    know(monkeypatch, HDEMUCS)
    (tmp_path / "x.pt").write_bytes(files.saved(hdemucs.state_dict()))
    with pytest.raises(ModelError, match="no published digest"):
        load_separator(str(tmp_path / "x.pt"), require_digest=True)


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    for absent in ("none.th", "folder/none"):
        with pytest.raises(ModelError, match="no such file"):
            load_separator(str(tmp_path / absent))


# -- strict fit --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed_by_name_three_of_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Tensor] = dict(network(UMX).state_dict())
    names = [name for name in state if name.startswith("networks.vocals.bn")]
    for name in names[:5]:
        del state[name]
    state["networks.vocals.input_mean"] = torch.zeros(21)
    state["surplus"] = torch.zeros(1)
    know(monkeypatch, replace(UMX, files=(kept(tmp_path / "x.pt", files.saved(state)),)))
    with pytest.raises(ModelError) as caught:
        load_separator("um")
    assert str(caught.value) == (
        f"um: does not fit OpenUnmix: missing {', '.join(names[:3])} and 2 more; unexpected surplus; "
        "other shapes: networks.vocals.input_mean is (21,) in place of (20,)"
    )


def test_of_a_family_whose_names_are_others_one_size_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[str]()
    build = models.build
    monkeypatch.setattr(models, "build", lambda name, *rest: (built.append(name), build(name, *rest))[1])
    know(monkeypatch, UMX, replace(UMX, name="wide", settings={**UMX.settings, "width": 8}), HDEMUCS)
    (tmp_path / "x.pt").write_bytes(files.saved(files.small_state()))
    with pytest.raises(ModelError, match="fits none of"):
        load_separator(str(tmp_path / "x.pt"))
    assert sorted(built) == [HDEMUCS.architecture, UMX.architecture]


def test_a_file_that_fits_nothing_says_which_families_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, HDEMUCS, UMX)
    (tmp_path / "x.pt").write_bytes(files.saved(files.small_state()))
    with pytest.raises(ModelError, match=r"fits none of hdemucs.HDemucs, umx.OpenUnmix; .*--architecture NAME"):
        load_separator(str(tmp_path / "x.pt"))


def test_two_tensors_under_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kept(tmp_path / "x.pt", files.saved(files.small_state()))
    know(monkeypatch, replace(UMX, files=(replace(spec, rename=(("first.*", "one"),)),)))
    with pytest.raises(ModelError, match="two of its tensors would be one"):
        load_separator("um")


def test_constants_are_real_and_weights_cost_nothing_until_they_come() -> None:
    made = skeleton(UMX)
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}
    assert torch.equal(made.get_buffer("window"), torch.hann_window(64))


# -- what foreign files say --------------------------------------------------------------------------------------------


def said_by(**arguments: Any) -> Any:
    return describe(Published({}, "demucs.hdemucs.HDemucs", arguments), "x.th")


def test_arguments_that_are_not_given_have_demucs_defaults() -> None:
    said = said_by(sources=SOURCES, dconv_init=1e-3)
    assert said.settings["dconv_init"] == 1e-3
    assert said.settings["width"] == 48
    assert said.traits == {"sources": SOURCES, "channels": 2, "sample_rate": 44100, "segment": 40}


@pytest.mark.parametrize("name", CLASSES["demucs.hdemucs.HDemucs"].fixed)
def test_an_argument_that_our_class_is_not_made_for_is_refused_by_name_and_its_default_taken(name: str) -> None:
    assert said_by(**{name: CLASSES["demucs.hdemucs.HDemucs"].fixed[name]})
    with pytest.raises(ModelError, match=f"{name} = 16 of demucs.hdemucs.HDemucs has no counterpart here"):
        said_by(**{name: 16})


def test_an_argument_that_demucs_no_longer_has_is_dropped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    know(monkeypatch, HDEMUCS)
    (tmp_path / "x.th").write_bytes(files.package(hdemucs.state_dict(), {**ARGUMENTS, "ancient": 3}))
    said: list[str] = []
    load_separator(str(tmp_path / "x.th"), architecture="hd", notice=said.append)
    assert len(said) == 1
    assert "no longer has are left out: ancient" in said[0]


def test_the_file_is_followed_where_the_catalog_says_otherwise_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator
) -> None:
    spec = kept(tmp_path / "x.th", files.package(hdemucs.state_dict(), ARGUMENTS))
    know(monkeypatch, replace(HDEMUCS, settings={"width": 8, "hybrid_old": True}, files=(spec,)))
    said: list[str] = []
    loaded = load_separator("hd", notice=said.append)
    assert loaded.entry.settings["hybrid_old"] is False
    assert said == [f"{tmp_path}/x.th: says hybrid_old = False, the catalog True; the file is followed"]


@pytest.mark.parametrize(
    "arguments",
    [{"sources": ["../x", "b", "c", "d"]}, {"segment": -1}, {"samplerate": "fast"}, {"channels": "4"}, {"nfft": 10**9}],
)
def test_arguments_that_cannot_be_are_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdemucs: Separator, arguments: dict[str, Any]
) -> None:
    know(monkeypatch, HDEMUCS)
    (tmp_path / "x.th").write_bytes(files.package(hdemucs.state_dict(), {**ARGUMENTS, **arguments}))
    with pytest.raises(ModelError, match=r"x\.th"):
        load_separator(str(tmp_path / "x.th"))


# -- files and packages that we did not write --------------------------------------------------------------------------


@pytest.mark.shared
def test_the_published_cws_file_is_known_and_a_changed_one_recognised(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights" / "cws_mdensenet_k8_model155700.pth"
    loaded = load_separator(str(path), require_digest=True)
    assert loaded.entry.name == "cws-mdensenet"
    assert sum(parameter.numel() for parameter in loaded.separator.parameters()) == 566_756
    state = torch.load(path, weights_only=True)
    state["unet0.model.first.weight" if "unet0.model.first.weight" in state else next(iter(state))] *= 1.5
    torch.save(state, tmp_path / "mine.pth")
    assert load_separator(str(tmp_path / "mine.pth")).entry.name == "cws-mdensenet"


@pytest.mark.reference
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"cac": False, "hybrid_old": True, "norm_starts": 999, "multi_freqs": [], "multi_freqs_depth": 3},
        {"multi_freqs": [0.1, 0.3], "norm_starts": 999},
    ],
)
def test_a_file_that_demucs_wrote_sounds_as_in_demucs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    theirs = pytest.importorskip("demucs.hdemucs").HDemucs
    states = pytest.importorskip("demucs.states")
    given = {"sources": SOURCES, "channels": 8, "segment": 4 * 28, **arguments}
    model = fill(theirs(**given)).eval()
    package = {"klass": theirs, "args": (), "kwargs": given, "state": states.get_state(model, None, half=True)}
    torch.save(package, tmp_path / "x.th")
    know(monkeypatch, HDEMUCS)
    loaded = load_separator(str(tmp_path / "x.th"))
    again = states.load_model(tmp_path / "x.th").eval()
    sound = torch.randn(1, 2, 30_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = again(sound)
        found = loaded.separator(sound).waveforms
    assert wanted.abs().max() > 0.01
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert loaded.separator.segment == 44.0


@pytest.mark.reference
def test_a_file_that_torchaudio_wrote_fits_the_catalogs_own_renaming(tmp_path: Path) -> None:
    theirs = pytest.importorskip("torchaudio.models").HDemucs(SOURCES, channels=8)
    torch.save(fill(theirs).eval().state_dict(), tmp_path / "x.pt")
    loaded = load_separator(str(tmp_path / "x.pt"), architecture="hdemucs_high_musdb_plus", settings={"width": 8})
    sound = torch.randn(1, 2, 30_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = theirs(sound), loaded.separator(sound).waveforms
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.reference
@pytest.mark.parametrize("klass", ["demucs.hdemucs.HDemucs", "demucs.htdemucs.HTDemucs"])
def test_our_table_of_demucs_arguments_is_that_of_the_package(klass: str) -> None:
    import inspect

    module, name = klass.rsplit(".", 1)
    theirs = getattr(pytest.importorskip(module), name)
    parameters = dict(inspect.signature(theirs.__init__).parameters)
    del parameters["self"]
    table = CLASSES[klass].defaults
    assert list(table) == list(parameters)
    assert all(p.default in (table[name], inspect.Parameter.empty) for name, p in parameters.items())


def test_the_hdf5_file_of_nnabla_is_laid_out_as_our_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    made = network(UMX)
    state = dict(made.state_dict())
    for name, tensor in state.items():
        if ".bias_hh_" in name:  # that file has one bias
            tensor.zero_()
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
    with h5py.File(tmp_path / "x.h5", "w") as archive:
        for source in UMX.sources:
            own = {n.removeprefix(f"networks.{source}."): t.numpy() for n, t in state.items() if source in n}
            for name in ("input_mean", "input_scale", "output_mean", "output_scale"):
                archive[f"{name}_{source}"] = own[name]
            for block in "123":
                archive[f"fc{block}_{source}/affine/W"] = own[f"fc{block}.weight"].T
                pairs = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
                for theirs, ours in pairs.items():
                    archive[f"fc{block}_{source}/bn/{theirs}"] = own[f"bn{block}.{ours}"][None, None]
            layers = []
            for layer in range(2):
                ends = [f"_l{layer}", f"_l{layer}_reverse"]
                names = [[f"networks.{source}.lstm.weight_{kind}{end}" for kind in ("ih", "hh")] for end in ends]
                both = [torch.cat([state[name] for name in pair], 1).unflatten(0, (4, 4)) for pair in names]
                layers.append(torch.stack(both))
            archive[f"lstm_{source}/lstm/weight_l0"] = layers[0].numpy()
            archive[f"lstm_{source}/lstm/weight"] = layers[1][None].numpy()
            bias = [own[f"lstm.bias_ih_l{n}{end}"].reshape(4, 4) for n in range(2) for end in ("", "_reverse")]
            archive[f"lstm_{source}/lstm/bias"] = np.reshape(bias, (2, 2, 4, 4))
    know(monkeypatch, replace(UMX, files=(FileSpec(str(tmp_path / "x.h5"), layout="nnabla_umx"),)))
    same_output(load_separator("um").separator, made)


def test_only_the_files_of_the_wanted_sources_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(UMX, settings={**UMX.settings, "wiener_iterations": 0})
    made = network(alone)
    specs = []
    for source in UMX.sources:
        part = f"networks.{source}"
        own = {n.removeprefix(f"{part}."): t for n, t in made.state_dict().items() if n.startswith(f"{part}.")}
        torch.save(own, tmp_path / f"{source}.pth")
        specs.append(FileSpec(str(tmp_path / f"{source}.pth"), part=part))
    know(monkeypatch, replace(UMX, files=tuple(specs)))
    (tmp_path / "other.pth").unlink()
    settings = {"wiener_iterations": 0}
    part = load_separator("um", sources=["vocals"], settings=settings).separator
    sound = torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(part(sound).waveforms[:, 0], made(sound).waveforms[:, 0])
    for more in ({"sources": ["vocals"]}, {"settings": settings}):  # a filter couples them; both are wanted
        with pytest.raises(ModelError, match=r"other\.pth"):
            load_separator("um", **more)  # type: ignore[arg-type]


def test_an_empty_network_of_every_kind_is_built_without_the_compiler_of_torch() -> None:
    """Its import takes a second, and an operation on tensors without memory may ask for it."""
    code = """
import sys
from sepcli.weights import catalog
from sepcli.weights.load import skeleton
for entry in {entry.architecture: entry for entry in catalog.catalog().values() if not entry.bag}.values():
    network = skeleton(entry)
    assert all(parameter.is_meta for parameter in network.parameters()), entry.name
    assert not any(buffer.is_meta for buffer in network.buffers()), entry.name
    assert "torch._dynamo" not in sys.modules, entry.name
    print(entry.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len({entry.architecture for entry in catalog.catalog().values()} - {""})
