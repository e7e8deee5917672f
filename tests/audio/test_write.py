import errno
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sepcli.audio import write
from sepcli.audio.blocks import BLOCK, reblock
from sepcli.audio.read import open_song
from sepcli.audio.write import Format, check_format, opus_rate, quantise, write_set
from sepcli.errors import AudioError, UsageError

EVERY = [
    *(Format(container, depth) for container, depth in [("wav", "16"), ("wav", "24"), ("wav", "32f")]),
    *(Format(container, depth) for container, depth in [("flac", "16"), ("flac", "24")]),
    *(Format(container) for container in ("mp3", "ogg", "opus")),
]
STEP = 1 / 32768


def name(format):
    return f"{format.container}-{format.depth}"


def steps(stems):
    """Blocks in step, of a dictionary of whole sounds."""
    parts = {stem: list(reblock([sound])) for stem, sound in stems.items()}
    for blocks in zip(*parts.values(), strict=True):
        yield dict(zip(parts, blocks, strict=True))


def written(folder, stems, format=Format(), rate=48000, **options):  # noqa: B008
    targets = {stem: folder / f"{stem}.{format.extension}" for stem in stems}
    channels = next(iter(stems.values())).shape[1]
    done = write_set(steps(stems), targets, format=format, sample_rate=rate, channels=channels, **options)
    return done, {stem: np.concatenate(list(open_song(path).blocks())) for stem, path in done.paths.items()}


def lag(sound, other):
    """By how many samples `other` is late, from the peak of the cross-correlation."""
    size = 2 * max(len(sound), len(other))
    spectra = np.fft.rfft(sound.sum(axis=1), size).conj() * np.fft.rfft(other.sum(axis=1), size)
    place = int(np.fft.irfft(spectra, size).argmax())
    return place if place < size // 2 else place - size


@pytest.mark.parametrize("frames", [3001, BLOCK, 2 * BLOCK + 77])
@pytest.mark.parametrize("format", EVERY, ids=name)
def test_every_format_keeps_length_and_place(format, frames, clicks, tmp_path):
    sound = clicks(frames)
    done, read = written(tmp_path, {"drums": sound}, format)
    assert done.frames == len(read["drums"]) == frames
    assert lag(sound, read["drums"]) == 0


@pytest.mark.parametrize("format", EVERY, ids=name)
def test_a_single_frame_can_be_written_and_read(format, noise, tmp_path):
    _, read = written(tmp_path, {"a": noise(1)}, format)
    assert read["a"].shape == (1, 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "opus"])
def test_channels_come_back_in_their_order(container, channels, tmp_path):
    time = np.arange(24000) / 48000
    pitches = [100 if channels >= 6 and c == 3 else 400 + 200 * c for c in range(channels)]  # the LFE is low
    sound = np.stack([0.2 * np.sin(2 * np.pi * pitch * time) for pitch in pitches], axis=1).astype(np.float32)
    _, read = written(tmp_path, {"a": sound}, Format(container))
    found = np.abs(np.fft.rfft(read["a"], axis=0)).argmax(axis=0) * 2
    assert found.tolist() == pitches


@pytest.mark.parametrize("container", ["ogg", "opus"])
def test_surround_in_ogg_is_what_ffmpeg_hears(container, tmp_path):
    av = pytest.importorskip("av")
    time = np.arange(24000) / 48000
    pitches = [400, 600, 800, 100, 1200, 1400]
    sound = np.stack([0.2 * np.sin(2 * np.pi * pitch * time) for pitch in pitches], axis=1).astype(np.float32)
    done, _ = written(tmp_path, {"a": sound}, Format(container))
    with av.open(str(done.paths["a"])) as file:
        heard = np.concatenate([frame.to_ndarray().T for frame in file.decode(audio=0)])[:24000]
    assert (np.abs(np.fft.rfft(heard, axis=0)).argmax(axis=0) * 2).tolist() == pitches


