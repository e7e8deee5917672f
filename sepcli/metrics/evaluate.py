"""Songs to scores: references and estimates are read, a protocol's metrics computed, and the result kept as JSON.

A song is scored whole, in float32, one at a time in each process; what was scored before with the same files, weights
and settings is taken from the result file.
"""

import dataclasses
import functools
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from sepcli.audio.blocks import BLOCK
from sepcli.audio.resample import resample
from sepcli.errors import AudioError, UsageError
from sepcli.metrics.bss_eval import BssScores, Framing, bss_eval
from sepcli.metrics.oracles import Oracle, oracle
from sepcli.metrics.protocols import BSS, FOUR, Protocol, aggregate, evaluation_sets
from sepcli.metrics.results import METRICS, plain
from sepcli.metrics.sdr import Silence, nsdr, sdr_frames, silent
from sepcli.metrics.stems import SUMS, Pair, StemSet, read_stem

if TYPE_CHECKING:
    from sepcli.inference.bag import Bag

Kind = Literal["model", "estimates", "oracle", "mixture"]
Progress = Callable[[float], None]
"""Told the share of a song that is done, 0 to 1."""

TOLERANCE = 0.1  # seconds by which an estimate may be longer or shorter than its reference


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how: all that decides a song's scores beside its files."""

    protocol: Protocol
    kind: Kind
    model: str
    """A model's name or path, an oracle, "mixture"; or what the estimates are called."""
    metrics: tuple[str, ...]
    """Those computed, of METRICS."""
    framing: Framing = "museval"
    ridge: float = 0.0
    silence: Silence = "museval"
    museval_exact: bool = False
    mwf_legacy: bool = False
    allow_length_mismatch: bool = False
    device: str = "auto"
    segment: float | None = None
    overlap: float | None = None
    shifts: int = 0
    seed: int = 0
    offline: bool = False

    @property
    def rule(self) -> str:
        """How songs are scored, in one line."""
        framing = f"; {self.framing} framing, ridge {self.ridge:g}" * ("SIR" in self.metrics)
        return told(self.protocol) + framing + "; silence scored" * (self.silence == "score")

    def document(self) -> dict[str, Any]:
        """As it stands in the result file."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("protocol", "kind", "model", "offline"):
            del own[name]
        for name in ("device", "segment", "overlap", "shifts", "seed") if self.kind != "model" else ():
            del own[name]
        protocol = dataclasses.asdict(self.protocol)
        rule = {name: protocol[name] for name in ("sources", "window", "hop", "sample_rate")}
        rule |= {name: protocol[name] for name in ("over_frames", "over_songs")}
        return {"kind": self.kind, "rule": self.rule, **plain(rule), **plain(own)}


@dataclass
class Score:
    """One song's result: its entry in the result file, or why there is none."""

    name: str
    entry: dict[str, Any] | None = None
    problem: str = ""


def told(protocol: Protocol) -> str:
    """A protocol's rule in one line."""
    rate = f" at {protocol.sample_rate / 1000:g} kHz" if protocol.sample_rate else ""
    text = f"{protocol.name}: {{{', '.join(protocol.sources)}}}{rate}; {', '.join(protocol.metrics)}"
    if math.isinf(protocol.window):
        return f"{text} of whole songs; {protocol.over_songs} over songs"
    frames = f"frames of {protocol.window:g} s every {protocol.hop:g} s"
    return f"{text} of BSSEval v4, {frames}; {protocol.over_frames} over frames, {protocol.over_songs} over songs"


# One song


