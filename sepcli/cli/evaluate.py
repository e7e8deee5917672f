"""`sepcli evaluate`: scores of a model, of any tool's stems, or of an oracle, by a paper's protocol; and reports."""

import dataclasses
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sepcli.cli import console
from sepcli.errors import ModelError, UsageError
from sepcli.weights.catalog import find
from sepcli.weights.votes import is_path

if TYPE_CHECKING:
    from sepcli.metrics.protocols import Protocol
    from sepcli.metrics.scoring import Scoring
    from sepcli.metrics.stems import Pair


class Evaluate(TyperGroup):
    """Takes `--data A B` as `--data A --data B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for word in args:
            if len(words) > 1 and words[-2] == "--data" and not word.startswith("-") and word not in self.commands:
                words.append("--data")
            words.append(word)
        return super().parse_args(ctx, words)


app = typer.Typer(cls=Evaluate, invoke_without_command=True, rich_markup_mode=None, subcommand_metavar="[compare …]")

Plots = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write box plots of the scores as SVG and PNG (extra `plots`).")
]


@app.callback(help="Score separations by the protocols of papers, or report on stems without references.")
def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", "-n", "-m", help="Score this model: a name or a path.")
    ] = None,
    estimates: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Score the stems that any tool has written here.")
    ] = None,
    oracle: Annotated[
        Literal["ibm", "ibm2", "irm1", "irm2", "mwf"] | None,
        typer.Option(help="Score what a mask or a filter can reach that knows the true stems."),
    ] = None,
    mixture: Annotated[
        bool, typer.Option("--mixture", help="Score the mixture itself: what doing nothing gets.")
    ] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER…", help="Songs with stems: MUSDB18-HQ, MUSDB18 (stem.mp4), or any folders of songs."
        ),
    ] = None,
    split: Annotated[
        Literal["test", "train", "all"], typer.Option(help="Of a folder that has both train and test.")
    ] = "test",
    protocol: Annotated[
        str,
        typer.Option(help="musdb18 (sisec18), cde-htcn, multiband, cws, hdemucs, mdx (mdx21, hdemucs-nsdr), xscheme."),
    ] = "musdb18",
    metrics: Annotated[
        Literal["sdr", "si-sdr", "bss"] | None,
        typer.Option(
            help="sdr: SDR alone, fast; si-sdr: SI-SDR too; bss: with ISR, SIR and SAR. [default: the protocol's]"
        ),
    ] = None,
    frame: Annotated[
        float | None,
        typer.Option(help="Length of a frame in seconds, and the way to the next. [default: the protocol's]"),
    ] = None,
    bss_framing: Annotated[
        Literal["museval", "continuous"] | None,
        typer.Option(
            help="Filter frames cut out, as museval; or the song, then cut: right where stems are band-limited."
        ),
    ] = None,
    bss_ridge: Annotated[
        float | None, typer.Option(help="Added to the unit diagonal of the filters' equations. [default: 0, or 1e-12]")
    ] = None,
    silence: Annotated[
        Literal["museval", "score"] | None,
        typer.Option(help="museval: one silent stem takes the frame from all; score: from itself. [default: museval]"),
    ] = None,
    museval_exact: Annotated[
        bool,
        typer.Option(
            "--museval-exact", help="As museval on MUSDB18: stems of 16 bits, all four metrics, its sets of stems."
        ),
    ] = False,
    mwf_legacy: Annotated[bool, typer.Option("--mwf-legacy", help="With SiSEC 2018's slips in --oracle mwf.")] = False,
    allow_length_mismatch: Annotated[
        bool, typer.Option("--allow-length-mismatch", help="Cut or fill estimates that differ by more than 0.1 s.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(help="Songs at a time, a process each; with ISR, SIR and SAR each needs 1 GB or more.", min=1)
    ] = 1,
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="Of the model, and of the filters where it is cuda: auto, cpu, cuda, mps."),
    ] = "auto",
    segment: Annotated[float | None, typer.Option(help="For --model: length of a piece in seconds.")] = None,
    overlap: Annotated[
        float | None, typer.Option(help="For --model: share of a piece that overlaps the next. [default: the model's]")
    ] = None,
    shifts: Annotated[int, typer.Option(help="For --model: passes moved by up to 0.5 s, averaged.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the shifts.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Open no socket: only weights in the cache.")] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the result; songs in it are not scored again. - is stdout.", allow_dash=True
        ),
    ] = None,
    no_frames: Annotated[
        bool, typer.Option("--no-frames", help="Leave the scores of each frame out of --json.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line for each song and stem.")] = None,
    museval_json: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a file for each song as museval does, for its tools.")
    ] = None,
    plots: Plots = None,
    report: Annotated[
        Path | None, typer.Option(metavar="STEMS_DIR", help="Without references: a page about one song's stems.")
    ] = None,
    song: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --report: the mixture. [default: mixture.* beside the stems]"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For --report: the page. [default: STEMS_DIR/report.html]")
    ] = None,
    progress: Annotated[
        Literal["auto", "json"], typer.Option(help="auto: a bar on a terminal; json: one event a line on stderr.")
    ] = "auto",
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    if context.invoked_subcommand:
        return
    console.state.progress = progress
    given = {"--model": model, "--estimates": estimates, "--oracle": oracle, "--mixture": mixture, "--report": report}
    chosen = [name for name, value in given.items() if value]
    if len(chosen) != 1:
        what = " and ".join(chosen) + " exclude each other" if chosen else "nothing to score"
        raise UsageError(what, f"give one of {', '.join(given)}")
    if report:
        raise typer.Exit(write_report(report, song, html, json))
    if song or html:
        raise UsageError("--song and --html go with --report")
    if not data:
        raise UsageError("--data is missing", "name a folder of songs with stems")

    from sepcli.metrics.bss_eval import CONTINUOUS_RIDGE
    from sepcli.metrics.protocols import protocol as named
    from sepcli.metrics.scoring import Scoring

    rule = named(protocol)
    if frame is not None:
        rule = dataclasses.replace(rule, window=frame, hop=frame)
    exact = {
        "--bss-framing": bss_framing == "continuous",
        "--bss-ridge": bool(bss_ridge),
        "--silence": silence == "score",
    }
    if museval_exact and (
        against := [name for name, bad in (exact | {"--metrics": metrics in ("sdr", "si-sdr")}).items() if bad]
    ):
        raise UsageError(f"--museval-exact and {against[0]} exclude each other", "leave out one of them")
    scoring = Scoring(
        protocol=rule,
        kind="model" if model else "estimates" if estimates else "oracle" if oracle else "mixture",
        model=model or (str(estimates) if estimates else oracle or "mixture"),
        metrics=wanted_metrics(rule, metrics, every=museval_exact or museval_json is not None),
        framing=bss_framing or "museval",
        ridge=bss_ridge if bss_ridge is not None else CONTINUOUS_RIDGE if bss_framing == "continuous" else 0.0,
        silence=silence or "museval",
        museval_exact=museval_exact,
        mwf_legacy=mwf_legacy,
        allow_length_mismatch=allow_length_mismatch,
        device=device,
        segment=segment,
        overlap=overlap,
        shifts=shifts,
        seed=seed,
        offline=offline,
    )
    check(scoring)
    check_places(json, csv, museval_json, plots)
    if plots:
        from sepcli.metrics.plots import check_installed

        check_installed()
    result = evaluated(scoring, data, split, estimates, jobs, json, frames=not no_frames or museval_json is not None)
    output(result, scoring, data, json, csv, museval_json, plots, frames=not no_frames)
    raise typer.Exit(1 if result["failed"] else 0)


def wanted_metrics(rule: "Protocol", asked: str | None, *, every: bool) -> tuple[str, ...]:
    """Which metrics are computed: the protocol's, or those of --metrics; nSDR costs nothing."""
    if every and asked in ("sdr", "si-sdr"):
        raise UsageError("--museval-json needs ISR, SIR and SAR", f"leave out --metrics {asked}")
    if asked == "si-sdr":
        return ("SDR", "nSDR", "SI-SDR")
    if asked == "bss" or every or (asked is None and {"SIR", "SAR", "ISR"} & set(rule.metrics)):
        return ("SDR", "ISR", "SIR", "SAR", "nSDR")
    return ("SDR", "nSDR") if asked == "sdr" or "SDR" in rule.metrics else ("nSDR",)


