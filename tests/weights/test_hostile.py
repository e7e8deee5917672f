"""Files made to do harm: nothing of them runs, none takes more memory than it has a right to, each is one line."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sepcli.errors import ModelError
from sepcli.weights import catalog, checkpoint, legacy
from sepcli.weights.fetch import place
from sepcli.weights.load import load_separator, own_entry
from sepcli.weights.read import read
from tests.weights import published_files as files

STATE = files.small_state()


class Canary:
    """Creates a file when it is unpickled by somebody who runs what a pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def in_tar(value: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def named(canary: Canary, klass: str) -> tuple[Any, ...]:
    with files.stand_in(klass) as kind:
        return kind, (), {"x": canary}, dict(STATE)


DOORS: dict[str, Callable[[Canary], bytes]] = {
    "zip": files.saved,
    "stream": lambda c: files.saved(c, old=True),
    "zip, among tensors": lambda c: files.saved({**STATE, "x": c}),
    "stream, among tensors": lambda c: files.saved({**STATE, "x": c}, old=True),
    "zip, in a package's arguments": lambda c: files.package(STATE, {"x": c}),
    "stream, in a package's arguments": lambda c: files.package(STATE, {"x": c}, old=True),
    "stream, in a tuple": lambda c: files.saved((c, (), {}, dict(STATE)), old=True),
    "gzip": lambda c: gzip.compress(files.saved((c, (), {}, dict(STATE)), old=True)),
    "zlib": lambda c: zlib.compress(files.saved(c)),
    "a dict with zlib inside": lambda c: files.saved({"compressed": zlib.compress(files.saved(c))}),
    "asteroid's arguments": lambda c: files.saved({**files.asteroid(STATE), "infos": {"x": c}}),
    "tar": in_tar,
    "a bare pickle": pickle.dumps,
    "a bare pickle of protocol 0": lambda c: pickle.dumps(c, protocol=0),
}


def test_the_canary_sings_where_somebody_runs_it(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    torch.load(io.BytesIO(files.saved({"x": canary})), weights_only=False)
    assert canary.path.exists()


@pytest.mark.parametrize("door", DOORS)
def test_a_pickle_that_would_run_a_program_is_refused_and_does_not(tmp_path: Path, door: str) -> None:
    canary = Canary(tmp_path / "canary")
    path = tmp_path / "evil.th"
    path.write_bytes(DOORS[door](canary))
    for loader in (read, lambda path: load_separator(str(path))):
        with pytest.raises(ModelError) as caught:
            loader(path)
        assert "\n" not in str(caught.value)
    assert not canary.path.exists()


@pytest.mark.parametrize("old", [False, True])
def test_what_a_file_wanted_is_named(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "evil.th"
    path.write_bytes(files.saved(Canary(tmp_path / "canary"), old=old))
    with pytest.raises(ModelError, match=rf"evil.th: refused, it has the global '{os.system.__module__}.system'"):
        read(path)


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "torch.load", "demucs.hdemucs.Other", "torch.hub.load", "numpy.dtype.__reduce__", "os.fork"],
)
def test_only_names_of_the_table_mean_something(name: str) -> None:
    module, qualname = name.split(".", 1)
    with pytest.raises(legacy.Refused, match=name):
        legacy.meaning(module, qualname)


@pytest.mark.parametrize("digest", [True, False])
def test_a_file_planted_in_the_cache_under_a_catalog_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: bool
) -> None:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path))
    spec = catalog.FileSpec("https://example.invalid/a.th", "ab" * 32 if digest else "")
    entry = catalog.Entry("planted", architecture="densenet.MDenseNet", sources=("a",), sample_rate=1, files=(spec,))
    monkeypatch.setattr(catalog, "catalog", lambda: {"planted": entry})
    canary = Canary(tmp_path / "canary")
    place(spec).parent.mkdir(parents=True)
    place(spec).write_bytes(files.package(STATE, {"x": canary}))
    with pytest.raises(ModelError, match="wrong digest" if digest else "refused, it has the global"):
        load_separator("planted", offline=True)
    assert not canary.path.exists()


# -- bombs -------------------------------------------------------------------------------------------------------------


