"""Songs by seed for the metrics, and museval where it can be imported."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

RATE = 44100


def white(sources: int, channels: int, samples: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(sources, channels, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.1 * drawn


def musical(sources: int, channels: int, samples: int, seed: int = 0) -> Tensor:
    """Notes of eleven harmonics that decay, three a second, over a floor of noise at -80 dB: full band, as music."""
    draw = np.random.default_rng(seed)
    song = 1e-4 * draw.standard_normal((sources, channels, samples))
    for source in range(sources):
        for first in range(0, samples, RATE // 3):
            time = np.arange(min(RATE // 2, samples - first)) / RATE
            pitch, gain = draw.uniform(60, 600), draw.uniform(0.03, 0.1, (channels, 1))
            tones = (np.sin(2 * np.pi * pitch * h * time + draw.uniform(0, 6.3)) / h for h in range(1, 12))
            song[source, :, first : first + len(time)] += gain * sum(tones) * np.exp(-4 * time)
    return torch.from_numpy(song)


def estimated(references: Tensor, leak: float = 0.1, noise: float = -30.0, seed: int = 1) -> Tensor:
    """Each reference, the next one leaking into it, and white noise at `noise` dB of its energy."""
    drawn = torch.randn(references.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    level = (references.square().mean((-2, -1), keepdim=True) * 10 ** (noise / 10)).sqrt()
    return references + leak * references.roll(-1, 0) + level * drawn


def museval() -> Any:
    """The package museval 0.4.1, without the ffmpeg that its reader of stem files asks for at import."""
    pytest.importorskip("scipy")
    try:
        import museval
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in ("museval", "musdb", "stempeg")]:
            del sys.modules[name]
        sys.modules["stempeg"] = ModuleType("stempeg")
        import museval
    except ImportError:
        pytest.skip("museval is not installed (extra `reference`)")
    return museval


def stem_mp4(path: Path, sounds: Sequence[Any]) -> Path:
    """A file as MUSDB18's, with an audio stream for each sound, which both its channels have."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        streams = [container.add_stream("aac", rate=RATE, layout="stereo") for _ in sounds]
        for stream, sound in zip(streams, sounds, strict=True):
            sound = np.asarray(sound, dtype=np.float32)
            for first in range(0, len(sound) - 1024, 1024):
                frame = av.AudioFrame.from_ndarray(np.tile(sound[first : first + 1024], (2, 1)), "fltp", "stereo")
                frame.sample_rate, frame.pts = RATE, first
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path
