"""sepcli/metrics/report.py and page.py: what is measured on stems without references, and the page of it."""

import base64
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sepcli.errors import AudioError, UsageError
from sepcli.metrics.page import page, png
from sepcli.metrics.report import Bands, holes, report_on
from tests.metrics.signals import stem_mp4

RATE = 44100
TIME = np.arange(4 * RATE) / RATE


def tone(hertz: float, level: float = 0.1) -> Any:
    return level * np.sin(2 * np.pi * hertz * TIME)


def noise(seed: int, level: float = 0.05) -> Any:
    return level * np.random.default_rng(seed).standard_normal(len(TIME))


def write(folder: Path, stems: dict[str, Any], rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sound in stems.items():
        soundfile.write(folder / f"{name}.wav", np.stack([sound, sound], axis=1), rate, subtype="FLOAT")
    return folder


def test_levels_and_silence_are_told_second_by_second(tmp_path: Path) -> None:
    vocals = tone(440)
    vocals[RATE : 2 * RATE] = 0
    report = report_on(write(tmp_path / "song", {"vocals": vocals, "drums": noise(0)}))
    track = next(track for track in report.stems if track.name == "vocals")
    loud = 20 * math.log10(0.1 / math.sqrt(2))
    assert track.level == pytest.approx([loud, -120, loud, loud], abs=1e-3)
    assert (track.silent, report.seconds, report.name) == (1, 4.0, "song")
    assert track.peak == pytest.approx(0.1, abs=1e-5)
    assert report.residual == []


def test_the_residual_is_what_the_stems_leave_of_the_mixture(tmp_path: Path) -> None:
    vocals, drums = tone(440), noise(0)
    lost = 0.1 * (vocals + drums) * (TIME >= 2)
    folder = write(tmp_path / "song", {"vocals": vocals, "drums": drums, "mixture": vocals + drums + lost})
    report = report_on(folder)
    assert report.residual[2:] == pytest.approx([20 * math.log10(0.1 / 1.1)] * 2, abs=1e-3)
    assert all(value < -130 or math.isnan(value) for value in report.residual[:2])
    assert not any("do not sum" in text for text in report.warnings)
    report = report_on(write(tmp_path / "worse", {"vocals": vocals, "drums": drums}), folder / "vocals.wav")
    assert "the stems do not sum to the mixture in 4 of 4 seconds (residual above -20 dB)" in report.warnings


def test_two_stems_that_share_a_sound_are_called_alike(tmp_path: Path) -> None:
    shared, a, b = noise(0), noise(1), noise(2)
    stems = {"vocals": a, "drums": b + 2 * shared * (TIME >= 2), "bass": 2 * shared}
    report = report_on(write(tmp_path / "song", stems))
    values = report.correlation[("bass", "drums")]
    assert values == pytest.approx([0, 0, 2 / math.sqrt(5), 2 / math.sqrt(5)], abs=0.03)
    assert "bass and drums are alike (correlation beyond 0.5) in 2 of 4 seconds" in report.warnings
    assert len(report.warnings) == 1


def test_a_band_that_is_missing_between_two_is_a_hole(tmp_path: Path) -> None:
    spectrum = np.fft.rfft(noise(0))
    frequency = np.fft.rfftfreq(len(TIME), 1 / RATE)
    edges = Bands(RATE).edges
    band = int(np.searchsorted(edges, 2000))
    spectrum[(frequency > 0.97 * edges[band]) & (frequency < 1.03 * edges[band + 1])] = 0
    vocals = np.fft.irfft(spectrum)
    report = report_on(write(tmp_path / "song", {"vocals": vocals, "drums": noise(1)}))
    found = {track.name: track.holes for track in report.stems}
    assert found == {"drums": [0, 0, 0, 0], "vocals": [1, 1, 1, 1]}
    assert "vocals has holes in its spectrum in 4 of 4 seconds" in report.warnings


def test_what_the_mixture_lacks_is_no_hole() -> None:
    own = np.array([-20.0, -80.0, -20.0])
    assert holes(own, np.array([-20.0, -30.0, -20.0])) == 1
    assert holes(own, np.array([-20.0, -90.0, -20.0])) == 0
    assert holes(np.array([-20.0, -45.0, -20.0]), np.array([-20.0] * 3)) == 0


def test_band_levels_are_those_of_a_tone() -> None:
    bands = Bands(RATE)
    levels = bands.thirds(bands.power(tone(1000)[:RATE, None], 1)[0])
    place = int(np.searchsorted(bands.edges, 1000)) - 1
    assert levels[place] == pytest.approx(20 * math.log10(0.1 / math.sqrt(2)), abs=0.05)
    assert np.delete(levels, [place - 1, place, place + 1]).max() < -100


def test_the_highest_sound_is_found(tmp_path: Path) -> None:
    report = report_on(write(tmp_path / "song", {"vocals": tone(5000), "drums": tone(12000)}))
    assert [round(track.highest / 1000, 1) for track in report.stems] == [pytest.approx(12, abs=0.7), pytest.approx(5, abs=0.3)]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("stems", "rate", "message"),
    [({"drums": noise(0)[:-100]}, RATE, "drums.wav: is shorter"), ({"drums": noise(0)}, 48000, "sample rates differ")],
)
def test_stems_that_do_not_fit_together_are_refused(
    stems: dict[str, Any], rate: int, message: str, tmp_path: Path
) -> None:
    write(write(tmp_path / "song", {"vocals": tone(440)}), stems, rate)
    with pytest.raises(AudioError, match=message):
        report_on(tmp_path / "song")