def check(scoring: "Scoring") -> None:
    """Refuse numbers and devices that cannot be, and a model without weights, before anything is begun."""
    from sepcli.inference.device import choose

    choose(scoring.device)
    if not 0 <= scoring.ridge < 1:
        raise UsageError(f"--bss-ridge {scoring.ridge:g}: must be at least 0 and below 1")
    if not scoring.protocol.window > 0:
        raise UsageError(f"--frame {scoring.protocol.window:g}: must be a positive number of seconds")
    if scoring.overlap is not None and not 0 <= scoring.overlap < 1:
        raise UsageError(f"--overlap {scoring.overlap:g}: must be at least 0 and below 1")
    if scoring.shifts < 0:
        raise UsageError(f"--shifts {scoring.shifts}: must be at least 0")
    if scoring.segment is not None and not scoring.segment > 0:
        raise UsageError(f"--segment {scoring.segment:g}: must be a positive number of seconds")
    if scoring.kind == "model" and "," not in scoring.model and not is_path(scoring.model):
        entry = find(scoring.model)
        if not entry.files and not entry.bag:
            raise ModelError(f"{scoring.model} has no published weights", f"`sepcli train --model {scoring.model}`")


def check_places(json: Path | None, csv: Path | None, museval_json: Path | None, plots: Path | None) -> None:
    """Refuse files and folders of the results that cannot be written. Raises UsageError."""
    from sepcli.metrics.results import check_place

    for option, file in (("--json", json), ("--csv", csv)):
        if file and not (option == "--json" and str(file) == "-"):
            check_place(option, file)
    for option, folder in (("--museval-json", museval_json), ("--plots", plots)):
        if folder:
            check_place(option, folder, folder=True)