def rewritten(data: bytes, change: Callable[[dict[str, bytes]], None], **options: Any) -> bytes:
    """A zip of torch.save with its records changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return stream.getvalue()


def data_of(records: dict[str, bytes]) -> str:
    return next(name for name in records if name.endswith("data.pkl"))


def claim_more(records: dict[str, bytes]) -> None:
    """Let the pickle say that a storage of 15 elements has 2 ** 31 - 1."""
    name = data_of(records)
    assert records[name].count(b"K\x0ft") == 1
    records[name] = records[name].replace(b"K\x0ft", b"J\xff\xff\xff\x7ft")


def claim_shape(records: dict[str, bytes]) -> None:
    """Let the pickle say that a tensor of 3 x 5 has 255 x 255."""
    name = data_of(records)
    assert records[name].count(b"K\x03K\x05\x86") == 1
    records[name] = records[name].replace(b"K\x03K\x05\x86", b"K\xffK\xff\x86")


def sparse_bomb() -> bytes:
    """One small storage seen by ten thousand tensors of its size."""
    base = torch.zeros(100_000)
    return files.saved({f"t{n}": base[:] for n in range(10_000)})


def header(table: dict[str, Any], body: int = 0) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def tensor(first: int, last: int, count: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [first, last]}


BOMBS: dict[str, Callable[[], bytes]] = {
    "a storage larger than its record": lambda: rewritten(files.saved(STATE), claim_more),
    "a tensor larger than its storage": lambda: rewritten(files.saved(STATE), claim_shape),
    "compressed records": lambda: rewritten(
        files.saved({"x": torch.zeros(10**6)}), lambda r: None, compression=zipfile.ZIP_DEFLATED
    ),
    "many tensors over one storage": sparse_bomb,
    "TorchScript": lambda: rewritten(files.saved(STATE), lambda r: r.update({"archive/code/x.py": b"pass"})),
    "a stream's storage larger than the file": lambda: files.saved(STATE, old=True).replace(
        b"K\x0fN", b"J\xff\xff\xff\x7fN"
    ),
    "gzip": lambda: gzip.compress(bytes(100_000_000), 9),
    "gzip of gzip": lambda: gzip.compress(gzip.compress(files.saved(STATE))),
    "a huge header": lambda: struct.pack("<Q", 2**62) + b"{}",
    "a header beyond the end": lambda: struct.pack("<Q", 1000) + b"{}",
    "a deep header": lambda: struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    "offsets beyond the end": lambda: header({"a": tensor(0, 4_000_000_000, 1_000_000_000)}, 8),
    "offsets that overlap": lambda: header({"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}, 12),
    "a shape without its bytes": lambda: header({"a": tensor(0, 8, 2**40)}, 8),
    "a number with a million digits": lambda: b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "an endless memo": lambda: b"\x80\x02" + b"]q\x00h\x00a" * 100_000,
    "a huge text": lambda: b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b"x",
    "nothing": lambda: b"",
    "text": lambda: b"hello, this is not a file of weights\n" * 100,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_one_line(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.th"
    path.write_bytes(BOMBS[bomb]())
    with pytest.raises(ModelError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_fraction_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(legacy.Refused):
        legacy.fraction(("1e999999999",))


def test_lists_that_grow_exponentially_are_carried_and_never_walked(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value, value]
    path = tmp_path / "laughs.th"
    path.write_bytes(files.package(STATE, {"sources": value}))
    assert len(read(path).carried["sources"]) == 2
    with pytest.raises(ModelError) as caught:
        load_separator(str(path))
    assert len(str(caught.value)) < 500


# -- damage ------------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Callable[[], bytes]] = {
    "zip": lambda: files.package(STATE, {"channels": 4}),
    "stream": lambda: files.four(STATE),
    "gzip": lambda: gzip.compress(files.four(STATE)),
    "safetensors": lambda: save(STATE, {"sepcli": json.dumps({"entry": {}})}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, kind: str) -> None:
    data, draw, path = WHOLE[kind](), random.Random(7), tmp_path / "x.th"
    path.write_bytes(data)
    read(path)
    for end in [draw.randrange(len(data)) for _ in range(50)]:
        path.write_bytes(data[:end])
        with pytest.raises(ModelError):
            read(path)


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_a_byte_changed_anywhere_is_a_file_or_one_line_and_never_a_crash(tmp_path: Path, kind: str) -> None:
    data, draw, path = WHOLE[kind](), random.Random(8), tmp_path / "x.th"
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read(path)
        except ModelError:
            refused += 1
    assert 0 < refused <= 300


# -- foreign metadata --------------------------------------------------------------------------------------------------

ENTRY = {
    "name": "x",
    "architecture": "densenet.MDenseNet",
    "sources": ["vocals", "accompaniment"],
    "sample_rate": 44100,
    "channels": 2,
    "segment": 10.0,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "os.system"),
        ("architecture", "sepcli.cli.Main"),
        ("architecture", "..cli.Main"),
        ("architecture", "separator.Separator"),
        ("architecture", "separator.Tensor"),
        ("architecture", ["densenet.MDenseNet"]),
        ("sources", ["../../.bashrc", "vocals"]),
        ("sources", ["vocals", "/etc/passwd"]),
        ("sources", "vocals"),
        ("sources", [["vocals"]]),
        ("sample_rate", "44100"),
        ("sample_rate", -1),
        ("channels", True),
        ("segment", float("nan")),
        ("level", {"peak": "0.8"}),
        ("settings", [1]),
        ("settings", {"bands": "8"}),
        ("settings", {"__class__": 1}),
        ("licence", ["none"]),
        ("unheard_of", 1),
    ],
)
def test_metadata_that_name_something_else_are_refused_by_field(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, STATE, ENTRY | {field: value}, {})
    with pytest.raises(ModelError) as caught:
        load_separator(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["architecture", "sources", "sample_rate", "channels", "segment"])
def test_metadata_that_lack_something_are_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, STATE, {key: value for key, value in ENTRY.items() if key != field}, {})
    with pytest.raises(ModelError):
        load_separator(str(path))


def test_a_name_that_leads_elsewhere_is_not_taken_from_metadata() -> None:
    assert own_entry({**ENTRY, "name": "../../y"}, Path("x.safetensors")).name == "x"
    assert own_entry({**ENTRY, "name": "y"}, Path("x.safetensors")).name == "y"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"entry": 3}', "{", "[" * 100_000])
def test_metadata_without_an_entry_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(STATE, {"sepcli": text}))
    with pytest.raises(ModelError):
        checkpoint.read_entry(path)
    with pytest.raises(ModelError):
        read(path)


def test_a_class_in_demucs_metadata_is_only_a_name(tmp_path: Path) -> None:
    path = files.demucs_safetensors(tmp_path / "x.safetensors", STATE, {}, klass="os.system")
    assert read(path).klass == "os.system"
    with pytest.raises(ModelError, match="fits none of"):
        load_separator(str(path))
