"""Box plots of scores by source and model, and spectrograms of stems. Needs matplotlib, the extra `plots`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepcli.errors import SepcliError, UsageError
from sepcli.metrics.compare import label

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


def check_installed() -> None:
    """Raise UsageError, with the command that installs it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plots needs matplotlib", "pip install 'sepcli[plots]'") from None


def box_plots(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """One figure a metric: for each source a box of the songs' scores per result. Returns the files written.

    Boxes reach from the first to the third quartile with a line at the median; whiskers to the furthest song within
    1.5 times that; each song is a dot. Raises UsageError where there is nothing to draw.
    """
    check_installed()
    protocols = list(dict.fromkeys(str(result["protocol"]) for result in results))
    if len(protocols) > 1:
        raise UsageError(f"protocols {' and '.join(protocols)} in one plot", "score all by one of them")
    metrics = dict.fromkeys(
        metric
        for result in results
        for scores in result["aggregate"].values()
        for metric, value in scores.items()
        if value is not None
    )
    if not metrics:
        raise UsageError("no scores to plot")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for metric in metrics:
            figure = drawn(results, metric)
            for suffix in ("svg", "png"):
                path = folder / f"{metric.lower()}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    except OSError as error:
        raise SepcliError(f"{folder}: plots cannot be written: {error.strerror or error}") from error
    return written


def drawn(results: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """The figure of one metric."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(source for result in results for source in result["aggregate"]))
    figure = Figure(figsize=(max(5.0, 1.2 + 0.55 * len(sources) * (len(results) + 0.7)), 4.6), layout="constrained")
    axes = figure.subplots()
    step = len(results) + 0.7
    handles = []
    for index, result in enumerate(results):
        colour = COLOURS[index % len(COLOURS)]
        groups = [scores_of(result, source, metric) for source in sources]
        places = [place * step + index for place in range(len(sources))]
        full = [(place, group) for place, group in zip(places, groups, strict=True) if group]
        if not full:
            continue
        boxes = axes.boxplot(
            [group for _, group in full],
            positions=[place for place, _ in full],
            widths=0.75,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black", "linewidth": 1.6},
            boxprops={"facecolor": colour, "alpha": 0.55, "edgecolor": "black"},
            showfliers=False,
        )
        for place, group in full:
            spread = [place + 0.18 * ((i % 3) - 1) for i in range(len(group))]
            axes.plot(spread, group, ".", color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.3)
        handles.append((boxes["boxes"][0], label(result)))
    axes.set_xticks([place * step + (len(results) - 1) / 2 for place in range(len(sources))], sources)
    axes.set_ylabel(f"{metric} (dB)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    count = max(len(result["songs"]) for result in results)
    rule = str(results[0]["settings"].get("rule", results[0]["protocol"]))
    figure.suptitle(f"{metric} of {count} songs\n{textwrap.fill(rule, 70)}", fontsize=9)
    drawn_boxes, names = [box for box, _ in handles], [name for _, name in handles]
    figure.legend(drawn_boxes, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def spectrograms(path: Path, mixture: Tensor, truth: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Path:
    """One picture of a song (C, T): its mixture above, then each source, the true stem left and the estimate right.

    80 dB below the loudest bin of the mixture are shown, up to 16 kHz at 44.1 kHz. Returns the path. Raises UsageError
    without matplotlib, SepcliError where it cannot be written.
    """
    check_installed()
    from matplotlib.figure import Figure

    rows = [("mixture", mixture, None), *((name, truth[name], found[name]) for name in found)]
    figure = Figure(figsize=(11.0, 2.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, sharex=True, sharey=True, squeeze=False)
    top = float(levels(mixture).max())
    for (left, right), (name, true, estimate) in zip(axes, rows, strict=True):
        for place, sound, words in ((left, true, f"{name}, true"), (right, estimate, f"{name}, separated")):
            if sound is None:
                place.set_axis_off()
                left.set_title(name, fontsize=9)
                continue
            place.imshow(levels(sound), origin="lower", aspect="auto", vmin=top - 80, vmax=top, cmap="magma")
            place.set_title(words if estimate is not None else name, fontsize=9)
            place.set_xticks([])
            place.set_yticks([])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise SepcliError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def levels(sound: Tensor) -> Any:
    """Decibels of the channels' mean (C, T) -> (F, N), of the lower three quarters of the bins."""
    spectrum = torch.stft(sound.mean(dim=0), 2048, 1024, window=torch.hann_window(2048), return_complex=True)
    return (20 * torch.log10(spectrum.abs()[:768] + 1e-5)).numpy()


def scores_of(result: Mapping[str, Any], source: str, metric: str) -> list[float]:
    values = [song["sources"].get(source, {}).get(metric) for song in result["songs"]]
    return [float(value) for value in values if value is not None]
