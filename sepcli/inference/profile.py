"""Where a network's time goes: by module, and by kind of operation."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "recurrence": ("lstm", "rnn"),
    "convolution": ("conv", "mkldnn", "slow_"),
    "product": ("mm", "addmv", "dot", "linear", "einsum"),
    "transform": ("fft",),
    "norm": ("norm", "var", "std", "mean"),
    "activation": ("gelu", "glu", "relu", "sigmoid", "tanh", "softmax"),
    "copy": ("copy", "cat", "stack", "clone", "pad", "reorder", "contiguous", "repeat"),
    "fill": ("zero", "fill", "ones", "arange"),
}


@dataclass(frozen=True)
class Profile:
    """Shares of one pass's time, the greatest first, and its CPU seconds, without the profiler's own."""

    seconds: float
    modules: dict[str, float]
    """Each module's own share, the modules within it left out; the last name of all is the network's."""
    kinds: dict[str, float]


@torch.inference_mode()
def profiled(form: nn.Module, mixture: Tensor) -> Profile:
    """The profile of a network's form on the CPU, after a first pass that makes its memory."""
    form(mixture)
    began = time.process_time()
    form(mixture)
    seconds = time.process_time() - began
    return Profile(seconds, shares(by_module(form, mixture)), shares(by_kind(form, mixture)))


def by_module(form: nn.Module, mixture: Tensor) -> Mapping[str, float]:
    """CPU seconds of each module, those within it left out."""
    names = {module: name or type(form).__name__ for name, module in form.named_modules()}
    spent: defaultdict[str, float] = defaultdict(float)
    running: list[list[float]] = []  # when each module that runs began, and what those within it have taken

    def enter(_module: nn.Module, _inputs: Any) -> None:
        running.append([time.process_time(), 0.0])

    def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
        began, within = running.pop()
        whole = time.process_time() - began
        spent[names[module]] += whole - within
        if running:
            running[-1][1] += whole

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    form(mixture)
    for handle in handles:
        handle.remove()
    return spent


def by_kind(form: nn.Module, mixture: Tensor) -> Mapping[str, float]:
    """CPU seconds of each kind of operation, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as trace:
        form(mixture)
    spent: defaultdict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return spent


def kind_of(operation: str) -> str:
    """The kind of one of torch's operations."""
    for kind, signs in KINDS.items():
        if any(sign in operation for sign in signs):
            return kind
    return "arithmetic and the rest"


def shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Of the whole, the greatest first."""
    whole = sum(spent.values()) or 1.0
    return {name: spent[name] / whole for name in sorted(spent, key=lambda name: -spent[name])}
