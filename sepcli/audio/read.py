"""Songs: what soundfile opens, and through PyAV what it cannot (m4a, mp4, video)."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from sepcli.audio.blocks import BLOCK, Block, reblock
from sepcli.errors import AudioError

MAX_CHANNELS = 64  # a header may claim a thousand; each block would have to be allocated for them
MAX_RATE = 768_000
_ENDLESS = 2**40  # libsndfile's word for "unknown" is a number beyond this one

TAGS = ("title", "artist", "album", "tracknumber", "date", "genre", "comment")

# The smallest of our output depths that holds a lossless subtype of libsndfile; what is not here is lossy.
_DEPTHS = {
    **dict.fromkeys(("PCM_S8", "PCM_U8", "PCM_16", "ALAW", "ULAW", "DPCM_8", "DPCM_16", "ALAC_16"), "16"),
    **dict.fromkeys(("DWVW_12", "DWVW_16"), "16"),
    **dict.fromkeys(("PCM_24", "ALAC_20", "ALAC_24", "DWVW_24"), "24"),
    **dict.fromkeys(("PCM_32", "FLOAT", "DOUBLE", "ALAC_32"), "32f"),
}
# The same for FFmpeg's lossless codecs, by sample format: those of 24 bits are decoded to s32.
_AV_LOSSLESS = ("alac", "flac", "wavpack", "tta", "ape", "tak", "mlp", "truehd", "shorten")
_AV_DEPTHS = {"u8": "16", "s16": "16", "s32": "24", "s64": "32f", "flt": "32f", "dbl": "32f"}

# Containers, none of which makes the reader open another file or an address, as playlists and image lists do.
_AV_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,ac3,eac3,dts,truehd,mp3,mpeg,mpegts,asf,avi,flv,wv,ape,tta,tak,caf,"
    "aiff,wav,w64,flac,ogg,amr,au,rm,mpc,mpc8,shn"
)

# libsndfile leaves Vorbis and Opus in Vorbis' own order of channels; this is each WAV channel's place in it.
VORBIS_ORDER: dict[int, list[int]] = {
    3: [0, 2, 1],
    5: [0, 2, 1, 3, 4],
    6: [0, 2, 1, 5, 3, 4],
    7: [0, 2, 1, 6, 5, 3, 4],
    8: [0, 2, 1, 7, 5, 6, 3, 4],
}


@dataclass(frozen=True)
class Song:
    """An opened recording; `blocks` decodes it, as often as it is asked."""

    path: Path
    sample_rate: int
    channels: int
    frames: int | None  # None where the container does not say, or says what cannot be relied on
    depth: str  # "16", "24" or "32f", which holds every sample of a lossless file; "" for lossy ones
    tags: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "soundfile"  # or "mpeg", soundfile's too, which may end before its header says; or "av"

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Frames start..stop, decoded afresh, in the channel order of WAV; how many come is the song's true length.

        Raises AudioError, naming the second, where the file is damaged, ends before its header says, or holds a
        sample that is not a number. An MP3 that was cut off ends where it ends.
        """
        # Seeking is exact in lossless files only: libsndfile's MP3 loses the overlap, its Vorbis errs near the end.
        first = start if self.decoder == "soundfile" and self.depth else 0
        pieces = _av_pieces(self) if self.decoder == "av" else _soundfile_pieces(self, first, stop)
        position = start
        for block in reblock(_between(pieces, start - first, None if stop is None else stop - first)):
            if not np.isfinite(block).all():
                bad = position + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise AudioError(f"{self.path}: a sample is not a number {self.time(bad)}", reason="nan")
            position += len(block)
            yield block

    def time(self, position: int) -> str:
        """A position in words, for errors."""
        return f"at {position / self.sample_rate:.2f} s"


def open_song(path: Path) -> Song:
    """Open a file for reading; raises AudioError, in one line, for whatever is not a song with at least one frame."""
    try:
        with _opened(path) as file:
            song = _open_soundfile(path, file) or _open_av(path, file)
            if not 1 <= song.sample_rate <= MAX_RATE:
                raise AudioError(f"{path}: sample rate {song.sample_rate} Hz is outside 1 to {MAX_RATE}")
            if not 1 <= song.channels <= MAX_CHANNELS:
                raise AudioError(f"{path}: {song.channels} channels; 1 to {MAX_CHANNELS} can be separated")
            if song.decoder == "mpeg" and not _length_is_whole(file):
                song = replace(song, frames=None)
            if song.frames is not None:
                _refuse_cut_off(path, file, song.frames)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}", reason="io") from error
    if next(song.blocks(0, 1), None) is None:
        raise AudioError(f"{path}: holds no sound (0 frames)")
    return song


