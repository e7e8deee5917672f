"""One audio stream of a file that has several: the stems of a MUSDB18 .stem.mp4."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sepcli.audio.blocks import Block, reblock
from sepcli.errors import AudioError


def stream_blocks(path: Path, index: int, sample_rate: int) -> Iterator[Block]:
    """An audio stream's blocks, decoded by FFmpeg, without what an encoder appended. Raises AudioError."""
    return reblock(_decoded(path, index, sample_rate))


def _decoded(path: Path, index: int, sample_rate: int) -> Iterator[Block]:
    try:
        import av
    except ImportError:
        raise AudioError(f"{path}: its streams cannot be read", "pip install av") from None
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if index >= len(container.streams.audio):
                what = f"{path}: has {len(container.streams.audio)} audio streams; stem {index} is missing"
                raise AudioError(what)
            stream = container.streams.audio[index]
            held: Any = None
            end: float | None = None
            for packet in container.demux(stream):
                if packet.pts is not None and packet.duration:
                    end = float((packet.pts + packet.duration) * packet.time_base)
                for frame in packet.decode():
                    if held is not None:
                        yield _block(path, held, sample_rate)
                    held = frame
            if held is not None:
                block = _block(path, held, sample_rate)
                if end is not None and held.pts is not None:
                    block = block[: max(0, round((end - float(held.pts * held.time_base)) * sample_rate))]
                yield block
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{path}: audio stream {index} is damaged") from error


def _block(path: Path, frame: Any, sample_rate: int) -> Block:
    if frame.sample_rate != sample_rate:
        raise AudioError(f"{path}: its streams have different sample rates")
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, len(frame.layout.channels))
    if samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return np.ascontiguousarray(samples, np.float32)