def evaluated(
    scoring: "Scoring",
    data: Sequence[Path],
    split: str,
    estimates: Path | None,
    jobs: int,
    kept: Path | None,
    *,
    frames: bool,
) -> dict[str, Any]:
    """Score every song that can be, telling of the others; the result as it stands in the file, with its frames."""
    from sepcli.metrics.evaluate import score_all
    from sepcli.metrics.results import document, finished, key_of, to_json, write_text
    from sepcli.metrics.stems import find_sets, pair

    pairs, failed = pair(find_sets(data, split), find_sets([estimates]) if estimates else None)
    for text in failed.values():
        console.error(text)
    place = None if kept is None or str(kept) == "-" else kept
    console.state.keeps = place is not None
    keys = {one.name: key_of(one, scoring) for one in pairs}
    old = finished(place, keys.values(), frames=frames) if place else {}
    songs = [old[keys[one.name]] for one in pairs if keys[one.name] in old]
    todo = [one for one in pairs if keys[one.name] not in old]
    if songs:
        console.notice(f"{len(songs)} of {len(pairs)} songs are scored already, in {place}")
    where = [str(folder) for folder in data]
    began, told = time.monotonic(), dict[str, list[str]]()
    with meter(todo) as progress:
        for score in score_all(todo, scoring, jobs, progress):
            if score.entry is None:
                failed[score.name] = score.problem
                console.error(score.problem)
                continue
            for note in score.entry["notes"]:
                told.setdefault(re.sub(r" \(smallest .*?\)", "", note), []).append(score.name)
            songs.append({"key": keys[score.name]} | score.entry)
            if place:  # whole after each song: an interrupted run goes on from here
                write_text(place, to_json(document(scoring, songs, failed, data=where, complete=False, frames=frames)))
    for note, names in told.items():
        console.notice(f"{', '.join(names)}: {note}")
    console.detail(f"{len(todo)} songs in {time.monotonic() - began:.1f} s")
    return document(scoring, songs, failed, data=where, complete=True, frames=True)


