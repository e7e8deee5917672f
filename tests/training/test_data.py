"""Songs with stems: what is found, what is refused, and that an excerpt is the slice of the whole."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sepcli.audio.read import open_song
from sepcli.audio.resample import resample
from sepcli.errors import AudioError, SepcliError, UsageError
from sepcli.training import data
from sepcli.training.data import Excerpts, Material, prepare
from sepcli.training.recipe import read_recipe, with_values
from sepcli.training.streams import stream_blocks
from sepcli.training.tracks import VALIDATION_SONGS, find_tracks, rows_of, split_tracks
from tests.training.songs import SOURCES, sound, write_data, write_song, write_streams

PLAIN: dict[str, Any] = {"data": {"excerpt": 0.5, "batch": 4}, "loss": {"name": "l1"}, "stop": {"epochs": 1}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(
    folder: Path, sources: tuple[str, ...] = SOURCES, *, rate: int = 44100, channels: int = 2, **how: Any
) -> list[Material]:
    tracks = find_tracks([folder], sources)
    return prepare(tracks, sources, rows_of(sources, tracks), sample_rate=rate, channels=channels, **how)


def excerpts(songs: list[Material], changes: dict[str, Any] | None = None, **how: Any) -> Excerpts:
    recipe = read_recipe(with_values(PLAIN, changes or {}), "x")
    rows = how.pop("rows", SOURCES)
    return Excerpts(songs, rows, recipe, 44100, 2, how.pop("level", {}), how.pop("seed", 0))


# An excerpt is the slice of the whole


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_an_excerpt_is_the_slice_of_the_full_decode(tmp_path: Path, suffix: str) -> None:
    write_song(tmp_path / "data" / "song", suffix=suffix)
    (song,) = prepared(tmp_path / "data")
    for source in SOURCES:
        whole = np.concatenate(list(open_song(tmp_path / "data" / "song" / f"{source}.{suffix}").blocks()))
        assert song.frames == len(whole) == 3 * 44100
        for start, stop in ((0, 1), (777, 45_000), (131_072, 132_300), (100_000, 132_300)):
            found = song.read(source, start, stop)
            assert found is not None
            assert np.array_equal(found, whole[start:stop])


def test_an_excerpt_of_an_m4a_is_the_slice_of_the_full_decode(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "song"
    folder.mkdir(parents=True)
    for index, source in enumerate(SOURCES):
        write_streams(folder / f"{source}.m4a", [sound(2, index)])
    (song,) = prepared(tmp_path / "data")
    for source in SOURCES:
        whole = np.concatenate(list(open_song(folder / f"{source}.m4a").blocks()))
        found = song.read(source, 12_345, 70_000)
        assert found is not None
        assert np.array_equal(found, whole[12_345:70_000])


def test_every_stream_of_a_stem_file_is_read_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    waves = [sound(2, seed) for seed in range(1, 5)]
    mixture = np.sum(waves, axis=0)
    path = write_streams(tmp_path / "data" / "A - B.stem.mp4", [mixture, *waves])
    (song,) = prepared(tmp_path / "data", mixtures=True)
    assert song.name == "A - B"
    for index, (source, wave) in enumerate(zip(("mixture", *SOURCES), [mixture, *waves], strict=True)):
        whole = np.concatenate(list(stream_blocks(path, index, 44100)))
        assert index or np.array_equal(whole, np.concatenate(list(open_song(path).blocks())))
        found = song.read(source, 22_222, 66_666)
        assert found is not None
        assert np.array_equal(found, whole[22_222:66_666])
        error = whole[len(whole) - len(wave) :] - wave  # what the encoder needs to begin comes first
        assert 10 * np.log10(np.square(wave).sum() / np.square(error).sum()) > 12, "AAC keeps time and order"


def test_another_rate_is_resampled_once_for_the_whole_song(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", rate=48000)
    (song,) = prepared(tmp_path / "data")
    blocks = open_song(tmp_path / "data" / "song" / "bass.wav").blocks()
    whole = np.concatenate(list(resample(blocks, 48000, 44100)))
    assert song.frames == 3 * 44100
    found = song.read("bass", 5_000, 90_000)
    assert found is not None
    assert np.array_equal(found, whole[5_000:90_000])


def test_mono_stems_serve_a_stereo_network_and_the_reverse(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "song")
    wave = sound(3, 5, channels=1)
    soundfile.write(folder / "bass.wav", wave, 44100, subtype="FLOAT")
    (song,) = prepared(tmp_path / "data")
    found = song.read("bass", 10, 20)
    assert found is not None
    assert np.array_equal(found, np.repeat(wave[10:20], 2, axis=1))
    (song,) = prepared(tmp_path / "data", channels=1)
    whole, _ = soundfile.read(folder / "drums.wav", dtype="float32")
    found = song.read("drums", 10, 20)
    assert found is not None
    assert found[:, 0] == pytest.approx(whole[10:20].mean(1), abs=1e-7)


# What is found


def test_folders_named_train_valid_and_test_decide(tmp_path: Path) -> None:
    for subset in ("train", "valid", "test"):
        write_song(tmp_path / "data" / subset / f"song {subset}", seconds=0.1)
    tracks = find_tracks([tmp_path / "data"], SOURCES)
    train, valid = split_tracks(tracks, "musdb18", lambda _: None)
    assert [track.name for track in train] == ["song train"]
    assert [track.name for track in valid] == ["song valid"]


def test_the_published_names_validate(tmp_path: Path) -> None:
    assert len(VALIDATION_SONGS) == len(set(VALIDATION_SONGS)) == 14
    for name in (VALIDATION_SONGS[3], "another", "one more"):
        write_song(tmp_path / "data" / "train" / name, seconds=0.1)
    train, valid = split_tracks(find_tracks([tmp_path / "data"], SOURCES), "musdb18", lambda _: None)
    assert [track.name for track in valid] == ["Patrick Talbot - A Reason To Leave"]
    assert [track.name for track in train] == ["another", "one more"]


def test_otherwise_one_song_in_seven_validates_always_the_same(tmp_path: Path) -> None:
    write_data(tmp_path / "data", songs=14, seconds=0.01)
    said: list[str] = []
    tracks = find_tracks([tmp_path / "data"], SOURCES)
    train, valid = split_tracks(tracks, "musdb18", said.append)
    again = split_tracks(list(reversed(tracks)), "", said.append)[1]
    assert (len(train), len(valid)) == (12, 2)
    assert {track.name for track in valid} == {track.name for track in again}
    assert "validating with" in said[0]


def test_several_folders_are_one_data_set_and_a_song_counts_once(tmp_path: Path) -> None:
    write_data(tmp_path / "one", seconds=0.1)
    write_song(tmp_path / "two" / "third", seconds=0.1)
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "one"]
    with pytest.raises(UsageError, match="holds no songs"):
        find_tracks(folders, SOURCES)
    assert len(find_tracks(folders[:2], SOURCES)) == 3


def test_a_link_to_a_folder_above_is_not_followed_without_end(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song")
    for place in (tmp_path / "data", tmp_path / "data" / "song"):
        (place / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    assert [track.name for track in find_tracks([tmp_path / "data"], SOURCES)] == ["song"]
    (tmp_path / "other").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(find_tracks([tmp_path / "other"], SOURCES)) == 1, "a folder that is named itself may be a link"


def test_accompaniment_is_the_sum_of_the_rest(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", stems=("drums", "bass", "piano", "vocals"))
    (song,) = prepared(tmp_path / "data", ("vocals", "accompaniment"))
    assert set(song.rows) == {"vocals", "accompaniment"}
    parts = [soundfile.read(tmp_path / "data" / "song" / f"{n}.wav", dtype="float32")[0] for n in ("drums", "bass")]
    piano = soundfile.read(tmp_path / "data" / "song" / "piano.wav", dtype="float32")[0]
    found = song.read("accompaniment", 100, 5000)
    assert found == pytest.approx((parts[0] + parts[1] + piano)[100:5000], abs=1e-7)


def test_a_sum_that_lies_beside_its_parts_is_not_counted_twice(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", stems=(*SOURCES, "accompaniment"))
    (song,) = prepared(tmp_path / "data", ("vocals", "accompaniment"))
    assert len(song.rows["accompaniment"]) == 1
    (song,) = prepared(tmp_path / "data")
    assert set(song.rows) == set(SOURCES)
    assert len(song.rows["other"]) == 1


def test_one_source_is_trained_in_the_whole_mixture(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song")
    tracks = find_tracks([tmp_path / "data"], ("vocals",))
    rows = rows_of(("vocals",), tracks)
    assert rows == ("vocals", "bass", "drums", "other")
    (song,) = prepare(tracks, ("vocals",), rows, sample_rate=44100, channels=2)
    item = excerpts([song], rows=rows)[0, 0]
    assert item.shape == (4, 2, 22050)
    assert float(item.abs().amax(dim=(1, 2)).min()) > 0


def test_single_source_material_mixes_in(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song")
    (tmp_path / "data" / "vocals").mkdir()
    soundfile.write(tmp_path / "data" / "vocals" / "alto.wav", sound(1, 50), 44100)
    songs = prepared(tmp_path / "data")
    assert [(song.name, song.single) for song in songs] == [("song", False), ("vocals/alto", True)]
    with pytest.raises(UsageError, match="single-source"):
        excerpts(songs)
    mixed = excerpts(songs, {"augment.mix": True})
    assert [song.name for song in mixed.having["vocals"]] == ["song", "vocals/alto"]
    assert [song.name for song in mixed.having["drums"]] == ["song"]


def test_a_share_of_the_items_stays_one_song(tmp_path: Path) -> None:
    songs = prepared(write_data(tmp_path / "data", songs=2))
    whole = [tuple(song.read(row, 0, 22050).tobytes() for row in SOURCES) for song in songs]
    shares = {}
    for intact in (0.0, 0.5, 1.0):
        found = excerpts(
            songs, {"augment.mix": True, "augment.intact": intact, "data.stride": 0.1, "data.excerpt": 3.0}
        )
        items = [found[0, index] for index in range(len(found))] + [found[1, index] for index in range(len(found))]
        kept = [tuple(row.T.contiguous().numpy()[:22050].tobytes() for row in item) in whole for item in items]
        shares[intact] = sum(kept) / len(kept)
    assert shares[1.0] == 1
    assert shares[0.0] < 1


def test_songs_below_a_named_folder_are_mixed_in_more_often(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "rare" / "one")
    write_song(tmp_path / "data" / "often" / "two")
    mixed = excerpts(prepared(tmp_path / "data"), {"augment.mix": True, "data.weights": {"often": 3}})
    assert sorted(song.name for song in mixed.having["drums"]) == ["one", "two", "two", "two"]
    assert len(mixed.songs) == 2


def test_mixed_sources_of_one_loudness_are_looked_for_where_they_sound(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", seconds=6)
    voice = sound(6, 50)
    voice[: 3 * 44100] = 0
    soundfile.write(tmp_path / "data" / "song" / "vocals.wav", voice, 44100)
    songs = prepared(tmp_path / "data")
    silent = {}
    for even in (False, True):
        found = excerpts(songs, {"augment.mix": True, "augment.even": even, "data.draws": 60})
        silent[even] = sum(not found[0, index][3].any() for index in range(60))
    assert 15 <= silent[False] <= 45, "about half of the places"
    assert silent[True] <= 10, "about one in sixteen, after four tries"


# What is refused


def refused(kind: type[SepcliError], folder: Path, **how: Any) -> str:
    with pytest.raises(kind) as caught:
        prepared(folder, **how)
    return str(caught.value)


def test_a_song_that_lacks_a_source_is_named(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "good")
    write_song(tmp_path / "data" / "poor", stems=("drums", "vocals", "other"))
    text = refused(UsageError, tmp_path / "data")
    assert "poor: has no bass" in text
    assert "--absent-stems" in text
    songs = prepared(tmp_path / "data", absent="silence")
    assert songs[1].read("bass", 0, 10) is None


def test_stems_of_unequal_length_are_named(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "uneven")
    soundfile.write(folder / "bass.wav", sound(2.5, 1), 44100)
    text = refused(AudioError, tmp_path / "data")
    assert "uneven" in text
    assert "bass.wav 110,250" in text


def test_stems_of_unequal_rate_are_named(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "rates")
    soundfile.write(folder / "bass.wav", sound(3, 1, 48000), 48000)
    text = refused(AudioError, tmp_path / "data")
    assert "rates" in text
    assert "bass.wav 48000 Hz" in text


def test_a_damaged_stem_is_named(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "broken")
    (folder / "bass.wav").write_bytes(b"RIFF nonsense")
    assert "broken/bass.wav" in refused(AudioError, tmp_path / "data")


def test_a_source_that_is_silent_everywhere_is_named(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "quiet")
    soundfile.write(folder / "bass.wav", np.zeros((3 * 44100, 2)), 44100)
    assert "bass is silent or absent in all of the 1 songs" in refused(UsageError, tmp_path / "data")


def test_where_no_song_is_left_to_validate_with_that_is_said() -> None:
    with pytest.raises(UsageError, match="no songs to validate with") as caught:
        prepare([], ("vocals",), ("vocals",), sample_rate=44100, channels=2, mixtures=True)
    assert "--absent-stems silence" in caught.value.hint
    assert prepare([], ("vocals",), ("vocals",), sample_rate=44100, channels=2, absent="silence", mixtures=True) == []


def test_songs_to_validate_with_may_lack_a_source_where_silence_is_asked_for(tmp_path: Path) -> None:
    write_song(tmp_path / "a", stems=("bass", "vocals"))
    (song,) = prepared(tmp_path, absent="silence", mixtures=True)
    assert "drums" not in song.rows
    with pytest.raises(UsageError, match="drums is silent or absent in all of the 1 songs"):
        prepared(tmp_path, absent="silence")


def test_two_files_for_one_stem_are_named(tmp_path: Path) -> None:
    folder = write_song(tmp_path / "data" / "double")
    soundfile.write(folder / "bass.flac", sound(3, 1), 44100)
    assert "bass.flac" in refused(UsageError, tmp_path / "data")


def test_a_folder_without_songs_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no songs" in refused(UsageError, tmp_path / "empty")


# What is remembered


def test_what_was_measured_is_remembered_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_song(tmp_path / "data" / "song", suffix="ogg")
    (first,) = prepared(tmp_path / "data")
    before = {path.name for path in (cache / "songs").iterdir()}
    assert len(before) == 5, "four decoded stems and what was measured"
    counted: list[int] = []
    measure = data._measure
    monkeypatch.setattr(data, "_measure", lambda stems: counted.append(1) or measure(stems))
    (again,) = prepared(tmp_path / "data")
    assert counted == []
    assert again == first
    soundfile.write(folder / "bass.ogg", sound(3, 77), 44100)
    os.utime(folder / "bass.ogg", ns=(1, 1))
    (changed,) = prepared(tmp_path / "data")
    assert counted == [1]
    assert changed.stamp != first.stamp


def test_a_full_disk_leaves_no_half_decoded_copy(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_song(tmp_path / "data" / "song", suffix="ogg")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    text = refused(AudioError, tmp_path / "data")
    assert "No space left" in text
    assert "SEPCLI_CACHE" in text
    assert list((cache / "songs").iterdir()) == []


# Excerpts


def test_an_epoch_has_an_excerpt_every_stride(tmp_path: Path) -> None:
    write_data(tmp_path / "data", seconds=3.0)
    items = excerpts(prepared(tmp_path / "data"))
    assert len(items) == 2 * 4, "at 0, 1, 2 and 3 seconds, the last filled with zeros"
    assert sorted(items.permuted(0)) == list(range(8))
    assert items.permuted(0) != items.permuted(1)


def test_an_item_is_the_same_whoever_asks(tmp_path: Path) -> None:
    write_data(tmp_path / "data", seconds=3.0)
    songs = prepared(tmp_path / "data")
    changes = {"augment.mix": True, "data.draws": 3}
    one, other = excerpts(songs, changes), excerpts(songs, changes)
    assert len(one) == 6
    expected = [one[1, index] for index in range(6)]
    assert all(torch.equal(other[1, index], expected[index]) for index in reversed(range(6)))
    assert not torch.equal(excerpts(songs, changes, seed=1)[1, 0], expected[0])


def test_short_songs_are_filled_with_zeros(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", seconds=0.2)
    item = excerpts(prepared(tmp_path / "data"))[0, 0]
    assert item.shape == (4, 2, 22050)
    assert bool((item[..., 8820:] == 0).all())
    assert float(item[..., :8820].abs().max()) > 0.1


def test_a_song_is_brought_to_the_level_that_inference_brings_it_to(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", seconds=0.5)
    songs = prepared(tmp_path / "data")
    mixture = excerpts(songs, level={"deviation": 1.0})[0, 0].sum(0)
    mono = mixture.mean(0).double()
    assert float(mono.std()) == pytest.approx(1.0, rel=1e-5)
    assert float(mono.mean()) == pytest.approx(0.0, abs=1e-5)
    loudest = excerpts(songs, level={"peak": 0.8})[0, 0].sum(0).max()
    assert float(loudest) == pytest.approx(0.8, rel=1e-5)
