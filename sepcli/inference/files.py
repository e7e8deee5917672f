"""Songs on disk to stems on disk: what a call is to do, which sets are finished already, and one song's whole job."""

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sepcli import __version__
from sepcli.audio.paths import TEMPLATE, Found, check_template, output_path, track_name
from sepcli.errors import AudioError, UsageError
from sepcli.weights.fetch import digest_of
from sepcli.weights.votes import candidates, check_source, identity, is_path

if TYPE_CHECKING:
    from sepcli.audio.read import Song
    from sepcli.audio.write import Format, Written
    from sepcli.inference.bag import Bag

Progress = Callable[[float, float | None], None]


@dataclass(frozen=True)
class Plan:
    """What every song of a call is separated with and written as: the options of `sepcli separate`, by their names."""

    model: str = "hdemucs"
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
    threads: int | None = None
    segment: float | None = None
    overlap: float = 0.25
    shifts: int = 0
    seed: int = 0
    batch_size: int | None = None
    architecture: str | None = None
    bag_weights: Path | None = None
    offline: bool = False
    require_digest: bool = False

    @property
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

    def document(self) -> dict[str, Any]:
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
    for candidate in candidates(plan.model, plan.bag_weights):
        if candidate.votes:
            for name in (*plan.stems, *([plan.two_stems] if plan.two_stems else [])):
                check_source(name, tuple(candidate.votes), candidate.model)


def check_numbers(plan: Plan) -> None:
    """Refuse numbers that mean nothing. Raises UsageError."""
    if not 0 <= plan.overlap < 1:
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


