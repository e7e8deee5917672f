"""What a file of the public trainer (ZFTurbo/Music-Source-Separation-Training) needs beside it: its yaml, or its keys.

Such a file is a bare state dict. The yaml has the arguments of the network's class under `model`, and the length of a
piece and the names of the sources elsewhere; foreign.py knows the classes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sepcli.errors import ModelError
from sepcli.models.roformer import N_FFT, tables
from sepcli.weights.read import Published

LONGEST, DEEPEST = 2**16, 16
"""Bytes of a yaml, and tables within tables; published ones have a few thousand, and four."""

MARKS = {"num_bands": "MelBandRoformer", "freqs_per_bands": "BSRoformer", "band_SR": "SCNet"}
"""An argument that only one class has, and the class."""

TUPLE = "tag:yaml.org,2002:python/tuple"

Stated = tuple[tuple[str, ...], int, int]

STATED: Mapping[int, Stated] = {
    1: (("vocals",), 441, 352_800),
    4: (("drums", "bass", "other", "vocals"), 441, 485_100),
    6: (("bass", "drums", "other", "vocals", "guitar", "piano"), 512, 588_800),
}
"""Sources, hop and length of a piece that most published RoFormers of so many sources have, which keys do not say."""


def config_beside(weights: Path) -> Path | None:
    """The yaml beside a file of weights: of its name, whole or without the suffix."""
    stems = (weights.with_suffix(""), weights)
    return next((file for stem in stems for end in ("yaml", "yml") if (file := Path(f"{stem}.{end}")).is_file()), None)


def read_config(path: Path) -> Mapping[str, Any]:
    """The tables of a yaml, in which a tuple is a list. Raises ModelError for any other tag that is not plain data, and
    for aliases, with which a few lines can stand for gigabytes.
    """
    import yaml

    loader: Any = type("Plain", (yaml.SafeLoader,), {})  # a class of its own: constructors are added to classes
    loader.add_constructor(TUPLE, lambda loader, node: loader.construct_sequence(node, deep=True))
    try:
        if path.stat().st_size > LONGEST:
            raise ModelError(f"{path}: more than {LONGEST} bytes, no yaml of a network")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ModelError(
                    f"{path}: refused, it has aliases or too many tables within tables", "write it plainly"
                )
        read = yaml.load(text, loader)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        tag = re.search(r"tag '(?:tag:yaml\.org,2002:)?([^']*)'", str(error.problem))
        what = f"the tag {tag[1][:60]}" if tag else str(error.problem)[:80]
        hint = "only tuples are known beside plain data"
        raise ModelError(f"{path}: refused, line {line} has {what}", hint) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{path}: cannot be read as yaml ({reason})", "give the yaml of the weights") from error
    if not isinstance(read, dict) or not isinstance(read.get("model"), dict):
        raise ModelError(f"{path}: has no table `model`", "give the yaml of the weights")
    return read


def with_config(published: Published, config: Path, where: str) -> Published:
    """A bare file with what its yaml says of it, as a file that carries class and arguments. Raises ModelError."""
    read = read_config(config)
    model = {str(key): value for key, value in read["model"].items()}
    klass = next((name for mark, name in MARKS.items() if mark in model), "")
    if not klass:
        what = f"{config}: describes neither a BS-RoFormer nor a Mel-Band RoFormer nor an SCNet"
        raise ModelError(what, f"it has none of {', '.join(MARKS)} under `model`")
    training, audio, inference = (table(read, name) for name in ("training", "audio", "inference"))
    target = training.get("target_instrument")
    sources = [target] if isinstance(target, str) else training.get("instruments")
    if not isinstance(sources, list) or not sources:
        raise ModelError(f"{config}: names no sources", "it needs `instruments` under `training`")
    own = model.pop("sources", None)  # of an SCNet
    stems = len(own) if isinstance(own, list) else model.pop("num_stems", 1)
    heads = heads_of(published)
    if stems != len(sources) or heads not in (0, stems):
        said = f"{config.name} names {len(sources)} ({', '.join(map(str, sources))[:80]}) for a network of {stems}"
        raise ModelError(
            f"{where}: has weights for {heads or 'no'} sources, and {said}", "give the yaml of the weights"
        )
    rate = model.pop("sample_rate", audio.get("sample_rate", 44100))
    chunk = inference.get("chunk_size", audio.get("chunk_size"))
    if type(chunk) is not int or type(rate) is not int or chunk < 1 or rate < 1:
        raise ModelError(f"{config}: chunk_size = {chunk}, sample_rate = {rate}: must be whole numbers above 0")
    channels = model.pop("audio_channels", 2 if model.pop("stereo", klass == "SCNet") else 1)
    level = {"deviation": 1.0} if inference.get("normalize") is True else {}
    traits = {"sources": sources, "audio_channels": channels, "samplerate": rate, "level": level}
    arguments = scnet(model, channels, config) if klass == "SCNet" else normal(model, klass)
    return replace(published, klass=klass, carried=arguments | traits | {"segment": seconds(chunk, rate)})


def scnet(model: Mapping[str, Any], channels: Any, config: Path) -> dict[str, Any]:
    """An SCNet's arguments without what follows from others. Raises ModelError where it does not follow."""
    values = dict(model)
    dims, shares = values.pop("dims", [2 * channels, 32, 64, 128]), values.pop("band_SR", None)
    window, n_fft = values.pop("win_size", 4096), values.get("nfft", 4096)
    numbers = [*dims, *shares] if isinstance(dims, list) and isinstance(shares, list) else []
    if len(numbers) != 7 or not all(type(number) in (int, float) for number in numbers):
        raise ModelError(f"{config}: dims must be four numbers and band_SR three")
    for wrong, what in (
        (dims[0] != 2 * channels, f"dims = {dims} must begin with {2 * channels}, for {channels} channels"),
        (abs(sum(shares) - 1) > 1e-6, f"band_SR = {shares} must sum to 1"),
        (window != n_fft, f"win_size = {window} must be nfft, {n_fft}"),
    ):
        if wrong:
            raise ModelError(f"{config}: {what}")
    return values | {"widths": dims[1:], "shares": shares[:2]}


