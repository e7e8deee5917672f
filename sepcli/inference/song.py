"""The whole path of one song: blocks, channels, rate, level, bag, and back again; blocks in, stems out."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepcli.audio import channels
from sepcli.audio.blocks import BLOCK, Block
from sepcli.audio.prefetch import prefetch
from sepcli.audio.resample import resample
from sepcli.errors import AudioError, UsageError
from sepcli.inference import remainder
from sepcli.inference.bag import Bag, Loudness
from sepcli.inference.device import TooLong
from sepcli.inference.stream import reblock
from sepcli.weights.votes import every_stem

T = TypeVar("T")
HEARD = "(mixture)"  # beside the sources, none of which can be called so
Stems = Mapping[str, Sequence[str]]
"""What is written: each stem's name, and the sources that it is the sum of; none: what all sources leave."""


@dataclass
class Clip:
    """A stretch of sound that can be read from its start as often as wanted: blocks (frames, channels)."""

    blocks: Callable[[], Iterable[Block]]
    sample_rate: int
    channels: int
    frames: int | None = None
    """How many frames there are; what reading delivers is the truth, and stands here after the first pass."""

    def read(self) -> Iterator[Block]:
        """The blocks, counted."""
        count = 0
        for block in self.blocks():
            count += len(block)
            yield block
        self.frames = count


def every_source(bag: Bag) -> dict[str, tuple[str, ...]]:
    """Each source as a stem of its own."""
    return {source: (source,) for source in bag.sources}


def separate_clip(
    bag: Bag,
    clip: Clip,
    stems: Stems,
    *,
    out_rate: int | None = None,
    upper: str = "other",
    consistent: str | None = None,
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
) -> Iterator[dict[str, Block]]:
    """Blocks of every stem in step, at the clip's channels and rate (or `out_rate`), as long as the clip.

    Another rate gives round(frames * out_rate / rate) frames. `upper` says what becomes of the band that the bag does
    not hear, where its rate is another: "other" (it goes to the stem that holds the accompaniment), "share" (each stem
    of a whole set gets as much of it as it has of the highest tones heard) or "drop". `consistent` is the depth ("16",
    "24", "32f") at which the stems sum to the mixture. `progress` is called with the seconds done and in all. Raises
    AudioError where a network gives no finite numbers.
    """
    out_rate = out_rate or clip.sample_rate
    whole = not bag.wanted
    shared = remainder.Sharing() if upper == "share" and whole else None
    keepers = [] if upper == "drop" or clip.sample_rate == bag.sample_rate else remainder.keeper(stems, whole)
    groups = channels.groups(clip.channels, bag.channels)
    parts = len(groups)
    loudness = measure(bag, clip, parts) if bag.needs_loudness else [None] * parts
    done = 0.0

    def tick(seconds: float) -> None:
        nonlocal done
        done += seconds / parts
        total = None if clip.frames is None else max(done, clip.frames / clip.sample_rate)
        progress(done, total)

    def length() -> int:
        return rounded(clip.frames or 0, out_rate, clip.sample_rate)

    rest = [stem for stem, members in stems.items() if not members]
    sources = list(dict.fromkeys(bag.sources if rest else itertools.chain(*stems.values())))
    order = torch.tensor([bag.sources.index(source) for source in sources])
    decoded = prefetch(model_blocks(bag, clip))
    along = bool(keepers or rest)
    streams = itertools.tee(decoded, 2 * parts if along else parts)
    estimated = [
        (block[order] for block in bag.run(group_of(stream, index), loudness[index], tick))
        for index, stream in enumerate(streams[:parts])
    ]
    # Where something is to be taken from it, the mixture as the network heard it travels along, as one more source.
    heard = [reblock((block[None] for block in group_of(s, i)), BLOCK) for i, s in enumerate(streams[parts:])]
    names = [*sources, *([HEARD] if along else [])]
    joined = (
        stack([torch.cat(pair) for pair in zip(blocks[:parts], blocks[parts:], strict=True)] if along else blocks)
        for blocks in zip(*estimated, *heard, strict=True)
    )
    returned = resample(check_finite(joined, bag, names), bag.sample_rate, out_rate, length)
    own = resample(clip.read(), clip.sample_rate, out_rate, length) if keepers or consistent else itertools.repeat(None)
    with contextlib.closing(decoded):  # its thread ends with this generator, wherever that is left
        for block, mixture in zip(returned, own, strict=False):
            cells = np.split(block, parts * len(names), axis=1)
            waves = {name: channels.join(cells[i :: len(names)], clip.channels) for i, name in enumerate(names)}
            result = {stem: total([waves[source] for source in members]) for stem, members in stems.items() if members}
            if rest:
                left = waves[HEARD] - total([waves[source] for source in sources])
                result = {stem: result.get(stem, left) for stem in stems}
            if mixture is not None and keepers:
                lost = mixture - waves[HEARD]
                result = shared(result, lost) if shared else remainder.add_upper_band(result, lost, keepers)
            if mixture is not None and consistent:
                result = remainder.consistent(result, mixture, consistent)
            yield {stem: np.ascontiguousarray(wave, np.float32) for stem, wave in result.items()}


