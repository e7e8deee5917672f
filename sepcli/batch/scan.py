"""What `sepcli data scan` writes of each song: where it is, how long, what it holds, its digest."""

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sepcli.audio.hidden import hidden_folder, sweep
from sepcli.audio.read import open_song
from sepcli.batch.manifest import Item, find_items, is_remote
from sepcli.errors import AudioError
from sepcli.inference.sidecar import digest_of_file


def find_all(inputs: Sequence[str], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """The songs of files, folders, patterns and addresses. Raises UsageError where there are none."""
    entries = []
    for text in inputs:
        pattern = not is_remote(text) and not Path(text).exists() and glob.has_magic(text)
        entries += sorted(glob.glob(text, recursive=True)) if pattern else [text]  # noqa: PTH207 - absolute ones too
    return find_items([Item(entry) for entry in entries], recursive)


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