def score_song(pair: Pair, scoring: Scoring, progress: Progress = lambda _: None) -> dict[str, Any]:
    """The entry of one song in the result file. Raises AudioError naming what is wrong with its files.

    Raises UsageError and ModelError for the model, as `load_bag` does.
    """
    notes: list[str] = []
    protocol, rate = scoring.protocol, 0
    true, rate = read_references(pair.reference, scoring, notes)
    names = scored_sources(pair, scoring)
    mixture = mixture_of(pair.reference, true, rate, scoring, notes) if scoring.kind != "estimates" else None
    references = {name: composed(name, true, pair.name, "reference") for name in names}
    if scoring.kind == "estimates":
        assert pair.estimate is not None
        guesses = read_estimates(pair.estimate, names, references[names[0]], rate, scoring, notes)
    else:
        assert mixture is not None
        guesses = made_estimates(names, true, mixture, rate, scoring, progress)
    del true, mixture
    progress(0.5)

    target = protocol.sample_rate or rate
    sound = {
        name: (at_rate(references.pop(name), rate, target), at_rate(guesses.pop(name), rate, target)) for name in names
    }
    frames, more = frame_scores(sound, target, scoring, pair.name)
    notes += more
    whole = {name: float(nsdr(*sound[name])) for name in sound}
    progress(1.0)
    length = next(iter(sound.values()))[0].shape[-1]
    sources = {}
    for name in names:
        scores = dict.fromkeys(METRICS, math.nan)
        scores |= {metric: aggregate(row, protocol.over_frames)[0] for metric, row in frames.get(name, {}).items()}
        scores["nSDR"] = whole.get(name, math.nan)
        sources[name] = scores
    unscored = {name: sum(map(math.isnan, next(iter(rows.values())))) for name, rows in frames.items()}
    entry = {"name": pair.name, "seconds": round(length / target, 3), "sources": sources, "frames": frames}
    return cast(dict[str, Any], plain(entry | {"unscored_frames": unscored, "notes": notes}))


def scored_sources(pair: Pair, scoring: Scoring) -> tuple[str, ...]:
    """The protocol's sources; as museval does, an accompaniment beside the four where there is an estimate of it."""
    sources = scoring.protocol.sources
    given = pair.estimate is not None and "accompaniment" in pair.estimate.stems
    return (*sources, "accompaniment") if scoring.museval_exact and sources == FOUR and given else sources


def read_references(song: StemSet, scoring: Scoring, notes: list[str]) -> tuple[dict[str, Tensor], int]:
    """All stems of a song, (C, T) each, but its mixture, and their rate. Raises AudioError where they do not agree."""
    true: dict[str, Tensor] = {}
    rate, first = 0, ""
    for name, stem in song.stems.items():
        if name == "mixture" or (name in SUMS and name not in scoring.protocol.sources and not scoring.museval_exact):
            continue
        true[name], own = read_stem(stem, sixteen=scoring.museval_exact)
        if not first:
            rate, first = own, name
        if own != rate:
            raise AudioError(f"{song.name}: the references {first} and {name} have {rate} and {own} Hz")
        for axis, what in ((0, "channels"), (1, "samples")):
            lengths = [true[one].shape[axis] for one in (first, name)]
            if lengths[0] != lengths[1]:
                raise AudioError(
                    f"{song.name}: the references {first} and {name} have {lengths[0]:,} and {lengths[1]:,} {what}"
                )
    if not true:
        raise AudioError(f"{song.name}: no stems beside the mixture")
    if song.ignored and "accompaniment" in scoring.protocol.sources and "accompaniment" not in true:
        notes.append(f"not in the accompaniment, their names are no source: {', '.join(song.ignored)}")
    return true, rate


def composed(name: str, stems: Mapping[str, Tensor], song: str, role: str) -> Tensor:
    """A source's sound; an accompaniment that is not there is the sum of the stems that are not vocals."""
    if name in stems:
        return stems[name]
    parts = [sound for source, sound in stems.items() if source != "vocals" and source not in SUMS]
    if name == "accompaniment" and parts and (role == "reference" or "other" in stems):
        return functools.reduce(torch.add, parts)
    raise AudioError(f"{song}: no {role} of {name}", f"there is {', '.join(stems) or 'nothing'}")


