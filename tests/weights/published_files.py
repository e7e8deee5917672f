"""Files in the formats of the publishers, tiny, made without their packages."""

import contextlib
import gzip
import io
import json
import sys
import types
import warnings
import zlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HDEMUCS = "demucs.hdemucs.HDemucs"


@contextlib.contextmanager
def stand_in(dotted: str) -> Iterator[type]:
    """A class of this name, importable while a file is written."""
    module, name = dotted.rsplit(".", 1)
    parts = module.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    before = {name: sys.modules.get(name) for name in names}
    kind = type(name, (nn.Module,), {"__module__": module, "__qualname__": name})
    for one in names:
        sys.modules[one] = types.ModuleType(one)
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        for one, old in before.items():
            if old is None:
                del sys.modules[one]
            else:
                sys.modules[one] = old


def saved(value: Any, *, old: bool = False) -> bytes:
    """What torch.save writes: a zip, or the stream of before torch 1.6."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def package(
    state: Mapping[str, Tensor], kwargs: Mapping[str, Any], *, klass: str = HDEMUCS, old: bool = False
) -> bytes:
    """A package of demucs v3 and v4, with all that tools/export leaves in it."""
    with stand_in(klass) as kind:
        value = {
            "klass": kind,
            "args": (),
            "kwargs": {"segment": Fraction(39, 5), **kwargs},
            "state": {name: tensor.half() for name, tensor in state.items()},
            "training_args": {"lr": 3e-4, "augment": {"shift": 8192, "names": ["a", None, True]}},
            "metrics": ({"nsdr": np.float64(7.5)}, {"test": {"sdr_med": np.float32(8.25)}}),
        }
        return saved(value, old=old)


def four(state: Mapping[str, Tensor], klass: str = "demucs.model.Demucs", old: bool = True) -> bytes:
    """demucs v1's tuple (class, args, kwargs, state)."""
    with stand_in(klass) as kind:
        return saved((kind, (4,), {"channels": 64}, dict(state)), old=old)


def asteroid(state: Mapping[str, Tensor], model: str = "XUMX") -> dict[str, Any]:
    arguments = {"sources": ["bass", "drums"], "max_bin": np.int64(1487), "spec_power": 1, "bidirectional": True}
    return {
        "model_name": model,
        "state_dict": dict(state),
        "model_args": arguments,
        "infos": {"software_versions": {"torch_version": "1.8.0"}},
        "dataset": "musdb18",
        "licenses": [{"name": "MUSDB18"}],
    }


def demucs_safetensors(
    path: Path, state: Mapping[str, Tensor], kwargs: Mapping[str, Any], klass: str = HDEMUCS
) -> Path:
    """A file of demucs 4.1.0's Hugging Face repositories."""
    fraction = {"_type": "fraction", "numerator": 39, "denominator": 5}
    metadata = {"klass": klass or HDEMUCS, "args": "[]", "kwargs": json.dumps({"segment": fraction, **kwargs})}
    save_file({name: tensor.half() for name, tensor in state.items()}, str(path), metadata)
    return path


def small_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "first.weight": torch.randn(3, 5, generator=generator),
        "first.bias": torch.randn(3, generator=generator),
        "count": torch.tensor(7),
    }


WRAPPINGS = {"plain": lambda data: data, "gzip": gzip.compress, "zlib": zlib.compress}
