"""Folders of songs made by seed, and a song with streams like MUSDB18's."""

import socket
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

SOURCES = ("drums", "bass", "other", "vocals")


def sound(seconds: float, seed: int, rate: int = 44100, channels: int = 2) -> npt.NDArray[np.float32]:
    """A melody of decaying tones with some noise, (frames, channels)."""
    draw = np.random.default_rng(seed)
    frames = round(seconds * rate)
    time = np.arange(frames) / rate
    wave = np.zeros(frames)
    for onset in np.arange(0, seconds, 0.25):
        after = np.clip(time - onset, 0, None)
        wave += np.sin(2 * np.pi * draw.uniform(80, 2000) * time) * np.exp(-8 * after) * (time >= onset)
    stereo = wave[:, None] * draw.uniform(0.4, 1, (1, channels)) + 0.02 * draw.standard_normal((frames, channels))
    return (0.15 * stereo / np.abs(stereo).max()).astype(np.float32)


def write_song(
    folder: Path,
    *,
    seconds: float = 3.0,
    rate: int = 44100,
    seed: int = 0,
    suffix: str = "wav",
    stems: tuple[str, ...] = SOURCES,
    mixture: bool = False,
) -> Path:
    folder.mkdir(parents=True)
    waves = {name: sound(seconds, 100 * seed + index, rate) for index, name in enumerate(stems)}
    kind = {"subtype": "FLOAT"} if suffix == "wav" else {}
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.{suffix}", wave, rate, **kind)
    if mixture:
        soundfile.write(folder / "mixture.wav", np.sum(list(waves.values()), axis=0), rate, subtype="FLOAT")
    return folder


def write_data(folder: Path, songs: int = 2, **how: object) -> Path:
    for index in range(songs):
        write_song(folder / f"song {index}", seed=index + 1, **how)  # type: ignore[arg-type]
    return folder


def write_streams(path: Path, waves: list[npt.NDArray[np.float32]], codec: str = "aac", rate: int = 44100) -> Path:
    """Several audio streams in one file, stereo, with FFmpeg."""
    import av

    with av.open(str(path), "w", format="mp4" if path.suffix in (".mp4", ".m4a") else None) as container:
        streams = [container.add_stream(codec, rate=rate, layout="stereo") for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T), format="fltp", layout="stereo")
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:  # type: ignore[attr-defined]
                container.mux(packet)
    return path


def free_port() -> str:
    """A port of this machine that nobody listens at, for processes that meet there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