def test_the_streams_of_a_stem_mp4_are_measured_each_for_itself(tmp_path: Path) -> None:
    stems = [tone(220 * (index + 1), 0.1 * (index + 1)) for index in range(4)]
    stem_mp4(tmp_path / "A - B.stem.mp4", [0.5 * sum(stems), *(0.5 * stem for stem in stems)])
    report = report_on(tmp_path)
    assert [track.name for track in report.stems] == ["drums", "bass", "other", "vocals"]
    expected = [20 * math.log10(0.05 * (index + 1) / math.sqrt(2)) for index in range(4)]
    assert [track.level[1] for track in report.stems] == pytest.approx(expected, abs=0.1)
    assert max(report.residual[1:3]) < -30
    assert not report.warnings
    text = page(report, tmp_path / "report.html")
    assert text.count("<audio") == 1, "a browser plays the first stream, the mixture, and no other"
    assert text.count("data:image/png") == 5


def test_a_folder_of_several_songs_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"vocals": tone(440)})
    with pytest.raises(UsageError, match="holds the stems of 2 songs: a, b"):
        report_on(tmp_path)


def test_pictures_are_png_files_whose_shades_come_back() -> None:
    shades = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    data = png(shades)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], place = body, place + 12 + size
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (4, 3)
    assert len(chunks[b"PLTE"]) == 768
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 5)
    assert (lines[:, 0] == 0).all()
    assert (lines[:, 1:] == shades).all()


def test_the_page_needs_nothing_but_the_sounds_beside_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "a <b> & 'c'", {"vocals": tone(440), "drums": noise(0)})
    text = page(report_on(folder), tmp_path / "pages" / "report.html")
    assert "http" not in text
    assert "<h1>a &lt;b&gt; &amp; &#x27;c&#x27;</h1>" in text
    sources = re.findall(r"<audio controls preload=metadata src='([^']*)'", text)
    assert sources == ["../a%20%3Cb%3E%20%26%20%27c%27/drums.wav", "../a%20%3Cb%3E%20%26%20%27c%27/vocals.wav"]
    pictures = re.findall(r"data:image/png;base64,([^']+)'", text)
    assert len(pictures) == 2
    width, height = struct.unpack(">II", base64.b64decode(pictures[0])[16:24])
    assert (width, height) == (40, 128)  # ten columns a second
