"""Stems on disk: WAV, FLAC, MP3, Ogg Vorbis and Opus, a whole set at once or nothing."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from sepcli.audio.blocks import BLOCK, Block
from sepcli.audio.cover import add_cover
from sepcli.audio.hidden import hidden_folder
from sepcli.audio.paths import exists, native
from sepcli.audio.read import MAX_CHANNELS, MAX_RATE, TAGS, VORBIS_ORDER
from sepcli.errors import AudioError, UsageError

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
DEPTHS = ("16", "24", "32f")
CLIPS = ("common", "rescale", "clamp", "none")

WAV_LIMIT = 2**32 - 2**16  # bytes of samples; a RIFF header counts to 4 GiB, and its tags want room too
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
# MP3's rates, with the bitrates (kbit/s) of each: MPEG 1, 2 and 2.5. Lower ones exist, but their frames have no room
# for the header that says where the song begins and ends: such stems would be late, and too long.
MP3_BITRATES = {
    **dict.fromkeys((32_000, 44_100, 48_000), (64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    **dict.fromkeys((16_000, 22_050, 24_000), (64, 80, 96, 112, 128, 160)),
    **dict.fromkeys((8_000, 11_025, 12_000), (32, 40, 48, 56, 64)),
}
# Nominal bitrates (kbit/s, two channels at 44.1 kHz) of Vorbis' qualities 0 to 10.
_VORBIS_BITRATES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 500)
_VORBIS_QUALITY = 0.7  # the default: nominally 224 kbit/s
_OPUS_BITRATE = 80  # the default, a channel


@dataclass(frozen=True)
class Format:
    """What stems are written as: container, depth of lossless ones, bitrate in kbit/s of lossy ones.

    Without a bitrate MP3 takes the highest (320), Vorbis quality 7, Opus 80 for each channel.
    """

    container: str = "wav"
    depth: str = "16"
    bitrate: int | None = None

    @property
    def extension(self) -> str:
        return self.container

    @property
    def lossless(self) -> bool:
        return self.container in ("wav", "flac")

    @property
    def clips(self) -> bool:
        """Whether samples beyond full scale are lost."""
        return (self.container, self.depth) != ("wav", "32f")


@dataclass(frozen=True)
class Written:
    """What became of a set: the gain (one for each stem where they differ), the peaks before it, the files' sizes."""

    gain: float | dict[str, float]
    frames: int
    peaks: dict[str, float]
    paths: dict[str, Path]
    bytes: dict[str, int]


def opus_rate(rate: int) -> int:
    """The rate at which Opus keeps a song of this rate."""
    return rate if rate in OPUS_RATES else 48_000


def check_format(format: Format, sample_rate: int, channels: int) -> None:
    """Raise UsageError where stems of this rate and so many channels cannot be written in this format."""
    if format.container not in FORMATS:
        raise UsageError(f"format {format.container!r} is not one of {', '.join(FORMATS)}")
    if format.depth not in DEPTHS:
        raise UsageError(f"bit depth {format.depth!r} is not one of {', '.join(DEPTHS)}")
    if format.bitrate is not None and format.lossless:
        raise UsageError(f"bitrate {format.bitrate} has no meaning for {format.container}, which is lossless")
    if why := _refusal(format.container, format.depth, sample_rate, channels):
        fit = [name for name in FORMATS if not _refusal(name, format.depth, sample_rate, channels)]
        hint = f"these can hold it: {', '.join(fit)}" if fit else ""
        raise UsageError(f"format {format.container}: {why}", hint)
    if format.bitrate is not None:
        _check_bitrate(format.container, format.bitrate, sample_rate, channels)


def _refusal(container: str, depth: str, rate: int, channels: int) -> str:
    """Why a container cannot hold stems of this rate and so many channels; empty where it can."""
    most = {"mp3": 2, "wav": MAX_CHANNELS}.get(container, 8)
    if channels > most:
        return f"{channels} channels are more than its {most}"
    if container == "flac":
        if depth == "32f":
            return "it has no 32-bit float samples"
        if rate > 655_350 or (rate > 65_535 and rate % 10):
            return f"{rate} Hz is not a rate of FLAC (to 65,535 Hz, then multiples of 10 to 655,350 Hz)"
    if container == "mp3" and rate not in MP3_BITRATES:
        return f"{rate} Hz is not a rate of MP3 ({', '.join(map(str, sorted(MP3_BITRATES)))} Hz)"
    if container == "ogg" and rate > 200_000:
        return f"{rate} Hz is beyond the 200,000 Hz of Ogg Vorbis"
    if container == "opus" and rate not in OPUS_RATES:
        return f"{rate} Hz is not a rate of Opus ({', '.join(map(str, OPUS_RATES))} Hz)"
    if container == "wav" and not 1 <= rate <= MAX_RATE:
        return f"{rate} Hz is outside 1 to {MAX_RATE} Hz"
    return ""


