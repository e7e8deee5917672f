"""Sound made by seed, and the folder of recordings where there is one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

Sound = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: recordings and published weights."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` beside the checkout: its recordings and weights are not part of the project")
    return folder


@pytest.fixture(scope="session")
def noise() -> Callable[..., Sound]:
    """noise(frames, channels=2, seed=0, level=0.1): normal noise (frames, channels), float32."""

    def make(frames: int, channels: int = 2, seed: int = 0, level: float = 0.1) -> Sound:
        drawn = np.random.default_rng(seed).standard_normal((frames, channels), dtype=np.float32)
        return drawn * np.float32(level)

    return make


@pytest.fixture(scope="session")
def clicks() -> Callable[..., Sound]:
    """clicks(frames, channels=2, seed=0, level=0.5): bursts of decaying noise at uneven places, float32.

    Their cross-correlation with a delayed copy has one peak, so that a lag of a single sample is seen.
    """

    def make(frames: int, channels: int = 2, seed: int = 0, level: float = 0.5) -> Sound:
        draw = np.random.default_rng(seed)
        sound = np.zeros((frames, channels), np.float32)
        first = 700
        while first < frames:
            n = min(2000, frames - first)
            burst = draw.standard_normal(n) * np.exp(-np.arange(n) / 150)
            sound[first : first + n] += (burst / np.abs(burst).max() * level)[:, None].astype(np.float32)
            first += int(draw.integers(3000, 9000))
        return np.clip(sound, -0.99, 0.99)

    return make