def mixture_of(song: StemSet, true: dict[str, Tensor], rate: int, scoring: Scoring, notes: list[str]) -> Tensor:
    """The mixture (C, T): its file's, as long as the stems; else the sum of the stems."""
    parts = [sound for name, sound in true.items() if name not in SUMS]
    if len(parts) < 2 and "accompaniment" in true:
        parts.append(true["accompaniment"])
    total = functools.reduce(torch.add, parts)
    if (stem := song.stems.get("mixture")) is None:
        return total
    mixture, own = read_stem(stem, sixteen=scoring.museval_exact)
    mixture = fitted(mixture, own, total, rate, f"{song.name}: the mixture", scoring, notes)
    error = float((mixture - total).square().mean() / total.square().mean().clamp_min(1e-20))
    if error > 1e-4:  # MUSDB18's coded mixtures are nearer; its "PR - Oh No" is not
        notes.append(f"mixture and sum of the stems differ: {10 * math.log10(error):.0f} dB of the sum")
    return mixture


def fitted(sound: Tensor, own: int, like: Tensor, rate: int, what: str, scoring: Scoring, notes: list[str]) -> Tensor:
    """Sound cut or filled with zeros to the length of `like`, as museval does. Raises AudioError where it is another's.

    That is at another rate, with other channels, or of a length that differs by more than 0.1 s.
    """
    if own != rate:
        raise AudioError(f"{what} has {own} Hz, the references have {rate} Hz")
    if len(sound) != len(like):
        raise AudioError(f"{what} has {len(sound)} channels, the references have {len(like)}")
    missing = like.shape[-1] - sound.shape[-1]
    if abs(missing) > TOLERANCE * rate and not scoring.allow_length_mismatch:
        lengths = f"{sound.shape[-1] / rate:.2f} s long, the references are {like.shape[-1] / rate:.2f} s"
        raise AudioError(f"{what} is {lengths}", "--allow-length-mismatch cuts or fills it at its end")
    if missing:
        notes.append(f"{what.partition(': ')[2]} is {-missing:+,} samples longer: cut or filled at its end")
        sound = torch.nn.functional.pad(sound, (0, missing)) if missing > 0 else sound[..., :missing]
    return sound


def read_estimates(
    estimate: StemSet, names: Sequence[str], like: Tensor, rate: int, scoring: Scoring, notes: list[str]
) -> dict[str, Tensor]:
    """The estimates of each source, (C, T), as long as `like`. Raises AudioError, also for samples that are NaN."""
    needed = dict.fromkeys(names)
    if "accompaniment" in needed and "accompaniment" not in estimate.stems:
        needed |= dict.fromkeys(source for source in estimate.stems if source not in SUMS)
    guesses = {}
    for name in needed:
        if (stem := estimate.stems.get(name)) is not None:
            try:
                sound, own = read_stem(stem)
            except AudioError as error:
                raise AudioError(f"{estimate.name}: the estimate of {name}: {error.what}", error.hint) from error
            what = f"{estimate.name}: the estimate of {name}"
            guesses[name] = fitted(sound, own, like, rate, what, scoring, notes)
    return {name: composed(name, guesses, estimate.name, "estimate") for name in names}


def made_estimates(
    names: Sequence[str], true: dict[str, Tensor], mixture: Tensor, rate: int, scoring: Scoring, progress: Progress
) -> dict[str, Tensor]:
    """What the mixture itself, an oracle or a model gives for each source: (C, T)."""
    if scoring.kind == "mixture":
        return dict.fromkeys(names, mixture)
    if scoring.kind == "oracle":
        parts = {name: sound for name, sound in true.items() if name not in SUMS} or true
        if len(parts) < 2:
            parts = {name: sound for name, sound in true.items() if name in ("vocals", "accompaniment")}
        kind = cast(Oracle, scoring.model)
        made = oracle(kind, torch.stack(list(parts.values())), mixture, legacy=scoring.mwf_legacy)
        guesses = dict(zip(parts, made, strict=True))
        total = guesses | ({"accompaniment": sum_but_vocals(guesses)} if "accompaniment" not in guesses else {})
        return {name: total[name] for name in names}
    return separated(names, mixture, rate, scoring, progress)


def sum_but_vocals(stems: Mapping[str, Tensor]) -> Tensor:
    return functools.reduce(torch.add, [sound for name, sound in stems.items() if name != "vocals"])


