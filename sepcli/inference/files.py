"""Songs on disk to stems on disk: which sets are finished already, and one song's whole job."""

import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sepcli import __version__
from sepcli.audio.hidden import sweep
from sepcli.audio.paths import Found, exists
from sepcli.errors import AudioError, UsageError
from sepcli.inference.plan import (
    DECIDES,
    Notice,
    Plan,
    Progress,
    Record,
    set_key,
    sidecar_path,
    sources_of,
    stem_path,
    stems_of,
)
from sepcli.inference.sidecar import described, digest_of_file, finished_set, kept_sets, read_sets, text_of

if TYPE_CHECKING:
    from sepcli.audio.read import Song
    from sepcli.audio.write import Format, Written
    from sepcli.inference.bag import Bag
    from sepcli.inference.song import Clip

T = TypeVar("T")


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
    check_start(song, plan)
    clip = Clip(lambda: song.blocks(first, last), song.sample_rate, song.channels, expected(song, first, last))
    check_disk(found, plan, form, rate, clip, len(stems_of(plan, known)) if (known := sources_of(plan)) else 1)

    bag = load()
    stems = stems_of(plan, bag.sources)
    targets = {stem: stem_path(found, index, plan, stem, form.extension) for stem in stems}
    check_existing(song, plan, targets.values())
    record = Record(str(found.path), plan.model)
    facts = facts_of(found, song, plan, bag, form, rate)

    def describe(written: "Written") -> tuple[Path, bytes]:
        so_far = {"device": devices_of(bag), "warnings": warnings_of(song, form, rate, plan, bag, written)}
        return sidecar, described(sidecar, facts | so_far, written)

    kept = kept_sets(sidecar, targets.values())
    stale = len(kept) < len(read_sets(sidecar))

    def forget(_written: "Written") -> tuple[Path, bytes]:
        return sidecar, text_of(kept)

    def write() -> "Written":
        stopped: list[BaseException] = []
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
            sidecar=describe if plan.sidecar else forget if stale else None,
            hidden_in=sidecar.parent,
            stopped=stopped,
        )
        return behind(unchanged(blocks, found.path, before), consume, stopped=stopped)

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
    if not exists(sidecar) or (made := finished_set(sidecar, set_key(digest_of_file(found.path), plan))) is None:
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


def check_start(song: "Song", plan: Plan) -> None:
    """Refuse a stretch that begins behind a song, as far as its length is known. Raises AudioError."""
    if song.frames is not None and round(plan.start * song.sample_rate) >= song.frames:
        raise AudioError(f"{song.path}: --start {plan.start:g} is beyond its {song.frames / song.sample_rate:.2f} s")


def check_existing(song: "Song", plan: Plan, targets: Iterable[Path]) -> None:
    """Refuse, with --existing error, stems that are there. Raises AudioError."""
    if plan.existing == "error" and (there := [path for path in targets if exists(path)]):
        raise AudioError(f"{song.path}: {there[0]} exists", "use --existing overwrite, or another --out", reason="io")


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
    folder = next(place for place in [plan.out.absolute(), *plan.out.absolute().parents] if exists(place))
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
    if lowered(written.gain):
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


def expected(song: "Song", first: int, last: int | None) -> int | None:
    """How many frames a stretch of a song is expected to have, for the progress."""
    if song.frames is None:
        return None
    return max(0, (song.frames if last is None else min(last, song.frames)) - first)


def lowered(gain: float | Mapping[str, float]) -> bool:
    return any(value != 1.0 for value in (gain.values() if isinstance(gain, Mapping) else [gain]))


def told(gain: float | Mapping[str, float]) -> str:
    if isinstance(gain, Mapping):
        return ", ".join(f"{stem} {value:.3f}" for stem, value in gain.items())
    return f"{gain:.3f}"
