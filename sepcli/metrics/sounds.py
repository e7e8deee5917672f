"""A song's references and estimates as blocks in step: from files, from a model, or from the references themselves.

Memory holds a block of each stem, whatever the song's length, except where an oracle wants the whole song.

Shapes: S sources, C channels, n samples of a block.
"""

import functools
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from sepcli.audio.blocks import Block
from sepcli.audio.resample import resample
from sepcli.errors import AudioError, UsageError
from sepcli.inference.song import Clip, separate_clip
from sepcli.metrics.oracles import Oracle, oracle
from sepcli.metrics.scoring import Scoring
from sepcli.metrics.stems import SUMS, Pair, Stem, StemSet, open_stem

if TYPE_CHECKING:
    from sepcli.inference.bag import Bag

Stems = Mapping[str, Tensor]
"""A block (C, n) of each stem, float32."""
Both = tuple[Tensor, Tensor]
"""A block of the references and of the estimates, (S, C, n) each, float32."""
Progress = Callable[[float], None]
"""Told the share of a song that is done, 0 to 1."""

TOLERANCE = 0.1  # seconds by which an estimate may be longer or shorter than its reference


def open_references(song: StemSet, scoring: Scoring) -> dict[str, Clip]:
    """The stems of a song but its mixture. Raises AudioError where they do not agree."""
    wanted = (*scoring.protocol.sources, *(SUMS if scoring.museval_exact else ()))
    true = {
        name: open_stem(stem, sixteen=scoring.museval_exact)
        for name, stem in song.stems.items()
        if name != "mixture" and (name in wanted or name not in SUMS)
    }
    if not true:
        raise AudioError(f"{song.name}: no stems beside the mixture")
    check_alike(true, song.name)
    return true


def sound(
    pair: Pair,
    true: Mapping[str, Clip],
    names: Sequence[str],
    scoring: Scoring,
    notes: list[str],
    progress: Progress,
) -> Iterator[Both]:
    """References and estimates of the sources `names` in step, at the song's rate.

    Notes are added as their reasons are found; `progress` is of a model's work. Raises AudioError naming what is wrong
    with a file; for a model UsageError and ModelError, as `load_bag` does, and TooLong.
    """
    song = pair.reference
    if song.ignored and "accompaniment" in scoring.protocol.sources and "accompaniment" not in true:
        notes.append(f"not in the accompaniment, their names are no source: {', '.join(song.ignored)}")
    others = open_others(pair, names, scoring)
    check_fit(pair, true, others, scoring)

    def references(stems: Stems) -> Tensor:
        return chosen(names, stems, song.name, "reference")

    if scoring.kind == "estimates":
        assert pair.estimate is not None
        for stems, guesses in in_step(true, others):
            yield references(stems), chosen(names, guesses, pair.estimate.name, "estimate")
    elif scoring.kind == "mixture":
        for stems, mixture in with_mixture(in_step(true, others), notes):
            yield references(stems), mixture.expand(len(names), -1, -1)
    elif scoring.kind == "oracle":
        whole = list(with_mixture(in_step(true, others), notes))
        stems = {name: torch.cat([block[name] for block, _ in whole], dim=-1) for name in whole[0][0]}
        mixture = torch.cat([block for _, block in whole], dim=-1)
        del whole
        yield references(stems), masked(names, stems, mixture, scoring)
    else:
        first = next(iter(true.values()))
        clip = Clip(
            lambda: (mixture.T.contiguous().numpy() for _, mixture in with_mixture(in_step(true, others), [])),
            *(first.sample_rate, first.channels, first.frames),
        )
        made = separated(names, clip, scoring, progress)
        for (stems, _), estimates in zip(with_mixture(in_step(true, others), notes), made, strict=True):
            yield references(stems), estimates
    check_alike(true, song.name)  # now that all lengths are known
    check_fit(pair, true, others, scoring, notes)


def open_others(pair: Pair, names: Sequence[str], scoring: Scoring) -> dict[str, Clip]:
    """What is read beside the references: the estimates of `names`, else the mixture, where it has a file.

    An accompaniment that was not estimated is the sum of all the others.
    """
    if scoring.kind != "estimates":
        mixture = pair.reference.stems.get("mixture")
        return {"mixture": labelled(mixture, label(pair, "mixture"), scoring.museval_exact)} if mixture else {}
    assert pair.estimate is not None
    given = pair.estimate.stems
    needed = dict.fromkeys(names)
    if "accompaniment" in needed and "accompaniment" not in given:
        needed |= dict.fromkeys(source for source in given if source not in SUMS)
    return {name: labelled(given[name], label(pair, name), False) for name in needed if name in given}


def label(pair: Pair, name: str) -> str:
    """What one of `open_others` is called in errors."""
    return f"{pair.name}: the mixture" if name == "mixture" else f"{pair.name}: the estimate of {name}"


