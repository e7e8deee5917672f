"""stems.json: which sets are finished, what they were made from and how. No torch: a finished batch needs none."""

import functools
import hashlib
import json
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepcli.errors import AudioError

if TYPE_CHECKING:
    from sepcli.audio.write import Written


def digest_of_file(path: Path) -> str:
    """The sha256 of a regular file, computed once as long as the file stays as it is. Raises AudioError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{path}: is not a regular file", reason="io")
        return _digest(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file", reason="io") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", reason="io") from error


@functools.lru_cache(maxsize=64)  # a song is asked for twice in a row, the weights with each
def _digest(path: Path, _size: int, _modified: int, _inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(source: str, weights: list[Any], settings: Mapping[str, Any]) -> str:
    """A digest of all that decides a set's samples: the input's digest, the weights, the settings."""
    text = json.dumps([source, weights, dict(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_sets(sidecar: Path) -> list[dict[str, Any]]:
    """The sets that a sidecar tells of; none where there is no sidecar, or one that is not ours."""
    try:
        sets = json.loads(sidecar.read_text(encoding="utf-8", errors="surrogateescape"))["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [record for record in sets if isinstance(record, dict)] if isinstance(sets, list) else []


def size_on_disk(path: Path) -> int:
    return path.stat().st_size


def finished_set(sidecar: Path, key: str, size_of: Callable[[Path], int] = size_on_disk) -> dict[str, Any] | None:
    """The set of this key, if every file of it is there at its size: where one is missing, `size_of` is -1 or fails."""
    for record in read_sets(sidecar):
        try:
            files = record["stems"].values()
            whole = all(size_of(sidecar.parent / file["path"]) == file["bytes"] for file in files)
            if record["key"] == key and whole and {"gain", "frames", "format"} <= record.keys():
                return record
        except (OSError, KeyError, TypeError, AttributeError):
            continue
    return None


def described(sidecar: Path, facts: Mapping[str, Any], written: "Written") -> bytes:
    """The sidecar's text: this set's record, and those of other sets beside it whose files it does not replace."""
    files = {
        stem: {"path": path.relative_to(sidecar.parent).as_posix(), "bytes": written.bytes[stem]}
        for stem, path in written.paths.items()
    }
    record = {
        **facts,
        "stems": files,
        "frames": written.frames,
        "peaks": written.peaks,
        "gain": written.gain,
    }
    return text_of([*kept_sets(sidecar, written.paths.values()), record])


def kept_sets(sidecar: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The sets that a sidecar tells of, but for those of which one of these files is a part."""
    taken = {path.relative_to(sidecar.parent).as_posix() for path in paths}
    return [record for record in read_sets(sidecar) if not taken & files_of(record)]


def text_of(sets: Sequence[Mapping[str, Any]]) -> bytes:
    """A sidecar of these sets."""
    text = json.dumps({"schema": 1, "sets": sets}, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogateescape")


def files_of(record: Mapping[str, Any]) -> set[str]:
    stems = record.get("stems")
    files = stems.values() if isinstance(stems, dict) else ()
    return {str(file.get("path")) for file in files if isinstance(file, dict)}