@pytest.mark.parametrize(("depth", "bits"), [("16", 16), ("24", 24)])
@pytest.mark.parametrize("container", ["wav", "flac"])
def test_samples_on_the_steps_of_the_format_come_back_to_the_bit(container, depth, bits, tmp_path):
    whole = np.random.default_rng(1).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (70_000, 2))
    sound = (whole / 2.0 ** (bits - 1)).astype(np.float32)
    _, read = written(tmp_path, {"a": sound}, Format(container, depth))
    assert np.array_equal(read["a"], sound)


def test_float_files_keep_every_bit_also_beyond_full_scale(noise, tmp_path):
    sound = noise(70_000, level=3.0)
    done, read = written(tmp_path, {"a": sound}, Format("wav", "32f"))
    assert done.gain == 1.0
    assert np.array_equal(read["a"], sound)


def test_24_bits_are_the_nearest_step(noise):
    sound = noise(10_000)
    whole = quantise(sound, 24, np.random.default_rng(0)) >> 8
    assert np.array_equal(whole, np.rint(sound.astype(np.float64) * 2**23))


def test_dither_makes_the_error_independent_of_the_sound():
    """TPDF of two steps: the mean error is zero and its variance a quarter of a step squared, at any level."""
    for level in (0.0 + 0.001, 0.25, 0.5, 0.77):
        sound = np.full((200_000, 1), level * STEP)
        error = quantise(sound, 16, np.random.default_rng(3)) - level
        assert abs(error.mean()) < 0.005  # standard error 0.0011
        assert abs(error.var() - 0.25) < 0.005


def test_silence_stays_silence():
    assert not quantise(np.zeros((1000, 2)), 16, np.random.default_rng(0)).any()


@pytest.mark.parametrize("bits", [16, 24])
def test_beyond_full_scale_both_signs_stay_at_the_same_magnitude(bits):
    whole = quantise(np.array([[1.5, -1.5], [0.1, -1.0]]), bits, np.random.default_rng(0))
    full = (2 ** (bits - 1) - 1) << (0 if bits == 16 else 8)
    assert whole[0].tolist() == [full, -full]


def test_dither_comes_from_seed_and_stem_and_from_nothing_else(noise, tmp_path):
    sound = noise(2 * BLOCK + 5, level=0.01)
    first, again, other = (
        written(tmp_path / str(i), {"a": sound, "b": sound}, seed=seed)[1] for i, seed in enumerate((1, 1, 2))
    )
    assert np.array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], other["a"])


def test_common_gives_all_stems_the_gain_of_the_loudest(noise, tmp_path):
    loud, soft = noise(100_000, level=0.6), noise(100_000, seed=1, level=0.05)
    done, read = written(tmp_path, {"loud": loud, "soft": soft}, Format("wav", "24"))
    assert done.gain == pytest.approx(1 / np.abs(loud).max(), rel=1e-7)
    assert done.peaks == {"loud": float(np.abs(loud).max()), "soft": float(np.abs(soft).max())}
    assert np.abs(read["loud"] - loud * done.gain).max() < 1.01 * 2**-23
    assert np.abs(read["soft"] - soft * done.gain).max() < 1.01 * 2**-24


def test_nothing_is_lowered_where_nothing_exceeds_full_scale(tmp_path):
    done, _ = written(tmp_path, {"a": np.array([[1.0, -1.0]], np.float32)})
    assert done.gain == 1.0


def test_rescale_gives_each_stem_its_own_gain(noise, tmp_path):
    loud, soft = noise(50_000, level=0.6), noise(50_000, seed=1)
    done, read = written(tmp_path, {"loud": loud, "soft": soft}, Format("flac", "24"), clip="rescale")
    assert done.gain == {"loud": pytest.approx(1 / np.abs(loud).max()), "soft": 1.0}
    assert np.abs(read["soft"] - soft).max() < 2**-23