def loader(
    plan: Plan, notice: Callable[[str], None], progress: Callable[[int, int | None], None] | None = None
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
            segment=plan.segment,
            overlap=plan.overlap,
            shifts=plan.shifts,
            seed=plan.seed,
            batch_size=plan.batch_size,
            precision=plan.precision,
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
    notice: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Record:
    """One song to its stems on disk, or the finished set that is there already.

    Raises AudioError for the song; UsageError and ModelError when the model is loaded.
    """
    record = Record(str(found.path), plan.model)
    began = time.monotonic()
    sidecar = sidecar_path(found, index, plan)
    before = found.path.stat() if found.path.exists() else None
    source = digest_of_input(found.path) if before and (plan.sidecar or plan.existing == "skip") else ""
    key = set_key(source, plan)
    if plan.existing == "skip" and (finished := finished_set(sidecar, key)):
        record.status, record.gain = "skipped", finished["gain"]
        record.seconds = finished["frames"] / finished["format"]["sample_rate"]
        record.stems = {stem: str(sidecar.parent / file["path"]) for stem, file in finished["stems"].items()}
        return record

    from sepcli.audio.read import open_song
    from sepcli.audio.write import write_set
    from sepcli.inference.song import Clip, every_source, separate_clip, two_stems

    song = open_song(found.path)
    try:
        form, rate = form_of(song, plan)
    except UsageError as error:
        raise AudioError(error.what, error.hint) from error
    bag = load()
    stems = two_stems(bag, plan.two_stems) if plan.two_stems else every_source(bag)
    targets = {stem: stem_path(found, index, plan, stem, form.extension) for stem in stems}
    if plan.existing == "error" and (there := [path for path in targets.values() if path.exists()]):
        raise AudioError(f"{found.path}: {there[0]} exists", "use --existing overwrite, or another --out")
    first = round(plan.start * song.sample_rate)
    last = None if plan.end is None else round(plan.end * song.sample_rate)
    clip = Clip(lambda: song.blocks(first, last), song.sample_rate, song.channels, expected(song, first, last))

    facts = facts_of(key, source, song, plan, bag, form, rate)

    def describe(written: "Written") -> tuple[Path, bytes]:
        after = found.path.stat()
        assert before is not None
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise AudioError(f"{found.path}: has changed while it was read", "run it again")
        return sidecar, described(sidecar, facts, written)

    blocks = separate_clip(
        bag,
        clip,
        stems,
        out_rate=rate,
        upper=plan.upper_band,
        consistent=form.depth if plan.consistent else None,
        progress=progress,
    )
    written = write_set(
        blocks,
        targets,
        format=form,
        sample_rate=rate,
        channels=song.channels,
        clip="none" if plan.consistent else plan.clip,
        seed=plan.seed,
        tags=song.tags,
        sidecar=describe if plan.sidecar else None,
    )
    record.seconds = (clip.frames or 0) / song.sample_rate
    spent = time.monotonic() - began
    record.status, record.gain, record.speed = "done", written.gain, round(record.seconds / spent, 3)
    record.stems = {stem: str(path) for stem, path in written.paths.items()}
    if rate != song.sample_rate:
        record.warnings.append(f"written at {rate} Hz: {form.container} does not know {song.sample_rate} Hz")
    if written.gain != 1.0:
        record.warnings.append(f"a stem exceeds full scale: written with gain {told(written.gain)}")
    for warning in record.warnings:
        notice(f"{found.path}: {warning}")
    return record


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


def digest_of_input(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}") from error


def set_key(source: str, plan: Plan) -> str:
    """A digest of all that decides a set's samples: the input's digest, the weights, the settings."""
    weights = [
        (candidate.model, identity(candidate.model), sorted(candidate.votes.items()), candidate.segment)
        for candidate in candidates(plan.model, plan.bag_weights)
    ]
    settings = {name: getattr(plan, name) for name in DECIDES}
    return hashlib.sha256(json.dumps([source, weights, settings], sort_keys=True).encode()).hexdigest()


def read_sets(sidecar: Path) -> list[dict[str, Any]]:
    """The sets that a sidecar tells of; none where there is no sidecar, or one that is not ours."""
    try:
        sets = json.loads(sidecar.read_text(encoding="utf-8"))["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [record for record in sets if isinstance(record, dict)] if isinstance(sets, list) else []


def finished_set(sidecar: Path, key: str) -> dict[str, Any] | None:
    """The set of this key, if every file of it is there at its size."""
    for record in read_sets(sidecar):
        try:
            files = record["stems"].values()
            whole = all((sidecar.parent / file["path"]).stat().st_size == file["bytes"] for file in files)
            if record["key"] == key and whole and {"gain", "frames", "format"} <= record.keys():
                return record
        except (OSError, KeyError, TypeError, AttributeError):
            continue
    return None


def facts_of(key: str, source: str, song: "Song", plan: Plan, bag: "Bag", form: "Format", rate: int) -> dict[str, Any]:
    """What a sidecar tells of a set beside its files."""
    import torch

    return {
        "key": key,
        "input": {
            "name": song.path.name,
            "sha256": source,
            "sample_rate": song.sample_rate,
            "channels": song.channels,
        },
        "model": plan.model,
        "weights": [
            {"model": member.name, "sha256": member.digest, "licence": member.licence, "weights": member.weights}
            for member in {member.name: member for member in bag.members}.values()
        ],
        "settings": {name: getattr(plan, name) for name in DECIDES},
        "format": {"container": form.container, "depth": form.depth, "bitrate": form.bitrate, "sample_rate": rate},
        "device": str(bag.device),
        "threads": torch.get_num_threads(),
        "versions": {"sepcli": __version__, "torch": torch.__version__},
    }


def described(sidecar: Path, facts: Mapping[str, Any], written: "Written") -> bytes:
    """The sidecar's text: this set's record, and those of other sets beside it whose files it does not replace."""
    files = {
        stem: {"path": str(path.relative_to(sidecar.parent)), "bytes": written.bytes[stem]}
        for stem, path in written.paths.items()
    }
    taken = {file["path"] for file in files.values()}
    others = [record for record in read_sets(sidecar) if not taken & files_of(record)]
    record = {
        **facts,
        "stems": files,
        "frames": written.frames,
        "peaks": written.peaks,
        "gain": written.gain,
    }
    text = json.dumps({"schema": 1, "sets": [*others, record]}, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogateescape")


def files_of(record: Mapping[str, Any]) -> set[str]:
    stems = record.get("stems")
    files = stems.values() if isinstance(stems, dict) else ()
    return {str(file.get("path")) for file in files if isinstance(file, dict)}


def expected(song: "Song", first: int, last: int | None) -> int | None:
    """How many frames a stretch of a song is expected to have, for the progress."""
    if song.frames is None:
        return None
    return max(0, (song.frames if last is None else min(last, song.frames)) - first)


def told(gain: float | Mapping[str, float]) -> str:
    if isinstance(gain, Mapping):
        return ", ".join(f"{stem} {value:.3f}" for stem, value in gain.items())
    return f"{gain:.3f}"
