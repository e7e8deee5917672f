"""`sepcli separate`: songs into stems."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sepcli import DEFAULT
from sepcli.cli import batch, console
from sepcli.errors import AudioError, UsageError

if TYPE_CHECKING:
    from sepcli.batch.manifest import Item
    from sepcli.inference.forecast import Outlook
    from sepcli.inference.plan import Plan

TEMPLATE = "{model}/{reldir}/{track}/{stem}.{ext}"


def separate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="Songs and folders of songs; addresses too.", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-n", "-m", help="A name, a file, or several joined by commas (a bag).")
    ] = DEFAULT,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder or address (s3://…) that the template is relative to.")
    ] = "separated",
    filename: Annotated[
        str,
        typer.Option(help="Template of the stems' paths below --out; also {index}. No model folder is put before it."),
    ] = TEMPLATE,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into the folders of folders too.")] = False,
    input_list: Annotated[
        Path | None,
        typer.Option(help="A list: one path a line, JSON lines or CSV; - is standard input.", allow_dash=True),
    ] = None,
    stems: Annotated[str, typer.Option(help="Only these stems, joined by commas. [default: all]")] = "",
    two_stems: Annotated[str | None, typer.Option(help="This stem, and the sum of the others as no_STEM.")] = None,
    container: Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus"], typer.Option("--format", help="Format of the stems.")
    ] = "wav",
    bitrate: Annotated[int | None, typer.Option(help="Of lossy stems, in kbit/s. [default: mp3 320]", min=8)] = None,
    bit_depth: Annotated[
        Literal["auto", "16", "24", "32f"],
        typer.Option(help="Of lossless stems, in bits; auto: the input's when that is lossless, else 16."),
    ] = "auto",
    clip: Annotated[
        Literal["common", "rescale", "clamp", "none"],
        typer.Option(
            help="When a stem exceeds full scale: one gain for all, a gain for that stem, cut it off, nothing."
        ),
    ] = "common",
    start: Annotated[float, typer.Option(help="Where to begin in each song, in seconds.", min=0)] = 0.0,
    end: Annotated[float | None, typer.Option(help="Where to end in each song, in seconds. [default: its end]")] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", "-d", help="auto (cuda, then mps, then cpu), cpu, cuda, mps, cuda:N; cuda:0,1 are two workers."
        ),
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the network's arithmetic.")
    ] = "float32",
    plain: Annotated[
        bool, typer.Option("--plain", help="Run networks as they are written, without their fast forms for the CPU.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: torch's own]", min=1)] = None,
    segment: Annotated[float | None, typer.Option(help="Length of a piece in seconds. [default: the model's]")] = None,
    quality: Annotated[
        Literal["fast", "normal", "best"] | None,
        typer.Option(
            help="How much pieces overlap, as a word. [default: normal, or what the model has for the device]"
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(help="Share of a piece that overlaps the next, 0 to below 1, in place of --quality."),
    ] = None,
    shifts: Annotated[int, typer.Option(help="Passes moved by up to 0.5 s, averaged: slower, a little better.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the shifts and of the dither.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Pieces at a time. [default: 1 on the CPU, 4 on CUDA]")] = None,
    wiener_iterations: Annotated[
        int | None, typer.Option(help="Of networks with a Wiener filter. [default: the model's own]", min=0)
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="The catalogue name whose network a bare state dict is for, or the public trainer's yaml."),
    ] = None,
    bag_weights: Annotated[
        Path | None, typer.Option(help="TOML file: for each model a table of source = weight. [default: all 1]")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket: only what is in the cache.")] = False,
    require_digest: Annotated[
        bool, typer.Option("--require-digest", help="Refuse weights whose publisher gives no digest.")
    ] = False,
    consistent: Annotated[
        bool, typer.Option("--consistent", help="Make the stems sum to the song, to the last bit of their depth.")
    ] = False,
    upper_band: Annotated[
        Literal["other", "share", "drop"],
        typer.Option(help="Sound above the model's band goes to the accompaniment, is shared among all, or dropped."),
    ] = "other",
    existing: Annotated[
        Literal["skip", "overwrite", "error"],
        typer.Option(help="When the stems are there: skip those made from the same input, weights and settings."),
    ] = "skip",
    sidecar: Annotated[
        bool, typer.Option("--sidecar/--no-sidecar", help="Write stems.json, which marks and describes a finished set.")
    ] = True,
    licence: Annotated[
        Literal["any", "commercial"], typer.Option(help="commercial: refuse weights whose terms do not allow that.")
    ] = "any",
    shard: Annotated[
        str | None,
        typer.Option(help="Only part i of n of the list, as 1/4; auto: as SLURM or RANK say. [default: all]"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Workers on each device, each with the model.", min=1)] = 1,
    journal: Annotated[
        Path | None, typer.Option(help="Add what becomes of each song to this file; see `sepcli batch`.")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(help="End in time, as 3h50m, with the rest told as left; exit 0.")
    ] = None,
    max_failures: Annotated[
        str | None, typer.Option(help="Stop when more songs have failed than this number, or share as 1%.")
    ] = None,
    claim: Annotated[
        Path | None, typer.Option(help="Folder through which processes of several machines share one list.")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(help="How long a claim holds whose process does not stir. [default: 2m]")
    ] = None,
    engine: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(help="local: here; ray: on a Ray cluster; slurm: write the script of an array of --jobs tasks."),
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster. [default: RAY_ADDRESS, else one that is started here]")
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for what is on its way to or from an address. [default: the system's]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done with each input, and what it would take.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document a line for each input, on stdout.")] = False,
    progress: Annotated[
        Literal["auto", "json"], typer.Option(help="auto: a bar on a terminal; json: one event a line on stderr.")
    ] = "auto",
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Separate songs into stems.

    The stems of a song lie in separated/MODEL/SONG/ and have its sample rate, length and channels.
    """
    from sepcli.audio.paths import clashes
    from sepcli.batch.manifest import Item, is_remote, read_list
    from sepcli.batch.scan import find_items
    from sepcli.inference.plan import Plan, check_plan

    console.state.progress = progress
    if quality is not None and overlap is not None:
        raise UsageError("--quality and --overlap exclude each other", "give one of them")
    plan = Plan(
        model=model,
        out=Path(out),
        destination=out if is_remote(out) else "",
        scratch=scratch,
        filename=filename,
        stems=tuple(dict.fromkeys(name.strip() for name in stems.split(",") if name.strip())),
        two_stems=two_stems,
        format=container,
        bitrate=bitrate,
        bit_depth=bit_depth,
        clip=clip,
        consistent=consistent,
        upper_band=upper_band,
        existing=existing,
        sidecar=sidecar,
        start=start,
        end=end,
        device=device,
        precision=precision,
        plain=plain,
        threads=threads,
        segment=segment,
        overlap=overlap if quality is None else quality,
        shifts=shifts,
        seed=seed,
        batch_size=batch_size,
        architecture=architecture,
        wiener_iterations=wiener_iterations,
        bag_weights=bag_weights,
        offline=offline,
        require_digest=require_digest,
        licence=licence,
    )
    check_plan(plan)
    options = batch.Options(shard, max_time, max_failures, journal, jobs, claim, lease, engine, address, json)
    if engine == "slurm":
        batch.write_script(context, plan, options)
        return
    entries, problems = read_list(input_list) if input_list else ([], [])
    if problems and not entries and not inputs:
        lines = [problem.what for problem in problems[:3]] + ["…"] * (len(problems) > 3)
        raise UsageError("; ".join(lines), "no line names a song")
    named = [*map(Item, inputs or []), *entries]
    uris = [out, *(item.uri for item in named)]
    if offline and (far := next((uri for uri in uris if is_remote(uri) and not uri.startswith("file:")), None)):
        raise UsageError(f"--offline: {far} lies on the network", "leave out one of them")
    items, more = find_items(named, recursive)
    clashes(outputs(items, plan))
    if plan.destination:
        from sepcli.batch.storage import check_destination

        check_destination(plan.destination)
    mine = batch.my_shard(items, options)
    if container != "wav":
        check_formats(mine, plan)
    if dry_run:
        raise typer.Exit(tell_all(mine, [*problems, *more], plan, as_json=json))
    raise typer.Exit(batch.separate_all(mine, [*problems, *more], plan, options))


