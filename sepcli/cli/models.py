"""`sepcli models`: what there is, what it is, and the files of it."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sepcli.cli import console
from sepcli.errors import ModelError, SepcliError, UsageError
from sepcli.weights import fetch, own
from sepcli.weights.catalog import Entry, FileSpec, all_files, catalog, find, require_weights, total_parameters

app = typer.Typer(
    help="List, show, download, check, remove and add models.", no_args_is_help=True, rich_markup_mode=None
)

HEADINGS = ("MODEL", "STEMS", "PARAMETERS", "DOWNLOAD", "STATUS", "SCORE", "LICENCE", "ARCHITECTURE", "PAPER", "ABOUT")

Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Names as `sepcli models list` shows them.")]


@app.command("list")
def list_models(
    json: Annotated[bool, typer.Option("--json", help="One JSON document with every model.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """List every model: what it separates, its size, and whether it can be had."""
    entries = catalog()
    if json:
        console.document({"models": [summary(entry) for entry in entries.values()]})
        return
    rows: list[tuple[str, ...]] = [HEADINGS]
    rows += [row(entry) for entry in entries.values()]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]) - 1)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for cells in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, [*widths, 0], strict=True)).rstrip()
        console.result(line if len(line) <= limit else line[: limit - 1] + "…")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Show all that is known of a model: paper, licence, scores with their protocol, files, settings."""
    entry = find(name)
    facts = summary(entry)
    if json:
        console.document(facts)
        return
    for key, value in facts.items():
        if value in (None, "", [], {}):
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            console.result(f"{key.replace('_', ' ') if index == 0 else '':<14}{told(item)}")


@app.command()
def pull(
    names: Names,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take the file, or those of a folder, from here, not from the network; digests must fit."
        ),
    ] = None,
    require_digest: Annotated[
        bool, typer.Option("--require-digest", help="Refuse weights whose publisher gives no digest.")
    ] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Download the files of models into the cache, so that they can be used without a network."""
    for name in names:
        entry = find(name)
        files = needed_files(entry)
        if source is not None:
            for file, path in brought(entry, files, source):
                console.result(str(fetch.adopt(file, path)))
            continue
        console.notice(f"{entry.name}: licence: {entry.licence or 'none stated'}")
        for file in files:
            with console.bar.over(file.name):
                path = fetch.fetch(
                    file,
                    offline=False,
                    require_digest=require_digest,
                    notice=console.notice,
                    progress=console.downloads,
                    model=entry.name,
                )
            console.result(str(path))


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME…]", help="Models. [default: all in the cache]")
    ] = None,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Prove an installation: digests of the files that are here, and each network against stored numbers.

    A network is filled with seeded weights, run on a seeded sound, and compared with what it gave where its parity with
    the public code was proven. Without names: every file in the cache, every architecture.
    """
    entries = [find(name) for name in names] if names else list(catalog().values())
    bad = checked = 0
    for entry in entries:
        for file in all_files(entry) if not entry.bag or names else ():
            if not here(file):
                if names:
                    console.notice(
                        f"{entry.name}: {file.name} is not here; `sepcli models pull {entry.name}` brings it"
                    )
                continue
            checked += 1
            try:
                console.result(f"{entry.name}  {file.name}  {fetch.verify(file)}")
            except SepcliError as error:
                bad += 1
                console.error(str(error))
    if not checked and not names:
        console.notice("no model is in the cache; `sepcli models pull NAME` brings one")
    if bad + verify_numbers(entries):
        raise typer.Exit(ModelError.exit_code)


def verify_numbers(entries: list[Entry]) -> int:
    """Compare the architectures of entries with their stored numbers; how many differ too much."""
    from sepcli.weights.parity import BOUND, difference

    bad = 0
    single = [find(vote.model) for entry in entries for vote in entry.bag] + [e for e in entries if not e.bag]
    for architecture, entry in {entry.architecture: entry for entry in single}.items():
        found = difference(entry)
        if found is None:
            console.notice(f"{architecture}: no numbers are stored for it")
        elif found <= BOUND:
            console.result(f"{architecture}  numbers differ by {found:.0e} of their rms, allowed {BOUND:.0e}")
        else:
            bad += 1
            console.error(f"{architecture}: numbers differ by {found:.1e} of their rms, allowed {BOUND:.0e}")
    return bad


