"""Songs to scores: references and estimates are read, a protocol's metrics computed, and the result kept as JSON.

A song is read once, block by block, and summed up: its length does not matter to memory, except that BSSEval's filters
and the oracles want it whole, in float32. What was scored before with the same files, weights and settings is taken
from the result file.
"""

import functools
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, cast

import torch

from sepcli.errors import AudioError
from sepcli.inference.device import choose, first_line, out_of_memory
from sepcli.inference.song import until_it_fits
from sepcli.metrics.bss_eval import BssScores, bss_eval
from sepcli.metrics.protocols import BSS, FOUR, aggregate, evaluation_sets
from sepcli.metrics.scoring import METRICS, Scoring, plain
from sepcli.metrics.sdr import FrameSums
from sepcli.metrics.sounds import Progress, Whole, at_rate, open_references, sound
from sepcli.metrics.stems import Pair


@dataclass
class Score:
    """One song's result: its entry in the result file, or why there is none."""

    name: str
    entry: dict[str, Any] | None = None
    problem: str = ""


# One song


def score_song(pair: Pair, scoring: Scoring, progress: Progress = lambda _: None) -> dict[str, Any]:
    """The entry of one song in the result file. Raises AudioError naming what is wrong with its files.

    Raises UsageError and ModelError for the model, as `load_bag` does.
    """
    names, protocol = scored_sources(pair, scoring), scoring.protocol
    heard = until_it_fits(lambda: listen(pair, names, scoring, progress))
    frames, notes = frame_scores(heard, names, scoring, pair.name)
    progress(1.0)
    whole = {"nSDR": heard.sums.nsdr()} | ({"SI-SDR": heard.sums.si_sdr()} if "SI-SDR" in scoring.metrics else {})
    sources = {}
    for index, name in enumerate(names):
        scores = dict.fromkeys(METRICS, math.nan)
        scores |= {metric: aggregate(row, protocol.over_frames)[0] for metric, row in frames.get(name, {}).items()}
        sources[name] = scores | {metric: float(values[index]) for metric, values in whole.items()}
    unscored = {name: sum(map(math.isnan, next(iter(rows.values())))) for name, rows in frames.items()}
    seconds = round(heard.sums.length / heard.rate, 3)
    entry = {"name": pair.name, "seconds": seconds, "sources": sources, "frames": frames}
    return cast(dict[str, Any], plain(entry | {"unscored_frames": unscored, "notes": heard.notes + notes}))


def scored_sources(pair: Pair, scoring: Scoring) -> tuple[str, ...]:
    """The protocol's sources; as museval does, an accompaniment beside the four where there is an estimate of it."""
    sources = scoring.protocol.sources
    given = pair.estimate is not None and "accompaniment" in pair.estimate.stems
    return (*sources, "accompaniment") if scoring.museval_exact and sources == FOUR and given else sources


@dataclass
class Heard:
    """A song after one pass over it, at `rate`; `whole` only where filters will be made of it."""

    sums: FrameSums
    whole: Whole | None
    rate: int
    notes: list[str]


