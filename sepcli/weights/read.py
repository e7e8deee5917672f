"""Any published file of weights as plain tensors and plain data. Nothing of the file is executed or imported."""

import gzip
import json
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sepcli.errors import ModelError
from sepcli.weights import legacy
from sepcli.weights.checkpoint import entry_of

DAMAGE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError, EOFError),
    *(OSError, ZeroDivisionError, struct.error, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile),
)
"""What a damaged file makes readers raise."""

INFLATED = 8 * 2**30
"""No compressed file is taken to be longer than this when inflated."""


@dataclass(frozen=True)
class Published:
    """What a file holds: tensors by their published names, floats of 16 bit as 32; and what tells how to use them.

    `klass` is the dotted name of the class that the file says it is of, `carried` that class's arguments as the file
    has them, `order` those given by position. `entry` is the entry in the metadata of our own checkpoints.
    """

    tensors: dict[str, Tensor]
    klass: str = ""
    carried: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[Any, ...] = ()
    entry: Mapping[str, Any] | None = None


def read(path: Path) -> Published:
    """Read a file of weights by what it is, whatever its suffix.

    safetensors (ours, demucs 4.1.0's, plain); torch.save's zip and the stream from before torch 1.6, also inside gzip
    or zlib, holding a state dict, a demucs package, a demucs tuple, or an asteroid dict; NNabla's HDF5, alone or
    several in a zip. Raises ModelError for anything else, for what is damaged, and for what would have to be executed,
    naming it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(16)
            file.seek(0)
            # First: the length of a safetensors header may look like the beginning of a zlib stream.
            if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8:
                return safe(path)
            if begin[:8] == b"\x89HDF\r\n\x1a\n":
                return hdf5(file, size)
            if begin[:2] == b"\x1f\x8b" or (begin[:1] == b"\x78" and int.from_bytes(begin[:2], "big") % 31 == 0):
                with inflated(file, size) as (inner, length):
                    return unpack(pickled(inner, length))
            if begin[:4] == b"PK\x03\x04" and (members := hdf5_members(file)):
                return hdf5_zip(file, size, members)
            return unpack(pickled(file, size))
    except legacy.Quantised as error:
        what = f"{path} holds weights quantised with diffq, which are not supported"
        raise ModelError(what, "take the unquantised twin: mdx for mdx_q, mdx_extra for mdx_extra_q") from error
    except legacy.Refused as error:
        what = f"{path}: refused, it has {error}"
        raise ModelError(what, "nothing in a file is ever run; ask its author for safetensors") from error
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(f"{path}: damaged, or no file of weights ({reason})", "fetch it again") from error


def pickled(file: IO[bytes], size: int) -> Any:
    """The object in a file of torch.save."""
    begin = file.read(2)
    file.seek(0)
    if begin == b"PK":
        return legacy.read_zip(file, size)
    if begin[:1] == b"\x80":
        return legacy.read_stream(file, size)
    file.seek(257)
    if file.read(5) == b"ustar":
        raise legacy.Refused("the tar form that torch wrote before 2017")
    raise ValueError("neither safetensors nor of torch.save")


@contextmanager
def inflated(file: IO[bytes], size: int) -> Iterator[tuple[IO[bytes], int]]:
    """What a gzip or zlib stream holds, as a temporary file and its length. Raises Refused for a bomb."""
    limit = min(INFLATED, 200 * size + 64 * 2**20)
    machine = zlib.decompressobj(wbits=47)
    with tempfile.TemporaryFile() as inner:
        while not machine.eof:
            chunk = machine.unconsumed_tail or file.read(1 << 20)
            inner.write(machine.decompress(chunk, 1 << 22))
            if inner.tell() > limit:
                raise legacy.Refused(f"more than {limit} bytes inside {size}")
            if not chunk and not machine.eof:
                raise ValueError("the compressed stream ends early")
        length = inner.tell()
        inner.seek(0)
        yield inner, length


def safe(path: Path) -> Published:
    """A safetensors file: our own, demucs 4.1.0's with class and arguments as text, or bare tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if "structure" in metadata:
                raise legacy.Quantised
            tensors = widened({name: file.get_tensor(name) for name in names})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if "sepcli" in metadata:
        return Published(tensors, entry=entry_of(metadata["sepcli"]))
    if "klass" in metadata:
        order, carried = (
            decoded(json.loads(metadata.get(key, empty))) for key, empty in (("args", "[]"), ("kwargs", "{}"))
        )
        return Published(tensors, str(metadata["klass"]), words(carried), tuple(order))
    return Published(unwrapped(tensors))


