"""Blocks: consecutive samples of a song, the unit in which sound moves between the disk and the networks."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]
"""Samples (frames, channels), C-contiguous; BLOCK frames each but the last of a song."""

BLOCK = 65_536


def reblock(pieces: Iterable[Block], size: int = BLOCK) -> Iterator[Block]:
    """The same samples in blocks of `size` frames, the last one shorter; empty pieces vanish."""
    waiting: list[Block] = []
    frames = 0
    for piece in pieces:
        while len(piece):
            part, piece = piece[: size - frames], piece[size - frames :]
            waiting.append(part)
            frames += len(part)
            if frames == size:
                yield _joined(waiting)
                waiting, frames = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Block]) -> Block:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
