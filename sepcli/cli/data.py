"""`sepcli data`: songs with stems, looked at before they are trained with."""

from pathlib import Path
from typing import Annotated

import typer

from sepcli.cli import console

app = typer.Typer(help="Look at songs with stems.", rich_markup_mode=None, no_args_is_help=True)


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