@contextmanager
def meter(pairs: "Sequence[Pair]") -> "Iterator[Any]":
    """Progress over all songs in seconds of song, with the time left."""
    from sepcli.metrics.stems import seconds_of

    lengths = {one.name: seconds_of(one.reference) or 1.0 for one in pairs}
    done = dict.fromkeys(lengths, 0.0)
    with console.bar.over(f"{len(pairs)} songs" if len(pairs) != 1 else pairs[0].name) as bar:

        def progress(name: str, share: float) -> None:
            done[name] = share * lengths[name]
            bar(sum(done.values()), sum(lengths.values()))

        yield progress


def output(
    result: dict[str, Any],
    scoring: "Scoring",
    data: Sequence[Path],
    json: Path | None,
    csv: Path | None,
    museval_json: Path | None,
    plots: Path | None,
    *,
    frames: bool,
) -> None:
    """Write every file that was asked for, and show the table."""
    from sepcli.metrics.protocols import BSS, write_museval_json
    from sepcli.metrics.results import to_csv, to_json, write_text

    if museval_json:
        rule = scoring.protocol
        for song in result["songs"]:
            scores = {
                source: {metric: [float("nan") if v is None else v for v in rows[metric]] for metric in BSS}
                for source, rows in song["frames"].items()
            }
            whole = math.isinf(rule.window)  # one frame, which JSON cannot call endless
            window, hop = (song["seconds"], 0.0) if whole else (rule.window, rule.hop)
            write_museval_json(museval_json / f"{song['name']}.json", scores, window=window, hop=hop)
    if csv:
        write_text(csv, to_csv(result))
    if plots and result["songs"]:
        from sepcli.metrics.plots import box_plots

        for path in box_plots([result], plots):
            console.notice(f"plot: {path}")
    if not frames:
        result = result | {"songs": [{k: v for k, v in song.items() if k != "frames"} for song in result["songs"]]}
    if json and str(json) == "-":
        console.result(to_json(result).rstrip("\n"))
    elif json:
        write_text(json, to_json(result))
    if result["songs"]:
        show(result, scoring, data, stdout=not json or str(json) != "-")
    else:
        console.notice("no song was scored")


def show(result: Mapping[str, Any], scoring: "Scoring", data: Sequence[Path], *, stdout: bool) -> None:
    """The table: our scores, below them the published ones of the same protocol, each with where it is from."""
    from sepcli.metrics.compare import label
    from sepcli.metrics.protocols import BSS
    from sepcli.metrics.published import beside

    rule = scoring.protocol
    published = beside(rule.name)
    metrics = dict.fromkeys([*rule.metrics, *(() if "SIR" in rule.metrics else BSS), "SI-SDR"])
    columns = [f"{metric} {source}" for metric in metrics if metric in scoring.metrics for source in rule.sources]
    # The CWS paper averages all its metrics, the others the first one; over sources that are themselves aggregated.
    averaged = rule.metrics if rule.name == "cws" else rule.metrics[:1]
    own = [result["aggregate"].get(source, {}).get(metric) for metric in averaged for source in rule.sources]
    average = {"average": None if None in own else sum(own) / len(own)} if {*averaged} <= {*scoring.metrics} else {}
    head = ["", *columns, *average]
    shown = [name.replace(" ", "\n") for name in head]
    rows = [[label(result), *cells(result["aggregate"], columns), *map(figure, average.values())]]
    if console.state.verbose:
        rows += [[f"  {song['name']}", *cells(song["sources"], columns)] for song in result["songs"]]
    where, count = ", ".join(str(folder) for folder in data), len(result["songs"])
    lost = {name: sum(song["unscored_frames"].get(name, 0) for song in result["songs"]) for name in rule.sources}
    told_lost = ", ".join(f"{name} {number}" for name, number in lost.items() if number)
    title = f"{scoring.rule}\nOurs: {count} song{'s' * (count != 1)} of {where}"
    print_table(title + f"; frames without a score: {told_lost}" * bool(told_lost), shown, rows, stdout=stdout)
    for of in dict.fromkeys(row.of for row in published):
        lines = [row for row in published if row.of == of]
        notes = f" ({lines[0].note})" if lines[0].note else ""
        extra = "; + trained on more than its data" if any(row.extra_data for row in lines) else ""
        print_table(
            f"Published: {of}, on {lines[0].data}, protocol {lines[0].protocol}{notes}{extra}",
            shown,
            [
                [row.model + " +" * row.extra_data, *(figure(row.scores.get(name)) for name in head[1:])]
                for row in lines
            ],
            stdout=stdout,
        )
    if published:
        console.notice("published scores are of other songs than ours, unless --data is that test set")


