"""Songs on disk to stems on disk: what a call is to do, which sets are finished already, and one song's whole job."""

import dataclasses
import functools
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from sepcli import DEFAULT, __version__
from sepcli.audio.hidden import sweep
from sepcli.audio.paths import TEMPLATE, Found, check_template, output_path, track_name
from sepcli.errors import AudioError, ModelError, UsageError
from sepcli.inference.sidecar import described, digest_of_file, finished_set, key_of
from sepcli.weights import checkpoint
from sepcli.weights.catalog import find, require_weights
from sepcli.weights.votes import candidates, check_source, every_stem, identity, is_path, weights_file

if TYPE_CHECKING:
    from sepcli.audio.read import Song
    from sepcli.audio.write import Format, Written
    from sepcli.inference.bag import Bag
    from sepcli.inference.song import Clip

T = TypeVar("T")
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
            plain = path.stem if is_path(name.strip()) else name.strip()
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
    if plan.licence == "commercial":
        check_licences(plan)


def check_numbers(plan: Plan) -> None:
    """Refuse numbers that mean nothing. Raises UsageError."""
    if isinstance(plan.overlap, float | int) and not 0 <= plan.overlap < 1:
        raise UsageError(f"--overlap {plan.overlap:g}: must be at least 0 and below 1")
    if plan.shifts < 0:
        raise UsageError(f"--shifts {plan.shifts}: must be at least 0")
    if plan.segment is not None and not 0 < plan.segment < math.inf:
        raise UsageError(f"--segment {plan.segment:g}: must be a positive number of seconds")
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


def loader(
    plan: Plan, notice: Notice, progress: Callable[[int, int | None], None] | None = None
) -> "Callable[[], Bag]":
    """A function that loads the plan's models at its first call, and gives the same Bag afterwards."""

    @functools.cache
    def load() -> "Bag":
        from sepcli.inference.bag import load_bag

        if plan.threads:
            import torch

            torch.set_num_threads(plan.threads)
        return load_bag(
            plan.model,
            device=plan.device,
            stems=plan.stems,
            weights=plan.bag_weights,
            architecture=plan.architecture,
            settings=None if plan.wiener_iterations is None else {"wiener_iterations": plan.wiener_iterations},
            segment=plan.segment,
            overlap=plan.overlap,
            shifts=plan.shifts,
            seed=plan.seed,
            batch_size=plan.batch_size,
            precision=plan.precision,
            plain=plan.plain,
            offline=plan.offline,
            require_digest=plan.require_digest,
            notice=notice,
            progress=progress,
        )

    return load


