"""A network beside the public package that it comes from: the same settings, weights and sound, by turns."""

import gc
import importlib
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepcli.errors import ModelError, UsageError
from sepcli.inference import memory
from sepcli.inference.bench import peak, untrained
from sepcli.models.separator import Separator
from sepcli.weights.catalog import Entry

RENAMED = {"width": "channels", "normalise": "normalize", "oversample": "resample", "wiener_iterations": "wiener_iters"}
"""What demucs' constructors call our settings; others have the same names."""


@dataclass(frozen=True)
class Run:
    """One pass over a piece in a process of its own. Times in seconds, memory of the whole process in bytes."""

    cpu: float
    system: float
    """Of the CPU's time, what the system took: mostly clearing fresh pages."""
    wall: float
    memory: int
    waveforms: NDArray[np.float32]
    """(S, C, T)."""


@dataclass(frozen=True)
class Comparison:
    """Figures of runs by turns. A ratio is theirs over ours; its spread is that of the pairs."""

    model: str
    package: str
    seconds: float
    threads: int
    ours: Mapping[str, Sequence[float]]
    theirs: Mapping[str, Sequence[float]]
    ratio: Mapping[str, Sequence[float]]
    """Of `cpu`, `wall` and `memory`: median, least and greatest."""
    difference: float
    """Relative L2 of our stems against theirs."""


def run(
    entry: Entry,
    *,
    package: str = "",
    seconds: float | None = None,
    threads: int = 1,
    keep: bool = True,
    plain: bool = False,
) -> Run:
    """The first pass of a catalog's network over noise: ours, or with a `package` theirs. In a process of its own.

    `keep`: freed memory is kept, as the command does. Raises ModelError where the package has no such network.
    """
    if keep:
        memory.keep()
    torch.set_num_threads(threads)
    model = untrained(entry, seconds)
    mixture = 0.1 * torch.randn(1, model.channels, model.piece, generator=torch.Generator().manual_seed(0))
    forward: Callable[[Tensor], Tensor]
    if package:
        forward = rival(package, entry, model)
        del model
    else:
        form = model if plain else model.fast()
        forward = lambda sound: form(sound).waveforms  # noqa: E731
    gc.collect()
    with torch.inference_mode():
        began, used = time.perf_counter(), usage()
        waveforms = forward(mixture)
        wall, (user, system) = time.perf_counter() - began, (b - a for a, b in zip(used, usage(), strict=True))
    return Run(user + system, system, wall, peak(torch.device("cpu")), waveforms[0].numpy())


def usage() -> tuple[float, float]:
    """Seconds of the CPU that this process has taken, its own and the system's for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def comparison(entry: Entry, package: str, ours: Sequence[Run], theirs: Sequence[Run], threads: int) -> Comparison:
    """Figures of runs that took turns, in order."""
    fields = ("cpu", "system", "wall", "memory")
    mine, other = ({field: [getattr(run, field) for run in runs] for field in fields} for runs in (ours, theirs))
    ratio = {}
    for field in ("cpu", "wall", "memory"):
        pairs = [b / a for a, b in zip(mine[field], other[field], strict=True)]
        ratio[field] = [statistics.median(pairs), min(pairs), max(pairs)]
    found, expected = ours[0].waveforms, theirs[0].waveforms
    return Comparison(
        entry.name,
        package,
        found.shape[-1] / entry.sample_rate,
        threads,
        mine,
        other,
        ratio,
        float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
    )


def rival(package: str, entry: Entry, model: Separator) -> Callable[[Tensor], Tensor]:
    """The public package's network with our network's weights: (B, C, T) -> (B, S, C, T), as the package calls it.

    Raises ModelError where it has none for the entry or is not installed.
    """
    makers = {"demucs": of_demucs, "openunmix": of_openunmix}
    if package not in makers:
        raise UsageError(f"--compare {package}: no such package", f"it can be {' or '.join(makers)}")
    try:
        return makers[package](entry, model)
    except ImportError as error:
        raise ModelError(f"{package} is not installed ({error})", f"pip install {package}") from error


def of_demucs(entry: Entry, model: Separator) -> Callable[[Tensor], Tensor]:
    """demucs: its `apply_model` over the whole piece, without shifts."""
    module, _, kind = entry.architecture.partition(".")
    if module not in ("hdemucs", "htdemucs", "demucs"):
        raise ModelError(f"demucs has no {entry.architecture}", "compare hdemucs_mmi, htdemucs or demucs48_hq")
    settings = {RENAMED.get(key, key): value for key, value in entry.settings.items()}
    if "wiener_iters" in settings:
        settings["end_iters"] = settings["wiener_iters"]
    settings.pop("trained", None)
    public = getattr(importlib.import_module(f"demucs.{module}"), kind)
    traits = {"audio_channels": entry.channels, "samplerate": entry.sample_rate}
    segment = entry.settings.get("trained", model.segment)
    try:
        network = public(entry.sources, segment=segment, **traits, **settings)
    except TypeError as error:  # settings of its earlier versions
        raise ModelError(f"this version of demucs has no {entry.name} ({error})", "choose another model") from error
    network.load_state_dict(model.state_dict(), strict=True)
    network.eval()
    apply_model = importlib.import_module("demucs.apply").apply_model
    return lambda mixture: apply_model(network, mixture, shifts=0, split=False)


def of_openunmix(entry: Entry, model: Separator) -> Callable[[Tensor], Tensor]:
    """openunmix: its Separator of one network a source."""
    if entry.architecture != "umx.OpenUnmix" or entry.settings.get("bridging", "none") != "none":
        raise ModelError(f"openunmix has no {entry.name}", "compare umx, umxl or umxse")
    public = importlib.import_module("openunmix.model")
    settings: dict[str, Any] = {"n_fft": 4096, "hop": 1024, "bins": 1487, "hidden": 512, "wiener_iterations": 1}
    settings |= entry.settings
    targets = {}
    for source, part in cast(nn.ModuleDict, model.networks).items():
        targets[source] = public.OpenUnmix(
            nb_bins=settings["n_fft"] // 2 + 1,
            nb_channels=entry.channels,
            hidden_size=settings["hidden"],
            max_bin=settings["bins"],
        )
        targets[source].load_state_dict(part.state_dict(), strict=True)
    network = public.Separator(
        targets,
        niter=settings["wiener_iterations"],
        residual=settings.get("residual", False),
        softmask=settings.get("softmask", False),
        n_fft=settings["n_fft"],
        n_hop=settings["hop"],
        nb_channels=entry.channels,
        sample_rate=entry.sample_rate,
    ).eval()
    return lambda mixture: cast(Tensor, network(mixture.clone()))
