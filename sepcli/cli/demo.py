"""`sepcli demo`: a song made here, separated and scored, without a network."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sepcli.cli import console
from sepcli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the song, its stems and the picture.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Which song is made.", min=0)] = 1,
    seconds: Annotated[float, typer.Option(help="Its length.")] = 20.0,
    model: Annotated[
        str, typer.Option("--model", "-n", "-m", help="What separates it; mini needs no download.")
    ] = "mini",
    device: Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Make a short song with its stems, separate the mixture, and compare with the truth.

    Everything stays in --out: a folder with the song and its true stems, in it separated/ with what was found, and a
    picture of both where matplotlib is there (the extra `plots`).
    """
    if not 1 <= seconds <= 600:
        raise UsageError(f"--seconds {seconds:g}: must be from 1 to 600")
    from sepcli import separate_file
    from sepcli.training.synth import render_songs

    console.notice(f"making a song of {seconds:g} s from seed {seed}")
    (song,) = render_songs(seed, 1, out / f"{seconds:g}s", seconds=seconds)
    with console.bar.over(song.name) as meter:
        record = separate_file(
            song / "mixture.wav",
            song / "separated",
            model=model,
            filename="{model}/{stem}.{ext}",
            existing="overwrite",
            clip="clamp",
            device=device,
            notice=console.notice,
            progress=meter,
        )
    mixture = sound(song / "mixture.wav")
    if strange := without_truth(record.stems):
        console.notice(f"the song has no {', '.join(strange)}: separated, but neither scored nor in the picture")
    found = {name: sound(Path(path)) for name, path in record.stems.items() if name not in strange}
    truth = {name: true_stem(song, name, found) for name in found}
    scores = {name: (nsdr_of(truth[name], mixture), nsdr_of(truth[name], found[name])) for name in found}
    stems = Path(next(iter(record.stems.values()))).parent
    picture = pictured(stems / "spectrograms.png", mixture, truth, found)
    if json:
        table = {name: {"mixture": before, "nSDR": after} for name, (before, after) in scores.items()}
        console.document(
            {"song": str(song), "stems": record.stems, "scores": table, "picture": picture and str(picture)}
        )
        return
    console.result(f"{'SOURCE':<10}{'MIXTURE':>10}{'SEPARATED':>12}{'BETTER BY':>12}   nSDR in dB")
    for name, (before, after) in scores.items():
        console.result(f"{name:<10}{before:>10.2f}{after:>12.2f}{after - before:>12.2f}   {record.stems[name]}")
    console.result(f"the song and its true stems: {song}")
    if picture:
        console.result(f"spectrograms: {picture}")


def sound(path: Path) -> "Tensor":
    """A file of the demo (2, T)."""
    import torch

    from sepcli.training.data import decoded
    from sepcli.training.effects import RATE

    return torch.from_numpy(decoded(path, RATE, 2).T.copy())


def without_truth(names: Iterable[str]) -> list[str]:
    """What a model calls otherwise while it names all stems of the song, so that no rest is left for it to be."""
    from sepcli.training.synth import STEMS

    rest = set(STEMS) - set(names)
    return [] if rest else [name for name in names if name not in STEMS]


def true_stem(song: Path, name: str, names: Iterable[str]) -> "Tensor":
    """A stem as it was made; what a model calls otherwise (accompaniment) is the sum of all that it does not name."""
    from sepcli.training.synth import STEMS

    parts = [name] if name in STEMS else [stem for stem in STEMS if stem not in names]
    return sum((sound(song / f"{part}.wav") for part in parts[1:]), sound(song / f"{parts[0]}.wav"))


def nsdr_of(truth: "Tensor", estimate: "Tensor") -> float:
    from sepcli.metrics.sdr import nsdr

    return float(nsdr(truth, estimate))


def pictured(
    path: Path, mixture: "Tensor", truth: Mapping[str, "Tensor"], found: Mapping[str, "Tensor"]
) -> Path | None:
    """The picture, where the extra `plots` is installed; else a notice."""
    from sepcli.metrics.plots import spectrograms

    try:
        return spectrograms(path, mixture, truth, found)
    except UsageError as error:
        console.notice(f"no picture: {error.hint}")
        return None