def separated(
    names: Sequence[str], mixture: Tensor, rate: int, scoring: Scoring, progress: Progress
) -> dict[str, Tensor]:
    """What the model makes of a mixture, on the path that `sepcli separate` takes, before anything is written."""
    from sepcli.inference.song import Clip, separate_clip, until_it_fits

    bag = loaded(scoring)
    stems = {name: parts_of(name, bag) for name in names}
    frames = mixture.T.contiguous().numpy()
    clip = Clip(
        lambda: (frames[start : start + BLOCK] for start in range(0, len(frames), BLOCK)),
        rate,
        frames.shape[1],
        len(frames),
    )

    def tell(done: float, total: float | None) -> None:
        progress(0.5 * min(1.0, done / total) if total else 0.0)

    blocks = until_it_fits(lambda: list(separate_clip(bag, clip, stems, progress=tell)))
    return {
        name: torch.from_numpy(np.ascontiguousarray(np.concatenate([block[name] for block in blocks]).T))
        for name in names
    }


def parts_of(name: str, bag: "Bag") -> tuple[str, ...]:
    """The sources of a bag that make up a protocol's source. Raises UsageError where there are none."""
    if name in bag.sources:
        return (name,)
    if name == "accompaniment" and "vocals" in bag.sources:
        return tuple(source for source in bag.sources if source != "vocals")
    has = ", ".join(bag.sources)
    raise UsageError(f"{bag.name} has no {name}, which the protocol scores", f"it has {has}; choose another --protocol")


@functools.lru_cache(maxsize=1)
def loaded(scoring: Scoring) -> "Bag":
    """The model, loaded once in each process."""
    from sepcli.inference.bag import load_bag

    return load_bag(
        scoring.model,
        device=scoring.device,
        segment=scoring.segment,
        overlap=scoring.overlap,
        shifts=scoring.shifts,
        seed=scoring.seed,
        offline=scoring.offline,
        notice=lambda text: print(f"sepcli: {text}", file=sys.stderr, flush=True),
    )


def at_rate(sound: Tensor, rate: int, target: int) -> Tensor:
    """Sound (C, T) at another rate."""
    if rate == target:
        return sound
    blocks = np.split(sound.T.contiguous().numpy(), range(BLOCK, sound.shape[-1], BLOCK))
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(list(resample(blocks, rate, target))).T))


def frame_scores(
    sound: dict[str, tuple[Tensor, Tensor]], rate: int, scoring: Scoring, song: str
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Scores of each source and frame, in the sets that museval makes, and what whoever reads them should know.

    Raises AudioError where museval refuses the song: a reference or an estimate that is silent throughout.
    """
    metrics = [metric for metric in BSS if metric in scoring.metrics]
    if not metrics:
        return {}, []
    notes = []
    for index, role in enumerate(("reference", "estimate")):
        mute = [name for name, both in sound.items() if bool(silent(both[index]))]
        if mute and scoring.silence == "museval":
            hint = "--silence score leaves it out" if index == 0 else "--silence score gives it 0 dB"
            raise AudioError(f"{song}: the {role} of {mute[0]} is silent throughout: museval refuses such a song", hint)
        if mute and index == 0:
            notes.append(f"left out, its reference is silent: {', '.join(mute)}")
            sound = {name: both for name, both in sound.items() if name not in mute}
    names = list(sound)
    sets = evaluation_sets(names) or [(tuple(names), tuple(names))]
    window, hop = scoring.protocol.window * rate, scoring.protocol.hop * rate
    frames: dict[str, dict[str, list[float]]] = {}
    for members, kept in sets if names else []:
        references, estimates = (torch.stack([sound[name][i] for name in members]) for i in (0, 1))
        if metrics == ["SDR"]:
            sdr = sdr_frames(references, estimates, window, hop, silence=scoring.silence)
            scores = BssScores(sdr, sdr, sdr, sdr)
        else:
            scores = bss_eval(
                *(references, estimates, window, hop),
                framing=scoring.framing,
                ridge=scoring.ridge,
                silence=scoring.silence,
            )
        notes += scores.notes
        for name in kept:
            row = members.index(name)
            frames[name] = {metric: getattr(scores, metric.lower())[row].tolist() for metric in metrics}
    return {name: frames[name] for name in names}, notes


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
        return Score(pair.name, problem=text if pair.name in text else f"{pair.name}: {text}")
