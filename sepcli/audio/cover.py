"""The picture that a song carries, and its way into stems: a FLAC block, or an ID3 tag before an MP3.

libsndfile knows no pictures. Ogg would want its pages written anew, and WAV has no place that players look at.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

LARGEST = 8 * 2**20
"""Bytes of the largest picture that is carried over; a block of FLAC ends at 16 MiB."""

KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
FRONT = 3
FRAMES = {  # of ID3v2.4, https://id3.org/id3v2.4.0-frames
    "title": "TIT2",
    "artist": "TPE1",
    "album": "TALB",
    "tracknumber": "TRCK",
    "date": "TDRC",
    "genre": "TCON",
    "comment": "COMM",
}


def holds_cover(container: str) -> bool:
    return container in ("flac", "mp3")


def read_cover(path: Path) -> bytes:
    """The picture of a song, JPEG or PNG; empty where there is none, or none that can be had."""
    try:
        import av
    except ImportError:
        return b""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            for stream in container.streams.video:
                if not stream.disposition & av.stream.Disposition.attached_pic:
                    continue
                for packet in container.demux(stream):
                    picture = bytes(packet)
                    return picture if kind_of(picture) and len(picture) <= LARGEST else b""
    except (av.FFmpegError, OSError, ValueError, AttributeError):
        pass
    return b""


def kind_of(picture: bytes) -> str:
    """The MIME type of a picture by how it begins; empty for what is neither JPEG nor PNG."""
    return next((kind for sign, kind in KINDS.items() if picture.startswith(sign)), "")


def add_cover(path: Path, picture: bytes, tags: Mapping[str, str] = MappingProxyType({})) -> None:
    """Put a picture into a finished FLAC or MP3 file; `tags` are written again where they share the picture's place.

    Raises OSError. Any other file is left as it is.
    """
    aside = path.with_name(f"{path.name}.cover")
    with path.open("rb") as file:
        start = file.read(42)
        if start[:4] == b"fLaC" and len(start) == 42:
            head, rest = start + flac_block(picture), 42  # behind the first block, which is always 34 bytes long
        elif path.suffix == ".mp3":
            head, rest = id3(picture, tags), length_of_id3(start)
        else:
            return
        file.seek(rest)
        with aside.open("wb") as made:
            made.write(head)
            shutil.copyfileobj(file, made, 1 << 20)
    aside.replace(path)


def flac_block(picture: bytes) -> bytes:
    """A block PICTURE (type 6, not the last): kind, MIME type, no words, size unknown, the picture. RFC 9639, 8.8."""

    def number(value: int) -> bytes:
        return value.to_bytes(4, "big")

    mime = kind_of(picture).encode()
    body = number(FRONT) + number(len(mime)) + mime + number(0) * 5 + number(len(picture)) + picture
    return bytes([6]) + len(body).to_bytes(3, "big") + body


def id3(picture: bytes, tags: Mapping[str, str]) -> bytes:
    """An ID3v2.4 tag with texts in UTF-8 and the picture."""
    frames = b""
    for key, name in FRAMES.items():
        if text := tags.get(key, "").replace("\0", " ").strip():
            content = b"\x03" + (b"und\0" if name == "COMM" else b"") + text[:2000].encode("utf-8", "replace")
            frames += name.encode() + seven_bits(len(content)) + b"\0\0" + content
    content = b"\0" + kind_of(picture).encode() + b"\0" + bytes([FRONT]) + b"\0" + picture
    frames += b"APIC" + seven_bits(len(content)) + b"\0\0" + content
    return b"ID3\x04\0\0" + seven_bits(len(frames)) + frames


def seven_bits(number: int) -> bytes:
    """A number as ID3 has it: four bytes of seven bits."""
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def length_of_id3(start: bytes) -> int:
    """How many bytes the ID3v2 tag at the start of a file takes; 0 where there is none."""
    if start[:3] != b"ID3" or len(start) < 10:
        return 0
    return 10 + sum((byte & 127) << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