def labelled(stem: Stem, what: str, sixteen: bool) -> Clip:
    """A stem whose errors say what it is."""
    with about(what):
        clip = open_stem(stem, sixteen=sixteen)

    def blocks() -> Iterator[Block]:
        with about(what):
            yield from clip.blocks()

    return replace(clip, blocks=blocks)


@contextmanager
def about(what: str) -> Iterator[None]:
    try:
        yield
    except AudioError as error:
        raise AudioError(f"{what}: {error.what}", error.hint) from error


def check_alike(true: Mapping[str, Clip], song: str) -> None:
    """Refuse references of several rates, channels or, as far as they are known, lengths. Raises AudioError."""
    (first, clip), *rest = true.items()
    for name, other in rest:
        which = f"{song}: the references {first} and {name} have"
        if other.sample_rate != clip.sample_rate:
            raise AudioError(f"{which} {clip.sample_rate} and {other.sample_rate} Hz")
        if other.channels != clip.channels:
            raise AudioError(f"{which} {clip.channels} and {other.channels} channels")
        if other.frames is not None and clip.frames is not None and other.frames != clip.frames:
            raise AudioError(f"{which} {clip.frames:,} and {other.frames:,} samples")


def check_fit(
    pair: Pair,
    true: Mapping[str, Clip],
    others: Mapping[str, Clip],
    scoring: Scoring,
    notes: list[str] | None = None,
) -> None:
    """Refuse what is at another rate than the references, has other channels, or differs by more than 0.1 s.

    As far as lengths are known; smaller differences become notes. Raises AudioError.
    """
    like = next(iter(true.values()))
    for name, clip in others.items():
        what = label(pair, name)
        if clip.sample_rate != like.sample_rate:
            raise AudioError(f"{what} has {clip.sample_rate} Hz, the references have {like.sample_rate} Hz")
        if clip.channels != like.channels:
            raise AudioError(f"{what} has {clip.channels} channels, the references have {like.channels}")
        if clip.frames is None or like.frames is None:
            continue
        more = clip.frames - like.frames
        if abs(more) > TOLERANCE * like.sample_rate and not scoring.allow_length_mismatch:
            lengths = [f"{one.frames / one.sample_rate:.2f} s" for one in (clip, like) if one.frames is not None]
            raise AudioError(
                f"{what} is {lengths[0]} long, the references are {lengths[1]}",
                "--allow-length-mismatch cuts or fills it at its end",
            )
        if more and notes is not None:
            notes.append(f"{what.partition(': ')[2]} is {more:+,} samples longer: cut or filled at its end")


def in_step(true: Mapping[str, Clip], others: Mapping[str, Clip]) -> Iterator[tuple[Stems, Stems]]:
    """Blocks of the references and of the others, which are cut or filled with zeros at their end, as museval does.

    Ends early where references are of different lengths. Afterwards every clip knows its length.
    """
    own = [clip.read() for clip in true.values()]
    more = {name: clip.read() for name, clip in others.items()}
    for blocks in itertools.zip_longest(*own):
        counts = {0 if block is None else len(block) for block in blocks}
        if len(counts) > 1:
            break
        count = counts.pop()
        yield (
            dict(zip(true, map(tensor, blocks), strict=True)),
            {name: tensor(fitted(next(stream, None), count, others[name].channels)) for name, stream in more.items()},
        )
    for stream in (*own, *more.values()):
        deque(stream, maxlen=0)


def tensor(block: Block) -> Tensor:
    """(n, C) -> (C, n)"""
    return torch.from_numpy(np.ascontiguousarray(block.T))


def fitted(block: Block | None, count: int, channels: int) -> Block:
    """A block of `count` frames: cut, or filled with zeros; None is a block of a stream that has ended."""
    if block is None:
        return np.zeros((count, channels), np.float32)
    return block[:count] if len(block) >= count else np.pad(block, ((0, count - len(block)), (0, 0)))


def chosen(names: Sequence[str], stems: Stems, song: str, role: str) -> Tensor:
    """Blocks of the sources `names` (S, C, n). Raises AudioError for one that is not there."""
    return torch.stack([composed(name, stems, song, role) for name in names])


def composed(name: str, stems: Stems, song: str, role: str) -> Tensor:
    """A source's sound; an accompaniment that is not there is the sum of the stems that are not vocals."""
    if name in stems:
        return stems[name]
    parts = [sound for source, sound in stems.items() if source != "vocals" and source not in SUMS]
    if name == "accompaniment" and parts and (role == "reference" or "other" in stems):
        return functools.reduce(torch.add, parts)
    raise AudioError(f"{song}: no {role} of {name}", f"there is {', '.join(stems) or 'nothing'}")