def hdf5(file: IO[bytes], size: int) -> Published:
    """NNabla's HDF5: a dataset for each parameter, under its path. Links that lead out of the file are not followed."""
    try:
        import h5py
    except ImportError as error:
        raise ModelError("HDF5 files want h5py", "pip install 'sepcli[nnabla]'") from error
    tensors: dict[str, Tensor] = {}
    with h5py.File(file, "r") as archive:
        datasets: list[tuple[str, Any]] = []
        archive.visititems(lambda name, item: datasets.append((name, item)) if isinstance(item, h5py.Dataset) else None)
        if sum(dataset.nbytes for _, dataset in datasets) > size:
            raise legacy.Refused("datasets that together are larger than the file")
        for name, dataset in datasets:
            if dataset.external or dataset.is_virtual or dataset.dtype.kind not in "fiu":
                raise legacy.Refused(f"a dataset {name[:80]!r} that is no plain numbers")
            tensors[name] = torch.from_numpy(dataset[()].astype(dataset.dtype.newbyteorder("="))).clone()
    return Published(widened(tensors))


def hdf5_members(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The HDF5 files in a zip, by their suffix."""
    with zipfile.ZipFile(file) as archive:
        members = [
            info for info in archive.infolist() if info.filename.endswith(".h5") and "__MACOSX" not in info.filename
        ]
    file.seek(0)
    return members


def hdf5_zip(file: IO[bytes], size: int, members: list[zipfile.ZipInfo]) -> Published:
    """A zip of HDF5 files, as NNabla's D3Net is published: the datasets of all of them, no name in two."""
    limit = min(INFLATED, 200 * size + 64 * 2**20)
    tensors: dict[str, Tensor] = {}
    with zipfile.ZipFile(file) as archive:
        if sum(info.file_size for info in members) > limit:
            raise legacy.Refused(f"more than {limit} bytes inside {size}")
        for info in members:
            with tempfile.TemporaryFile() as inner:
                with archive.open(info) as member:
                    shutil.copyfileobj(member, inner)  # zipfile stops at the size that the record says
                length = inner.tell()
                inner.seek(0)
                more = hdf5(inner, length).tensors
            if both := tensors.keys() & more.keys():
                raise legacy.Refused(f"{min(both)[:80]!r} in two of its files")
            tensors |= more
    return Published(tensors)


def decoded(value: Any) -> Any:
    """demucs' JSON, in which a Fraction is a table."""
    if isinstance(value, dict) and value.get("_type") == "fraction":
        return legacy.fraction((value["numerator"], value["denominator"]))
    if isinstance(value, dict):
        return {key: decoded(item) for key, item in value.items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def unpack(value: Any) -> Published:
    """The object of a pickle by its form: package, tuple, asteroid's dict, or a state dict, perhaps inside a dict."""
    if isinstance(value, tuple | list) and len(value) == 4 and isinstance(value[0], legacy.Name):
        klass, order, carried, state = value
        return Published(state_dict(state), klass.name, words(carried), tuple(order))
    if not isinstance(value, dict):
        raise legacy.Refused(f"a {type(value).__name__} where weights should be")
    if "compressed" in value or "__quantized" in value:
        raise legacy.Quantised
    if isinstance(klass := value.get("klass"), legacy.Name):
        return Published(state_dict(value["state"]), klass.name, words(value["kwargs"]), tuple(value["args"]))
    if isinstance(model := value.get("model_name"), str) and "state_dict" in value:
        return Published(state_dict(value["state_dict"]), f"asteroid.{model}", words(value.get("model_args", {})))
    for key in ("state_dict", "model_state_dict", "state"):
        if isinstance(value.get(key), dict):
            return Published(state_dict(value[key]))
    return Published(state_dict(value))


def words(value: Any) -> dict[str, Any]:
    """Arguments by name."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise legacy.Refused("arguments that are not named")
    return value


def state_dict(value: Any) -> dict[str, Tensor]:
    """Tensors by name out of a pickle, as float32 where they are of 16 bit."""
    if isinstance(value, dict) and ("__quantized" in value or "quantized" in value):
        raise legacy.Quantised
    if not isinstance(value, dict) or not value:
        raise legacy.Refused("no tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise legacy.Refused(f"a {type(tensor).__name__} named {str(name)[:80]!r} among its tensors")
    return unwrapped(widened(value))


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that data-parallel training gives every name."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for n, t in tensors.items()}
