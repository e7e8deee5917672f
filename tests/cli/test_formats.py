"""Every input format to every output format: in place, of one length, and the same sound where nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.audio import write
from sepcli.audio.cover import add_cover, read_cover
from sepcli.audio.read import open_song
from tests import passthrough
from tests.audio.test_read import encode, lag

FRAMES, RATE = 60_017, 44_100
INPUTS = {
    "wav": {"subtype": "PCM_16"},
    "w64": {"subtype": "PCM_24"},
    "aiff": {"subtype": "PCM_24"},
    "caf": {"subtype": "FLOAT"},
    "flac": {"subtype": "PCM_24"},
    "mp3": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "m4a": {"codec": "aac"},
    "mkv": {"codec": "flac"},
    "mp4": {"codec": "alac"},
}
LOSSLESS = {"wav", "w64", "aiff", "caf", "flac", "mkv", "mp4"}


def eleven_clicks(rate: int) -> np.ndarray:
    """Eleven short bursts at uneven places in 1.36 s, the two channels unlike."""
    draw = np.random.default_rng(11)
    frames = FRAMES if rate == RATE else FRAMES * rate // RATE
    sound = np.zeros((frames, 2), np.float32)
    for index in range(11):
        place = int((index + 0.3 + 0.4 * draw.random()) * frames / 11)
        burst = draw.standard_normal((200, 2)) * np.exp(-np.arange(200) / 60)[:, None]
        sound[place : place + 200] += (0.5 * burst / np.abs(burst).max()).astype(np.float32)
    return sound


def make(folder: Path, name: str) -> Path:
    path, options = folder / f"song.{name}", dict(INPUTS[name])
    rate = 48_000 if name == "opus" else RATE
    if codec := options.pop("codec", None):
        pytest.importorskip("av")
        encode(path, eleven_clicks(rate), rate, codec)
    else:
        with soundfile.SoundFile(path, "w", rate, 2, **options) as file:
            file.write(eleven_clicks(rate))
    return path


def decoded(path: Path) -> tuple[np.ndarray, int]:
    song = open_song(path)
    return np.concatenate(list(song.blocks())), song.sample_rate


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg", "opus"])
@pytest.mark.parametrize("name", INPUTS)
def test_clicks_stay_in_place(name: str, container: str, sepcli, tmp_path: Path) -> None:
    path = make(tmp_path, name)
    mixture, rate = decoded(path)
    done = sepcli(path, "--format", container)
    assert done.code == 0, done.err
    for stem in map(Path, done.lines):
        found, out_rate = decoded(tmp_path / stem)
        share = passthrough.SHARES[stem.stem]
        assert out_rate == (48_000 if container == "opus" else rate)
        assert len(found) == round(len(mixture) * out_rate / rate)
        wanted = mixture
        if out_rate != rate:
            import soxr

            wanted = soxr.resample(mixture, rate, out_rate)[: len(found)]
        assert lag(wanted, found) == 0
        if name in LOSSLESS and container in ("wav", "flac"):
            error = np.sqrt(np.mean(np.square(found - share * mixture)))
            assert 20 * np.log10(error + 1e-30) < -90


@pytest.mark.parametrize("depth", ["16", "24", "32f"])
def test_the_depth_is_the_inputs_where_it_is_not_named(depth: str, sepcli, song, tmp_path: Path) -> None:
    subtype = {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}[depth]
    done = sepcli(song("a.wav", seconds=0.1, subtype=subtype))
    assert soundfile.info(done.lines[0]).subtype == subtype
    assert soundfile.info(sepcli(song("b.mp3", seconds=0.1)).lines[0]).subtype == "PCM_16"


@pytest.mark.parametrize(
    ("made", "arguments", "words"),
    [
        ({"channels": 6}, ["--format", "mp3"], ["6 channels", "wav, flac, ogg"]),
        ({"rate": 96_000}, ["--format", "mp3"], ["96000 Hz", "wav, flac, ogg"]),
        ({}, ["--format", "mp3", "--bitrate", "333"], ["bitrate 333"]),
        ({}, ["--bitrate", "320"], ["--bitrate 320: wav is lossless"]),
        ({}, ["--format", "flac", "--bit-depth", "32f"], ["flac has no float samples"]),
    ],
    ids=str,
)
def test_a_format_that_cannot_hold_the_stems_is_refused_before_the_work(
    made, arguments, words, sepcli, song, tmp_path: Path
) -> None:
    song("in/fine.wav", seconds=0.1)
    song("in/z.wav", seconds=0.1, **made)
    done = sepcli("in", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert all(word in done.err for word in words)
    assert not (tmp_path / "separated").exists()


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg", "opus"])
def test_tags_and_the_cover_come_with_the_stems(container: str, sepcli, tmp_path: Path, noise) -> None:
    tags = {"title": "Ä title", "artist": "Me", "album": "It", "tracknumber": "7", "date": "2001"}
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 48_000, 2) as file:
        for key, text in tags.items():
            setattr(file, key, text)
        file.write(noise(20_000))
    picture = b"\xff\xd8\xff\xe0" + bytes(range(200)) * 40
    add_cover(tmp_path / "a.flac", picture)
    done = sepcli(tmp_path / "a.flac", "--format", container)
    song = open_song(tmp_path / done.lines[0])
    assert {key: song.tags.get(key) for key in tags} == tags
    assert read_cover(tmp_path / done.lines[0]) == (picture if container in ("flac", "mp3") else b"")


@pytest.mark.parametrize("clip", ["common", "rescale", "clamp", "none"])
def test_where_nothing_exceeds_full_scale_nothing_is_said(clip, sepcli, song) -> None:
    done = sepcli(song("a.wav", seconds=0.2), "--clip", clip, "--json")
    assert (done.code, done.err, json.loads(done.out)["warnings"]) == (0, "", [])


@pytest.mark.parametrize(
    ("clip", "gain", "words"),
    [
        ("common", 1 / 1.8, "written with gain"),
        ("rescale", {"a": 1 / 1.8, "b": 1.0}, "written with gain"),
        ("clamp", 1.0, "cut off there, as --clip clamp says"),
        ("none", 1.0, "cut off there, as --clip none says"),
    ],
)
def test_what_exceeds_full_scale_is_said_and_recorded(clip, gain, words, sepcli, tmp_path: Path) -> None:
    loud = passthrough.save(tmp_path / "loud.safetensors", {"a": 2.0, "b": 0.5})
    sound = np.zeros((10_000, 2), np.float32)
    sound[5000] = 0.9
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    done = sepcli("a.wav", "--model", loud, "--clip", clip, "--bit-depth", "24", "--json")
    document = json.loads(done.out)
    record = json.loads((tmp_path / "separated/loud/a/stems.json").read_text())["sets"][0]
    assert words in done.err
    assert document["warnings"] == record["warnings"]
    assert words in document["warnings"][0]
    for told in (document["gain"], record["gain"]):
        assert told == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize(("depth", "bits"), [("16", 16), ("24", 24)])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_consistent_stems_of_a_clipped_song_sum_to_it(count, depth, bits, two, sepcli, tmp_path: Path) -> None:
    """2 to 6 stems, the shares out of balance, a mixture at both ends of the scale, at a rate with a band above."""
    names = ["other", "vocals", "drums", "bass", "guitar", "piano"][:count]
    model = passthrough.save(
        tmp_path / "m.safetensors", dict(zip(names, [1.6, -0.8, 0.3, 0.2, 0.1, 0.05], strict=False))
    )
    sound = np.clip(np.random.default_rng(count).normal(0, 0.6, (20_000, 2)), -1, 1)
    soundfile.write(tmp_path / "a.wav", sound, 96_000, subtype=f"PCM_{depth}")
    extra = ["--two-stems", "vocals"] if two else []
    done = sepcli("a.wav", "--model", model, "--consistent", *extra)
    assert done.code == 0, done.err
    total = sum(soundfile.read(tmp_path / path, dtype="int32")[0].astype(np.int64) for path in done.lines)
    assert np.abs(total - soundfile.read(tmp_path / "a.wav", dtype="int32")[0]).max() == 0
    assert {soundfile.info(tmp_path / path).subtype for path in done.lines} == {f"PCM_{depth}"}


def test_a_wav_beyond_four_gibibytes_becomes_rf64(sepcli, song, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(write, "WAV_LIMIT", 100_000)
    done = sepcli(song("a.wav", seconds=1.0))
    assert done.code == 0, done.err
    assert (tmp_path / done.lines[0]).read_bytes()[:4] == b"RF64"
    mixture, stem = soundfile.read(tmp_path / "a.wav")[0], soundfile.read(tmp_path / done.lines[0])[0]
    assert np.abs(stem - 0.5 * mixture).max() < 2 / 32768


@pytest.mark.parametrize("name", ["Füße – 日本.wav", "con.wav", "NUL.tar.wav", "a:b*?.WAV", "100%.Flac", ".hidden.wav"])
def test_names_of_any_kind_have_a_place(name: str, sepcli, song, tmp_path: Path) -> None:
    done = sepcli(song(name, seconds=0.1), "--out", "o")
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "o/pass").iterdir()
    assert not set(folder.name) & set(':*?"<>|')
    assert folder.name.split(".")[0].lower() not in ("con", "nul")
    assert (folder / "drums.wav").exists()


def test_folders_keep_their_tree_and_lists_their_order(sepcli, song, tmp_path: Path) -> None:
    for name in ("in/b.wav", "in/a.WAV", "in/below/a.FLAC"):
        song(name, seconds=0.1)
    (tmp_path / "list.txt").write_text("in/b.wav\n\nin/a.WAV\n")
    flat = sepcli("in", "--json")
    assert [json.loads(line)["input"] for line in flat.lines] == ["in/a.WAV", "in/b.wav"]
    deep = sepcli("in", "-r", "--stems", "bass", "--out", "deep")
    assert deep.lines == ["deep/pass/a/bass.wav", "deep/pass/b/bass.wav", "deep/pass/below/a/bass.wav"]
    assert [json.loads(line)["input"] for line in sepcli("--input-list", "list.txt", "--json").lines] == [
        "in/b.wav",
        "in/a.WAV",
    ]


def test_two_songs_with_one_place_are_refused_before_the_work(sepcli, song, tmp_path: Path) -> None:
    done = sepcli(song("one/a.wav", seconds=0.1), song("two/A.flac", seconds=0.1))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "would both be written to" in done.err
    assert not (tmp_path / "separated").exists()
    assert sepcli("one/a.wav", "two/A.flac", "--filename", "{track}.{trackext}/{stem}.{ext}").code == 0


def test_a_dry_run_writes_nothing_and_says_what_would_be(sepcli, song, tmp_path: Path) -> None:
    song("a.wav", seconds=2)
    song("c.wav", seconds=0.2)
    (tmp_path / "b.wav").write_text("text")
    assert sepcli("c.wav").code == 0
    done = sepcli("a.wav", "b.wav", "c.wav", "--dry-run", "--json", "--device", "cpu")
    documents = [json.loads(line) for line in done.lines]
    assert [document["status"] for document in documents] == ["planned", "failed", "skipped"]
    assert documents[0]["segments"] == 3
    assert documents[0]["device"] == "cpu"
    assert documents[0]["stems"]["bass"] == "separated/pass/a/bass.wav"
    assert done.code == 1
    assert not (tmp_path / "separated/pass/a").exists()
    text = sepcli("a.wav", "c.wav", "--dry-run", "--device", "cpu")
    assert text.lines[0].startswith("a.wav: ")
    assert "on cpu, 3 pieces" in text.lines[0]
    assert text.lines[-5].endswith("finished already")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--start", "100"], "a.wav: --start 100 is beyond its 2.00 s"),
        (["--existing", "error"], "a.wav: separated/pass/a/drums.wav exists"),
    ],
)
def test_a_dry_run_fails_with_what_the_real_call_would_fail_with(options, words: str, sepcli, song) -> None:
    path = song("a.wav", seconds=2).name
    assert sepcli(path).code == 0
    tried = sepcli(path, *options, "--dry-run", "--device", "cpu")
    assert (tried.code, words in tried.err) == (1, True)
    real = sepcli(path, *options)
    assert (real.code, real.err) == (1, tried.err)
