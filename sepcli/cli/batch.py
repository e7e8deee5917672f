"""Many songs: how `sepcli separate` does a list, and `sepcli batch`, which reads the journals of such runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sepcli.cli import console
from sepcli.errors import AudioError, UsageError

if TYPE_CHECKING:
    from sepcli.batch.journal import History
    from sepcli.batch.manifest import Item
    from sepcli.batch.run import Engine
    from sepcli.inference.plan import Plan, Progress, Record

app = typer.Typer(help="Look at the journals of large runs.", rich_markup_mode=None, no_args_is_help=True)

LEASE = "2m"
"""How long a claim holds where --lease does not say it."""
Journals = Annotated[list[Path], typer.Argument(metavar="JOURNAL…", help="Files that --journal wrote.")]


@dataclass(frozen=True)
class Options:
    """How a list is done, beside what is done with each song: the options of `sepcli separate`, by their names."""

    shard: str | None = None
    max_time: str | None = None
    max_failures: str | None = None
    journal: Path | None = None
    jobs: int = 1
    claim: Path | None = None
    lease: str | None = None
    engine: str = "local"
    address: str | None = None
    json: bool = False


def my_shard(items: "Sequence[Item]", options: Options) -> "list[Item]":
    """The items of this process' shard, longest first; without --shard all, as they are. Raises UsageError."""
    if options.shard is None:
        return list(items)
    from sepcli.batch.shards import UNKNOWN, of_shard, shard_of

    shard, origin = shard_of(options.shard)
    mine = of_shard(items, shard)
    console.notice(f"shard {shard} (from {origin}): {len(mine)} of {len(items)} songs")
    if unknown := sum(item.seconds is None for item in items):
        what = f"{unknown} songs of unknown length count {UNKNOWN:g} s each"
        console.notice(f"{what}: `sepcli data scan` writes a list with lengths, for shards of equal work")
    return mine


def separate_all(items: "Sequence[Item]", problems: Sequence[AudioError], plan: "Plan", options: Options) -> int:
    """Separate the songs of a list; what fails is told, and the others go on. Returns the exit code."""
    from sepcli.batch.journal import Journal
    from sepcli.batch.process import finder
    from sepcli.batch.run import Limits, failures_of, run, seconds_of

    limits = Limits(
        None if options.max_time is None else seconds_of(options.max_time, "--max-time"),
        None if options.max_failures is None else failures_of(options.max_failures, len(items)),
        options.max_failures or "",
    )
    lease = lease_of(options)
    if plan.scratch is not None and not plan.destination and not any(item.remote for item in items):
        raise UsageError(f"--scratch {plan.scratch}: no song and no stem lies at an address", "leave it out")
    check_address(options)
    console.state.keeps = True
    with ExitStack() as ends:
        show, engine = engine_of(items, plan, options)
        journal = claims = None
        if options.journal is not None:
            journal = Journal(options.journal, plan, len(items), options.shard, options.claim)
            ends.callback(journal.close)
        if options.claim is not None:
            from sepcli.batch.claims import Claims
            from sepcli.inference.plan import settings_key

            claims = Claims(options.claim, settings_key(plan), lease, console.notice)
            ends.callback(claims.end)
        tell = ends.enter_context(show)
        found = finder(plan, journal)
        return run(
            items,
            problems,
            engine,
            tell,
            console.notice,
            model=plan.model,
            finished=found,
            limits=limits,
            journal=journal,
            claims=claims,
        )


def lease_of(options: Options) -> float:
    """How long a claim holds, in seconds. Raises UsageError."""
    from sepcli.batch.run import seconds_of

    if options.lease is not None and options.claim is None:
        raise UsageError(f"--lease {options.lease}: goes with --claim")
    return seconds_of(options.lease or LEASE, "--lease")


def check_address(options: Options) -> None:
    if options.address is not None and options.engine != "ray":
        raise UsageError(f"--address {options.address}: goes with --engine ray")


