"""What a network costs: speed, memory, arithmetic, start-up. Weights do not matter for that, so none are needed."""

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sepcli.inference.device import choose
from sepcli.models import build
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
    """Of sound in one forward pass."""
    speed: float
    """Seconds of sound for each second of time: the median of the passes."""
    slowest: float
    fastest: float
    gflops: float
    """1e9 floating point operations for each second of sound; a multiplication and an addition are two."""
    memory: int
    start_up: float
    """Seconds to build the network, its imports aside."""


def measure(name: str, *, seconds: float | None = None, device: str = "auto", passes: int = 3) -> Cost:
    """Build a network of the catalog and run it on noise. `seconds`: of sound, else the network's own piece.

    Run it in a process of its own, since peak memory is the process's. Raises ModelError for a bag.
    """
    entry = find(name)
    place = choose(device)
    began = time.perf_counter()
    model = untrained(entry, seconds).to(place)
    start_up = time.perf_counter() - began
    mixture = 0.1 * torch.randn(1, model.channels, model.piece, device=place)
    operations = count(model, mixture)
    times = [timed(model, mixture) for _ in range(passes)]
    length = model.piece / model.sample_rate
    return Cost(
        model=entry.name,
        device=str(place),
        threads=torch.get_num_threads(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=length,
        speed=length / statistics.median(times),
        slowest=length / max(times),
        fastest=length / min(times),
        gflops=operations / length / 1e9,
        memory=peak(place),
        start_up=start_up,
    )


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
def count(model: Separator, mixture: Tensor) -> int:
    """Floating point operations of one forward pass: convolutions, products of matrices, and LSTMs by their sizes."""
    recurrent = 0

    def add(lstm: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal recurrent
        assert isinstance(lstm, nn.LSTM)
        steps = inputs[0].shape[0] * inputs[0].shape[1]
        directions = 2 if lstm.bidirectional else 1
        for layer in range(lstm.num_layers):
            width = lstm.input_size if layer == 0 else directions * lstm.hidden_size
            recurrent += 2 * steps * directions * 4 * lstm.hidden_size * (width + lstm.hidden_size)

    handles = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, nn.LSTM)]
    with FlopCounterMode(display=False) as counter:
        model(mixture)
    for handle in handles:
        handle.remove()
    return int(counter.get_total_flops()) + recurrent


@torch.inference_mode()
def timed(model: Separator, mixture: Tensor) -> float:
    """Seconds that one forward pass takes, the device's work included."""
    wait(mixture.device)
    began = time.perf_counter()
    model(mixture)
    wait(mixture.device)
    return time.perf_counter() - began


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
