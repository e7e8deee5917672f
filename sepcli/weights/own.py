"""The user's own catalogue: entries for files of theirs, written as TOML. Standard library only: no torch."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepcli.errors import ModelError, UsageError
from sepcli.weights import checkpoint
from sepcli.weights.catalog import Entry, as_table, read_catalog, read_entry, shipped, user_catalog
from sepcli.weights.fetch import digest_of
from sepcli.weights.votes import weights_file


def add(path: str, name: str) -> Entry:
    """Give a file, or a run's best, a name in the user's own catalogue: its own entry where it is a checkpoint of ours,
    else that of the published file with its digest.

    Raises UsageError for a name that is taken or cannot be one; ModelError for a file that says nothing of its network.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name):
        raise UsageError(f"--name {name!r}: must be letters, digits, and . _ + -, up to 64")
    taken = {word for entry in shipped().values() for word in (entry.name, *entry.alias)}
    entries = own_tables()
    if name in taken or name in entries:
        hint = "choose another" if name in taken else f"`sepcli models remove {name}` first"
        raise UsageError(f"--name {name}: there is such a model", hint)
    file = weights_file(path).absolute()
    digest = digest_of(file)
    url: dict[str, Any] = {"url": str(file), "sha256": digest, "bytes": file.stat().st_size}
    table = checkpoint.read_entry(file)
    if table is None:
        table, more = published(file, digest)
        url |= more
    kept = {key: value for key, value in table.items() if key not in ("name", "alias", "files", "bag")}
    entries[name] = kept | {"files": [url]}
    entry = read_entry(name, entries[name], str(file))
    write(entries)
    return entry


def published(file: Path, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry that publishes a file with this digest, and how its tensors are named. Raises ModelError."""
    for entry in shipped().values():
        for spec in entry.files:
            if len(spec.sha256) >= 8 and digest.startswith(spec.sha256.lower()) and not spec.part:
                naming = {"rename": spec.rename, "drop": spec.drop, "layout": spec.layout}
                return as_table(entry), {key: value for key, value in naming.items() if value}
    what = f"{file}: does not say what network it is for"
    raise ModelError(what, f"use it by its path: --model {file} --architecture NAME")


def remove(name: str) -> bool:
    """Take a name out of the user's own catalogue, its file left where it is; whether it was there."""
    entries = own_tables()
    if name not in entries:
        return False
    del entries[name]
    write(entries)
    return True


def own_tables() -> dict[str, Any]:
    """The user's own catalogue as tables. Raises ModelError where it is damaged."""
    import tomllib

    if not user_catalog().exists():
        return {}
    read_catalog(user_catalog())
    return dict(tomllib.loads(user_catalog().read_text(encoding="utf-8")))


def write(entries: Mapping[str, Any]) -> None:
    """Write the user's own catalogue, aside and then renamed. Raises ModelError."""
    text = "".join(
        f"[{quoted(name)}]\n" + "".join(f"{quoted(key)} = {toml(value)}\n" for key, value in table.items()) + "\n"
        for name, table in entries.items()
    )
    path = user_catalog()
    aside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error})", "see SEPCLI_CACHE") from error


def toml(value: Any) -> str:
    """A value in TOML, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{quoted(str(k))} = {toml(v)}" for k, v in value.items() if v is not None) + " }"
    return "[" + ", ".join(toml(item) for item in value) + "]"


def quoted(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, which forbids one character more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