def engine_of(items: "Sequence[Item]", plan: "Plan", options: Options) -> "tuple[Any, Engine]":
    """What does the work, and a context that gives what tells a record. Raises UsageError."""
    from sepcli.batch.process import processor
    from sepcli.batch.run import loop
    from sepcli.batch.workers import devices_of, pool, threads_each

    digests, debug = options.journal is not None, console.state.debug

    @contextmanager
    def watch(item: "Item") -> "Iterator[Progress]":
        label = f"{item.index}/{len(items)} {item.name}" if len(items) > 1 else item.name
        with console.bar.over(label) as meter:
            yield meter

    devices = devices_of(plan.device, options.jobs)[: max(1, len(items))]
    if options.engine == "ray":
        from sepcli.batch.cluster import actors

        engine = actors(plan, devices, options.address, watch, console.notice, digests=digests, debug=debug)
        return several(len(items), options.json), engine
    if len(devices) == 1:
        one = replace(plan, device=devices[0])
        process = processor(one, notice=console.notice, downloads=console.downloads, digests=digests, debug=debug)
        return nullcontext(teller(len(items), options.json)), loop(process, watch)
    if plan.threads is None and (threads := threads_each(len(devices))) is not None:
        console.notice(f"{len(devices)} workers with {threads} CPU threads each; --threads says otherwise")
        plan = replace(plan, threads=threads)
    engine = pool(plan, devices, watch, console.notice, digests=digests, debug=debug)
    return several(len(items), options.json), engine


def write_script(context: typer.Context, plan: "Plan", options: Options) -> None:
    """--engine slurm: write the script of an array of shards of this call, and say how to submit it. Raises UsageError.

    The call is what was given, without what each task has of its own.
    """
    from sepcli.batch.run import failures_of, seconds_of
    from sepcli.batch.slurm import script

    inputs = [str(value) for value in context.params["inputs"] or []]
    given_list = context.params["input_list"]
    if not inputs and given_list is None:
        raise UsageError("no input is named", "name songs, folders or an --input-list")
    if str(given_list) == "-":
        raise UsageError("--input-list -: the tasks of an array have no standard input", "write the list to a file")
    lease_of(options)
    check_address(options)
    if options.max_failures is not None:
        failures_of(options.max_failures, 1)
    if options.shard or options.journal:
        raise UsageError("--engine slurm: each task has a shard and a journal of its own", "leave out both options")
    if options.jobs < 2:
        raise UsageError("--engine slurm: how many tasks?", "say it with --jobs, as -j 16")
    words = ["sepcli", "separate"]
    for option in context.command.params:
        if option.param_type_name == "argument":
            continue
        name = option.name or ""
        given = context.get_parameter_source(name)
        if name not in context.params or name in ("engine", "jobs") or given is None or given.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if getattr(option, "is_flag", False):
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            words += [option.opts[0], str(value)]
    text = script(
        words,
        inputs,
        tasks=options.jobs,
        folder=str(Path.cwd()),
        logs="sepcli-array",
        gpu=plan.device != "cpu",
        seconds=None if options.max_time is None else seconds_of(options.max_time, "--max-time"),
        cores=plan.threads or 4,
    )
    place = Path("sepcli-array.sh")
    try:
        Path("sepcli-array").mkdir(exist_ok=True)  # for the logs and journals, which SLURM does not make
        place.write_text(text)
    except OSError as error:
        raise UsageError(f"--engine slurm: {place} cannot be written: {error.strerror}") from error
    console.result(str(place))
    console.notice(f"look at its #SBATCH lines, then: sbatch {place}; later: sepcli batch status sepcli-array/*.jsonl")


@contextmanager
def several(count: int, as_json: bool) -> "Iterator[Callable[[Record], None]]":
    """A bar over all songs while several are at work, above their own."""
    if console.state.progress == "json":
        yield teller(count, as_json)
        return
    with console.bar.over(f"{count} songs") as meter:
        yield teller(count, as_json, meter)