def separate_array(
    bag: Bag,
    mixture: "NDArray[np.floating] | Tensor",
    sample_rate: int,
    *,
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
) -> "dict[str, NDArray[np.float32]] | dict[str, Tensor]":
    """A mixture (channels, time) to stems of the same kind, rate and shape, by source.

    Raises UsageError for what is no mixture, AudioError for samples that are no numbers, in or out.
    """
    if isinstance(mixture, Tensor):
        plain = mixture.detach().cpu()  # numpy knows no bfloat16
        array = plain.float().numpy() if plain.is_floating_point() else plain.numpy()
    else:
        array = np.asarray(mixture)
    if array.ndim != 2 or not array.size or array.shape[0] > 64 or not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"a mixture must be floats (channels, time), not {array.dtype} {array.shape}")
    if not (sample_rate >= 1 and float(sample_rate).is_integer()):
        raise UsageError(f"sample_rate = {sample_rate}: must be a whole number of at least 1 Hz")
    sample_rate = int(sample_rate)
    frames = np.ascontiguousarray(array.T, dtype=np.float32)
    if not np.isfinite(frames).all():
        raise AudioError("the mixture holds samples that are not finite numbers", reason="nan")
    clip = Clip(
        lambda: (frames[start : start + BLOCK] for start in range(0, len(frames), BLOCK)),
        sample_rate,
        frames.shape[1],
        len(frames),
    )
    stems = every_source(bag) if bag.wanted else every_stem(bag.sources)
    blocks = until_it_fits(lambda: list(separate_clip(bag, clip, stems, progress=progress)))
    joined = {name: np.concatenate([block[name] for block in blocks]).T for name in stems}
    if isinstance(mixture, Tensor):
        return {name: torch.from_numpy(np.ascontiguousarray(stem)).to(mixture) for name, stem in joined.items()}
    return joined


def until_it_fits(job: Callable[[], T]) -> T:
    """What a job gives, done again as often as a network's pieces become shorter for want of memory."""
    while True:
        try:
            return job()
        except TooLong:
            continue


def model_blocks(bag: Bag, clip: Clip) -> Iterator[list[Block]]:
    """A clip at the bag's rate, each block as groups of the bag's channels."""
    for block in resample(clip.read(), clip.sample_rate, bag.sample_rate):
        yield channels.split(block, bag.channels)


def group_of(stream: Iterable[list[Block]], index: int) -> Iterator[Tensor]:
    """One group's blocks as tensors (C, n)."""
    for groups in stream:
        yield torch.from_numpy(np.ascontiguousarray(groups[index].T))


def measure(bag: Bag, clip: Clip, groups: int) -> list[Loudness]:
    """The loudness of each group of channels over the whole clip: a first pass, sums in float64.

    The deviation is unbiased (N - 1), as torch's; of a single sample it is zero.
    """
    count = 0
    sums, peaks = np.zeros((groups, 2)), np.full(groups, -np.inf)
    for parts in model_blocks(bag, clip):
        count += len(parts[0])
        for index, part in enumerate(parts):
            mono = part.mean(axis=1, dtype=np.float64)
            sums[index] += mono.sum(), np.square(mono).sum()
            peaks[index] = max(peaks[index], part.max(initial=-np.inf))
    if not count:
        return [Loudness(0.0, 0.0, 0.0)] * groups
    means = sums[:, 0] / count
    variances = np.maximum(sums[:, 1] - count * np.square(means), 0) / max(count - 1, 1)
    return [Loudness(*map(float, values)) for values in zip(means, np.sqrt(variances), peaks, strict=True)]


def stack(outputs: Sequence[Tensor]) -> Block:
    """Outputs (S, C, n) of each group as one block (n, groups * S * C): resampled together, they stay in step."""
    return cast(Block, torch.stack(tuple(outputs)).flatten(0, 2).T.contiguous().numpy())


def check_finite(blocks: Iterable[Block], bag: Bag, sources: Sequence[str]) -> Iterator[Block]:
    """The blocks, while every sample is a finite number. Raises AudioError naming source and second."""
    position = 0
    for block in blocks:
        if not np.isfinite(block).all():
            row, column = np.argwhere(~np.isfinite(block))[0]
            source = sources[column // bag.channels % len(sources)]
            what = f"{bag.name} gave no numbers for {source} at {(position + row) / bag.sample_rate:.2f} s"
            raise AudioError(what, "try --precision float32 or --device cpu", reason="nan")
        position += len(block)
        yield block


def total(parts: Sequence[Block]) -> Block:
    return cast(Block, np.sum(parts, axis=0, dtype=np.float32)) if len(parts) > 1 else parts[0]


def rounded(frames: int, out_rate: int, rate: int) -> int:
    """frames * out_rate / rate to the nearest integer, halves up, in integers."""
    return (2 * frames * out_rate + rate) // (2 * rate)
