"""Which files are songs, and where each stem goes."""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from sepcli.errors import AudioError, UsageError

AUDIO_SUFFIXES = frozenset(
    f".{name}"
    for line in (
        "wav wave w64 rf64 bwf aiff aif aifc au snd caf flac wv ape tta mp3 mp2 ogg oga opus aac ac3 wma",
        "m4a m4b mp4 mka mkv webm mov avi flv ts 3gp",
    )
    for name in line.split()
)
FIELDS = ("model", "reldir", "track", "trackext", "stem", "ext", "index")
TEMPLATE = "{model}/{reldir}/{track}/{stem}.{ext}"

_HERE = PurePath()
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)  # devices, to Windows
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


@dataclass(frozen=True)
class Found:
    """A song to be separated, and its folder relative to the input folder in which it was found."""

    path: Path
    reldir: PurePath = _HERE


def find_songs(inputs: Sequence[Path], recursive: bool) -> tuple[list[Found], list[AudioError]]:
    """The songs that `inputs` name, each once, in order; and what is wrong with inputs that name none.

    Files are taken as they are named, missing ones too: they fail one by one, later. Folders are searched for audio
    suffixes, sorted, without hidden files and folders; below themselves only if `recursive`.
    Raises UsageError where no input exists, or the only one is a folder without songs.
    """
    if not inputs:
        raise UsageError("no input is named")
    if not any(os.path.lexists(path) for path in inputs):
        names = ", ".join(map(str, inputs[:3])) + (", …" if len(inputs) > 3 else "")
        raise UsageError(f"no such file: {names}")
    found: dict[str, Found] = {}
    problems = []
    for path in inputs:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
            found.setdefault(os.path.realpath(path), Found(path))
            continue
        unreadable: list[OSError] = []
        songs = list(_songs_of(path, recursive, unreadable))
        problems += [
            AudioError(f"{error.filename}: cannot be read: {error.strerror}", input=str(error.filename))
            for error in unreadable
        ]
        for song in songs:
            found.setdefault(os.path.realpath(song), Found(song, PurePath(song.parent.relative_to(path))))
        if not songs and not unreadable:
            hint = "" if recursive else "--recursive looks into the folders below it"
            problems.append(AudioError(f"{path}: no song in this folder", hint, input=str(path)))
    if not found and problems:
        raise UsageError("; ".join(problem.what for problem in problems), problems[0].hint)
    return list(found.values()), problems


def _songs_of(folder: Path, recursive: bool, unreadable: list[OSError]) -> Iterator[Path]:
    """Songs of a folder, then of those below it; a folder that links to one above it is not entered again.

    Why a folder cannot be read goes to `unreadable`.
    """
    entered = set()
    for here, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        place = os.path.realpath(here)
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(here, name)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []


def exists(path: Path) -> bool:
    """Whether something is there; where it may not be looked at, or the name is too long, Path.exists raises."""
    return os.path.exists(path)  # noqa: PTH110 - which does not raise


def native(path: Path) -> str | bytes:
    """A path for libsndfile: soundfile itself fails on names that are not UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def track_name(path: Path) -> str:
    """A song's name in templates: its file's, up to the first suffix of `song.stem.mp4`, else the last."""
    stem = path.stem
    return stem[: -len(".stem")] if stem.lower().endswith(".stem") and len(stem) > len(".stem") else stem


@functools.cache
def check_template(template: str) -> None:
    """Raise UsageError where a template has an unknown field, a stray brace, or lacks `{stem}`."""
    fields = [name for _, name in _parts(template) if name is not None]
    for name in fields:
        if name not in FIELDS:
            raise UsageError(
                f"--filename {template!r}: unknown field {{{name}}}", f"known: {', '.join(f'{{{f}}}' for f in FIELDS)}"
            )
    if "stem" not in fields:
        raise UsageError(f"--filename {template!r} lacks {{stem}}: all stems would be one file")


def output_path(
    out: Path,
    template: str,
    *,
    model: str,
    reldir: PurePath | str = _HERE,
    track: str,
    stem: str,
    ext: str,
    trackext: str = "",
    index: int = 1,
) -> Path:
    """Where a stem goes: `template` filled in, below `out`.

    What a file system may not like in a value becomes `_`; `reldir` alone may have separators, and leaves no gap where
    it is empty. Raises UsageError for an unknown field, and where the result would not lie below `out`.
    """
    check_template(template)
    named = (("model", model), ("track", track), ("trackext", trackext), ("stem", stem), ("ext", ext))
    values = {name: _clean(text) for name, text in named}
    values["index"] = str(index)
    values["reldir"] = "/".join(_clean(part) for part in PurePath(reldir).parts if part not in ("", ".", "/"))
    filled = "".join(text + ("" if name is None else values[name]) for text, name in _parts(template))
    parts = [part for part in filled.split("/") if part not in ("", ".")]
    if ".." in parts or filled.startswith("/") or "\0" in filled or (os.sep != "/" and os.sep in filled):
        raise UsageError(f"--filename {template!r} leads out of {out}", "it is relative to --out")
    if not parts:
        raise UsageError(f"--filename {template!r} makes no file name")
    return out.joinpath(*(f"_{part}" if _RESERVED.match(part) else part for part in parts))


def clashes(outputs: Iterable[tuple[Path, Iterable[Path]]]) -> None:
    """Raise UsageError where two inputs have an output path in common, or one would overwrite an input.

    `outputs` holds each input with its output paths. Names are compared as Windows and macOS do, without case.
    """
    pairs = [(song, list(paths)) for song, paths in outputs]
    songs = {_key(song): song for song, _ in pairs}
    owner: dict[str, Path] = {}
    folders: dict[Path, str] = {}  # to ask the file system once for each: a list may have half a million paths
    for song, paths in pairs:
        mine: set[str] = set()
        for path in paths:
            if path.parent not in folders:
                folders[path.parent] = _key(path.parent)
            key = os.path.join(folders[path.parent], path.name.casefold())  # noqa: PTH118 - on strings, for speed
            if key in songs:
                raise UsageError(f"{song}: its output {path} is the input {songs[key]}", "choose another --filename")
            other = owner.setdefault(key, song)
            if other is not song or key in mine:
                raise UsageError(f"{other} and {song} would both be written to {path}", "choose another --filename")
            mine.add(key)


def _key(path: Path) -> str:
    return os.path.realpath(path).casefold()


@functools.cache
def _parts(template: str) -> list[tuple[str, str | None]]:
    """A template as pairs of text and the field that follows it; the last field is None."""
    pieces = re.split(r"\{([^{}]*)\}", template)
    if any("{" in text or "}" in text for text in pieces[::2]):
        raise UsageError(f"--filename {template!r}: a brace without its partner")
    return list(zip(pieces[::2], [*pieces[1::2], None], strict=True))


def _clean(text: str) -> str:
    """A value that is one part of a path on any system."""
    clean = _FORBIDDEN.sub("_", text).rstrip(" .")
    clean = clean or "_"
    while len(clean.encode(errors="surrogateescape")) > 200:  # names end at 255 bytes; the template adds to it
        clean = clean[:-1]
    return f"_{clean}" if _RESERVED.match(clean) else clean