@pytest.mark.parametrize(("clip", "depth", "peak"), [("clamp", "32f", 1.0), ("none", "32f", 1.5), ("none", "24", 1.0)])
def test_without_a_gain_samples_saturate_or_stay(clip, depth, peak, tmp_path):
    sound = np.tile(np.array([[1.5, -1.5], [0.5, 0.25]], np.float32), (1000, 1))
    done, read = written(tmp_path, {"a": sound}, Format("wav", depth), clip=clip)
    assert done.gain == 1.0
    assert read["a"].max() == pytest.approx(peak, abs=2**-23)
    assert read["a"].min() == pytest.approx(-peak, abs=2**-23)


def test_mp3_is_320_kbit_constant(noise, tmp_path):
    frames = 44100 * 4
    done, _ = written(tmp_path, {"a": noise(frames)}, Format("mp3"), rate=44100)
    assert done.paths["a"].stat().st_size * 8 / 4 / 1000 == pytest.approx(320, rel=0.03)


@pytest.mark.parametrize(
    ("container", "rate", "bitrate", "tolerance"),
    [
        *[("mp3", 44100, 128, 0.05), ("mp3", 44100, 64, 0.05), ("mp3", 22050, 64, 0.05), ("mp3", 8000, 32, 0.08)],
        *[("opus", 48000, 64, 0.2), ("opus", 48000, 256, 0.2), ("ogg", 44100, 64, 0.35), ("ogg", 44100, 320, 0.35)],
    ],
)
def test_a_bitrate_is_met(container, rate, bitrate, tolerance, noise, tmp_path):
    """Constant in MP3, an average in Opus, a quality of that nominal bitrate in Vorbis (noise asks for more)."""
    done, _ = written(tmp_path, {"a": noise(rate * 5)}, Format(container, bitrate=bitrate), rate=rate)
    assert done.paths["a"].stat().st_size * 8 / 5 / 1000 == pytest.approx(bitrate, rel=tolerance)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate", "bitrate"), [(r, b) for r, table in write.MP3_BITRATES.items() for b in table])
def test_every_bitrate_of_mp3_keeps_length_and_place(rate, bitrate, channels, clicks, tmp_path):
    sound = clicks(7000, channels)
    _, read = written(tmp_path, {"a": sound}, Format("mp3", bitrate=bitrate), rate=rate)
    assert len(read["a"]) == 7000
    assert lag(sound, read["a"]) == 0


@pytest.mark.parametrize("format", EVERY, ids=name)
def test_tags_are_kept(format, noise, tmp_path):
    tags = {"title": "Tité", "artist": "A", "album": "B", "tracknumber": "3", "date": "2020", "genre": "Rock"}
    tags["comment"] = "c d"
    done, _ = written(tmp_path, {"a": noise(5000)}, format, tags=tags)
    assert open_song(done.paths["a"]).tags == tags


def test_hostile_tags_do_not_stop_a_song(noise, tmp_path):
    done, _ = written(tmp_path, {"a": noise(5000)}, tags={"title": "x\0y" * 100_000, "artist": "\n", "other": "z"})
    assert open_song(done.paths["a"]).tags["title"].startswith("x yx y")


@pytest.mark.parametrize("depth", ["16", "24", "32f"])
@pytest.mark.parametrize("clip", ["common", "none"])
def test_wav_beyond_its_limit_becomes_rf64_with_every_sample(clip, depth, noise, tmp_path, monkeypatch):
    sound = noise(200_000)
    _, plain = written(tmp_path / "plain", {"a": sound}, Format("wav", depth), clip=clip)
    monkeypatch.setattr(write, "WAV_LIMIT", 600_000)
    done, long = written(tmp_path / "long", {"a": sound}, Format("wav", depth), clip=clip, tags={"title": "t"})
    assert np.array_equal(plain["a"], long["a"])
    assert soundfile.info(tmp_path / "plain" / "a.wav").format == "WAV"
    assert soundfile.info(done.paths["a"]).format == "RF64"
    assert open_song(done.paths["a"]).tags == {"title": "t"}


