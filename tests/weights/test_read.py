"""Every published form gives the tensors that went in, and nothing but plain data beside them."""

import json
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sepcli.errors import ModelError
from sepcli.weights import checkpoint
from sepcli.weights.read import read
from tests.weights import published_files as files

STATE = files.small_state()


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is left of a state that was stored in 16 bit."""
    return {name: tensor.half().float() for name, tensor in state.items()}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("old", [False, True])
def test_a_demucs_package_gives_class_arguments_and_single_precision(tmp_path: Path, old: bool) -> None:
    path = written(tmp_path / "x.th", files.package(STATE, {"sources": ["drums", "bass"], "channels": 4}, old=old))
    found = read(path)
    assert same(found.tensors, halved(STATE))
    assert found.klass == "demucs.hdemucs.HDemucs"
    assert found.carried == {"segment": Fraction(39, 5), "sources": ["drums", "bass"], "channels": 4}


@pytest.mark.parametrize("wrapping", files.WRAPPINGS)
@pytest.mark.parametrize("old", [False, True])
def test_a_tuple_of_demucs_v1_is_read_also_compressed(tmp_path: Path, wrapping: str, old: bool) -> None:
    path = written(tmp_path / "x.th.gz", files.WRAPPINGS[wrapping](files.four(STATE, old=old)))
    found = read(path)
    assert same(found.tensors, STATE)
    assert (found.klass, found.order, found.carried) == ("demucs.model.Demucs", (4,), {"channels": 64})


@pytest.mark.parametrize("old", [False, True])
def test_tensors_of_every_kind_come_back_as_they_were(tmp_path: Path, old: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(
        whole=base,
        turned=base.T,
        part=base[1:3, ::2],
        single=torch.tensor(3.5),
        none=torch.zeros(0, 3),
        double=torch.tensor([1.0, 2.0], dtype=torch.float64),
        flags=torch.tensor([True, False]),
        bytes=torch.arange(5, dtype=torch.uint8),
        counts=torch.arange(3),
        parameter=nn.Parameter(torch.ones(2)),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    wanted = {name: tensor.detach() for name, tensor in state.items()}
    assert same(read(written(tmp_path / "x.pt", files.saved(state, old=old))).tensors, wanted)


def test_bfloat16_becomes_single_precision(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pt", files.saved({"x": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}))
    assert same(read(path).tensors, {"x": torch.tensor([1.5, -2.0])})


def test_a_state_dict_of_a_network_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 5), nn.BatchNorm1d(3), nn.LSTM(3, 4, 2, bidirectional=True))
    path = written(tmp_path / "x.pt", files.saved(network.state_dict(), old=True))
    assert same(read(path).tensors, torch.load(path, weights_only=True))


@pytest.mark.parametrize("old", [False, True])
def test_a_dict_of_asteroid_with_numpy_scalars_is_plain_data(tmp_path: Path, old: bool) -> None:
    found = read(written(tmp_path / "x.pth", files.saved(files.asteroid(STATE), old=old)))
    assert same(found.tensors, STATE)
    assert found.klass == "asteroid.XUMX"
    assert found.carried["max_bin"] == 1487
    assert type(found.carried["max_bin"]) is int


def test_numpy_scalars_of_numpy_1_are_read_under_their_old_name(tmp_path: Path) -> None:
    data = files.saved(files.asteroid(STATE), old=True)
    assert b"cnumpy._core.multiarray\n" in data
    path = written(tmp_path / "x.pth", data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read(path).carried["max_bin"] == 1487


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "state"])
def test_weights_inside_a_training_dict_are_found(tmp_path: Path, key: str) -> None:
    value = {key: {f"module.{name}": tensor for name, tensor in STATE.items()}, "epoch": 3}
    assert same(read(written(tmp_path / "x.pt", files.saved(value))).tensors, STATE)


def test_safetensors_of_demucs_give_class_and_arguments(tmp_path: Path) -> None:
    found = read(files.demucs_safetensors(tmp_path / "x.safetensors", STATE, {"channels": 4}))
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in halved(STATE).items())
    assert found.klass == "demucs.hdemucs.HDemucs"
    assert found.carried == {"segment": Fraction(39, 5), "channels": 4}


def test_our_own_checkpoint_comes_back_with_its_entry_and_without_torch(tmp_path: Path) -> None:
    path, entry = tmp_path / "runs" / "x" / "best.safetensors", {"name": "mine", "settings": {"bands": 4}}
    checkpoint.save(path, STATE, entry, {"recipe": {"seed": 1}})
    found = read(path)
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        n: t.tolist() for n, t in STATE.items()
    }
    assert found.entry == entry
    assert checkpoint.read_entry(path) == entry
    assert checkpoint.read_metadata(path) == {"schema": 1, "entry": entry, "extra": {"recipe": {"seed": 1}}}
    assert [item.name for item in path.parent.iterdir()] == ["best.safetensors"]


def test_tied_and_turned_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    checkpoint.save(tmp_path / "x.safetensors", {"a": base, "b": base, "c": base.T}, {}, {})
    assert torch.equal(read(tmp_path / "x.safetensors").tensors["c"], base.T)


def test_other_files_have_no_entry(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, str(tmp_path / "bare.safetensors"), {"format": "pt"})
    assert checkpoint.read_entry(tmp_path / "bare.safetensors") is None
    assert checkpoint.read_entry(written(tmp_path / "x.pt", files.saved(STATE))) is None
    assert checkpoint.read_entry(written(tmp_path / "empty", b"")) is None


def quantised_forms(folder: Path) -> dict[str, Path]:
    packed = {"quantized": [torch.ones(2)], "others": [], "meta": {}, "__quantized": True}
    with files.stand_in(files.HDEMUCS) as kind:
        package = files.saved({"klass": kind, "args": (), "kwargs": {}, "state": packed})
    with files.stand_in("diffq.diffq.DiffQuantizer") as kind:
        named = files.saved({"quantized": {"meta": {"klass": kind}}})
    save_file({"a": torch.ones(1)}, str(folder / "q.safetensors"), {"structure": json.dumps({})})
    return {
        "package": written(folder / "package.th", package),
        "names diffq": written(folder / "named.th", named),
        "compressed": written(folder / "v2.th", files.saved({"compressed": b"x\x9c"})),
        "safetensors": folder / "q.safetensors",
    }


@pytest.mark.parametrize("form", ["package", "names diffq", "compressed", "safetensors"])
def test_weights_quantised_with_diffq_are_refused_and_the_unquantised_twin_named(tmp_path: Path, form: str) -> None:
    with pytest.raises(
        ModelError, match=r"diffq, which are not supported; .* mdx for mdx_q, mdx_extra for mdx_extra_q"
    ):
        read(quantised_forms(tmp_path)[form])


@pytest.mark.shared
def test_the_published_cws_file_is_read_as_torch_reads_it(shared: Path) -> None:
    path = shared / "weights" / "cws_mdensenet_k8_model155700.pth"
    found = read(path).tensors
    assert len(found) == 500
    assert same(found, dict(torch.load(path, weights_only=True)))


def test_a_zip_of_hdf5_files_gives_the_datasets_of_all(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    values = {"vocals": np.arange(6, dtype=np.float32).reshape(2, 3), "drums": np.ones(4, np.float32)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for source, value in values.items():
            with h5py.File(tmp_path / f"{source}.h5", "w") as file:
                file[f"{source}/W"] = value
            archive.write(tmp_path / f"{source}.h5", f"folder/{source}.h5")
        archive.writestr("folder/README.txt", "about")
    tensors = read(tmp_path / "x.zip").tensors
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "vocals/W": values["vocals"].tolist(),
        "drums/W": values["drums"].tolist(),
    }
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name in ("a.h5", "b.h5"):
            archive.write(tmp_path / "drums.h5", name)
    with pytest.raises(ModelError, match="drums/W"):
        read(tmp_path / "twice.zip")