def _check_bitrate(container: str, bitrate: int, rate: int, channels: int) -> None:
    if container == "mp3" and bitrate not in MP3_BITRATES[rate]:
        allowed = ", ".join(map(str, MP3_BITRATES[rate]))
        raise UsageError(f"bitrate {bitrate}: MP3 at {rate} Hz knows {allowed} kbit/s")
    if container == "ogg" and not _VORBIS_BITRATES[0] <= bitrate <= _VORBIS_BITRATES[-1]:
        raise UsageError(f"bitrate {bitrate}: Ogg Vorbis goes from 64 to 500 kbit/s")
    if container == "opus" and not 6 * channels <= bitrate <= 256 * channels:
        raise UsageError(f"bitrate {bitrate}: Opus with {channels} channels: {6 * channels} to {256 * channels} kbit/s")


def _encoder(format: Format, rate: int, channels: int) -> dict[str, Any]:
    """The arguments of soundfile.SoundFile. libsndfile turns its compression level 0..1 into a bitrate by a line."""
    subtype = {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}[format.depth]
    if format.container == "mp3":
        high, low = MP3_BITRATES[rate][-1], 32 if rate >= 32_000 else 8
        level = (high - (format.bitrate or high)) / (high - low)
        encoder = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
        return encoder | {"compression_level": level}
    if format.container == "ogg":
        quality = _VORBIS_QUALITY
        if format.bitrate is not None:
            quality = float(np.interp(format.bitrate, _VORBIS_BITRATES, np.arange(11))) / 10
        return {"format": "OGG", "subtype": "VORBIS", "compression_level": 1 - quality}
    if format.container == "opus":
        each = _OPUS_BITRATE if format.bitrate is None else format.bitrate / channels
        return {"format": "OGG", "subtype": "OPUS", "compression_level": (256 - each) / 250}
    return {"format": format.container.upper(), "subtype": subtype}