def _opened(path: Path) -> BinaryIO:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"{path}: no such file", reason="io") from None
    except ValueError as error:  # a zero byte in the name
        raise AudioError(f"{path!r}: {error}", reason="io") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path}: is a folder, not a song", reason="io")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: is not a regular file", reason="io")
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty")
    return path.open("rb", buffering=0)  # libsndfile reads from the same descriptor


def _between(pieces: Iterable[Block], start: int, stop: int | None) -> Iterator[Block]:
    """Frames start..stop of the pieces' frames."""
    position = 0
    if stop is not None and stop <= start:
        return
    for piece in pieces:
        yield piece[max(0, start - position) : None if stop is None else max(0, stop - position)]
        position += len(piece)
        if stop is not None and position >= stop:
            return


# soundfile


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from one end to the other.

    soundfile seeks to where it stands after each read of a seekable file. For MP3 with a variable bitrate that is not
    where it stood: the decoder's overlap is lost, and the next thousand samples are wrong.
    """

    def seekable(self) -> bool:
        return False


def _open_soundfile(path: Path, file: BinaryIO) -> Song | None:
    try:
        with _Forward(file.fileno(), closefd=False) as sound:
            tags = {key: text for key, text in sound.copy_metadata().items() if key in TAGS and text}
            return Song(
                path,
                sound.samplerate,
                sound.channels,
                frames=sound.frames if sound.frames < _ENDLESS else None,
                depth=_DEPTHS.get(sound.subtype, ""),
                tags=tags,
                decoder="mpeg" if sound.subtype.startswith("MPEG") else "soundfile",
            )
    except soundfile.LibsndfileError:
        file.seek(0)
        return None


def _soundfile_pieces(song: Song, first: int, stop: int | None) -> Iterator[Block]:
    """What libsndfile decodes from frame `first` on, at least up to `stop`."""
    position = first
    end = song.frames if stop is None or song.frames is None else min(stop, song.frames)
    if end is not None and first and first >= end:
        return
    with _opened(song.path) as file, _told(song, first), _Forward(file.fileno(), closefd=False) as sound:
        if (sound.samplerate, sound.channels) != (song.sample_rate, song.channels):
            raise AudioError(f"{song.path}: has changed since it was opened", reason="io")
        vorbis = VORBIS_ORDER.get(song.channels) if sound.subtype in ("VORBIS", "OPUS") else None
        if first:
            sound.seek(first)
        while stop is None or position < stop:
            with _told(song, position):
                size = BLOCK if stop is None else min(BLOCK, stop - position)
                block: Block = sound.read(out=np.empty((size, song.channels), np.float32))
            if not len(block):
                break
            position += len(block)
            yield block if vorbis is None else block[:, vorbis]
    if end is not None and position < end and song.decoder != "mpeg":
        raise AudioError(f"{song.path}: damaged: {position:,} of {song.frames:,} frames can be decoded")


@contextmanager
def _told(song: Song, position: int) -> Iterator[None]:
    """Turns what libsndfile and the disk raise while a song is decoded into AudioError with the second."""
    try:
        yield
    except (soundfile.LibsndfileError, OSError) as error:
        why = str(error).removeprefix("Error : ").rstrip(". ")
        whole = f" ({position:,} of {song.frames:,} frames)" if song.frames else ""
        raise AudioError(f"{song.path}: damaged or cut off {song.time(position)}{whole}: {why}") from error


def _length_is_whole(file: BinaryIO) -> bool:
    """Whether an MP3 states its length in its first frame, and the file is long enough for the bytes that it states.

    The Xing or Info header: flags, then frames (flag 1) and bytes (flag 2), big-endian. Without it libsndfile guesses
    the length from the first frame's bitrate.
    """
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3" and len(head) == 10:  # four bytes of seven bits, then maybe a footer
        tag = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        tag += 10 if head[5] & 16 else 0
    file.seek(tag)
    frame = file.read(4096)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0 or len(frame) < place + 16 or frame[place + 7] & 3 != 3:
        return False
    stated = int.from_bytes(frame[place + 12 : place + 16], "big")
    return os.fstat(file.fileno()).st_size - tag >= stated > 0


def _refuse_cut_off(path: Path, file: BinaryIO, frames: int) -> None:
    """Raise AudioError where a WAV's header promises more frames than the file holds; libsndfile says nothing."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        return
    order: Any = "big" if head[:4] == b"RIFX" else "little"
    long = 0
    place = 12
    for _ in range(1000):
        file.seek(place)
        chunk = file.read(24)
        if len(chunk) < 8:
            return
        name, stated = chunk[:4], int.from_bytes(chunk[4:8], order)
        if name == b"ds64":
            long = int.from_bytes(chunk[16:24], "little")
        if name == b"data":
            break
        place += 8 + stated + stated % 2
    else:
        return
    if stated == 0xFFFFFFFF and long:
        stated = long
    elif stated >= 0xFFFFF000 or 0x7FFFF000 <= stated < 0x80000000:
        return  # written into a pipe: the length was not known
    there = size - place - 8
    if stated <= there:
        return
    if not frames:
        raise AudioError(f"{path}: cut off: none of its frames are there")
    promised = stated // (there // frames) if there >= frames else stated * frames // there
    if promised > frames:
        raise AudioError(f"{path}: cut off: {frames:,} of {promised:,} frames are there")


