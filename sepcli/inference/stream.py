"""A song in pieces: cut, estimate, join. Three generators whose memory does not know the song's length."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sepcli.errors import UsageError
from sepcli.models.separator import Separator


@dataclass(frozen=True)
class Cut:
    """How a song is cut for one Separator; lengths in samples of its rate.

    Pieces of `length` start every `stride`, and what a network sees is wider by `margins(length)`. `window` (length,)
    weighs a piece where it overlaps its neighbours. Beyond the song's ends a piece holds zeros, or the song mirrored
    (and pieces begin as far before the song as they overlap), or it ends where the song does (clipped).
    """

    length: int
    stride: int
    margins: Callable[[int], tuple[int, int]]
    window: Tensor
    edge: Literal["zeros", "reflect", "clipped"] = "zeros"

    @property
    def border(self) -> int:
        """How many mirrored samples count as part of the song at either end, if it is longer than both together."""
        return self.length - self.stride if self.edge == "reflect" else 0


@dataclass(frozen=True)
class Piece:
    """A stretch of a song as the network sees it: `samples` (C, left + length + right or less) from `start` - left.

    `start` is below zero where a piece begins in what is mirrored before the song.
    """

    samples: Tensor
    start: int
    left: int
    length: int


def cut_for(model: Separator, overlap: float | str | None = None, device: str = "cpu") -> Cut:
    """The cut that suits a Separator. Raises UsageError for an overlap outside [0, 1) or a quality that is none.

    With a finite context pieces meet without overlap and equal one pass over the whole song: each starts on the
    network's grid, sees its context rounded up to the grid, and the window ends where the song does, since there the
    network's own edge is the right one. Otherwise pieces overlap as its authors let them. `overlap` is a share of a
    piece, a quality ("fast", "normal", "best"), or None for the quality that the network has on a kind of `device`.
    """
    share = model.quality.get(device, "normal") if overlap is None else overlap
    if isinstance(share, str):
        if share not in model.overlaps:
            raise UsageError(f"--quality {share}: is not one of {', '.join(model.overlaps)}")
        share = model.overlaps[share]
    if not 0 <= share < 1:
        raise UsageError(f"--overlap {share}: must be at least 0 and below 1")
    grid = model.grid
    if model.context is not None:
        length = round_up(model.piece, grid)
        margin = round_up(model.context, grid)
        return Cut(length, length, lambda _: (margin, margin), torch.ones(length), "clipped")
    length = model.piece
    stride = max(grid, int((1 - share) * length) // grid * grid)
    window = triangle(length) if model.fade == "triangle" else tenth(length)
    return Cut(length, min(stride, length), model.margins, window, model.edge)


def round_up(length: int, grid: int) -> int:
    return -(-length // grid) * grid


def triangle(length: int) -> Tensor:
    """Weights (length,) that rise to 1 in the middle and fall again; never zero."""
    rise = torch.arange(1, length // 2 + 1)
    fall = torch.arange(length - length // 2, 0, -1)
    weights = torch.cat([rise, fall]).to(torch.float32)
    return weights / weights.max()


def tenth(length: int) -> Tensor:
    """Weights (length,): ones, but for a tenth at either end that rises and falls in a line; never zero."""
    rise = torch.linspace(0, 1, length // 10).clamp_min(1e-8)  # where nothing else is, a piece counts alone
    return torch.cat([rise, torch.ones(length - 2 * len(rise)), rise.flip(0)])


def pieces(blocks: Iterable[Tensor], cut: Cut) -> Iterator[Piece]:
    """Cut a song, blocks (C, n) of any lengths, into pieces in order of position.

    Holds a piece with its margins and as much of the past, since a short last piece may want wider margins than a full
    one (never a wider window). Reads one sample past a full piece, so that it is known whether the song goes on.
    """
    source = iter(blocks)
    buffer = torch.empty(0, 0)
    origin = 0  # the song's position of the buffer's first sample
    ended = False
    full_left, full_right = cut.margins(cut.length)
    past = full_left + cut.length + full_right

    def read_to(wanted: int) -> int:
        """Read on until the buffer ends at `wanted` or beyond, if the song does: where it ends now."""
        nonlocal buffer, ended
        fresh = []
        end = origin + buffer.shape[-1]
        while not ended and end < wanted:
            block = next(source, None)
            if block is None:
                ended = True
            else:
                fresh.append(block)
                end += block.shape[-1]
        if fresh:
            buffer = torch.cat([buffer, *fresh], dim=-1) if buffer.numel() else torch.cat(fresh, dim=-1)
        return end

    border = cut.border if read_to(2 * cut.border + 1) > 2 * cut.border else 0
    start = -border
    while start < (end := read_to(start + cut.length + full_right + 1)):
        length = min(cut.length, end - start)
        left, right = cut.margins(length)
        first, last = start - left, start + length + right
        beyond = max(-first, 0), max(last - end, 0)
        if cut.edge == "reflect" and any(beyond):
            samples = mirrored(buffer, first - origin, last - origin, border)
        else:
            samples = buffer[:, max(first - origin, 0) : last - origin]
            left = min(left, start) if cut.edge == "clipped" else left
            samples = functional.pad(samples, beyond) if cut.edge == "zeros" else samples
        yield Piece(samples, start, left, length)

        start += cut.stride
        keep = max(0, start - past - origin)
        if keep:
            buffer = buffer[:, keep:].clone()  # a view would hold the samples that have passed
            origin += keep


def mirrored(song: Tensor, first: int, last: int, border: int) -> Tensor:
    """Samples `first` to `last` of a song (C, n), of which they leave one end or both.

    `border` samples at either end are the song mirrored. What a piece lacks beyond that is itself mirrored where it
    holds more than half of what it should, else zeros: the rule of the trainer whose networks want this (`demix` of
    ZFTurbo/Music-Source-Separation-Training).
    """
    before, after = max(-first, 0), min(max(last - song.shape[-1], 0), border)
    samples = functional.pad(song, (before, after), mode="reflect")[:, first + before : last + before]
    missing = last - first - samples.shape[-1]
    mode = "reflect" if samples.shape[-1] > (last - first) // 2 else "constant"
    return functional.pad(samples, (0, missing), mode=mode)


@torch.inference_mode()
def estimates(
    pieces: Iterable[Piece],
    forward: Callable[[Tensor], Tensor],
    batch_size: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """Positions and estimates (S, C, length) of pieces, margins trimmed.

    `forward` takes windows (B, C, n) to waveforms (B, S, C, n). Neighbours of equal window length share a batch.
    """

    def run(batch: list[Piece]) -> Iterator[tuple[int, Tensor]]:
        waveforms = forward(torch.stack([piece.samples for piece in batch]))
        for piece, estimate in zip(batch, waveforms, strict=True):
            yield piece.start, estimate[..., piece.left : piece.left + piece.length]

    batch: list[Piece] = []
    for piece in pieces:
        if batch and batch[0].samples.shape != piece.samples.shape:
            yield from run(batch)
            batch = []
        batch.append(piece)
        if len(batch) == batch_size:
            yield from run(batch)
            batch = []
    if batch:
        yield from run(batch)


def overlap_add(estimates: Iterable[tuple[int, Tensor]], cut: Cut) -> Iterator[Tensor]:
    """Join pieces into one continuous estimate, as blocks (S, C, n) that no later piece will change.

    Each item is a piece's position in the song and its trimmed estimate (S, C, n), n <= cut.length, in order of
    position. Where pieces overlap they are weighted by cut.window and divided by the weights' sum; the blocks' lengths
    sum to the song's: what a piece estimates of the time before the song is left out.
    """
    if cut.stride == cut.length and bool((cut.window == 1).all()):
        yield from (estimate for _, estimate in estimates)  # pieces that meet without overlap need no sum
        return
    total = weights = torch.empty(0)  # of the samples from `origin` on
    origin = 0
    for start, estimate in estimates:
        before = max(-start, 0)
        fade = cut.window[before : estimate.shape[-1]].to(estimate.device)
        estimate, start = estimate[..., before:], start + before
        if start > origin:
            done = start - origin
            yield total[..., :done] / weights[:done]
            total, weights, origin = total[..., done:], weights[done:], start
        if not weights.numel():
            total, weights = estimate.new_zeros(estimate.shape), torch.zeros_like(fade)
        elif (missing := fade.shape[0] - weights.shape[0]) > 0:
            total, weights = functional.pad(total, (0, missing)), functional.pad(weights, (0, missing))
        total[..., : fade.shape[0]] += fade * estimate
        weights[: fade.shape[0]] += fade
    if weights.numel():
        yield total / weights


def drop(blocks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Blocks without the first `count` samples of the song."""
    for block in blocks:
        dropped = min(count, block.shape[-1])
        count -= dropped
        if dropped < block.shape[-1]:
            yield block[..., dropped:]


def reblock(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples in blocks of `size` (the last is shorter)."""
    rest: list[Tensor] = []
    held = 0
    for block in blocks:
        rest.append(block)
        held += block.shape[-1]
        if held < size:
            continue
        joined = torch.cat(rest, dim=-1) if len(rest) > 1 else rest[0]
        whole = held // size * size
        yield from torch.split(joined[..., :whole], size, dim=-1)
        held -= whole
        rest = [joined[..., whole:].clone()] if held else []
    if held:
        yield torch.cat(rest, dim=-1) if len(rest) > 1 else rest[0]