def separate_song(
    found: Found,
    index: int,
    plan: Plan,
    load: "Callable[[], Bag]",
    *,
    notice: Notice = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Record:
    """One song to its stems on disk, or the finished set that is there already.

    Raises AudioError for the song; UsageError and ModelError when the model is loaded.
    """
    began = time.monotonic()
    sidecar = sidecar_path(found, index, plan)
    sweep(sidecar.parent)
    if (record := finished(found, index, plan)) is not None:
        return record

    from sepcli.audio.cover import holds_cover, read_cover
    from sepcli.audio.prefetch import behind
    from sepcli.audio.read import open_song
    from sepcli.audio.write import write_set
    from sepcli.inference.song import Clip, separate_clip, until_it_fits

    song = open_song(found.path)
    before = found.path.stat()
    try:
        form, rate = form_of(song, plan)
    except UsageError as error:
        raise AudioError(error.what, error.hint) from error
    first = round(plan.start * song.sample_rate)
    last = None if plan.end is None else round(plan.end * song.sample_rate)
    if song.frames is not None and first >= song.frames:
        raise AudioError(f"{found.path}: --start {plan.start:g} is beyond its {song.frames / song.sample_rate:.2f} s")
    clip = Clip(lambda: song.blocks(first, last), song.sample_rate, song.channels, expected(song, first, last))
    check_disk(found, plan, form, rate, clip, len(stems_of(plan, known)) if (known := sources_of(plan)) else 1)

    bag = load()
    stems = stems_of(plan, bag.sources)
    targets = {stem: stem_path(found, index, plan, stem, form.extension) for stem in stems}
    if plan.existing == "error" and (there := [path for path in targets.values() if path.exists()]):
        raise AudioError(f"{found.path}: {there[0]} exists", "use --existing overwrite, or another --out", reason="io")
    record = Record(str(found.path), plan.model)
    facts = facts_of(found, song, plan, bag, form, rate)

    def describe(written: "Written") -> tuple[Path, bytes]:
        so_far = {"device": devices_of(bag), "warnings": warnings_of(song, form, rate, plan, bag, written)}
        return sidecar, described(sidecar, facts | so_far, written)

    def write() -> "Written":
        blocks = separate_clip(
            bag,
            clip,
            stems,
            out_rate=rate,
            upper=plan.upper_band,
            consistent=form.depth if plan.consistent else None,
            progress=progress,
        )
        consume = functools.partial(
            write_set,
            targets=targets,
            format=form,
            sample_rate=rate,
            channels=song.channels,
            clip="none" if plan.consistent else plan.clip,
            seed=plan.seed,
            tags=song.tags,
            cover=read_cover(song.path) if holds_cover(form.container) else b"",
            sidecar=describe if plan.sidecar else None,
            hidden_in=sidecar.parent,
        )
        return behind(unchanged(blocks, found.path, before), consume)

    try:
        written = until_it_fits(write)
    except AudioError as error:
        raise named(error, found.path) from error
    record.seconds = (clip.frames or 0) / song.sample_rate
    spent = time.monotonic() - began
    record.status, record.gain, record.speed = "done", written.gain, round(record.seconds / spent, 3)
    record.device, record.spent = devices_of(bag), round(spent, 3)
    record.stems = {stem: str(path) for stem, path in written.paths.items()}
    record.warnings = warnings_of(song, form, rate, plan, bag, written)
    for warning in record.warnings:
        if warning not in bag.limits:  # which were said when they came
            notice(f"{found.path}: {warning}")
    return record


def finished(found: Found, index: int, plan: Plan) -> Record | None:
    """The record of a set that is there already, made from the same input, weights and settings. Raises AudioError."""
    if plan.existing != "skip":
        return None
    sidecar = sidecar_path(found, index, plan)
    if not sidecar.exists() or (made := finished_set(sidecar, set_key(digest_of_file(found.path), plan))) is None:
        return None
    return skipped(str(found.path), plan, made, str(sidecar.parent))


def skipped(name: str, plan: Plan, made: Mapping[str, Any], folder: str) -> Record:
    """The record of a finished set, which a sidecar in `folder` tells of."""
    return Record(
        name,
        plan.model,
        status="skipped",
        stems={stem: f"{folder}/{file['path']}" for stem, file in made["stems"].items()},
        seconds=made["frames"] / made["format"]["sample_rate"],
        gain=made["gain"],
        warnings=made.get("warnings", []),
    )


def digests_of(record: Record) -> dict[str, str]:
    """The sha256 of each stem of a finished record. Raises AudioError."""
    return {stem: digest_of_file(Path(path)) for stem, path in record.stems.items()}


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


def check_disk(found: Found, plan: Plan, form: "Format", rate: int, clip: "Clip", stems: int) -> None:
    """Refuse a song whose stems have no room where they are to go, as far as its length is known. Raises AudioError.

    Where a gain may be needed, the stems wait in float files until it is known.
    """
    if clip.frames is None:
        return
    samples = math.ceil(clip.frames * rate / clip.sample_rate) * clip.channels
    size = {"16": 2, "24": 3, "32f": 4}[form.depth] if form.lossless else 0.5
    spooled = 4 if form.clips and plan.clip in ("common", "rescale") and not plan.consistent else 0
    needed = int(samples * stems * (size + spooled))
    folder = next(place for place in [plan.out.absolute(), *plan.out.absolute().parents] if place.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{found.path}: its stems want {needed / 2**20:,.0f} MiB on the way, {folder} has {free / 2**20:,.0f}"
        raise AudioError(what, "free some space, or choose another --out", reason="io")


def unchanged(blocks: Iterable[T], path: Path, before: os.stat_result) -> Iterator[T]:
    """The blocks; at their end the file must be what it was when it was opened. Raises AudioError."""
    yield from blocks
    try:
        after = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: has disappeared while it was read", reason="io") from error
    if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise AudioError(f"{path}: has changed while it was read", "run it again", reason="io")


def named(error: AudioError, path: Path) -> AudioError:
    """An error that says which song it is about, as one of the network or of the disk does not."""
    return error if str(path) in error.what else AudioError(f"{path}: {error.what}", error.hint, reason=error.reason)


def facts_of(found: Found, song: "Song", plan: Plan, bag: "Bag", form: "Format", rate: int) -> dict[str, Any]:
    """What a sidecar tells of a set beside its files, as far as it is known before."""
    import torch

    settings = {name: getattr(plan, name) for name in DECIDES}
    return {
        "key": set_key(digest_of_file(found.path), plan),
        "input": {
            "name": song.path.name,
            "sha256": digest_of_file(found.path),
            "sample_rate": song.sample_rate,
            "channels": song.channels,
        },
        "model": plan.model,
        "weights": [
            {"model": member.name, "sha256": member.digest, "licence": member.licence, "weights": dict(member.weights)}
            for member in {member.name: member for member in bag.members}.values()
        ],
        "settings": settings | {"bag_weights": str(plan.bag_weights) if plan.bag_weights else None},
        "format": {"container": form.container, "depth": form.depth, "bitrate": form.bitrate, "sample_rate": rate},
        "threads": torch.get_num_threads(),
        "versions": {"sepcli": __version__, "torch": torch.__version__},
    }


def devices_of(bag: "Bag") -> str:
    """Where the networks run: a member may have moved to the CPU."""
    return ", ".join(dict.fromkeys(str(runner.device) for runner in bag.runners.values()))


def warnings_of(song: "Song", form: "Format", rate: int, plan: Plan, bag: "Bag", written: "Written") -> list[str]:
    """What the user should know of a finished set."""
    warnings = list(bag.limits)
    if rate != song.sample_rate:
        warnings.append(f"written at {rate} Hz: {form.container} does not know {song.sample_rate} Hz")
    beyond = [stem for stem, peak in written.peaks.items() if peak > 1]
    if written.gain != 1.0:
        warnings.append(f"{', '.join(beyond)} beyond full scale: written with gain {told(written.gain)}")
    elif beyond and not plan.consistent and (form.clips or plan.clip == "clamp"):
        warnings.append(f"{', '.join(beyond)} beyond full scale: cut off there, as --clip {plan.clip} says")
    if not form.lossless and plan.bit_depth != "auto":
        warnings.append(f"--bit-depth has no meaning for {form.container}")
    return warnings


def form_of(song: "Song", plan: Plan) -> "tuple[Format, int]":
    """The format that a song's stems are written in, and their rate. Raises UsageError where it cannot hold them."""
    from sepcli.audio.write import Format, check_format, opus_rate

    depth = plan.bit_depth if plan.bit_depth != "auto" else song.depth or "16"
    if plan.format == "flac" and depth == "32f":
        depth = "24"
    form = Format(plan.format, depth, plan.bitrate)
    rate = opus_rate(song.sample_rate) if plan.format == "opus" else song.sample_rate
    try:
        check_format(form, rate, song.channels)
    except UsageError as error:
        raise UsageError(f"{song.path}: {error.what}", error.hint) from error
    return form, rate


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


def expected(song: "Song", first: int, last: int | None) -> int | None:
    """How many frames a stretch of a song is expected to have, for the progress."""
    if song.frames is None:
        return None
    return max(0, (song.frames if last is None else min(last, song.frames)) - first)


def told(gain: float | Mapping[str, float]) -> str:
    if isinstance(gain, Mapping):
        return ", ".join(f"{stem} {value:.3f}" for stem, value in gain.items())
    return f"{gain:.3f}"
