"""Songs and stems in object storage, through fsspec: fetched to scratch, made there, sent, the sidecar last."""

import errno
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from sepcli.audio.hidden import hidden_folder, sweep
from sepcli.audio.paths import AUDIO_SUFFIXES, Found
from sepcli.batch.manifest import Item
from sepcli.errors import AudioError, UsageError
from sepcli.inference.files import digests_of, separate_song, skipped
from sepcli.inference.plan import Notice, Plan, Progress, Record, set_key, sidecar_path
from sepcli.inference.sidecar import digest_of_file, files_of, finished_set, read_sets, size_on_disk, text_of

if TYPE_CHECKING:
    from sepcli.inference.bag import Bag

T = TypeVar("T")
ATTEMPTS = 6
DELAY = 0.5
"""Seconds before the second attempt; twice as many before each further one."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
"""What another attempt does not change."""


def open_storage(uri: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises UsageError."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(uri)  # type: ignore[no-any-return]
    except ImportError as error:
        raise UsageError(
            f"{uri}: {error}", "pip install 'sepcli[cloud]' brings what s3://, gs:// and https:// want"
        ) from None
    except ValueError as error:
        raise UsageError(f"{uri}: {error}", "give it as s3://BUCKET/…, gs://… or https://…") from None


def patiently(action: Callable[[], T], what: str) -> T:
    """What an action gives, tried again with growing pauses while it fails. Raises AudioError, reason io."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # every storage raises its own
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full:
                raise AudioError(f"{what}: the scratch disk is full", "give a larger --scratch", reason="io") from error
            if isinstance(error, FINAL) or attempt == ATTEMPTS:
                times = f", {attempt} times" if attempt > 1 else ""
                raise AudioError(f"{what}: {told(error)}{times}", reason="io") from error
        time.sleep(DELAY * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # apart from other workers' attempts
    raise AssertionError


def told(error: Exception) -> str:
    """An error of a storage in a few words."""
    words = {FileNotFoundError: "no such object or bucket", PermissionError: "access is refused"}
    kind = next((text for cls, text in words.items() if isinstance(error, cls)), type(error).__name__)
    detail = str(error).strip().split("\n")[0][:200]
    return f"{kind} ({detail})" if detail else kind


def find_remote(entries: Sequence[Item], recursive: bool) -> tuple[list[Item], list[AudioError]]:
    """The songs that addresses name: objects, patterns, and prefixes, searched for audio suffixes; and what names none.

    Raises UsageError where a storage is not known.
    """
    found: dict[str, Item] = {}
    problems: list[AudioError] = []
    for entry in entries:
        fs, path = open_storage(entry.uri)
        pattern = any(sign in entry.uri for sign in "*?[") and fs.protocol not in ("http", ("http", "https"))
        try:
            pattern = pattern and not patiently(partial(fs.exists, path), entry.uri)  # a name may have such signs
        except AudioError as error:
            problems.append(error)
            continue
        if not pattern and PurePath(path).suffix.lower() in AUDIO_SUFFIXES:
            found.setdefault(entry.uri, entry)
            continue
        if pattern:
            search = partial(fs.glob, path)
        else:  # find() of one level would hide what is refused
            search = partial(fs.find, path) if recursive else partial(fs.ls, path, detail=False)
        try:
            names = patiently(search, entry.uri)
        except AudioError as error:
            error.input = entry.uri
            problems.append(error)
            continue
        songs = [name for name in sorted(names) if PurePath(name).suffix.lower() in AUDIO_SUFFIXES]
        for name in songs:
            inner = PurePath(name).parent
            below = "" if pattern or not inner.is_relative_to(path.rstrip("/")) else inner.relative_to(path.rstrip("/"))
            reldir = "" if str(below) == "." else str(below)
            found.setdefault(uri := fs.unstrip_protocol(name), Item(uri, reldir=reldir))
        if not songs:
            hint = "" if recursive else "--recursive looks below it"
            problems.append(AudioError(f"{entry.uri}: no song there", hint, input=entry.uri))
    return list(found.values()), problems


def check_destination(uri: str) -> None:
    """Refuse an address that stems cannot go to, before a model is loaded. Raises UsageError."""
    fs, path = open_storage(uri)
    if fs.protocol in ("http", ("http", "https")):
        raise UsageError(f"--out {uri}: stems cannot be written there", "use s3://, gs:// or a folder")
    bucket = path.split("/")[0]

    def look() -> None:
        with suppress(PermissionError):  # listing may be refused where writing is not
            fs.ls(bucket, refresh=True)

    if bucket:
        try:
            patiently(look, f"--out {uri}")
        except AudioError as error:
            raise UsageError(error.what, "make the bucket first, and see that its keys are known here") from error


@dataclass(frozen=True)
class Destination:
    """An address that stems are sent to, and the folder in scratch that stands for it."""

    address: str
    folder: Path

    def uri(self, path: Path) -> str:
        """Where a path below the folder goes."""
        return f"{self.address.rstrip('/')}/{path.relative_to(self.folder).as_posix()}"

    def fetch(self, sidecar: Path) -> None:
        """Bring the sidecar that lies there, if one does. Raises AudioError."""
        fs, path = open_storage(self.uri(sidecar))

        def bring() -> None:
            with suppress(FileNotFoundError):
                text = fs.cat_file(path)
                sidecar.parent.mkdir(parents=True, exist_ok=True)
                sidecar.write_bytes(text)

        patiently(bring, self.uri(sidecar))

    def size_of(self, path: Path) -> int:
        """How large the file is that lies in a path's place; -1 where there is none. Raises AudioError."""
        fs, place = open_storage(self.uri(path))

        def look() -> int:
            try:
                return int(fs.info(place, refresh=True)["size"])
            except FileNotFoundError:
                return -1

        return patiently(look, self.uri(path))

    def send(self, path: Path, name: Path | None = None) -> str:
        """Put a file there, in its own place or another's; where it is now. Raises AudioError."""
        uri = self.uri(name or path)
        fs, place = open_storage(uri)

        def put() -> None:
            if "file" in fs.protocol:  # elsewhere there are no folders
                fs.makedirs(fs._parent(place), exist_ok=True)
            fs.put_file(str(path), place)

        patiently(put, uri)
        return uri


def scratch_folder(given: Path | None) -> Path:
    """The folder of --scratch, made if need be; without one the system's. Raises UsageError."""
    folder = given or Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--scratch {folder}: cannot be made: {error.strerror}", "name a folder") from error
    return folder


def separate_remote(
    item: Item, plan: Plan, load: "Callable[[], Bag]", *, notice: Notice, progress: Progress, digests: bool
) -> Record:
    """separate_song for a song or stems that lie elsewhere, by way of a hidden folder in scratch, gone afterwards.

    Never more than one song and its stems lie there. Raises AudioError, UsageError, ModelError.
    """
    scratch = scratch_folder(plan.scratch)
    sweep(scratch)
    with hidden_folder(scratch) as folder:
        local = replace(plan, out=folder / "out", destination="") if plan.destination else plan
        found = Found(folder / "in" / item.name, item.found.reldir) if item.remote else item.found
        sidecar = sidecar_path(found, item.index, local)
        there = Destination(plan.destination, folder / "out") if plan.destination else None
        if there:
            there.fetch(sidecar)
        if (record := made_before(item, item.digest, local, sidecar, there)) is not None:
            return record
        if item.remote:
            fetch(item, found.path)
        if (record := made_before(item, digest_of_file(found.path), local, sidecar, there)) is not None:
            return record
        old = read_sets(sidecar)
        try:
            record = separate_song(found, item.index, local, load, notice=notice, progress=progress)
        except AudioError as error:
            what = error.what.replace(str(found.path), item.uri)
            raise AudioError(what, error.hint, reason=error.reason) from error
        record.input = item.uri
        if digests and record.status == "done":
            record.digests = digests_of(record)
        if there:
            send(record, sidecar, old, there, plan)
        return record


def made_before(item: Item, digest: str | None, plan: Plan, sidecar: Path, there: Destination | None) -> Record | None:
    """The record of a set that lies at its destination already, if the song's digest is known. Raises AudioError."""
    if digest is None or plan.existing != "skip":
        return None
    size_of = there.size_of if there else size_on_disk
    made = finished_set(sidecar, set_key(digest, plan), size_of)
    folder = there.uri(sidecar.parent) if there else str(sidecar.parent)
    return None if made is None else skipped(item.uri, plan, made, folder)


def fetch(item: Item, path: Path) -> None:
    """Bring a song to scratch, whole, and as its list tells. Raises AudioError."""
    fs, place = open_storage(item.uri)
    path.parent.mkdir(parents=True, exist_ok=True)

    def bring() -> None:
        size = fs.info(place).get("size")
        if size is not None and size > (free := shutil.disk_usage(path.parent).free):
            raise OSError(errno.ENOSPC, f"{size / 2**20:,.0f} MiB, where {free / 2**20:,.0f} are free")
        fs.get_file(place, str(path))
        if size is not None and path.stat().st_size != size:
            raise ConnectionError(f"{path.stat().st_size:,} of {size:,} bytes came")

    patiently(bring, item.uri)
    if item.digest is not None and digest_of_file(path) != item.digest:
        raise AudioError(f"{item.uri}: is not the file of its list: another digest", "scan it again", reason="io")


def send(record: Record, sidecar: Path, old: Sequence[Mapping[str, Any]], there: Destination, plan: Plan) -> None:
    """Send a set's stems, then its sidecar, which alone marks it; `old` are the sets that it told of before.

    Raises AudioError.
    """
    paths = {stem: Path(path) for stem, path in record.stems.items()}
    if plan.existing == "error":
        for path in paths.values():
            if there.size_of(path) >= 0:
                raise AudioError(f"{record.input}: {there.uri(path)} exists", "use --existing overwrite", reason="io")
    taken = {path.relative_to(sidecar.parent).as_posix() for path in paths.values()}
    if any(taken & files_of(made) for made in old):  # a set that is replaced is not whole any more
        kept = [made for made in old if not taken & files_of(made)]
        rest = sidecar.with_name("rest")
        rest.write_bytes(text_of(kept))
        there.send(rest, sidecar)
    record.stems = {stem: there.send(path) for stem, path in paths.items()}
    if plan.sidecar:
        there.send(sidecar)
