"""What a network costs: speed, memory, arithmetic, start-up. Weights do not matter for that, so none are needed."""

import functools
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sepcli.errors import UsageError
from sepcli.inference.device import choose
from sepcli.models import build, parameters
from sepcli.models import find as find_model
from sepcli.models.separator import Separator
from sepcli.weights.catalog import Entry, find
from sepcli.weights.seeded import fill


@dataclass(frozen=True)
class Cost:
    """Figures of one network on one device. Memory is the whole process's (CPU) or the device's (CUDA), in bytes."""

    model: str
    device: str
    threads: int
    parameters: int
    seconds: float
    """Of sound in one timed pass."""
    sources: int
    """How many of the sources were timed."""
    passes: int
    speed: float
    """Seconds of sound for each second of time: the median of the passes."""
    slowest: float
    fastest: float
    cpu: float
    """Processor seconds for each second of sound, all threads together: the median, which other work disturbs less."""
    scale: float
    """What the speeds were multiplied with, where not all sources or not a whole piece was timed; else 1."""
    piece: float
    """Seconds of sound that the network takes at once; gflops, and scaled speeds, are those of whole pieces."""
    gflops: float
    """1e9 floating point operations for each second of sound; a multiplication and an addition are two."""
    memory: int
    start_up: float
    """Seconds to build the network, its imports aside."""


def measure(
    name: str,
    *,
    seconds: float | None = None,
    device: str = "auto",
    passes: int = 3,
    one_source: bool = False,
    plain: bool = False,
) -> Cost:
    """Build a network of the catalog and run it on noise. `seconds`: of sound, else the network's own piece.

    Less sound than a whole piece, or with `one_source` one network of several, is timed as it is; the speed is then
    scaled by the operations that a whole piece of all sources takes. Run it in a process of its own, since peak memory
    is the process's. Raises ModelError for a bag, UsageError where one source cannot be had alone.
    """
    entry = find(name)
    timed_entry = first_source(entry) if one_source else entry
    place = choose(device)
    began = time.perf_counter()
    model = untrained(timed_entry, seconds).to(place)
    start_up = time.perf_counter() - began
    rate = model.sample_rate
    samples = model.piece if seconds is None else min(model.piece, max(1, round(seconds * rate)))
    mixture = 0.1 * torch.randn(1, model.channels, samples, device=place)
    form = model if plain or place.type != "cpu" else model.fast()
    times, busy = zip(*(timed(form, mixture) for _ in range(passes)), strict=True)
    with torch.device("meta"):
        whole = untrained(entry, seconds)
        operations = count(whole, torch.empty(1, whole.channels, whole.piece)) / whole.piece
        ours = count(untrained(timed_entry, seconds), torch.empty(1, model.channels, samples)) / samples
    scale = 1.0 if (timed_entry, samples) == (entry, whole.piece) else ours / operations
    length = scale * samples / rate
    return Cost(
        model=entry.name,
        device=str(place),
        threads=torch.get_num_threads(),
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
        seconds=samples / rate,
        sources=len(timed_entry.sources),
        passes=passes,
        speed=length / statistics.median(times),
        slowest=length / max(times),
        fastest=length / min(times),
        cpu=statistics.median(busy) / length,
        scale=scale,
        piece=whole.piece / rate,
        gflops=operations * rate / 1e9,
        memory=peak(place),
        start_up=start_up,
    )


def first_source(entry: Entry) -> Entry:
    """An entry with its first source only, without the Wiener filter, which wants all. Raises UsageError."""
    network = find_model(entry.architecture)
    filtered = "wiener_iterations" in parameters(network)
    alone = replace(entry, settings={**entry.settings, **({"wiener_iterations": 0} if filtered else {})})
    with torch.device("meta"):
        if not untrained(alone, None).independent:
            raise UsageError(f"--one-source: {entry.name} has no network for each source alone", "leave it out")
    return replace(alone, sources=entry.sources[:1])


def untrained(entry: Entry, seconds: float | None) -> Separator:
    """An entry's network at full size, filled from a seed."""
    model = build(
        entry.architecture,
        entry.settings,
        {
            "sources": entry.sources,
            "channels": entry.channels,
            "sample_rate": entry.sample_rate,
            "segment": seconds or entry.segment,
            "level": entry.level,
        },
    )
    fill(model)
    return model


@torch.inference_mode()
def count(model: nn.Module, mixture: Tensor) -> int:
    """Floating point operations of one forward pass: convolutions, products of matrices, and LSTMs by their sizes.

    LSTMs are not run: so it is quick with everything on the meta device.
    """
    recurrent = 0

    def skipped(lstm: nn.LSTM, sound: Tensor, _: Any = None) -> tuple[Tensor, None]:
        nonlocal recurrent
        steps = sound.shape[0] * sound.shape[1]
        directions = 2 if lstm.bidirectional else 1
        for layer in range(lstm.num_layers):
            width = lstm.input_size if layer == 0 else directions * lstm.hidden_size
            recurrent += 2 * steps * directions * 4 * lstm.hidden_size * (width + lstm.hidden_size)
        return sound.new_zeros(*sound.shape[:-1], directions * lstm.hidden_size), None

    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    for lstm in lstms:
        vars(lstm)["forward"] = functools.partial(skipped, lstm)
    with FlopCounterMode(display=False) as counter:
        model(mixture)
    for lstm in lstms:
        del vars(lstm)["forward"]
    return int(counter.get_total_flops()) + recurrent


@torch.inference_mode()
def timed(model: nn.Module, mixture: Tensor) -> tuple[float, float]:
    """Seconds that one forward pass takes, the device's work included, and those of the processor."""
    wait(mixture.device)
    began, busy = time.perf_counter(), time.process_time()
    model(mixture)
    wait(mixture.device)
    return time.perf_counter() - began, time.process_time() - busy


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak(device: torch.device) -> int:
    """The most memory held so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
