"""What needs the mixture at the output: the band above the network's rate, and stems that sum to it exactly."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sepcli.audio.blocks import Block

BACKING = ("other", "accompaniment", "instruments", "instrumental")
FULL = {"16": 2**15, "24": 2**23}


def keeper(stems: Mapping[str, Sequence[str]], whole: bool = True) -> list[str]:
    """The stems that get what no network heard: what all sources leave, `other` or the accompaniment, else all alike.

    None where the stems are no `whole` set and do not hold it.
    """
    if left := [stem for stem, sources in stems.items() if not sources]:
        return left
    for source in BACKING:
        for stem, sources in stems.items():
            if source in sources:
                return [stem]
    return list(stems) if whole else []


def add_upper_band(stems: Mapping[str, Block], upper: Block, names: Sequence[str]) -> dict[str, Block]:
    """Stems with the band above the network's rate shared among `names`."""
    return {stem: block + upper / np.float32(len(names)) if stem in names else block for stem, block in stems.items()}


class Sharing:
    """Gives each stem its share of the band above the network's rate: as it has of the highest tones below it.

    Shares are those of the stems' second differences' energy, and glide from block to block, so that nothing clicks.
    """

    def __init__(self) -> None:
        self.before: NDArray[np.float64] | None = None

    def __call__(self, stems: Mapping[str, Block], upper: Block) -> dict[str, Block]:
        """Stems (frames, channels) with their shares of `upper`, which sum to it."""
        energies = np.array([np.square(np.diff(block, n=2, axis=0)).sum(dtype=np.float64) for block in stems.values()])
        even = np.full(len(stems), 1 / len(stems))
        shares = energies / energies.sum() if energies.sum() > 0 else even
        before = shares if self.before is None else self.before
        self.before = shares
        glide = np.linspace(0, 1, len(upper))[:, None]
        return {
            stem: (block + upper * ((1 - glide) * old + glide * new)).astype(np.float32)
            for (stem, block), old, new in zip(stems.items(), before, shares, strict=True)
        }


def consistent(stems: Mapping[str, Block], mixture: Block, depth: str) -> dict[str, Block]:
    """Stems (frames, channels) whose sum is the mixture, quantised once to `depth`, to the last bit.

    What the stems lack is spread over them alike. At 16 and 24 bit each sample is rounded down, and the units that are
    then missing go to the stems with the largest fractions; what a stem has beyond full scale moves to the others. At
    32 bit float the last stem is what the others leave, rounded once.
    """
    together = np.stack([np.asarray(block, np.float64) for block in stems.values()])
    together += (mixture - together.sum(axis=0)) / len(stems)
    if depth not in FULL:
        exact = together.astype(np.float32)
        exact[-1] = (mixture - exact[:-1].sum(axis=0, dtype=np.float64)).astype(np.float32)
    else:
        full = FULL[depth]
        target = np.clip(np.rint(np.asarray(mixture, np.float64) * full), -full, full - 1).astype(np.int64)
        exact = (share_out(together * full, target, full) / full).astype(np.float32)
    return dict(zip(stems, exact, strict=True))


def share_out(wanted: NDArray[np.float64], target: NDArray[np.int64], full: int) -> NDArray[np.int64]:
    """Integers (S, ...) in [-full, full - 1] near `wanted` (S, ...) whose sum over S is `target` (...)."""
    units = np.clip(np.floor(wanted), -full, full - 1).astype(np.int64)
    fractions = wanted - units
    count = len(units)
    missing = target - units.sum(axis=0)
    # The usual case: fewer units are missing than there are stems; they go where rounding down took the most.
    order = np.argsort(np.argsort(-fractions, axis=0, kind="stable"), axis=0, kind="stable")
    usual = (missing >= 0) & (missing < count)
    raised = units + (order < missing)
    fits = usual & (raised < full).all(axis=0)
    units = np.where(fits, raised, units)
    # Elsewhere a stem is at full scale: in turn each takes what it has room for.
    missing = np.where(fits, 0, missing)
    if missing.any():
        for index in range(count):
            share = np.clip(missing // (count - index), -full - units[index], full - 1 - units[index])
            units[index] += share
            missing = missing - share
        for index in range(count):
            share = np.clip(missing, -full - units[index], full - 1 - units[index])
            units[index] += share
            missing = missing - share
    return units
