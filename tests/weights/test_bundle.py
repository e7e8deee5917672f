"""The bundled network: small on disk, whole in memory, and it says nothing of the machine that it was trained on."""

from pathlib import Path

import pytest
import torch

from sepcli.errors import ModelError
from sepcli.models import build
from sepcli.models.tdf_unet import TdfUNet
from sepcli.weights import checkpoint
from sepcli.weights.bundle import bundle
from sepcli.weights.catalog import as_table, find
from sepcli.weights.fetch import fetch
from sepcli.weights.load import load_separator

ENTRY = find("mini")


def test_a_checkpoint_becomes_half_as_long_and_loads_as_float32(tmp_path: Path) -> None:
    traits = {"sources": ENTRY.sources, "channels": 2, "sample_rate": 44100, "segment": 1.0, "level": {}}
    network = build(ENTRY.architecture, dict(TdfUNet.tiny), traits)  # type: ignore[arg-type]
    table = {**as_table(ENTRY), "name": "mini", "settings": dict(TdfUNet.tiny), "segment": 1.0}
    checkpoint.save(tmp_path / "best.safetensors", network.state_dict(), table, {"data": ["/home/someone/songs"]})
    digest = bundle(tmp_path / "best.safetensors", tmp_path / "small.safetensors")
    assert len(digest) == 64
    assert b"someone" not in (tmp_path / "small.safetensors").read_bytes()
    loaded = load_separator(str(tmp_path / "small.safetensors")).separator
    for name, tensor in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.allclose(found, tensor, rtol=1e-3, atol=1e-6)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no checkpoint"):
        bundle(tmp_path / "x.safetensors", tmp_path / "y.safetensors")


def test_the_bundled_file_is_there_small_and_proven() -> None:
    assert ENTRY.status == "bundled"
    (spec,) = ENTRY.files
    path = fetch(spec, offline=True, notice=lambda _: None, require_digest=True)
    assert path.stat().st_size < 8_000_000
    entry = checkpoint.read_entry(path)
    assert entry is not None
    assert entry["architecture"] == ENTRY.architecture
    assert b"/tmp/" not in path.read_bytes()
