"""A report as one HTML page: pictures and charts inside, players of the files beside it, no server and no network."""

import base64
import html
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from sepcli.metrics.plots import COLOURS
from sepcli.metrics.report import ALIKE, SILENT, Report, Track

# From silence to full level: black, violet, red, orange, pale yellow.
_MAP = (
    *((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99)),
    *((212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164)),
)
QUIETEST, LOUDEST = -110.0, -30.0  # dB of a picture's darkest and brightest points

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 1.5em; color: #1c1c22; }
h1 { font-size: 1.5em; margin: 0 0 .2em; } h2 { font-size: 1.1em; margin: 1.8em 0 .4em; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #e3e3ea; }
th:first-child, td:first-child { text-align: left; } ul { margin: .3em 0; padding-left: 1.3em; }
.track { display: grid; grid-template-columns: 140px 1fr; gap: .2em .6em; margin: 1em 0; align-items: center; }
.track audio { width: 100%; height: 34px; }
.track b { grid-row: 1 / 3; overflow-wrap: anywhere; }
.picture { position: relative; cursor: pointer; line-height: 0; background: #000004; }
.picture img { width: 100%; height: 130px; }
.picture i { position: absolute; top: 0; bottom: 0; width: 1px; background: #fff; left: 0; }
.picture span { position: absolute; left: 4px; font: 10px/1 sans-serif; color: #fff; text-shadow: 0 0 3px #000; }
svg { width: 100%; display: block; } svg text { font: 11px sans-serif; fill: #444; }
.note { color: #555; font-size: .9em; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .9em; border-radius: 2px; }
details table { font-size: .85em; }
"""

SCRIPT = """
for (const track of document.querySelectorAll('.track')) {
  const audio = track.querySelector('audio'), picture = track.querySelector('.picture');
  const line = picture.querySelector('i');
  if (!audio) continue;
  picture.onclick = event => {
    const box = picture.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * (audio.duration || 0);
    audio.play();
  };
  audio.ontimeupdate = () => { line.style.left = 100 * audio.currentTime / audio.duration + '%'; };
  audio.onplay = () => { for (const other of document.querySelectorAll('audio')) if (other !== audio) other.pause(); };
}
"""


def page(report: Report, target: Path) -> str:
    """The page's text; files are named relative to where it will stand."""
    tracks = [*([report.mixture] if report.mixture else []), *report.stems]
    colours = {track.name: COLOURS[index % len(COLOURS)] for index, track in enumerate(report.stems)}
    title = html.escape(report.name)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1><p class=note>{clock(report.seconds)} at {report.sample_rate:,} Hz. No references: what "
        f"follows is measured on the stems alone{' and the mixture' * bool(report.mixture)}.</p>",
        "<h2>Worth a look</h2><ul>",
        *(f"<li>{html.escape(text)}</li>" for text in report.warnings or ["nothing stands out"]),
        "</ul><h2>Stems</h2>",
        overview(tracks),
        "<p class=note>Frequencies from 40 Hz to half the sample rate, evenly spaced in octaves; "
        f"{QUIETEST:g} to {LOUDEST:g} dB. Click to listen from there.</p>",
        *(player(track, target, report.sample_rate) for track in tracks),
        "<h2>Level, dBFS</h2>",
        legend(colours),
        chart([(colours[track.name], track.level) for track in report.stems], SILENT, 0, 20),
    ]
    if report.residual:
        parts += [
            "<h2>What the stems leave of the mixture, dB</h2>",
            chart([("#444", report.residual)], -80, 0, 20),
            "<p class=note>Mixture less the sum of the stems, against the mixture: near 0, something is lost.</p>",
        ]
    rows = [(track.name, [min(count / 3, 1) for count in track.holes]) for track in report.stems]
    parts += ["<h2>Holes</h2>", strips(rows, "#d55e00"), "<p class=note>Bands of a third of an octave that lie 30 dB "
              "below both neighbours where the mixture is heard; darkest: three or more.</p>"]  # fmt: skip
    if report.correlation:
        rows = [(f"{a} · {b}", [abs(v) for v in values]) for (a, b), values in report.correlation.items()]
        parts += [
            "<h2>Likeness of stems</h2>",
            strips(rows, "#0072b2"),
            f"<p class=note>Size of the correlation in each second, dark is 1; beyond {ALIKE} one may hold the "
            "other.</p>",
        ]
    parts += [seconds_table(report), f"<script>{SCRIPT}</script></html>"]
    return "\n".join(parts)


def overview(tracks: Sequence[Track]) -> str:
    head = ("", "mean level", "loudest second", "peak", "silent", "with holes", "highest sound")
    rows = []
    for track in tracks:
        mean = 10 * math.log10(float(np.mean([10 ** (level / 10) for level in track.level])))
        cells = (
            *(html.escape(track.name), f"{mean:.1f} dBFS", f"{max(track.level):.1f} dBFS", f"{track.peak:.3f}"),
            *(f"{track.silent} s", f"{sum(n > 0 for n in track.holes)} s", f"{track.highest / 1000:.1f} kHz"),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return f"<table><tr>{''.join(f'<th>{name}' for name in head)}{''.join(rows)}</table>"


def player(track: Track, target: Path, rate: int) -> str:
    """A track's name, player and spectrogram. Of a stem.mp4 browsers play the first stream alone."""
    levels = np.array(track.picture).T[::-1]  # (rows from high to low, columns)
    shades = np.clip((levels - QUIETEST) / (LOUDEST - QUIETEST) * 255, 0, 255).astype(np.uint8)
    picture = base64.b64encode(png(shades)).decode()
    path = track.stem.path
    try:
        place = quote(Path(os.path.relpath(path.resolve(), target.resolve().parent)).as_posix())
    except ValueError:  # another drive
        place = path.resolve().as_uri()
    name = html.escape(track.name)
    octaves = math.log2(rate / 80)
    marks = "".join(
        f"<span style='bottom:{100 * math.log2(hertz / 40) / octaves:.1f}%'>{told}</span>"
        for hertz, told in ((100, "100 Hz"), (1000, "1 kHz"), (10000, "10 kHz"))
        if hertz < rate / 2
    )
    audio = "" if track.stem.stream else f"<audio controls preload=metadata src='{place}'></audio>"
    image = f"<img alt='spectrogram of {name}' src='data:image/png;base64,{picture}'>"
    return f"<div class=track><b>{name}</b>{audio}<div class=picture>{image}{marks}<i></i></div></div>"


def png(shades: NDArray[np.uint8]) -> bytes:
    """A picture (rows, columns) of shades 0 to 255 through the colour map."""
    anchors = np.array(_MAP)
    places = np.linspace(0, len(anchors) - 1, 256)
    palette = np.stack([np.interp(places, np.arange(len(anchors)), anchors[:, i]) for i in range(3)], axis=1)
    rows, columns = shades.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), shades], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    colours = palette.round().astype(np.uint8).tobytes()
    body = chunk(b"IHDR", head) + chunk(b"PLTE", colours) + chunk(b"IDAT", zlib.compress(lines, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def legend(colours: dict[str, str]) -> str:
    keys = (f"<span class=key style='background:{c}'></span>{html.escape(name)}" for name, c in colours.items())
    return f"<p class=note>{''.join(keys)}</p>"


WIDTH, LEFT = 1000, 200  # of charts, in their own units; what stands left of the time axis


def chart(lines: Sequence[tuple[str, Sequence[float]]], low: float, high: float, step: int) -> str:
    """Lines over the seconds; what is below `low` is drawn at it, NaN is a gap."""
    height, count = 170, max(len(values) for _, values in lines)
    parts = []
    for mark in range(int(low), int(high) + 1, step):
        y = place_of(mark, low, high, height)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH}' stroke='#ddd'/>")
        parts.append(f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{mark}</text>")
    for colour, values in lines:
        points, pen = [], "M"
        for index, value in enumerate(values):
            if math.isnan(value):
                pen = "M"
                continue
            x, y = across(index + 0.5, count), place_of(min(max(value, low), high), low, high, height)
            points.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        parts.append(f"<path d='{''.join(points)}' fill=none stroke='{colour}' stroke-width=1.6 />")
    return f"<svg viewBox='0 0 {WIDTH} {height + 24}'>{''.join(parts)}{axis(count, height)}</svg>"


def strips(rows: Sequence[tuple[str, Sequence[float]]], colour: str) -> str:
    """A line of cells for each row, one a second, the more opaque the nearer to 1."""
    height, count = 18, max(len(values) for _, values in rows)
    parts = []
    for row, (name, values) in enumerate(rows):
        y = row * height
        parts.append(f"<text x={LEFT - 8} y={y + 13} text-anchor=end>{html.escape(name)}</text>")
        parts.append(f"<rect x={LEFT} y={y + 1} width={WIDTH - LEFT} height={height - 2} fill='#f2f2f6'/>")
        for index, value in enumerate(values):
            if value > 0.02:
                x = across(index, count)
                size = f"width={across(index + 1, count) - x:.2f} height={height - 2}"
                tip = f"<title>{clock(index)}: {value:.2f}</title>"
                parts.append(f"<rect x={x:.2f} y={y + 1} {size} fill='{colour}' fill-opacity={value:.2f}>{tip}</rect>")
    full = len(rows) * height
    return f"<svg viewBox='0 0 {WIDTH} {full + 24}'>{''.join(parts)}{axis(count, full)}</svg>"


def axis(count: int, y: float) -> str:
    """Times below a chart."""
    step = next((step for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if count / step <= 12), 1800)
    return "".join(
        f"<text x={across(mark, count):.1f} y={y + 17} text-anchor=middle>{clock(mark)}</text>"
        for mark in range(0, count + 1, step)
    )


def across(second: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT - 14) * second / max(count, 1)


def place_of(value: float, low: float, high: float, height: float) -> float:
    return 6 + (height - 12) * (high - value) / (high - low)


def seconds_table(report: Report) -> str:
    """Every second in figures, folded away."""
    pairs = [f"{a} · {b}" for a, b in report.correlation]
    names = ["", *(f"{track.name} dBFS" for track in report.stems), *(f"{track.name} holes" for track in report.stems)]
    names += [*(["residual dB"] if report.residual else []), *pairs]
    rows = []
    for index in range(len(report.stems[0].level)):
        cells = [clock(index), *(figure(track.level[index]) for track in report.stems)]
        cells += [str(track.holes[index]) for track in report.stems]
        cells += [figure(report.residual[index])] if report.residual else []
        cells += [figure(values[index], 2) for values in report.correlation.values()]
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    return f"<h2>Each second</h2><details><summary>Figures</summary><table><tr>{head}{''.join(rows)}</table></details>"


def figure(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
