"""The result file of `sepcli evaluate`: what stands in it, how it is written and read, and what in it is still true."""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sepcli import __version__
from sepcli.audio.paths import exists
from sepcli.errors import SepcliError, UsageError
from sepcli.metrics.protocols import summary
from sepcli.metrics.scoring import METRICS, Scoring, plain
from sepcli.metrics.stems import Pair, Stem
from sepcli.weights.votes import candidates, identity


def key_of(pair: Pair, scoring: Scoring) -> str:
    """A digest of what decides a song's scores: its files (path, size, time), weights, settings, our version."""
    files = []
    for stems in (pair.reference, pair.estimate) if pair.estimate else (pair.reference,):
        files.append([(name, *_mark(stem)) for name, stem in sorted(stems.stems.items())])
    weights = [identity(one.model) for one in candidates(scoring.model)] if scoring.kind == "model" else []
    settings = scoring.document() | {"model": scoring.model}
    return hashlib.sha256(json.dumps([files, weights, settings, __version__]).encode()).hexdigest()[:32]


def _mark(stem: Stem) -> tuple[str, int | None, int, int]:
    try:
        status = stem.path.stat()
    except OSError:
        return str(stem.path), stem.stream, 0, 0
    return str(stem.path.resolve()), stem.stream, status.st_size, status.st_mtime_ns


def finished(path: Path, keys: Iterable[str], *, frames: bool) -> dict[str, dict[str, Any]]:
    """The songs of a result file whose keys are given, by key; `frames`: only those with their frames."""
    try:
        songs = json.loads(path.read_text(encoding="utf-8"))["songs"]
        known = {song["key"]: song for song in songs if "key" in song and (not frames or "frames" in song)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: known[key] for key in keys if key in known}


def document(
    scoring: Scoring,
    songs: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str],
    *,
    data: Sequence[str],
    complete: bool,
    frames: bool,
) -> dict[str, Any]:
    """The result file: settings, songs, and their scores aggregated as the protocol says. Missing values are None."""
    total = summary([_numbers(song["sources"]) for song in songs], scoring.protocol.over_songs)
    average = total.pop("average", {})
    versions = {"sepcli": __version__, "torch": torch.__version__, "numpy": np.__version__}
    listed = [{key: value for key, value in song.items() if frames or key != "frames"} for song in songs]
    return cast(
        dict[str, Any],
        plain(
            {
                "schema": 1,
                "protocol": scoring.protocol.name,
                "model": scoring.model,
                "settings": scoring.document() | {"data": list(data), "versions": versions},
                "complete": complete,
                "songs": sorted(listed, key=lambda song: str(song["name"])),
                "failed": [{"name": name, "error": text} for name, text in failed.items()],
                "aggregate": total,
                "average": average,
            }
        ),
    )


def read_document(path: Path) -> dict[str, Any]:
    """A result file. Raises UsageError for what is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and {"protocol", "model", "settings", "songs", "aggregate"} <= value.keys():
            return value
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    raise UsageError(f"{path}: no result of `sepcli evaluate`", "it writes them with --json FILE")


def check_place(option: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a file, or a folder of files, that cannot be written, before hours are spent on it. Raises UsageError."""
    holder = (path if folder else path.parent).absolute()
    there = next(place for place in (holder, *holder.parents) if exists(place))
    if not folder and os.path.isdir(path):  # noqa: PTH112
        raise UsageError(f"{option} {path}: cannot be written: it is a folder", "name a file in it")
    if not there.is_dir():
        raise UsageError(f"{option} {path}: cannot be written: {there} is a file", "name another place")
    if not os.access(there, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written: {there} is read-only", "name another place")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is whole at any time. Raises SepcliError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise SepcliError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(result: Mapping[str, Any]) -> str:
    """A line a song and source, one for each aggregate (song `*`), and the metrics as columns."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["model", "protocol", "song", "source", *METRICS])
    for song, sources in [*((song["name"], song["sources"]) for song in result["songs"]), ("*", result["aggregate"])]:
        for source, scores in sources.items():
            values = ["" if (value := scores.get(metric)) is None else f"{value:.6g}" for metric in METRICS]
            lines.writerow([result["model"], result["protocol"], song, source, *values])
    return file.getvalue()


def _numbers(sources: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Scores with None as NaN again."""
    return {
        name: {metric: math.nan if value is None else value for metric, value in scores.items()}
        for name, scores in sources.items()
    }
