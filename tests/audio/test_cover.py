"""The picture of a song reaches its stems, and the sound stays as it was."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.audio.cover import add_cover, read_cover
from sepcli.audio.read import open_song

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 30
TAGS = {"title": "Ä long title with more than thirty characters", "artist": "Näme", "tracknumber": "3"}


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
@pytest.mark.parametrize("long_title", [False, True])
def test_a_picture_comes_back_and_the_sound_is_the_same(suffix: str, long_title: bool, noise, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    tags = TAGS if long_title else {"title": "short"}
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for key, text in tags.items():
            setattr(file, key, text)
        file.write(noise(50_000))
    before = np.concatenate(list(open_song(path).blocks()))
    assert read_cover(path) == b""
    add_cover(path, PICTURE, tags)
    assert read_cover(path) == PICTURE
    song = open_song(path)
    assert np.array_equal(np.concatenate(list(song.blocks())), before)
    assert song.frames == 50_000
    assert song.tags["title"] == tags["title"]


def test_a_file_without_a_place_for_pictures_is_left_alone(noise, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(100), 44100)
    before = path.read_bytes()
    add_cover(path, PICTURE)
    assert path.read_bytes() == before
    assert read_cover(path) == b""
    assert read_cover(tmp_path / "missing") == b""
