"""`sepcli data`: songs with stems, looked at before they are trained with, remixed, made from a seed, and fetched."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from sepcli.cli import console
from sepcli.errors import AudioError, ModelError, UsageError

app = typer.Typer(
    help="Look at songs, with stems or without, and make more of them.", rich_markup_mode=None, no_args_is_help=True
)


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


@app.command("render")
def render(
    songs: Annotated[int, typer.Option(help="How many songs.", min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that gets a folder of stems for each song.")],
    seed: Annotated[int, typer.Option(help="Of the first song; the next one has the next.", min=0)] = 0,
    samples: Annotated[
        Path | None,
        typer.Option(help="A folder with samples/CLASS/ and voices/ of recordings. [default: all from nothing]"),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of a song.", min=1.0, max=600.0)] = 30.0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Songs made at a time.", min=1)] = 1,
    container: Annotated[Literal["wav", "flac"], typer.Option("--format", help="Of the files, in 16 bit.")] = "wav",
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Make songs with four stems (drums, bass, other, vocals) to train with: from nothing, or from recordings.

    The same seed makes the same bits on the same machine. Songs that are there already stay. Recorded voices sing new
    melodies through a vocoder, taken apart once and kept in the cache: pip install 'sepcli[train]'. Voices and songs
    that the recipe of `mini` holds out are never used.
    """
    from sepcli.training.samples import look
    from sepcli.training.sources import held_out
    from sepcli.training.synth import render_songs

    folder = look(samples, held_out().voices) if samples else None
    with console.bar.over("songs") as meter:
        places = render_songs(
            seed, songs, out, seconds=seconds, folder=folder, jobs=jobs, container=container, progress=meter
        )
    for place in places:
        console.result(str(place))


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mini, or a TOML file in the manner of its mini.toml.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to fill. [default: data/NAME]")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what was downloaded before.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Bring the recordings that a recipe of ours was trained with, each proven by its digest, cut and joined alike.

    songs/ is for `train --data`, samples/ and voices/ for `data render --samples`; held-out/ is for scores only. What
    is there already stays; downloads are kept in the cache. Exit 3 where some could not be had.
    """
    from sepcli.training.sources import bring, read

    sources = read(name)
    place = out or Path("data") / Path(name).stem
    with console.bar.over("recordings") as meter:
        failed = bring(sources, name, place, console.notice, meter, offline)
    for line in failed:
        console.notice(line)
    console.result(str(place))
    if failed:
        what = f"{len(failed)} of {len(sources.recordings)} recordings could not be had"
        raise ModelError(what, f"run `sepcli data fetch {name}` again: what is there stays")


@app.command("scan")
def scan(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Songs, folders, 'patterns', addresses.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The list to write.")] = Path("list.jsonl"),
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into the folders of folders too.")] = False,
    digests: Annotated[
        bool, typer.Option("--digests/--no-digests", help="Read each file through for its sha256.")
    ] = True,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for songs fetched from an address. [default: the system's]")
    ] = None,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Write a list of songs for --input-list: a JSON line each with uri, seconds, rate, channels, bytes, digest.

    Exit 1 where a song cannot be read; the others are listed.
    """
    from sepcli.batch.manifest import write_rows
    from sepcli.batch.scan import find_all
    from sepcli.batch.scan import scan as look

    check_out(out)
    items, problems = find_all(inputs, recursive)
    if scratch and any(item.remote for item in items):
        from sepcli.batch.storage import scratch_folder

        scratch_folder(scratch)
    rows = []
    with console.bar.over("songs") as meter:
        for found in look(items, scratch, digests, meter):
            if isinstance(found, AudioError):
                problems.append(found)
            else:
                rows.append(found)
    for problem in problems:
        console.error(str(problem))
    try:
        out.write_text("".join(f"{line}\n" for line in write_rows(rows)), encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from error
    console.result(str(out))
    console.notice(f"{len(rows)} songs, {sum(row['seconds'] for row in rows) / 3600:.2f} hours")
    raise typer.Exit(1 if problems else 0)


def check_out(out: Path) -> None:
    """Refuse a list that cannot be written, before songs are read for it. Raises UsageError."""
    why = ""
    if not out.parent.is_dir():
        why = f"{out.parent} is no folder"
    elif out.is_dir():
        why = "it is a folder"
    elif not os.access(out if out.exists() else out.parent, os.W_OK):
        why = "it is read-only"
    if why:
        raise UsageError(f"--out {out}: cannot be written: {why}", "name another place")
