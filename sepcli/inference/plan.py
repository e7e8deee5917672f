"""What a call is to do with every song: the options of `sepcli separate`, what they exclude, where each file goes."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from sepcli import DEFAULT
from sepcli.audio.paths import TEMPLATE, Found, check_template, output_path, track_name
from sepcli.errors import ModelError, UsageError
from sepcli.inference.sidecar import digest_of_file, key_of
from sepcli.weights import checkpoint
from sepcli.weights.catalog import find, require_weights
from sepcli.weights.votes import (
    candidates,
    check_architecture,
    check_source,
    check_votes,
    every_stem,
    identity,
    is_path,
    weights_file,
)

Notice = Callable[[str], None]
Progress = Callable[[float, float | None], None]


@dataclass(frozen=True)
class Plan:
    """What every song of a call is separated with and written as: the options of `sepcli separate`, by their names."""

    model: str = DEFAULT
    out: Path = Path("separated")
    filename: str = TEMPLATE
    stems: tuple[str, ...] = ()
    two_stems: str | None = None
    format: str = "wav"
    bitrate: int | None = None
    bit_depth: str = "auto"
    clip: str = "common"
    consistent: bool = False
    upper_band: str = "other"
    existing: str = "skip"
    sidecar: bool = True
    start: float = 0.0
    end: float | None = None
    device: str = "auto"
    precision: str = "float32"
    plain: bool = False
    threads: int | None = None
    segment: float | None = None
    overlap: float | str | None = None
    shifts: int = 0
    seed: int = 0
    batch_size: int | None = None
    architecture: str | None = None
    wiener_iterations: int | None = None
    bag_weights: Path | None = None
    offline: bool = False
    require_digest: bool = False
    licence: str = "any"
    destination: str = ""  # an address of object storage: the stems are made in `scratch`, then sent there
    scratch: Path | None = None

    @functools.cached_property
    def model_name(self) -> str:
        """The model as it stands in paths: the name, or the file's (a run's best.safetensors: the run's)."""
        names = []
        for name in self.model.split(","):
            path = Path(name.strip())
            plain = (path.name if path.is_dir() else path.stem) if is_path(name.strip()) else name.strip()
            names.append(path.absolute().parent.name if is_path(name.strip()) and plain == "best" else plain)
        return "+".join(names)


# What decides the samples of the stems, beside the input and the weights; the rest only says how to get there.
DECIDES = (
    *("filename", "stems", "two_stems", "format", "bitrate", "bit_depth", "clip", "consistent", "upper_band"),
    *("start", "end", "precision", "segment", "overlap", "shifts", "seed", "architecture"),
    "wiener_iterations",
)


@dataclass
class Record:
    """What became of one input: the JSON document of `--json`."""

    input: str
    model: str
    status: str = "failed"
    error: str | None = None
    stems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    speed: float | None = None
    gain: float | Mapping[str, float] = 1.0
    warnings: list[str] = field(default_factory=list)
    reason: str | None = None  # the class of a failure: decode, nan, memory, io, fault
    device: str | None = None
    spent: float = 0.0  # seconds that it took
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of each stem, where a journal is kept

    def document(self) -> dict[str, Any]:
        """The record as plain data."""
        return dataclasses.asdict(self)


def check_plan(plan: Plan) -> None:
    """Refuse what cannot be, before a model is loaded or a song opened. Raises UsageError, ModelError."""
    check_template(plan.filename)
    check_numbers(plan)
    if plan.stems and plan.two_stems:
        raise UsageError("--stems and --two-stems exclude each other", "give one of them")
    if plan.consistent:
        if plan.stems:
            raise UsageError("--consistent needs a whole set of stems", "leave out --stems, or use --two-stems")
        if plan.format not in ("wav", "flac"):
            raise UsageError(f"--consistent needs a lossless format, not {plan.format}", "use --format wav or flac")
        if plan.clip != "common":
            raise UsageError(f"--consistent implies gain 1, not --clip {plan.clip}", "leave out --clip")
        if plan.upper_band == "drop":
            raise UsageError("--consistent and --upper-band drop exclude each other", "leave out one of them")
    if plan.upper_band == "share" and plan.stems:
        raise UsageError("--upper-band share needs a whole set of stems", "leave out --stems, or use --two-stems")
    if plan.bit_depth == "32f" and plan.format not in ("wav",):
        raise UsageError(f"--bit-depth 32f: {plan.format} has no float samples", "use --format wav or --bit-depth 24")
    if plan.bitrate is not None and plan.format in ("wav", "flac"):
        raise UsageError(f"--bitrate {plan.bitrate}: {plan.format} is lossless", "use --format mp3, ogg or opus")
    members = candidates(plan.model, plan.bag_weights)
    for candidate in members:
        if not is_path(candidate.model):
            require_weights(find(candidate.model))
    if all(candidate.votes for candidate in members):
        known = tuple(dict.fromkeys(itertools.chain(*(candidate.votes for candidate in members))))
        for name in (*plan.stems, *([plan.two_stems] if plan.two_stems else [])):
            check_source(name, known, plan.model)
    if plan.bag_weights:
        check_votes(members, plan.stems or sources_of(plan) or (), plan.bag_weights)
    if plan.architecture is not None:
        check_architecture(plan.architecture, members)
    if plan.licence == "commercial":
        check_licences(plan)


