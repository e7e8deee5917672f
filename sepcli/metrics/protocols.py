"""The papers' ways of scoring as data, the aggregation over frames and songs, and museval's files of scores.

A number is a paper's only with its protocol: the same estimates score 6.6 or 3.4 dB by median or mean over songs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from sepcli import __version__
from sepcli.errors import SepcliError, UsageError

How = Literal["median", "mean"]
Frames = Mapping[str, Mapping[str, Sequence[float]]]  # source -> metric -> one score a frame, in dB

FOUR = ("vocals", "drums", "bass", "other")
TWO = ("vocals", "accompaniment")
BSS = ("SDR", "ISR", "SIR", "SAR")


@dataclass(frozen=True)
class Protocol:
    """How songs are scored: `window` and `hop` in seconds, inf for the whole song at once.

    `sources` are scored together: which are in the set decides SIR, SAR and which frames count. An accompaniment that
    is not at hand is the sum of the other sources. `sample_rate` 0 is the song's own; else references and estimates are
    brought to it. `metrics` are keys of the result. A model's "average" is the mean of its sources' aggregated scores.
    """

    name: str
    about: str
    data: str
    sources: tuple[str, ...] = FOUR
    metrics: tuple[str, ...] = BSS
    window: float = 1.0
    hop: float = 1.0
    sample_rate: int = 44100
    over_frames: How = "median"
    over_songs: How = "median"
    alias: tuple[str, ...] = ()


PROTOCOLS = (
    Protocol("musdb18", "SiSEC 2018: BSSEval v4, medians over frames and songs", "MUSDB18", alias=("sisec18",)),
    Protocol("cde-htcn", "as musdb18 (the paper does not state its frames), SDR", "MUSDB18", metrics=("SDR",)),
    Protocol(
        "multiband",
        "22.05 kHz, frames of 4 s as the paper says (its public code: 2 s), medians",
        "MUSDB18",
        sources=TWO,
        metrics=("SDR", "SIR", "SAR"),
        window=4.0,
        hop=4.0,
        sample_rate=22050,
    ),
    Protocol(
        "cws",
        "mean over frames, median over songs",
        "MUSDB18-HQ",
        sources=TWO,
        metrics=("SDR", "SIR", "SAR"),
        over_frames="mean",
    ),
    Protocol("hdemucs", "SDR of BSSEval v4, medians over frames and songs", "MUSDB18-HQ", metrics=("SDR",)),
    Protocol(
        "mdx",
        "Music Demixing Challenge 2021: nSDR of whole songs, mean over songs",
        "MUSDB18-HQ",
        metrics=("nSDR",),
        window=math.inf,
        hop=math.inf,
        sample_rate=0,
        over_songs="mean",
        alias=("mdx21", "hdemucs-nsdr"),
    ),
    Protocol("xscheme", "as musdb18 (from the public X-UMX recipe; not in the text)", "MUSDB18"),
)


def protocol(name: str) -> Protocol:
    """The protocol of that name or alias; UsageError names the nearest."""
    known = {key: entry for entry in PROTOCOLS for key in (entry.name, *entry.alias)}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UsageError(f"protocol {name!r} is unknown", hint)
    return known[name]


def evaluation_sets(sources: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Which sources museval scores together, and whose scores it takes from each set: [(set, kept), ...].

    With vocals and an accompaniment there are two sets: all without the accompaniment, for the others' scores, and
    these two for their own. Sets of one are not scored. The order is museval's: vocals, drums, bass, other, then rest.
    """
    order = [name for name in (*FOUR, "accompaniment") if name in sources]
    order += [name for name in sources if name not in order]
    if not set(TWO) <= set(order):
        return [(tuple(order), tuple(order))] if len(order) > 1 else []
    rest = tuple(name for name in order if name != "accompaniment")
    kept = tuple(name for name in rest if name != "vocals")
    return ([(rest, kept)] if kept else []) + [(TWO, TWO)]


def aggregate(scores: Tensor | Sequence[float], how: How) -> list[float]:
    """Median or mean along the last axis (frames or songs): (..., N) -> one value per row, flattened; NaN where empty.

    NaN and infinite scores are left out, as museval's stores do; the median of an even number is the middle two's mean.
    """
    if how not in ("median", "mean"):
        raise UsageError(f"aggregation {how!r} is unknown", "it is median or mean")
    table = np.asarray(scores, dtype=np.float64)
    rows = (row[np.isfinite(row)] for row in table.reshape(-1, table.shape[-1]))
    of = np.median if how == "median" else np.mean
    return [float(of(row)) if row.size else math.nan for row in rows]


def summary(songs: Sequence[Mapping[str, Mapping[str, float]]], how: How) -> dict[str, dict[str, float]]:
    """Scores per song (source -> metric -> dB) aggregated over songs, with "average" over the sources of each metric.

    A song that lacks a source or metric has no say there. An average is NaN where a source has no score at all.
    """
    sources = dict.fromkeys(source for song in songs for source in song)
    metrics = dict.fromkeys(metric for song in songs for scores in song.values() for metric in scores)
    result = {
        source: {
            metric: aggregate([song.get(source, {}).get(metric, math.nan) for song in songs], how)[0]
            for metric in metrics
        }
        for source in sources
    }
    if result:
        result["average"] = {m: float(np.mean([scores[m] for scores in result.values()])) for m in metrics}
    return result


def write_museval_json(path: Path, frames: Frames, *, window: float, hop: float) -> None:
    """Write one song's scores as museval does: rounded to 1e-5, infinite ones and NaN as the bare word NaN.

    `frames` needs SDR, ISR, SIR and SAR of each source; window and hop in seconds. museval's EvalStore reads the file.
    Raises SepcliError where it cannot be written.
    """
    targets = [
        {
            "name": source,
            "frames": [
                {
                    "time": index * hop,
                    "duration": window,
                    "metrics": {metric: _rounded(scores[metric][index]) for metric in ("SDR", "SIR", "SAR", "ISR")},
                }
                for index in range(len(scores["SDR"]))
            ],
        }
        for source, scores in frames.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps({"targets": targets, "sepcli_version": __version__}, indent=2), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise SepcliError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_museval_json(path: Path) -> dict[str, dict[str, list[float]]]:
    """The scores in one of museval's files: source -> metric -> one value a frame, NaN where there is none."""
    try:
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"]
        return {
            target["name"]: {metric: [float(frame["metrics"][metric]) for frame in target["frames"]] for metric in BSS}
            for target in targets
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepcliError(f"{path}: no scores as museval writes them ({error!r})") from error


def _rounded(value: float) -> float:
    return float(Decimal(value).quantize(Decimal("0.00001"))) if math.isfinite(value) else math.nan