def teller(count: int, as_json: bool, meter: "Progress | None" = None) -> "Callable[[Record], None]":
    """A function that tells what became of an input: its stems or a document on stdout, the rest on stderr."""
    told = 0

    def tell(record: "Record") -> None:
        nonlocal told
        told += 1
        if meter is not None:
            meter(told, count)
        if record.error:
            console.error(record.error)
        if as_json:
            console.document(record.document())
        elif record.status == "left":
            console.notice(f"left: {record.input}")
        else:
            for path in record.stems.values():
                console.result(path)
        if record.status == "skipped":
            console.detail(f"{record.input}: finished already")
        elif record.speed:
            console.detail(f"{record.input}: {record.seconds:.1f} s of song at {record.speed:.2f} times real time")

    return tell


@app.command("status")
def status(
    journals: Journals,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Count what is done, left and failed in the runs of these journals, and name what failed.

    Exit 1 where something failed or is left.
    """
    from sepcli.batch.journal import FINISHED, merged, read_journal, songs_in

    histories = [read_journal(path) for path in journals]
    rows = merged(histories)
    states = Counter(row["status"] for row in rows.values())
    finished = sum(states[state] for state in FINISHED)
    total = max(len(rows), songs_in(histories))  # a kill leaves no lines for what was not begun
    failed = [row for row in rows.values() if row["status"] == "failed"]
    reasons = Counter(row["reason"] for row in failed)
    done = [row for row in rows.values() if row["status"] == "done"]
    seconds, spent = sum(row.get("seconds", 0.0) for row in done), sum(row.get("spent", 0.0) for row in done)
    devices = Counter(row.get("device", "unknown") for row in done)
    left = total - finished - len(failed)
    for history in histories:
        for number in history.broken:
            console.notice(f"{history.path}, line {number}: cut off or not ours; passed over")
    if json:
        console.document(
            {
                "items": total,
                "finished": finished,
                "failed": dict(reasons),
                "left": left,
                "hours": round(seconds / 3600, 3),
                "speed": round(seconds / spent, 3) if spent else None,
                "devices": dict(devices),
                "failures": [{name: row[name] for name in ("item", "reason", "error")} for row in failed],
            }
        )
    else:
        for row in failed:
            console.result(f"{row['reason']}: {row['error']}")
        why = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})" if failed else ""
        console.result(f"{total} songs: {finished} finished, {len(failed)} failed{why}, {left} left")
        if spent:
            where = ", ".join(f"{count} on {device}" for device, count in devices.most_common())
            console.result(f"{seconds / 3600:.2f} h of song at {seconds / spent:.2f} times real time ({where})")
    raise typer.Exit(1 if failed or left else 0)


@app.command("retry")
def retry(
    journals: Journals,
    kind: Annotated[
        Literal["decode", "nan", "memory", "io", "fault"] | None,
        typer.Option("--class", help="Only what failed for this reason. [default: all of it]", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="As for `sepcli separate`.")] = "auto",
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Workers on each device.", min=1)] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON document a line for each input, on stdout.")] = False,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Do again what failed, with the settings that its journal tells; what comes of it is added there."""
    from sepcli.batch.journal import merged, plan_of, read_journal

    histories = [read_journal(path) for path in journals]
    last = merged(histories)
    code = 0
    for history in histories:
        failed = [row for uri, row in history.items.items() if row is last[uri] and row["status"] == "failed"]
        items = [item_again(row) for row in failed if kind in (None, row.get("reason"))]
        console.notice(f"{history.path}: {len(items)} of {len(failed)} failed songs are tried again")
        if items:
            plan = replace(plan_of(run_here(history)), device=device)
            code = max(code, separate_all(items, [], plan, Options(journal=history.path, jobs=jobs, json=json)))
    raise typer.Exit(code)


def run_here(history: "History") -> dict[str, Any]:
    """The last run of a journal; relative paths are those of its folder. Raises UsageError."""
    if not history.runs:
        raise UsageError(f"{history.path}: tells of no run", "run `sepcli separate` again")
    run = history.runs[-1]
    if run["folder"] != str(Path.cwd()):
        raise UsageError(f"{history.path}: its run was in {run['folder']}", "go there, since its paths begin there")
    return run


def item_again(row: dict[str, Any]) -> "Item":
    from sepcli.batch.manifest import Item

    return Item(row["item"], row["index"], row.get("reldir") or "", row.get("length"), row.get("digest"))