def by_keys(published: Published, where: str) -> tuple[Published, str]:
    """A RoFormer's file as its names and shapes tell it, with what they do not tell as usual; and that in words.

    Raises ModelError where nothing is usual, or names are missing.
    """
    heads = heads_of(published)
    shapes = {name: tuple(tensor.shape) for name, tensor in published.tensors.items()}
    if heads not in STATED:
        what = f"{where}: a RoFormer of {heads} sources, whose names it does not hold"
        raise ModelError(what, f"put its yaml beside it as {Path(where).with_suffix('.yaml').name}")
    sources, hop, chunk = STATED[heads]
    try:
        width = shapes["band_split.to_features.0.1.weight"][0]
        attention = "layers.0.0.layers.0.0."
        gates, _ = shapes[f"{attention}to_gates.weight"]
        carried: dict[str, Any] = {
            "dim": width,
            "depth": counted(shapes, r"layers\.(\d+)\."),
            "time_transformer_depth": counted(shapes, r"layers\.0\.0\.layers\.(\d+)\."),
            "freq_transformer_depth": counted(shapes, r"layers\.0\.1\.layers\.(\d+)\."),
            "heads": gates,
            "dim_head": shapes[f"{attention}to_qkv.weight"][0] // 3 // gates,
            "mlp_expansion_factor": shapes["mask_estimators.0.to_freqs.0.0.0.weight"][0] // width,
            "mask_estimator_depth": sum(
                re.fullmatch(r"mask_estimators\.0\.to_freqs\.0\.0\.\d+\.weight", n) is not None for n in shapes
            ),
            "stft_hop_length": hop,
        }
        bands = [shapes[f"band_split.to_features.{k}.0.gamma"][0] for k in range(counted(shapes, SPLIT))]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{where}: some of a RoFormer's names, but no {error} as it should be") from error
    mel = "final_norm.gamma" not in shapes
    bins = sum(count for _, count in tables()["mel"]) if mel else N_FFT // 2 + 1
    channels = max(1, sum(bands) // (2 * bins))
    if not mel:
        carried["freqs_per_bands"] = [size // (2 * channels) for size in bands]
    klass = "MelBandRoformer" if mel else "BSRoformer"
    carried |= {"sources": sources, "audio_channels": channels, "samplerate": 44100, "segment": seconds(chunk, 44100)}
    words = f"hop {hop}, pieces of {chunk} samples, sources {', '.join(sources)}"
    return replace(published, klass=klass, carried=normal(carried, klass, linears=True)), words


SPLIT = r"band_split\.to_features\.(\d+)\."


def heads_of(published: Published) -> int:
    """How many sources a file of a RoFormer or of an SCNet is for; 0 where it is neither."""
    first, last = (
        published.tensors.get(f"{name}.0.weight") for name in ("encoder.0.SDlayer.convs", "decoder.2.1.convtrs")
    )
    if is_scnet(published) and first is not None and last is not None and first.dim() == last.dim() == 4:
        return int(last.shape[1] // max(1, first.shape[1]))
    return counted(published.tensors, r"mask_estimators\.(\d+)\.to_freqs\.")


def is_scnet(published: Published) -> bool:
    return any(name.startswith("separation_net.dp_modules.") for name in published.tensors)


def counted(names: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers a pattern finds in names."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def normal(model: Mapping[str, Any], klass: str, *, linears: bool = False) -> dict[str, Any]:
    """A class's arguments in one way for both: `mask_estimator_depth` in linear layers, the usual bands by name.

    For the same number Mel-Band RoFormer has one layer more. `linears`: they are counted so already.
    """
    values = dict(model)
    depth = values.get("mask_estimator_depth", 1 if klass == "MelBandRoformer" else 2)
    if not linears and klass == "MelBandRoformer" and isinstance(depth, int):
        depth += 1
    values["mask_estimator_depth"] = depth
    if values.get("freqs_per_bands") == [count for _, count in tables()["bs"]]:
        values["freqs_per_bands"] = "bs"
    return values


def seconds(chunk: int, rate: int) -> float:
    """So many samples in seconds, which times the rate give no sample less."""
    length = chunk / rate
    return length if int(length * rate) == chunk else math.nextafter(length, math.inf)


def table(read: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = read.get(name)
    return found if isinstance(found, dict) else {}