# PyAV


def _open_av(path: Path, file: BinaryIO) -> Song:
    try:
        import av
    except ImportError:
        raise AudioError(f"{path}: is no audio that soundfile can open", "pip install av for m4a and video") from None
    try:
        with _av_container(file) as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no audio stream")
            stream = container.streams.audio[0]
            tags: dict[str, str] = {}
            for key, text in [*container.metadata.items(), *stream.metadata.items()]:
                key = {"track": "tracknumber"}.get(key.lower(), key.lower())
                if key in TAGS and text:
                    tags.setdefault(key, str(text))
            frame = next((frame for frame in container.decode(stream) if frame.samples), None)
            if frame is None:
                raise AudioError(f"{path}: holds no sound (0 frames)")
            codec = stream.codec_context.name
            kind = frame.format.name.removesuffix("p")
            lossless = codec in _AV_LOSSLESS or codec.startswith("pcm_")
            depth = ("32f" if codec.startswith("pcm_s32") else _AV_DEPTHS.get(kind, "")) if lossless else ""
            return Song(path, frame.sample_rate, len(frame.layout.channels), None, depth, tags, "av")
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise AudioError(f"{path}: is not audio, or too damaged to open") from error


def _av_container(file: BinaryIO) -> Any:
    import av

    return av.open(file, metadata_errors="replace", options={"format_whitelist": _AV_CONTAINERS})


def _av_pieces(song: Song) -> Iterator[Block]:
    """What FFmpeg decodes of the first audio stream.

    It drops what an edit list or a codec's delay puts before the song. What an encoder appended behind it is known from
    the last packet's duration, which in mp4 is shorter than the packet's frame.
    """
    import av

    position = 0
    try:
        with _opened(song.path) as file, _av_container(file) as container:
            stream = container.streams.audio[0]
            exact = "mp4" in container.format.name
            held: Any = None  # the last frame, until it is known whether all of it belongs to the song
            end: Fraction | None = None
            for packet in container.demux(stream):
                if packet.pts is not None and packet.duration:
                    end = (packet.pts + packet.duration) * packet.time_base
                for frame in packet.decode():
                    if held is not None:
                        block = _av_block(song, held)
                        position += len(block)
                        yield block
                    held = frame
            if held is not None:
                block = _av_block(song, held)
                if exact and end is not None and held.pts is not None:
                    block = block[: max(0, round((end - held.pts * held.time_base) * song.sample_rate))]
                yield block
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"{song.path}: damaged {song.time(position)}") from error


def _av_block(song: Song, frame: Any) -> Block:
    if (frame.sample_rate, len(frame.layout.channels)) != (song.sample_rate, song.channels):
        raise AudioError(f"{song.path}: its sample rate or channels change on the way")
    samples: npt.NDArray[Any] = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, song.channels)
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(np.float32)
