"""Scores that papers print, to stand beside ours. They are their authors' numbers; none is measured here."""

import functools
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Published:
    """One row of one table: `scores` in dB by "METRIC source", and "average" where it is printed.

    `of` says whose table it is, `data` what was scored; `extra_data`: trained on more than that data set.
    """

    protocol: str
    of: str
    data: str
    model: str
    extra_data: bool
    scores: dict[str, float]
    note: str = ""


@functools.cache
def published() -> tuple[Published, ...]:
    """Every row of published.json, table by table."""
    document = json.loads(resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(
            table["protocol"],
            table["of"],
            table["data"],
            model,
            extra,
            dict(zip(table["columns"], values, strict=True)),
            table["note"],
        )
        for table in document["tables"]
        for model, extra, *values in table["rows"]
    )


def beside(protocol: str) -> tuple[Published, ...]:
    """The rows scored by that protocol (`Protocol.name`); none for one that no paper here uses.

    "musdb18" is the protocol that hdemucs, cde-htcn and xscheme repeat under their own names.
    """
    same = ("hdemucs", "cde-htcn", "xscheme") if protocol == "musdb18" else (protocol,)
    return tuple(row for row in published() if row.protocol in same)
