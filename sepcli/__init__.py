"""Music source separation: songs into stems.

    separator = sepcli.load("scnet")
    stems = separator.separate(mixture, sample_rate)  # {stem: (channels, time)}
    sepcli.separate_file("song.mp3", "separated", model="scnet", two_stems="vocals")

Importing it loads nothing heavy; what is used is imported then.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sepcli.inference.bag import Bag
    from sepcli.inference.plan import Record

__version__ = "0.1.0.dev0"
__all__ = ["DEFAULT", "__version__", "load", "separate_file"]

DEFAULT = "scnet"
"""The model where none is named: its weights' terms allow every use, and two cores of a CPU keep up with the song."""


def load(
    model: str = DEFAULT,
    *,
    device: str = "auto",
    stems: Sequence[str] = (),
    bag_weights: Path | None = None,
    architecture: str | None = None,
    segment: float | None = None,
    overlap: float | str | None = None,
    shifts: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "float32",
    plain: bool = False,
    offline: bool = False,
    require_digest: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int | None], None] | None = None,
) -> "Bag":
    """A separator: the model of a name, of a path, or several joined by commas. Options as of `sepcli separate`.

    `overlap` also takes a quality: "fast", "normal" or "best".
    `notice` is told what a user should know, `progress` the bytes of a download, done and in all. Its method
    `separate(mixture, sample_rate)` takes floats (channels, time), an array or a tensor, and gives a dictionary of
    stems of the same kind. Raises sepcli.errors.ModelError, UsageError.
    """
    from sepcli.inference.bag import load_bag

    return load_bag(
        model,
        device=device,
        stems=tuple(stems),
        weights=bag_weights,
        architecture=architecture,
        segment=segment,
        overlap=overlap,
        shifts=shifts,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        plain=plain,
        offline=offline,
        require_digest=require_digest,
        notice=notice,
        progress=progress,
    )


def separate_file(
    path: str | Path,
    out: str | Path = "separated",
    *,
    model: "str | Bag" = DEFAULT,
    filename: str = "{model}/{reldir}/{track}/{stem}.{ext}",
    stems: Sequence[str] = (),
    two_stems: str | None = None,
    format: str = "wav",
    bitrate: int | None = None,
    bit_depth: str = "auto",
    clip: str = "common",
    consistent: bool = False,
    existing: str = "skip",
    sidecar: bool = True,
    start: float = 0.0,
    end: float | None = None,
    device: str = "auto",
    offline: bool = False,
    licence: str = "any",
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
) -> "Record":
    """One song to stems on disk, as `sepcli separate` does it; the options are its.

    `model` is a name or a path, or what `load` returned, which is then not loaded again: for many songs, and for the
    options that only `load` has. `progress` is called with seconds done and in all. The record tells the status
    ("done", or "skipped" where the same set is there already), the stems' paths, the gain and the warnings. Raises
    sepcli.errors.AudioError, ModelError, UsageError.
    """
    from dataclasses import replace

    from sepcli.audio.paths import Found
    from sepcli.inference.files import loader, separate_song
    from sepcli.inference.plan import Plan, check_plan

    plan = Plan(
        model=model if isinstance(model, str) else model.name,
        out=Path(out),
        filename=filename,
        stems=tuple(stems),
        two_stems=two_stems,
        format=format,
        bitrate=bitrate,
        bit_depth=bit_depth,
        clip=clip,
        consistent=consistent,
        existing=existing,
        sidecar=sidecar,
        start=start,
        end=end,
        device=device,
        offline=offline,
        licence=licence,
    )
    if isinstance(model, str):
        load_it = loader(plan, notice)
    else:
        bag = model
        if two_stems and bag.wanted:
            from sepcli.errors import UsageError

            hint = "load it without stems"
            raise UsageError(f"two_stems={two_stems!r}: the model was loaded with {', '.join(bag.wanted)} alone", hint)
        plan = replace(plan, stems=plan.stems or (() if two_stems else bag.wanted), **bag.asked)
        load_it = lambda: bag  # noqa: E731 - a `def` would redefine what the other branch assigns
    check_plan(plan)
    return separate_song(Found(Path(path)), 1, plan, load_it, notice=notice, progress=progress)