def tell_all(items: "Sequence[Item]", problems: Iterable[AudioError], plan: "Plan", *, as_json: bool) -> int:
    """--dry-run: what would be done with each input. Returns the exit code that the real call would begin with."""
    from sepcli.batch.workers import devices_of
    from sepcli.inference.forecast import Outlook, outlook

    plan = replace(plan, device=devices_of(plan.device, 1)[0])
    plans = [Outlook(problem.input, plan.model, "failed", error=str(problem)) for problem in problems]
    for item in items:
        if item.remote or plan.destination:  # nothing is fetched to be looked at
            plans.append(Outlook(item.uri, plan.model, device=plan.device))
            continue
        try:
            plans.append(outlook(item.found, item.index, plan))
        except AudioError as error:
            plans.append(Outlook(item.uri, plan.model, "failed", error=str(error)))
    for one in plans:
        if one.error:
            console.error(one.error)
        if as_json:
            console.document(one.document())
        elif not one.error:
            console.result(told(one))
            for path in one.stems.values():
                console.result(f"  {path}")
    return 1 if any(one.error for one in plans) else 0


def told(plan: "Outlook") -> str:
    """One line of --dry-run."""
    if plan.status == "skipped":
        return f"{plan.input}: finished already"
    pieces = "an unknown number of pieces" if plan.segments is None else f"{plan.segments} pieces"
    takes = [f"{plan.memory / 1e9:.1f} GB of memory"] if plan.memory is not None else []
    if plan.seconds is not None:
        takes.append(f"{plan.seconds:.0f} s" if plan.seconds < 100 else f"{plan.seconds / 60:.0f} min")
    about = f", about {' and '.join(takes)}" if takes else ""
    return f"{plan.input}: {plan.model} on {plan.device}, {pieces}{about}"


def outputs(items: "Sequence[Item]", plan: "Plan") -> "Iterator[tuple[Path, list[Path]]]":
    """Each song with where its stems go, as far as that is known before the model is loaded."""
    from sepcli.inference.plan import sources_of, stem_path, stems_of

    sources = sources_of(plan)
    names = ["stem"] if sources is None else list(stems_of(plan, sources))
    for item in items:
        yield item.found.path, [stem_path(item.found, item.index, plan, name, plan.format) for name in names]


def check_formats(items: "Sequence[Item]", plan: "Plan") -> None:
    """Refuse a format that cannot hold the stems of every song, before anything is done. Raises UsageError."""
    from sepcli.audio.paths import exists
    from sepcli.audio.read import open_song
    from sepcli.inference.files import form_of
    from sepcli.inference.plan import sidecar_path

    for item in items:
        try:
            if not item.remote and not exists(sidecar_path(item.found, item.index, plan)):
                form_of(open_song(item.found.path), plan)
        except AudioError:
            continue  # it fails when its turn comes
