"""Which songs are meant by what is named, and what `sepcli data scan` writes of each: where, how long, its digest."""

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sepcli.audio.hidden import hidden_folder, sweep
from sepcli.audio.paths import Found, find_songs
from sepcli.batch.manifest import Item, is_remote
from sepcli.errors import AudioError, UsageError
from sepcli.inference.sidecar import digest_of_file


def find_all(inputs: Sequence[str], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """The songs of files, folders, patterns and addresses. Raises UsageError where there are none."""
    entries = []
    for text in inputs:
        pattern = not is_remote(text) and not Path(text).exists() and glob.has_magic(text)
        entries += sorted(glob.glob(text, recursive=True)) if pattern else [text]  # noqa: PTH207 - absolute ones too
    return find_items([Item(entry) for entry in entries], recursive)


def find_items(entries: Sequence[Item], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """The songs that entries name, folders searched, each once, with their places in the whole; and what names none.

    Raises UsageError where no input exists, and what `storage` raises for addresses.
    """
    if not entries:
        raise UsageError("no input is named")
    items: list[Item] = []
    problems: list[AudioError] = []
    groups = [(remote, list(group)) for remote, group in groupby(entries, lambda entry: entry.remote)]
    refused: list[UsageError] = []
    for remote, group in groups:
        if remote:
            from sepcli.batch.storage import find_remote

            found, wrong = find_remote(group, recursive)
            if not found:
                refused.append(UsageError("; ".join(str(problem) for problem in wrong[:3])))
        else:
            try:
                found, wrong = find_local(group, recursive)
            except UsageError as error:
                refused.append(error)
                found, wrong = find_each(group, recursive)
        items += found
        problems += wrong
    if len(refused) == len(groups):
        raise UsageError("; ".join(error.what for error in refused), refused[0].hint)
    return [replace(item, index=index) for index, item in enumerate(items, 1)], problems


def find_local(entries: Sequence[Item], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """`find_items` for paths, without their places. Raises UsageError where none of them exists."""
    known = named(entries)
    songs, problems = find_songs([Path(uri) for uri in known], recursive)
    return [with_facts(song, known.get(str(song.path))) for song in songs], problems


def find_each(entries: Sequence[Item], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """Paths of which none names a song, beside addresses that do: missing files fail one by one, later."""
    items: list[Item] = []
    problems: list[AudioError] = []
    for uri, entry in named(entries).items():
        try:
            find_local([entry], recursive)
        except UsageError as error:
            if os.path.lexists(uri):
                problems.append(AudioError(error.what, error.hint, input=uri))
            else:
                items.append(entry)
    return items, problems


def named(entries: Sequence[Item]) -> dict[str, Item]:
    """Entries by their paths, each once."""
    return {str(Path(entry.uri)): replace(entry, uri=str(Path(entry.uri))) for entry in entries}


def with_facts(song: Found, entry: Item | None) -> Item:
    """A song found on disk as an item, with what its list told of it."""
    if entry is None:
        reldir = song.reldir.as_posix()
        return Item(str(song.path), reldir="" if reldir == "." else reldir)
    return entry


def scan(
    items: Sequence[Item], scratch: Path | None, digests: bool, progress: Callable[[float, float | None], None]
) -> Iterator[dict[str, Any] | AudioError]:
    """The facts of each song, or what is wrong with it. What lies elsewhere is fetched, one song at a time."""
    for done, item in enumerate(items):
        progress(done, len(items))
        try:
            if not item.remote:
                yield facts_of(item, Path(item.uri), digests)
                continue
            from sepcli.batch.storage import fetch

            place = scratch or Path(tempfile.gettempdir())
            place.mkdir(parents=True, exist_ok=True)
            sweep(place)
            with hidden_folder(place) as folder:
                fetch(item, folder / item.name)
                facts = facts_of(item, folder / item.name, digests)
            yield facts
        except AudioError as error:
            yield error
    progress(len(items), len(items))


def facts_of(item: Item, path: Path, digests: bool) -> dict[str, Any]:
    """Raises AudioError."""
    from sepcli.audio.read import open_song  # here: to find songs, nothing is decoded

    song = open_song(path)
    frames = song.frames if song.frames is not None else sum(len(block) for block in song.blocks())
    return {
        "uri": item.uri,
        "seconds": round(frames / song.sample_rate, 3),
        "rate": song.sample_rate,
        "channels": song.channels,
        "bytes": path.stat().st_size,
        "digest": digest_of_file(path) if digests else None,
        "reldir": item.reldir or None,
    }