def with_mixture(stretches: Iterable[tuple[Stems, Stems]], notes: list[str]) -> Iterator[tuple[Stems, Tensor]]:
    """The references with their mixture (C, n): its file's, else the sum of the stems."""
    energy = error = 0.0
    for stems, others in stretches:
        parts = [sound for name, sound in stems.items() if name not in SUMS]
        if len(parts) < 2 and "accompaniment" in stems:
            parts.append(stems["accompaniment"])
        total = functools.reduce(torch.add, parts)
        mixture = others.get("mixture")
        if mixture is not None:
            energy += float(total.double().square().sum())
            error += float((mixture.double() - total).square().sum())
        yield stems, total if mixture is None else mixture
    share = error / max(energy, 1e-20)
    if share > 1e-4:  # MUSDB18's coded mixtures are nearer; its "PR - Oh No" is not
        notes.append(f"mixture and sum of the stems differ: {10 * math.log10(share):.0f} dB of the sum")


def masked(names: Sequence[str], stems: Stems, mixture: Tensor, scoring: Scoring) -> Tensor:
    """What an oracle gives for each source of a whole song: (S, C, T)."""
    parts = {name: sound for name, sound in stems.items() if name not in SUMS} or stems
    if len(parts) < 2:
        parts = {name: sound for name, sound in stems.items() if name in ("vocals", "accompaniment")}
    kind = cast(Oracle, scoring.model)
    made = oracle(kind, torch.stack(list(parts.values())), mixture, legacy=scoring.mwf_legacy)
    guesses = dict(zip(parts, made, strict=True))
    if "accompaniment" not in guesses:
        rest = [sound for name, sound in guesses.items() if name != "vocals"]
        guesses["accompaniment"] = functools.reduce(torch.add, rest)
    return torch.stack([guesses[name] for name in names])


def separated(names: Sequence[str], clip: Clip, scoring: Scoring, progress: Progress) -> Iterator[Tensor]:
    """What the model makes of a mixture, on the path that `sepcli separate` takes, before anything is written."""
    bag = loaded(scoring)
    stems = {name: parts_of(name, bag) for name in names}

    def tell(done: float, total: float | None) -> None:
        progress(min(1.0, done / total) if total else 0.0)

    for block in separate_clip(bag, clip, stems, progress=tell):
        yield torch.stack([tensor(block[name]) for name in names])


def parts_of(name: str, bag: "Bag") -> tuple[str, ...]:
    """The sources of a bag that make up a protocol's source. Raises UsageError where there are none."""
    if name in bag.sources:
        return (name,)
    if name == "accompaniment" and "vocals" in bag.sources:
        return tuple(source for source in bag.sources if source != "vocals")
    has = ", ".join(bag.sources)
    raise UsageError(f"{bag.name} has no {name}, which the protocol scores", f"it has {has}; choose another --protocol")


@functools.lru_cache(maxsize=1)
def loaded(scoring: Scoring) -> "Bag":
    """The model, loaded once in each process."""
    from sepcli.inference.bag import load_bag

    return load_bag(
        scoring.model,
        device=scoring.device,
        segment=scoring.segment,
        overlap=scoring.overlap,
        shifts=scoring.shifts,
        seed=scoring.seed,
        offline=scoring.offline,
        notice=lambda text: print(f"sepcli: {text}", file=sys.stderr, flush=True),
    )


def at_rate(blocks: Iterator[Both], rate: int, target: int) -> Iterator[Both]:
    """References and estimates at another rate."""
    if rate == target:
        yield from blocks
        return
    shape: list[int] = []

    def columns() -> Iterator[Block]:
        for both in blocks:
            shape[:] = both[0].shape[:2]
            yield torch.cat(both).flatten(0, 1).T.contiguous().numpy()

    for block in resample(columns(), rate, target):
        references, estimates = torch.unflatten(tensor(block), 0, (2, *shape))
        yield references, estimates


class Whole:
    """A song's references and estimates (S, C, T), kept as its blocks come. A wrong `length` only costs memory."""

    def __init__(self, length: int) -> None:
        self.kept: list[Tensor] = []
        self.expected, self.length = length, 0

    def add(self, *blocks: Tensor) -> None:
        end = self.length + blocks[0].shape[-1]
        if not self.kept or end > self.kept[0].shape[-1]:
            size = max(end, self.expected if not self.kept else 2 * self.length)
            old = self.kept or [block[..., :0] for block in blocks]
            self.kept = [block.new_empty(*block.shape[:-1], size) for block in blocks]
            for kept, before in zip(self.kept, old, strict=True):
                kept[..., : self.length] = before[..., : self.length]
        for kept, block in zip(self.kept, blocks, strict=True):
            kept[..., self.length : end] = block
        self.length = end

    def both(self) -> Both:
        references, estimates = (kept[..., : self.length] for kept in self.kept)
        return references, estimates
