"""Public code that has no package: checkouts in a folder named by SEPCLI_PUBLIC_CODE, one folder a repository.

git clone https://github.com/PanagiotisP/svs-multiband                                    (at 258d1c9)
git clone https://github.com/YadongChen-1016/Music-Source-Separation-master               (at a4fcd39)
git clone https://github.com/haoheliu/Subband-Music-Separation                            (at d82acea)
git clone https://github.com/sony/ai-research-code                                        (at cfe96df)
git clone https://github.com/asteroid-team/asteroid                                       (at 92c8d83)
git clone https://github.com/ZFTurbo/Music-Source-Separation-Training                     (at ccc011a)
    (its RoFormers want rotary-embedding-torch and beartype)
git clone -b v1 https://github.com/facebookresearch/demucs demucs-v1                      (at 110f8fe)
git clone -b v2 https://github.com/facebookresearch/demucs demucs-v2                      (at 64ed2cb)
"""

import os
import sys
import types
from pathlib import Path

import pytest


def source(path: str) -> Path:
    """A file of the public code. Skips the test where it is not there."""
    folder = os.environ.get("SEPCLI_PUBLIC_CODE")
    if not folder:
        pytest.skip("SEPCLI_PUBLIC_CODE does not name a folder of checkouts")
    file = Path(folder) / path
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    return file


def module(path: str, monkeypatch: pytest.MonkeyPatch, mend: tuple[tuple[str, str], ...] = (), **stubs: object):
    """Run one file of the public code as a module of a package `public_code_of`, with stubs for what it imports.

    `mend` are (old, new) pieces of source, each found exactly once, for code that does not parse as published.
    """
    text = source(path).read_text(encoding="utf-8")
    for old, new in mend:
        assert text.count(old) == 1, f"{path} is not the version that was mended: {old!r}"
        text = text.replace(old, new)
    package = types.ModuleType("public_code_of")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "public_code_of", package)
    for name, members in stubs.items():
        stub = types.ModuleType(name)
        stub.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, stub)
        monkeypatch.setitem(sys.modules, f"public_code_of.{name}", stub)
    loaded = types.ModuleType("public_code_of.module")
    loaded.__package__ = "public_code_of"
    exec(compile(text, path, "exec"), loaded.__dict__)
    return loaded


def centre(tensor, reference):
    """Trim to a reference's length, an odd sample more on the right: what the public `center_trim` does."""
    extra = tensor.shape[-1] - reference.shape[-1]
    return tensor[..., extra // 2 : tensor.shape[-1] - (extra - extra // 2)] if extra else tensor


class Settings(dict):
    """Nested settings by attribute, as the public code reads them."""

    def __getattr__(self, name: str) -> object:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Settings(value) if isinstance(value, dict) else value
