"""`sepcli data`: songs with stems, looked at before they are trained with, and remixed into more."""

from pathlib import Path
from typing import Annotated

import typer

from sepcli.cli import console

app = typer.Typer(help="Look at songs with stems, and make more of them.", rich_markup_mode=None, no_args_is_help=True)


@app.command("check")
def check(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Folders of songs with stems.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Look for what would spoil a training: unreadable or unequal stems, silence, mixtures that are no sum, doubles.

    Exit 1 where something is found.
    """
    from sepcli.training.check import check as look

    with console.bar.over("songs") as meter:
        songs, problems = look(folders, meter)
    seconds = sum(song.seconds for song in songs)
    if json:
        found = [{"song": p.song, "kind": p.kind, "what": p.what} for p in problems]
        console.document({"songs": len(songs), "seconds": round(seconds, 3), "problems": found})
    else:
        for problem in problems:
            console.result(f"{problem.song}: {problem.kind}: {problem.what}")
        console.result(f"{len(songs)} songs, {seconds / 60:.1f} minutes, {len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


@app.command("remix")
def remix(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Folders of songs with stems.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that gets a folder of stems for each remix.")],
    mixes: Annotated[int, typer.Option(help="Remixes of each song.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Of what is mixed with what.")] = 0,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Make more songs to train with: stems of different songs, brought to one key, tempo and beat.

    As Hybrid Demucs was trained: at most 3 semitones and 15 % of tempo; songs in a folder `test` are left out. Remixes
    that are there already stay. Needs librosa: pip install 'sepcli[train]'
    """
    from sepcli.training.remix import remix as mix

    with console.bar.over("remixes") as meter:
        for folder in mix(folders, out, mixes=mixes, seed=seed, progress=meter, notice=console.notice):
            console.result(str(folder))