@app.command()
def add(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, or the folder of a run.")],
    name: Annotated[str, typer.Option(help="What it is to be called.")],
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Give a file of weights a name in your own catalogue; the file stays where it is."""
    entry = own.add(path, name)
    console.result(f"{entry.name}  {entry.architecture}  {', '.join(entry.sources)}  {entry.files[0].url}")


@app.command()
def remove(
    names: Names,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Remove the files of models from the cache, and names from your own catalogue."""
    for name in names:
        entry = find(name)
        if own.remove(name):
            console.result(f"{name}  (its file stays at {entry.files[0].url})")
            continue
        gone = [path for file in needed_files(entry) if (path := fetch.remove(file)) is not None]
        if not gone:
            console.notice(f"{entry.name}: nothing of it was in the cache")
        for path in gone:
            console.result(str(path))


def brought(entry: Entry, files: list[FileSpec], source: Path) -> list[tuple[FileSpec, Path]]:
    """What --from gives: a file of any name for a model with one file, or a folder with all by their published names.

    Raises UsageError naming what is missing.
    """
    if source.is_dir():
        if missing := [file.name for file in files if not (source / file.name).is_file()]:
            what = f"--from {source}: lacks {', '.join(missing)}"
            raise UsageError(what, f"{entry.name} has {', '.join(file.name for file in files)}")
        return [(file, source / file.name) for file in files]
    if len(files) > 1:
        raise UsageError(f"--from {source}: is one file, {entry.name} has {len(files)}", "name the folder with all")
    return [(files[0], source)]


def here(file: FileSpec) -> bool:
    """Whether a file is on this machine, as far as its address says."""
    return fetch.cached(file) is not None if fetch.is_remote(file.url) else True


def needed_files(entry: Entry) -> list[Any]:
    """The files of an entry; none is an error that says what to do instead."""
    require_weights(entry)
    return all_files(entry)


def summary(entry: Entry) -> dict[str, Any]:
    """What `list --json` and `show` tell of a model, as plain data."""
    members = [find(name) for name in dict.fromkeys(vote.model for vote in entry.bag)] or [entry]
    first = members[0]
    files = all_files(entry)
    sizes = [file.bytes for file in files]
    return {
        "name": entry.name,
        "alias": list(entry.alias),
        "about": entry.about,
        "status": entry.status,
        "architecture": first.architecture,
        "sources": list(first.sources),
        "sample_rate": first.sample_rate,
        "channels": first.channels,
        "segment": entry.segment or first.segment,
        "parameters": total_parameters(entry),
        "bytes": sum(size or 0 for size in sizes) if all(sizes) and sizes else None,
        "licence": entry.licence or "; ".join(dict.fromkeys(member.licence for member in members)),
        "commercial": all(member.commercial for member in members),
        "paper": dict(entry.paper or first.paper),
        "cite": cite(entry.paper or first.paper),
        "scores": [dict(score) for score in entry.scores],
        "bag": [{"model": vote.model, "weights": list(vote.weights)} for vote in entry.bag],
        "files": [{"url": file.url, "sha256": file.sha256, "bytes": file.bytes} for file in files],
        "settings": dict(entry.settings),
        "training": dict(entry.training),
    }


def cite(paper: Mapping[str, Any]) -> str:
    """A paper in one line."""
    where = f", {paper['id']}" if paper.get("id") else ""
    return f'"{paper["title"]}" ({paper.get("year", "no year")}){where}' if paper.get("title") else ""


def row(entry: Entry) -> tuple[str, ...]:
    facts = summary(entry)
    size = f"{facts['bytes'] / 1e6:.0f} MB" if facts["bytes"] else "-"
    name = f"{entry.name} ({', '.join(entry.alias)})" if entry.alias else entry.name
    stems, parameters = ",".join(facts["sources"]), f"{facts['parameters'] / 1e6:.1f} M"
    licence = console.shortened(facts["licence"] or "none stated", 40)
    paper = f"{facts['paper'].get('id', '-')} ({facts['paper'].get('year', '-')})" if facts["paper"] else "-"
    return (
        *(name, stems, parameters, size, entry.status, score(entry)),
        *(licence, facts["architecture"], paper, entry.about),
    )


def score(entry: Entry) -> str:
    """The first published score in a few characters: the measure, its data, and the mean over sources."""
    for published in entry.scores:
        values = [value for value in published.values() if isinstance(value, int | float)]
        if values:
            return (
                f"{published.get('measure', '')} {sum(values) / len(values):.1f} ({published.get('data', '?')})".strip()
            )
    return "-"


def told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {told(item)}" for key, item in value.items() if item not in (None, ""))
    if isinstance(value, list):
        return "[" + ", ".join(told(item) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value)