def check_numbers(plan: Plan) -> None:
    """Refuse numbers that mean nothing. Raises UsageError."""
    if isinstance(plan.overlap, float | int) and not 0 <= plan.overlap < 1:
        raise UsageError(f"--overlap {plan.overlap:g}: must be at least 0 and below 1")
    if plan.shifts < 0:
        raise UsageError(f"--shifts {plan.shifts}: must be at least 0")
    if plan.segment is not None and not 0.01 <= plan.segment < math.inf:  # below, a song is a crowd of pieces
        raise UsageError(f"--segment {plan.segment:g}: must be a number of seconds, at least 0.01")
    if plan.batch_size is not None and plan.batch_size < 1:
        raise UsageError(f"--batch-size {plan.batch_size}: must be at least 1")
    if not 0 <= plan.start < math.inf:
        raise UsageError(f"--start {plan.start:g}: must be at least 0 seconds")
    if plan.end is not None and not plan.start < plan.end < math.inf:
        raise UsageError(f"--end {plan.end:g}: must be after --start {plan.start:g}")


def check_licences(plan: Plan) -> None:
    """Refuse weights whose terms do not allow commercial use, or do not say. Raises ModelError."""
    for candidate in candidates(plan.model, plan.bag_weights):
        if is_path(candidate.model):
            table = checkpoint.read_entry(weights_file(candidate.model)) or {}
            allowed, terms = table.get("commercial") is True, str(table.get("licence") or "its terms are not known")
        else:
            entry = find(candidate.model)
            allowed, terms = entry.commercial, entry.licence or "its terms are not known"
        if not allowed:
            raise ModelError(f"{candidate.model}: {terms}", "--licence commercial refuses it; see `sepcli models list`")


def sources_of(plan: Plan) -> tuple[str, ...] | None:
    """The sources of the plan's models, without loading them; None where only a loaded file says them."""
    found: list[tuple[str, ...]] = []
    for candidate in candidates(plan.model, plan.bag_weights):
        if not is_path(candidate.model):
            found.append(find(candidate.model).sources)
        elif (table := checkpoint.read_entry(weights_file(candidate.model))) is not None:
            found.append(tuple(map(str, table.get("sources", ()))))
        else:
            return None
    return max(found, key=len)


def stems_of(plan: Plan, sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is written of a model with these sources: each stem, and what it is the sum of. Raises UsageError."""
    for name in (*plan.stems, *([plan.two_stems] if plan.two_stems else [])):
        check_source(name, sources, plan.model)
    if not plan.two_stems:
        return {name: (name,) for name in plan.stems} or every_stem(sources)
    others = tuple(source for source in sources if source != plan.two_stems)
    return {plan.two_stems: (plan.two_stems,), f"no_{plan.two_stems}": others}


def set_key(source: str, plan: Plan) -> str:
    """A digest of all that decides a set's samples: the input's sha256, weights, settings. Raises AudioError."""
    weights = [
        (
            candidate.model,
            [digest_of_file(weights_file(candidate.model))] if is_path(candidate.model) else identity(candidate.model),
            sorted(candidate.votes.items()),
            candidate.segment,
        )
        for candidate in candidates(plan.model, plan.bag_weights)
    ]
    settings = {name: getattr(plan, name) for name in DECIDES}
    return key_of(source, weights, settings)


def settings_key(plan: Plan) -> str:
    """A digest of all that decides a batch's results beside its inputs: weights, settings, where they go."""
    return set_key(f"{plan.out} {plan.destination}", plan)


def stem_path(found: Found, index: int, plan: Plan, stem: str, extension: str) -> Path:
    """Where a stem of a song goes."""
    return output_path(
        plan.out,
        plan.filename,
        model=plan.model_name,
        reldir=found.reldir,
        track=track_name(found.path),
        trackext=found.path.suffix.removeprefix("."),
        stem=stem,
        ext=extension,
        index=index,
    )


def sidecar_path(found: Found, index: int, plan: Plan) -> Path:
    """stems.json where the folder belongs to one song, else TRACK.stems.json; above a folder that is named by stem."""
    folders = PurePath(plan.filename).parts[:-1]
    shared = [part for part in folders if "{stem}" not in part and "{ext}" not in part]
    folders = tuple(shared[: next((i for i, part in enumerate(folders) if part not in shared), len(shared))])
    own = any("{track}" in part or "{index}" in part for part in folders)
    name = "{stem}.{ext}" if own else "{track}.{stem}.{ext}"
    return stem_path(found, index, dataclasses.replace(plan, filename="/".join([*folders, name])), "stems", "json")
