"""What every architecture gives for seeded weights and a seeded sound: an installation can be compared with ours.

parity.json holds the numbers, for each architecture at the class's smallest size: `python -m sepcli.weights.parity`
prints them anew. They are those of networks that tests compare with the public code of their papers.
"""

import json
import math
from pathlib import Path
from typing import TypedDict

import torch

from sepcli import models
from sepcli.models.separator import Traits
from sepcli.weights.catalog import Entry, catalog
from sepcli.weights.seeded import fill, seeded

BOUND = 1e-3
"""Largest difference from a stored number, in parts of the output's root mean square: float32 on another machine."""

PLACES = 12


class Numbers(TypedDict):
    """The root mean square of what a network gives, and samples evenly spaced through it."""

    rms: float
    samples: list[float]


def compute(entry: Entry) -> Numbers:
    """The numbers of an entry's architecture: its class at `tiny`, filled from seed 0, on 1.5 s of seeded sound."""
    network_class = models.find(entry.architecture)
    settings = {**dict(network_class.tiny)}
    traits: Traits = {
        "sources": entry.sources,
        "channels": entry.channels,
        "sample_rate": entry.sample_rate,
        "segment": 1.5,
        "level": {},
    }
    network = fill(models.build(entry.architecture, settings, traits))
    sound = seeded("parity", (1, entry.channels, int(1.5 * entry.sample_rate))) * 0.1
    with torch.inference_mode():
        waveforms = network(sound).waveforms.double().flatten()
    places = torch.linspace(0, len(waveforms) - 1, PLACES + 2).long()[1:-1]
    return {"rms": float(waveforms.square().mean().sqrt()), "samples": [float(v) for v in waveforms[places]]}


def stored() -> dict[str, Numbers]:
    """The numbers that came with the package, by architecture."""
    return dict(json.loads((Path(__file__).parent / "parity.json").read_text()))


def difference(entry: Entry) -> float | None:
    """How far this installation's numbers are from the stored ones, in parts of the rms; None where none are stored."""
    wanted = stored().get(entry.architecture)
    if wanted is None:
        return None
    found = compute(first_entries()[entry.architecture])
    pairs = zip([found["rms"], *found["samples"]], [wanted["rms"], *wanted["samples"]], strict=True)
    return max(abs(a - b) for a, b in pairs) / max(wanted["rms"], math.ulp(0.0))


def first_entries() -> dict[str, Entry]:
    """The first entry of each architecture in the catalog."""
    entries: dict[str, Entry] = {}
    for entry in catalog().values():
        if not entry.bag:
            entries.setdefault(entry.architecture, entry)
    return entries


if __name__ == "__main__":
    print(json.dumps({name: compute(entry) for name, entry in first_entries().items()}, indent=1))
