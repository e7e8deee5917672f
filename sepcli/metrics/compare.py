"""Two results of one protocol, song by song: paired differences, their interval, and whether they mean anything."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sepcli.errors import UsageError
from sepcli.metrics.statistics import holm, paired_bootstrap, wilcoxon

# Settings that two results must share: else their difference is one of rulers.
SHARED = ("window", "hop", "sample_rate", "over_frames", "over_songs", "framing", "ridge", "silence", "museval_exact")


@dataclass
class Row:
    """One metric of one source. `difference` is the median (or mean) over songs of A - B, [low, high] its interval."""

    source: str
    metric: str
    songs: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    between: tuple[float, ...]
    """Median over songs of A less that of B, another thing, with its interval."""
    p: float
    p_holm: float = math.nan
    per_song: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """`songs` are those that both results have."""

    a: str
    b: str
    protocol: str
    rule: str
    statistic: str
    songs: list[str]
    rows: list[Row]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compared(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Compare two result files. Raises UsageError where they were not scored alike, or share no song."""
    if a["protocol"] != b["protocol"]:
        raise UsageError(
            f"protocols {a['protocol']} and {b['protocol']} cannot be compared", "score both by one of them"
        )
    for name in SHARED:
        first, second = (result["settings"].get(name) for result in (a, b))
        if first != second:
            raise UsageError(f"results with {name} = {first} and {second} cannot be compared", "score both alike")
    songs = [{song["name"]: song["sources"] for song in result["songs"]} for result in (a, b)]
    names = [name for name in songs[0] if name in songs[1]]
    if not names:
        raise UsageError(f"{a['model']} and {b['model']} have no song in common", "score the same songs with both")
    alone = [f"{len(set(one) - set(names))} of {result['model']}" for one, result in zip(songs, (a, b), strict=True)]
    notes = [] if len(names) == len(songs[0]) == len(songs[1]) else [f"songs that only one has: {', '.join(alone)}"]

    statistic = "mean" if a["settings"].get("over_songs") == "mean" else "median"
    rows = []
    for source in a["aggregate"]:
        for metric in a["aggregate"][source]:
            scores = [[_value(one[name], source, metric) for name in names] for one in songs]
            row = _row(source, metric, names, scores, statistic)
            if row is not None:
                rows.append(row)
    if not rows:
        raise UsageError("no source has scores in both results", "score both with the same --metrics")
    for row, p in zip(rows, holm([row.p for row in rows]), strict=True):
        row.p_holm = p
    rule = str(a["settings"].get("rule", a["protocol"]))
    return Comparison(label(a), label(b), a["protocol"], rule, statistic, names, rows, notes)


def _row(source: str, metric: str, names: Sequence[str], scores: list[list[float]], statistic: str) -> Row | None:
    first, second = scores
    both = [i for i in range(len(names)) if math.isfinite(first[i]) and math.isfinite(second[i])]
    if not both:
        return None
    first, second = [first[i] for i in both], [second[i] for i in both]
    boot = paired_bootstrap(first, second, "mean" if statistic == "mean" else "median")
    test = wilcoxon(first, second)
    return Row(
        *(source, metric, len(both), _middle(first, statistic), _middle(second, statistic)),
        *boot.of_differences,
        tuple(boot.between),
        test.p,
        per_song={names[i]: x - y for i, x, y in zip(both, first, second, strict=True)},
    )


def _middle(values: Sequence[float], statistic: str) -> float:
    return fmean(values) if statistic == "mean" else median(values)


def _value(sources: Mapping[str, Mapping[str, float | None]], source: str, metric: str) -> float:
    value = sources.get(source, {}).get(metric)
    return math.nan if value is None else value


def label(result: Mapping[str, Any]) -> str:
    kind = result["settings"].get("kind", "model")
    if kind == "oracle":
        return f"oracle {result['model']}"
    return Path(result["model"]).name if kind == "estimates" else str(result["model"])
