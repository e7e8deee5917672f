"""Blocks at another sample rate (soxr); the total length is an integer that is agreed here, not left to the library."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sepcli.audio.blocks import BLOCK, Block, reblock


def resample(
    blocks: Iterable[Block], source_rate: int, target_rate: int, length: Callable[[], int] | None = None
) -> Iterator[Block]:
    """`blocks` (frames, channels) at `target_rate`, as blocks of 65,536 frames.

    The total is `length()`, asked once after the input has ended, else ceil(frames x target_rate / source_rate); the
    last block is cut or filled with zeros to meet it. Equal rates pass through untouched, except for that.
    Raises ValueError where `length()` is more than one block shorter than what was already given out.
    """
    frames, channels = 0, 0

    def counted() -> Iterator[Block]:
        nonlocal frames, channels
        for block in blocks:
            frames, channels = frames + len(block), block.shape[1]
            yield block

    def total() -> int:
        return -(-frames * target_rate // source_rate) if length is None else length()

    source = counted()
    resampled = source if source_rate == target_rate else reblock(_soxr(source, source_rate, target_rate))
    given = 0
    held: Block | None = None  # the last block waits until the total is known
    for block in resampled:
        if held is not None:
            given += len(held)
            yield held
        held = block
    if not channels:
        return
    rest = total() - given
    if rest < 0:
        raise ValueError(f"length {given + rest} is asked of {given} frames that were already given out")
    end = (np.empty((0, channels), np.float32) if held is None else held)[:rest]
    yield from reblock(_filled(end, rest))


def _filled(end: Block, frames: int) -> Iterator[Block]:
    yield end
    missing = frames - len(end)
    while missing > 0:
        yield np.zeros((min(missing, BLOCK), end.shape[1]), np.float32)
        missing -= BLOCK


def _soxr(blocks: Iterable[Block], source_rate: int, target_rate: int) -> Iterator[Block]:
    import soxr

    step = max(1, min(BLOCK, BLOCK * source_rate // target_rate))  # a slice makes about a block, however low its rate
    stream = None
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(source_rate, target_rate, block.shape[1], dtype="float32", quality="VHQ")
            empty = block[:0]
        for first in range(0, len(block), step):
            yield stream.resample_chunk(np.ascontiguousarray(block[first : first + step]))
    if stream is not None:
        yield stream.resample_chunk(np.ascontiguousarray(empty), last=True)
