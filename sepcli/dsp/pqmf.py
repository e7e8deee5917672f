"""Waveforms in 2, 4 or 8 critically sampled bands, and back.

Liu et al., "Channel-wise Subband Input for Better Voice and Accompaniment Separation on High Resolution Music"
(Interspeech 2020), section 2.3. The filters are optimised FIR banks that follow no formula, so they are data:
pqmf.json, from haoheliu/2021-ISMIR-MSS-Challenge-CWS-PResUNet (MIT), to 4.9e-9 also in torchsubband (MIT). Analysis
and synthesis together delay nothing and rebuild white noise at 112, 102 and 69 dB for 2, 4 and 8 bands. Odd bands
are mirrored in frequency, as critical sampling wants.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sepcli.errors import UsageError

TAPS = 64


@functools.cache
def tables() -> dict[str, Any]:
    """The shipped filters: {"analysis" | "synthesis": {bands: rows of taps}}."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("pqmf.json").read_text(encoding="utf-8"))
    return loaded


def filters(bands: int) -> tuple[Tensor, Tensor]:
    """Taps for analysis and for synthesis, (K, 64) each, lowest band first. Raises UsageError."""
    if bands not in (2, 4, 8):
        raise UsageError(f"bands = {bands}: must be 2, 4 or 8")
    found = tables()
    analysis, synthesis = (torch.tensor(found[way][str(bands)]) for way in ("analysis", "synthesis"))
    return analysis, synthesis


def analyse(waveform: Tensor, taps: Tensor) -> Tensor:
    """Split waveforms (..., T) with analysis taps (K, 64) into bands (..., K, T // K), each at 1/K of the rate.

    What lies before the start counts as zero. Filters reach 63 samples on, so the last samples come back true only
    when 64 zeros, or more of the song, follow them.
    """
    bands = taps.shape[0]
    leading = waveform.shape[:-1]
    padded = functional.pad(waveform.reshape(-1, 1, waveform.shape[-1]), (TAPS - bands, 0))
    kernel = taps.flip(-1).unsqueeze(1) / bands  # (K, 1, 64): a convolution in torch is a correlation
    subbands = functional.conv1d(padded, kernel, stride=bands)
    return subbands.reshape(*leading, *subbands.shape[1:])


def synthesise(subbands: Tensor, taps: Tensor) -> Tensor:
    """Join bands (..., K, M) with synthesis taps (K, 64) to waveforms (..., K * M)."""
    bands, length = subbands.shape[-2:]
    leading = subbands.shape[:-2]
    flat = subbands.reshape(-1, bands, length)
    full = functional.conv_transpose1d(flat, bands * taps.unsqueeze(1), stride=bands)  # (B, 1, K * M + 64 - K)
    return full[:, 0, TAPS - bands :].reshape(*leading, bands * length)
