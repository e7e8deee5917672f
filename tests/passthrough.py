"""A network that hands the mixture on, for tests of everything around networks; also `python -m tests.passthrough`.

Run as a module it is the command line with this architecture known: `python -m tests.passthrough separate …`.
"""

from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sepcli import models
from sepcli.models.separator import Estimate, Separator, Traits
from sepcli.weights import checkpoint
from sepcli.weights.catalog import Entry, as_table

SHARES = {"drums": 0.5, "bass": 0.25, "other": 0.125, "vocals": 0.125}


class PassThrough(Separator):
    """Each source is a fixed share of the mixture; the shares are the weights, so that a file can say them."""

    tiny: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, fault: str = "", **traits: Unpack[Traits]) -> None:
        super().__init__(**traits)
        self.fault = fault
        self.shares = nn.Parameter(torch.ones(len(self.sources)) / len(self.sources))

    def forward(self, mixture: Tensor) -> Estimate:
        if self.fault == "nan":
            mixture = mixture * torch.where(mixture.abs().amax() > 0.5, torch.nan, 1.0)
        return Estimate(mixture[:, None] * self.shares[:, None, None])


def find(architecture: str, known: Any = models.find) -> type[Separator]:
    return PassThrough if architecture == "passthrough.PassThrough" else known(architecture)


def save(path: Path, shares: dict[str, float] = SHARES, **changes: Any) -> Path:
    """A checkpoint of it: 44.1 kHz, stereo, pieces of a second, whatever `changes` say otherwise."""
    facts: dict[str, Any] = {
        "architecture": "passthrough.PassThrough",
        "sources": tuple(shares),
        "sample_rate": 44100,
        "channels": 2,
        "segment": 1.0,
        "parameters": len(shares),
        "licence": "none needed",
    }
    entry = Entry(name="passthrough", **{**facts, **changes})
    tensors = {"shares": torch.tensor(list(shares.values()), dtype=torch.float32)}
    checkpoint.save(path, tensors, {"name": entry.name, **as_table(entry)}, {})
    return path


def install() -> None:
    """Make this architecture known, in processes that others start."""
    models.find = find


if __name__ in ("__main__", "__mp_main__"):  # the command, and what its workers begin with
    install()

if __name__ == "__main__":
    from sepcli.cli import main

    main()