def listen(pair: Pair, names: Sequence[str], scoring: Scoring, progress: Progress) -> Heard:
    """Read, or make, references and estimates once, at the protocol's rate. Raises as `sound` does."""
    true = open_references(pair.reference, scoring)
    first = next(iter(true.values()))
    rate = scoring.protocol.sample_rate or first.sample_rate
    length = -(-(first.frames or 0) * rate // first.sample_rate)
    window, hop = scoring.protocol.window * rate, scoring.protocol.hop * rate
    heard = Heard(FrameSums(window, hop, scaled="SI-SDR" in scoring.metrics), None, rate, [])
    heard.whole = Whole(length) if needs_filters(scoring) else None
    part = 0.5 if heard.whole else 1.0  # of the work
    made = sound(pair, true, names, scoring, heard.notes, lambda share: progress(part * share))
    for references, estimates in at_rate(made, first.sample_rate, rate):
        heard.sums.add(references, estimates)
        if heard.whole:
            heard.whole.add(references, estimates)
        if length and scoring.kind != "model":
            progress(part * min(1.0, heard.sums.length / length))
    return heard


def needs_filters(scoring: Scoring) -> bool:
    return bool({"ISR", "SIR", "SAR"} & {*scoring.metrics})


def frame_scores(
    heard: Heard, names: Sequence[str], scoring: Scoring, song: str
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Scores of each source and frame, in the sets that museval makes, and what whoever reads them should know.

    Raises AudioError where museval refuses the song: a reference or an estimate that is silent throughout.
    """
    metrics = [metric for metric in BSS if metric in scoring.metrics]
    if not metrics:
        return {}, []
    notes, scored = [], list(names)
    for role, silence in zip(("reference", "estimate"), heard.sums.whole[1].tolist(), strict=True):
        mute = [name for name, is_silent in zip(names, silence, strict=True) if is_silent]
        if mute and scoring.silence == "museval":
            hint = "--silence score leaves it out" if role == "reference" else "--silence score gives it 0 dB"
            raise AudioError(f"{song}: the {role} of {mute[0]} is silent throughout: museval refuses such a song", hint)
        if mute and role == "reference":
            notes.append(f"left out, its reference is silent: {', '.join(mute)}")
            scored = [name for name in names if name not in mute]
    sets = evaluation_sets(scored) or [(tuple(scored), tuple(scored))]
    frames: dict[str, dict[str, list[float]]] = {}
    for members, kept in sets if scored else []:
        rows = [names.index(name) for name in members]
        if heard.whole is None:
            found = {"SDR": heard.sums.sdr(scoring.silence, rows)}
        else:
            scores = filtered_scores(heard, rows, scoring)
            notes += scores.notes
            found = {metric: getattr(scores, metric.lower()) for metric in metrics}
        for name in kept:
            frames[name] = {metric: table[members.index(name)].tolist() for metric, table in found.items()}
    return {name: frames[name] for name in scored}, notes


def filtered_scores(heard: Heard, rows: Sequence[int], scoring: Scoring) -> BssScores:
    """BSSEval of the sources `rows` together, on a GPU where there is one and it is wanted."""
    assert heard.whole is not None
    references, estimates = heard.whole.both()
    if list(rows) != list(range(len(references))):
        references, estimates = references[rows], estimates[rows]
    place = choose(scoring.device)
    if place.type == "cuda":  # the sums want float64, which mps does not have
        references, estimates = references.to(place), estimates.to(place)
    return bss_eval(
        *(references, estimates, heard.sums.window, heard.sums.hop),
        framing=scoring.framing,
        ridge=scoring.ridge,
        silence=scoring.silence,
    )


# Many songs


def score_all(
    pairs: Sequence[Pair], scoring: Scoring, jobs: int, progress: Callable[[str, float], None]
) -> Iterator[Score]:
    """Score songs, `jobs` at a time, each in a process with one thread; one job works in this process.

    A song that fails is told as such; UsageError and ModelError end all. `progress` is told a song's name and the share
    of it that is done. Processes end with the generator.
    """
    if jobs == 1 or len(pairs) < 2:
        for pair in pairs:
            yield attempted(pair, scoring, functools.partial(progress, pair.name))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(pairs)), mp_context=context, initializer=begin)
    try:
        waiting = {pool.submit(attempted, pair, scoring): pair for pair in pairs}
        for job in as_completed(waiting):
            name = waiting[job].name
            progress(name, 1.0)
            try:
                yield job.result()
            except BrokenProcessPool:
                yield Score(name, problem=f"{name}: a process ended before it was scored; memory? use fewer --jobs")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def begin() -> None:
    """What a process of `score_all` does first: one thread; Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def attempted(pair: Pair, scoring: Scoring, progress: Progress = lambda _: None) -> Score:
    try:
        return Score(pair.name, score_song(pair, scoring, progress))
    except AudioError as error:
        text = str(error)
    except (RuntimeError, MemoryError) as error:  # of torch and numpy: another song may be shorter, or other sounds
        memory = isinstance(error, MemoryError) or out_of_memory(error)
        text = (
            "out of memory; fewer --jobs, or --metrics sdr, want less"
            if memory
            else f"{type(error).__name__}: {first_line(error)}"
        )
    return Score(pair.name, problem=text if pair.name in text else f"{pair.name}: {text}")
