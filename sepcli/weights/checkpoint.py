"""Our own files: safetensors whose metadata hold the entry, so that a file alone rebuilds its network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepcli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

HEADER = 100 * 2**20
"""Longest header of a safetensors file, as the format's own library has it."""


def save(path: Path, tensors: Mapping[str, "Tensor"], entry: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write a checkpoint: aside, synced to the disk, then renamed, so that what is there is always whole.

    `entry` is a table as catalog.as_table gives it, with the entry's `name`; `extra` (the recipe, what reproduces the
    run) lies beside it under its own keys. Both must be plain data. Raises ModelError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = json.dumps({"schema": 1, "entry": dict(entry)} | {"extra": dict(extra)})
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(plain, str(aside), {"sepcli": text})
        aside.chmod(0o644)  # safetensors keeps a file to its owner
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error})") from error
    except SafetensorError as error:  # a full disk, among others
        raise ModelError(f"{path}: cannot be written ({error})", "is the disk full?") from error
    finally:
        aside.unlink(missing_ok=True)


def read_metadata(path: Path) -> Mapping[str, Any] | None:
    """What `save` put beside the tensors (`entry`, `extra`), without torch; None if the file is no checkpoint of ours.

    Raises ModelError if the file cannot be read or its metadata are damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(HEADER, path.stat().st_size - 8):
                return None
            header = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not header.startswith(b"{"):
        return None
    try:
        metadata = json.loads(header).get("__metadata__") or {}
        return parsed(metadata["sepcli"]) if "sepcli" in metadata else None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata are damaged ({type(error).__name__})") from error


def read_entry(path: Path) -> Mapping[str, Any] | None:
    """The entry of a checkpoint, without torch; None if the file is no checkpoint of ours. Raises ModelError."""
    metadata = read_metadata(path)
    return None if metadata is None else dict(metadata["entry"])


def entry_of(text: str) -> Mapping[str, Any]:
    """The entry in the metadata's text. Raises ValueError."""
    return dict(parsed(text)["entry"])


def parsed(text: str) -> Mapping[str, Any]:
    """The metadata's text as a table with an entry. Raises ValueError."""
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("entry"), dict):
        raise ValueError("metadata without an entry")
    return metadata