def test_the_sidecar_is_made_of_what_was_written_and_comes_last(noise, tmp_path):
    def sidecar(done):
        assert not list(tmp_path.glob("*.wav"))
        return tmp_path / "stems.json", json.dumps({"frames": done.frames, "gain": done.gain}).encode()

    written(tmp_path, {"a": noise(10), "b": noise(10)}, sidecar=sidecar)
    assert json.loads((tmp_path / "stems.json").read_bytes()) == {"frames": 10, "gain": 1.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav", "stems.json"]


def test_targets_may_lie_in_folders_of_their_own(noise, tmp_path):
    targets = {stem: tmp_path / stem / "deep" / "song.wav" for stem in "ab"}
    write_set(steps({"a": noise(9), "b": noise(9)}), targets, format=Format(), sample_rate=9, channels=2)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "a/deep/song.wav",
        "b/deep/song.wav",
    ]


@pytest.mark.parametrize("clip", ["common", "none"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, AudioError, ZeroDivisionError, OSError])
@pytest.mark.parametrize("format", EVERY, ids=name)
def test_whatever_stops_a_set_nothing_of_it_is_left(format, error, clip, noise, tmp_path):
    def blocks():
        yield {"a": noise(BLOCK), "b": noise(BLOCK)}
        assert list((tmp_path / "new" / "folder").glob(".sepcli-*"))
        raise error("stop")

    targets = {stem: tmp_path / "new" / "folder" / f"{stem}.x" for stem in "ab"}
    with pytest.raises(error):
        write_set(blocks(), targets, format=format, sample_rate=48000, channels=2, clip=clip)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(6))