class _Stem:
    """One stem's encoder: samples in, a file out."""

    def __init__(
        self, path: Path, format: Format, rate: int, channels: int, tags: Mapping[str, str], draw: np.random.Generator
    ) -> None:
        self.path, self.format, self.rate, self.channels = path, format, rate, channels
        self.tags, self.draw = tags, draw
        self.bits = {"16": 16, "24": 24, "32f": 0}[format.depth] if format.lossless else 0
        vorbis = VORBIS_ORDER.get(channels) if format.container in ("ogg", "opus") else None
        self.order = None if vorbis is None else np.argsort(vorbis)
        self.bytes = 0
        self.sound = self._open(**_encoder(format, rate, channels))

    def _open(self, **encoder: Any) -> Any:
        sound = soundfile.SoundFile(native(self.path), "w", self.rate, self.channels, **encoder)
        for key in TAGS:
            if text := " ".join(self.tags.get(key, "").replace("\0", " ").split()):
                with suppress(soundfile.LibsndfileError):  # a container without a place for it
                    setattr(sound, key, text[:2000])
        return sound

    def write(self, block: Block, gain: float, clamp: bool) -> None:
        """Write a block of at most 65,536 frames: more at once, and libsndfile's Vorbis encoder ends the process."""
        samples: npt.NDArray[Any] = block if gain == 1 else block * np.float64(gain)
        if self.bits:
            samples = quantise(samples, self.bits, self.draw)
        else:
            samples = np.clip(samples, -1, 1) if clamp or self.format.clips else samples
            samples = samples.astype(np.float32)
        if self.order is not None:
            samples = np.ascontiguousarray(samples[:, self.order])
        self.bytes += samples.size * (self.bits or 32) // 8
        if self.format.container == "wav" and self.bytes > WAV_LIMIT and self.sound.format == "WAV":
            self._become_rf64()
        self.sound.write(samples)

    def _become_rf64(self) -> None:
        """Go on in a file whose header can count further, with what was written so far."""
        self.sound.close()
        short = self.path.rename(self.path.with_suffix(".short"))
        encoder = _encoder(self.format, self.rate, self.channels)
        self.sound = self._open(**encoder | {"format": "RF64"})
        with soundfile.SoundFile(native(short)) as before:
            kind = {16: "int16", 24: "int32", 0: "float32"}[self.bits]
            while len(block := before.read(BLOCK, dtype=kind, always_2d=True)):
                self.sound.write(block)
        short.unlink()

    def finish(self, frames: int, cover: bytes) -> None:
        """Close, add the picture, read the length again, and have it on the disk."""
        self.sound.close()
        if cover:
            add_cover(self.path, cover, self.tags)
        with soundfile.SoundFile(native(self.path)) as sound:
            if (sound.frames, sound.samplerate, sound.channels) != (frames, self.rate, self.channels):
                raise OSError(errno.EIO, f"{sound.frames:,} of {frames:,} frames arrived on the disk")
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file if it is open still; what is wrong with it has been said."""
        with suppress(soundfile.LibsndfileError, OSError):
            self.sound.close()


def quantise(
    samples: npt.NDArray[np.floating[Any]], bits: int, draw: np.random.Generator
) -> npt.NDArray[np.int16 | np.int32]:
    """Samples (frames, channels), full scale 1, as int16, or as 24 bits in the upper part of int32.

    16 bits get dither of triangular density, two steps from end to end, before they are rounded; 24 bits none. Beyond
    full scale they stay at +-(2^(bits - 1) - 1). A block that lies on the steps already is kept as it is: silence, and
    samples that were only passed through.
    """
    full = 2.0 ** (bits - 1)
    scaled = np.asarray(samples, np.float64) * full
    whole = np.rint(scaled)
    if np.array_equal(whole, scaled):
        low = -full
    else:
        low = 1 - full
        if bits == 16:
            drawn = draw.random((*scaled.shape, 2))
            whole = np.rint(scaled + (drawn[..., 0] - drawn[..., 1]))
    whole = np.clip(whole, low, full - 1)
    return whole.astype(np.int16) if bits == 16 else (whole * 2.0 ** (32 - bits)).astype(np.int32)


def write_set(
    blocks: Iterable[Mapping[str, Block]],
    targets: Mapping[str, Path],
    *,
    format: Format,
    sample_rate: int,
    channels: int,
    clip: str = "common",
    seed: int = 0,
    tags: Mapping[str, str] = MappingProxyType({}),
    cover: bytes = b"",
    sidecar: Callable[[Written], tuple[Path, bytes]] | None = None,
    hidden_in: Path | None = None,
    stopped: Sequence[BaseException] = (),
) -> Written:
    """Write the stems of a song, whose blocks (frames, channels) come in step, to `targets`: all of them, or none.

    They are made in a hidden folder in `hidden_in`, else beside the first target, checked, and moved into place one by
    one, the sidecar last. Whatever stops it, what stood there before stands there afterwards. `cover`, a picture, goes
    into the formats that have a place for it.

    `clip` says what happens beyond full scale where the format clips: "common" lowers all stems of the song by the same
    gain, "rescale" each by its own, "none" lets them saturate. "clamp" saturates in 32-bit float too. The gain is known
    at the end of the song only: until then the stems wait in float files. An exception that another thread puts into
    `stopped` is raised at the next block.

    Raises UsageError before a block is asked for; AudioError where the disk is full or cannot be written, or a sample
    is not a number.
    """
    if clip not in CLIPS:
        raise UsageError(f"clip {clip!r} is not one of {', '.join(CLIPS)}")
    check_format(format, sample_rate, channels)
    parent = hidden_in or next(iter(targets.values())).parent
    with _hidden_folder(parent, list(targets.values())) as hidden, ExitStack() as open_files:
        told = partial(_told, hidden.parent)
        peaks = dict.fromkeys(targets, 0.0)
        gains = dict.fromkeys(targets, 1.0)
        source = _measured(blocks, peaks, sample_rate)
        if format.clips and clip in ("common", "rescale"):
            source = _spooled(source, {stem: hidden / f"{i}.f32" for i, stem in enumerate(targets)}, channels, told)
            highest = max(peaks.values())
            gains = {stem: 1 / max(1.0, highest if clip == "common" else peak) for stem, peak in peaks.items()}
        stems: dict[str, _Stem] = {}
        for i, name in enumerate(targets):
            with told():
                path = hidden / f"{i}.{format.extension}"
                stems[name] = _Stem(path, format, sample_rate, channels, tags, _draw(seed, name))
            open_files.callback(stems[name].abandon)
        # Encoders work outside Python's lock: an MP3 takes a tenth of what a network on one core does.
        crew = open_files.enter_context(ThreadPoolExecutor(min(len(stems), os.cpu_count() or 1), "sepcli-encode"))

        def write(name: str, samples: Block) -> int:
            with told():
                stems[name].write(samples, gains[name], clip == "clamp")
            return len(samples)

        frames = 0
        for block in source:
            for error in stopped:
                raise error
            frames += [*crew.map(write, block.keys(), block.values())][-1]
        if not frames:
            raise AudioError("there is no sound to write (0 frames)")
        for stem in stems.values():
            with told():
                stem.finish(frames, cover)
        common = max(gains.values()) if clip != "rescale" else gains
        sizes = {stem: stems[stem].path.stat().st_size for stem in targets}
        written = Written(common, frames, peaks, dict(targets), sizes)
        moves = [(stems[name].path, target) for name, target in targets.items()]
        if sidecar is not None:
            place, text = sidecar(written)
            moves.append((hidden / "sidecar", place))
            with told():
                _write_bytes(hidden / "sidecar", text)
        with told():
            _move(moves, hidden)
    return written


def _draw(seed: int, stem: str) -> np.random.Generator:
    return np.random.default_rng([abs(seed), *stem.encode()])


def _measured(
    blocks: Iterable[Mapping[str, Block]], peaks: dict[str, float], rate: int
) -> Iterator[Mapping[str, Block]]:
    """The blocks in pieces of at most 65,536 frames; the largest magnitude of each stem goes to `peaks`."""
    position = 0
    for block in blocks:
        lengths = {len(block[stem]) for stem in peaks}
        if len(lengths) != 1:
            raise ValueError(f"stems are not in step: {sorted(lengths)} frames in one block")
        for stem in peaks:
            peak = float(np.abs(block[stem]).max(initial=0))
            if not math.isfinite(peak):
                what = f"stem {stem}: a sample is not a finite number near {position / rate:.2f} s"
                raise AudioError(what, reason="nan")
            peaks[stem] = max(peaks[stem], peak)
        frames = lengths.pop()
        position += frames
        for first in range(0, frames, BLOCK):
            yield {stem: block[stem][first : first + BLOCK] for stem in peaks}


def _spooled(
    source: Iterable[Mapping[str, Block]],
    paths: Mapping[str, Path],
    channels: int,
    told: Callable[[], AbstractContextManager[None]],
) -> Iterator[Mapping[str, Block]]:
    """Everything that `source` gives, written as raw float32 at once, and read again as the result is asked for."""
    with ExitStack() as closing:
        with told():
            files = {stem: closing.enter_context(path.open("wb")) for stem, path in paths.items()}
        for block in source:
            with told():
                for stem, file in files.items():
                    file.write(np.ascontiguousarray(block[stem], np.float32).data)
        with told():
            for file in files.values():
                file.flush()
    return _unspooled(paths, channels)


def _unspooled(paths: Mapping[str, Path], channels: int) -> Iterator[Mapping[str, Block]]:
    with ExitStack() as closing:
        files = {stem: closing.enter_context(path.open("rb")) for stem, path in paths.items()}
        while True:
            block = {
                stem: np.fromfile(file, np.float32, BLOCK * channels).reshape(-1, channels)
                for stem, file in files.items()
            }
            if not all(map(len, block.values())):
                return
            yield block


# The hidden folder


@contextmanager
def _hidden_folder(parent: Path, targets: Sequence[Path]) -> Iterator[Path]:
    """A hidden folder in `parent`, gone afterwards, and the folders of all targets.

    After an exception the folders that were made for this set are gone too.
    """
    above = {folder for target in targets for folder in target.parents} | {parent, *parent.parents}
    missing = sorted((folder for folder in above if not exists(folder)), key=lambda folder: len(folder.parts))
    with ExitStack() as stack:
        try:
            with _told(parent):
                for folder in {parent, *(target.parent for target in targets)}:
                    folder.mkdir(parents=True, exist_ok=True)
                hidden = stack.enter_context(hidden_folder(parent))
            yield hidden
        except BaseException:
            stack.close()
            for folder in reversed(missing):
                with suppress(OSError):
                    folder.rmdir()
            raise


def _move(moves: Sequence[tuple[Path, Path]], hidden: Path) -> None:
    """Move files to their places in order; if one fails, the old state is brought back.

    The last, the sidecar, marks a whole set: an old one steps aside first and the new one arrives last, so that at no
    time a sidecar stands beside stems which are not its own.
    """
    aside: list[tuple[Path, Path]] = []
    arrived: list[Path] = []
    try:
        for i, (_, target) in reversed(list(enumerate(moves))):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file() or target.is_symlink():
                old = hidden / f"old-{i}"
                aside.append((old, target))
                target.replace(old)
        for made, target in moves:
            arrived.append(target)
            made.replace(target)
    except BaseException:
        for target in arrived:
            with suppress(OSError):
                target.unlink()
        for old, target in reversed(aside):
            if old.exists() or old.is_symlink():
                old.replace(target)
        raise
    for folder in {target.parent for _, target in moves}:
        with suppress(OSError):  # folders cannot be opened everywhere
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns what the disk and libsndfile raise while stems are written into AudioError, in one line."""
    try:
        yield
    except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full:
            with suppress(OSError):
                full = shutil.disk_usage(folder).free < 2**20
        if full:
            hint = "free some space, or choose another --out"
            raise AudioError(f"{folder}: the disk is full", hint, reason="io") from error
        why = (error.strerror if isinstance(error, OSError) else str(error)) or error or "the disk took fewer bytes"
        raise AudioError(f"{folder}: stems cannot be written: {why}", reason="io") from error
