"""Lists of songs: paths, JSON lines or CSV in; items with what is known of them out. No torch, no numpy."""

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from sepcli.audio.paths import Found
from sepcli.errors import AudioError, UsageError

FIELDS = ("uri", "seconds", "rate", "channels", "bytes", "digest", "reldir")
ADDRESS = ("uri", "path", "file")
"""What the column or key with a song's address may be called."""


@dataclass(frozen=True)
class Item:
    """One song of a list: where it is, and what its list tells of it."""

    uri: str
    index: int = 0  # its place in the whole list, from 1
    reldir: str = ""
    seconds: float | None = None
    digest: str | None = None  # sha256 of the file

    @property
    def remote(self) -> bool:
        return is_remote(self.uri)

    @property
    def found(self) -> Found:
        return Found(Path(self.uri), PurePath(self.reldir))

    @property
    def name(self) -> str:
        return PurePath(self.uri.rstrip("/")).name


def is_remote(uri: str) -> bool:
    """Whether an input or output is an address (`s3://…`) and no path."""
    scheme, colon, _ = uri.partition("://")
    return bool(colon) and scheme.replace("+", "").isalnum()


def read_list(path: Path) -> tuple[list[Item], list[AudioError]]:
    """The items of an --input-list, and an error for each line that names none; `-` is standard input.

    JSON lines where the first line opens a brace, CSV where the name ends in .csv or the first line names a column of
    addresses among others, else one path a line. Raises UsageError where it cannot be read.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"--input-list {path}: cannot be read: {error.strerror}") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = content.splitlines()
    first = next((line.strip() for line in lines if line.strip()), b"")
    columns = first.decode("utf-8", "replace").lower().split(",")
    if first.startswith(b"{"):
        rows = json_rows(lines)
    elif path.suffix.lower() == ".csv" or (len(columns) > 1 and set(columns) & set(ADDRESS)):
        rows = csv_rows(content)
    else:
        return [Item(os.fsdecode(line)) for line in lines if line.strip()], []
    items, problems = [], []
    for number, row in rows:
        try:
            items.append(item_of(row))
        except (ValueError, TypeError) as error:
            place = f"{path}, line {number}"
            problems.append(AudioError(f"{place}: {error}", "the other lines are done", input=place))
    return items, problems


def json_rows(lines: Sequence[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8-sig", "surrogateescape"))
            except ValueError:
                yield number, None


def csv_rows(content: bytes) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    for row in reader:
        yield reader.line_num, {key: value for key, value in row.items() if key and value}


def item_of(row: Any) -> Item:
    """An item from one line's fields. Raises ValueError, TypeError where they make none."""
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    uri = next((row[name] for name in ADDRESS if row.get(name)), None)
    if not isinstance(uri, str):
        raise ValueError("names no song in a field `uri`")
    seconds = row.get("seconds")
    if seconds is not None:
        try:
            seconds = float(seconds)
        except (ValueError, TypeError):
            seconds = -1.0
        if not 0 <= seconds < 1e9:
            raise ValueError(f"seconds = {row['seconds']!r} is no length")
    return Item(uri, reldir=str(row.get("reldir") or ""), seconds=seconds, digest=row.get("digest") or None)


def write_rows(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Each row as a line of JSON, without what is not known."""
    for row in rows:
        yield json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False)