def test_a_move_that_fails_brings_the_old_set_back(failing, noise, tmp_path, monkeypatch):
    def sidecar(done):
        return tmp_path / "stems.json", str(done.frames).encode()

    written(tmp_path, {"a": noise(10), "b": noise(10)}, sidecar=sidecar)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace, calls = Path.replace, []

    def broken(self, target):
        calls.append(self)
        if len(calls) == failing + 1:
            raise PermissionError(errno.EACCES, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(AudioError, match="Permission denied"):
        written(tmp_path, {"a": noise(20), "b": noise(20)}, sidecar=sidecar)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("clip", ["common", "none"])
def test_a_full_disk_is_told_in_one_line_with_its_folder(clip, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_Stem", type("Full", (write._Stem,), {"write": full, "finish": full}))
    with pytest.raises(AudioError) as error:
        written(tmp_path / "out", {"a": noise(10)}, clip=clip)
    assert str(error.value).startswith(f"{tmp_path / 'out'}: the disk is full; ")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_in_the_place_of_the_folder_is_told(noise, tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(AudioError, match="out: stems cannot be written"):
        written(tmp_path / "out", {"a": noise(10)})
    assert (tmp_path / "out").read_bytes() == b""


def test_a_file_that_came_out_short_is_not_moved(noise, tmp_path, monkeypatch):
    class Short(write._Stem):
        def write(self, block, gain, clamp):
            super().write(block[:-1], gain, clamp)

    monkeypatch.setattr(write, "_Stem", Short)
    with pytest.raises(AudioError, match="9 of 10 frames"):
        written(tmp_path, {"a": noise(10)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_a_number_is_refused(bad, noise, tmp_path):
    sound = noise(100)
    sound[50, 1] = bad
    with pytest.raises(AudioError, match="stem a: a sample is not a finite number"):
        written(tmp_path, {"a": sound}, Format("wav", "32f"))


def test_no_sound_at_all_is_refused(tmp_path):
    with pytest.raises(AudioError, match="no sound to write"):
        write_set([], {"a": tmp_path / "a.wav"}, format=Format(), sample_rate=44100, channels=2)
    assert list(tmp_path.iterdir()) == []


REFUSED = [
    (Format("aiff"), 44100, 2, "format 'aiff' is not one of wav, flac, mp3, ogg, opus"),
    (Format("wav", "32"), 44100, 2, "bit depth '32' is not one of 16, 24, 32f"),
    (Format("mp3"), 96000, 2, "format mp3: 96000 Hz is not a rate of MP3.*; these can hold it: wav, flac, ogg$"),
    (Format("mp3"), 44100, 6, "format mp3: 6 channels are more than its 2; these can hold it: wav, flac, ogg$"),
    (Format("flac", "32f"), 44100, 2, "no 32-bit float.*: wav, mp3, ogg$"),
    (Format("flac"), 44100, 9, "9 channels are more than its 8; these can hold it: wav$"),
    (Format("flac"), 65_537, 2, "not a rate of FLAC.*: wav, ogg$"),
    (Format("flac"), 700_000, 2, "not a rate of FLAC.*: wav$"),
    (Format("ogg"), 384_000, 2, "beyond the 200,000 Hz of Ogg Vorbis; these can hold it: wav, flac$"),
    (Format("opus"), 44100, 2, "44100 Hz is not a rate of Opus"),
    (Format("wav", bitrate=320), 44100, 2, "bitrate 320 has no meaning for wav"),
    (Format("mp3", bitrate=321), 44100, 2, "MP3 at 44100 Hz knows 64, .*320 kbit/s"),
    (Format("mp3", bitrate=320), 22050, 2, "MP3 at 22050 Hz knows 64, .*160 kbit/s"),
    (Format("ogg", bitrate=900), 44100, 2, "from 64 to 500"),
    (Format("opus", bitrate=600), 48000, 2, "12 to 512 kbit/s"),
]


@pytest.mark.parametrize(("format", "rate", "channels", "message"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_before_a_block_is_made(format, rate, channels, message, tmp_path):
    def blocks():
        raise AssertionError("asked for a block")
        yield {}

    with pytest.raises(UsageError, match=message):
        write_set(blocks(), {"a": tmp_path / "x" / "a"}, format=format, sample_rate=rate, channels=channels)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_clip_is_refused(tmp_path):
    with pytest.raises(UsageError, match="clip 'loud' is not one of common, rescale, clamp, none"):
        write_set([], {"a": tmp_path / "a"}, format=Format(), sample_rate=44100, channels=2, clip="loud")


@pytest.mark.parametrize(("format", "rate"), [("wav", 3), ("flac", 3), ("wav", 384_000), ("flac", 384_000), ("ogg", 3)])
def test_strange_but_legal_rates_are_written(format, rate, noise, tmp_path):
    done, read = written(tmp_path, {"a": noise(2000)}, Format(format), rate=rate)
    assert (len(read["a"]), open_song(done.paths["a"]).sample_rate) == (2000, rate)


@pytest.mark.parametrize("rate", [1, 4000, 8000, 44_100, 96_000, 192_000, 200_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_what_check_format_allows_to_vorbis_can_be_written(rate, channels, noise, tmp_path):
    assert len(written(tmp_path, {"a": noise(3000, channels)}, Format("ogg"), rate=rate)[1]["a"]) == 3000


@pytest.mark.parametrize(
    ("rate", "written"), [(48000, 48000), (44100, 48000), (16000, 16000), (96000, 48000), (3, 48000)]
)
def test_opus_keeps_its_own_rates_and_takes_others_at_48_khz(rate, written):
    assert opus_rate(rate) == written
    check_format(Format("opus"), opus_rate(rate), 2)


@pytest.mark.parametrize(
    ("format", "lossless", "clips"),
    [(Format("wav", "32f"), True, False), (Format(), True, True), (Format("mp3", "32f"), False, True)],
)
def test_a_format_knows_what_it_loses(format, lossless, clips):
    assert (format.lossless, format.clips) == (lossless, clips)