def cells(sources: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> list[str]:
    """The figures of columns named "METRIC source"."""
    return [figure(sources.get(source, {}).get(metric)) for metric, source in (name.split() for name in columns)]


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, stdout: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout if stdout else sys.stderr
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*(console.printable(cell) for cell in row))
    width = None if terminal.isatty() else 160
    screen = Console(file=terminal, width=width, highlight=False, markup=False)
    screen.print(*map(console.printable, title.splitlines()), sep="\n")
    screen.print(table)


@app.command("compare")
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="A.json B.json…", help="Results of --json; A is compared with each other one."),
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    plots: Plots = None,
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    """Compare results song by song: differences, bootstrap intervals, Wilcoxon's test with Holm's correction."""
    from sepcli.metrics.compare import compared
    from sepcli.metrics.results import read_document

    if len(results) < 2:
        raise UsageError("compare needs two results or more", "sepcli evaluate compare A.json B.json")
    documents = [read_document(path) for path in results]
    answers = [compared(documents[0], other) for other in documents[1:]]
    if plots:
        from sepcli.metrics.plots import box_plots, check_installed

        check_installed()
        for path in box_plots(documents, plots):
            console.notice(f"plot: {path}")
    if json:
        console.document({"comparisons": [answer.document() for answer in answers]})
        return
    for answer in answers:
        for note in answer.notes:
            console.notice(note)
        names = ["", "songs", "A", "B", "A − B", "95 % interval", "p", "p (Holm)"]
        rows = [
            [
                f"{row.metric} {row.source}",
                *(str(row.songs), f"{row.a:.2f}", f"{row.b:.2f}", f"{row.difference:+.2f}"),
                *(f"{row.low:+.2f} to {row.high:+.2f}", f"{row.p:.3g}", f"{row.p_holm:.3g}"),
            ]
            for row in answer.rows
        ]
        title = (
            f"A = {answer.a}, B = {answer.b}; {answer.rule}\nA − B: {answer.statistic} over songs of the differences, "
            "with its 95 % bootstrap interval; p: Wilcoxon's signed-rank test, Holm over the rows"
        )
        print_table(title, names, rows, stdout=True)
        if console.state.verbose:
            songs = [[name, *(figure(row.per_song.get(name)) for row in answer.rows)] for name in answer.songs]
            print_table(
                "A − B of each song", ["", *(f"{r.metric} {r.source}" for r in answer.rows)], songs, stdout=True
            )


def write_report(stems: Path, song: Path | None, html: Path | None, json: Path | None) -> int:
    """--report: measure one song's stems and write the page."""
    from sepcli.metrics.page import page
    from sepcli.metrics.report import report_on
    from sepcli.metrics.results import to_json, write_text

    target = html or stems / "report.html"
    with console.bar.over(stems.name) as bar:
        found = report_on(stems, song, progress=bar)
    write_text(target, page(found, target))
    if json and str(json) == "-":
        console.result(to_json({"schema": 1} | found.document()).rstrip("\n"))
    else:
        if json:
            write_text(json, to_json({"schema": 1} | found.document()))
        console.result(str(target))
    for warning in found.warnings:
        console.notice(warning)
    return 0
