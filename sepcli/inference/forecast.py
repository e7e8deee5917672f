"""What a separation will take, before a weight is read: networks run on the meta device, which computes nothing."""

import dataclasses
import functools
import json
import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sepcli import models
from sepcli.audio import channels
from sepcli.audio.paths import Found
from sepcli.audio.read import open_song
from sepcli.errors import ModelError, UsageError
from sepcli.inference.device import batch_size_for, choose
from sepcli.inference.files import check_existing, check_start, finished, form_of
from sepcli.inference.plan import Plan, stem_path, stems_of
from sepcli.inference.stream import cut_for
from sepcli.models.separator import Separator
from sepcli.weights import checkpoint
from sepcli.weights.catalog import Entry, find, read_entry
from sepcli.weights.votes import candidates, is_path, weights_file

BASE = 450 * 2**20
"""Bytes that Python, torch and the blocks of a song take beside the networks."""

SHORT = 3
"""Seconds of the window that a network is tried with."""

SHARE = 0.3
"""Of the speed of a product of matrices, what networks reach; Hybrid Demucs a little more, Conv-TasNet less."""
"""Of the speed of a product of matrices, what networks reach; measured with Hybrid Demucs and Conv-TasNet on a CPU."""


@dataclass(frozen=True)
class Cost:
    """One network: arithmetic and bytes of one piece, bytes of its weights, and how a song is cut for it."""

    operations: float
    activations: int
    weights: int
    length: int
    stride: int
    border: int


@dataclass(frozen=True)
class Forecast:
    """What one song takes: the device, pieces of all networks together, bytes at most, seconds. None: not known."""

    device: str
    segments: int | None = None
    memory: int | None = None
    seconds: float | None = None


def forecast(
    entries: Sequence[Entry] | None,
    seconds: float | None,
    groups: int,
    *,
    device: str = "auto",
    overlap: float | str | None = None,
    shifts: int = 0,
    batch_size: int | None = None,
) -> Forecast:
    """The forecast of a song of `seconds` in `groups` of channels for networks; None where these are not known.

    Time and memory are rough: arithmetic at the speed that a product of matrices reaches here, and what a network's
    layers hold at once.
    """
    place = choose(device)
    if entries is None or seconds is None:
        return Forecast(str(place))
    costs = [cost(entry, overlap, place.type) for entry in entries]
    lengths = [max(1, math.ceil(seconds * entry.sample_rate)) for entry in entries]
    cuts = [pieces_of(length, c) for length, c in zip(lengths, costs, strict=True)]
    passes = groups * max(1, shifts)
    batch = batch_size or batch_size_for(place)
    known = all(c.operations for c in costs)
    work = sum(c.operations * sum(cut) / c.length for c, cut in zip(costs, cuts, strict=True)) * passes
    largest = max(c.activations * cut[0] / c.length for c, cut in zip(costs, cuts, strict=True))
    return Forecast(
        str(place),
        segments=sum(map(len, cuts)) * passes,
        memory=int(sum(c.weights for c in costs) + batch * largest) + BASE if known else None,
        seconds=work / speed(place) if known else None,
    )


@dataclass
class Outlook:
    """What a call would do with one input: the JSON document of `--dry-run --json`."""

    input: str
    model: str
    status: str = "planned"
    error: str | None = None
    stems: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    segments: int | None = None
    memory: int | None = None
    seconds: float | None = None
    """Of work, estimated."""

    def document(self) -> dict[str, Any]:
        """The outlook as plain data."""
        return dataclasses.asdict(self)


def outlook(found: Found, index: int, plan: Plan) -> Outlook:
    """What a plan would do with a song; no weights are read. Raises AudioError for the song, UsageError, ModelError."""
    if (record := finished(found, index, plan)) is not None:
        return Outlook(record.input, record.model, record.status, stems=record.stems)
    song = open_song(found.path)
    form, _ = form_of(song, plan)
    check_start(song, plan)
    entries = entries_of(plan)
    stems = stems_of(plan, max((entry.sources for entry in entries), key=len)) if entries else {}
    paths = {stem: stem_path(found, index, plan, stem, form.extension) for stem in stems}
    check_existing(song, plan, paths.values())
    end = math.inf if plan.end is None else plan.end
    length = None if song.frames is None else max(0.0, min(song.frames / song.sample_rate, end) - plan.start)
    expected = forecast(
        entries,
        length,
        len(channels.groups(song.channels, entries[0].channels)) if entries else 1,
        device=plan.device,
        overlap=plan.overlap,
        shifts=plan.shifts,
        batch_size=plan.batch_size,
    )
    seconds = None if expected.seconds is None else round(expected.seconds, 1)
    return Outlook(
        str(found.path),
        plan.model,
        stems={stem: str(path) for stem, path in paths.items()},
        device=expected.device,
        segments=expected.segments,
        memory=expected.memory,
        seconds=seconds,
    )


def entries_of(plan: Plan) -> list[Entry] | None:
    """The entries of a plan's networks as they would be built; None where only reading a file says what it is."""
    entries = []
    for candidate in candidates(plan.model, plan.bag_weights):
        if is_path(candidate.model):
            path = weights_file(candidate.model)
            table = checkpoint.read_entry(path)
            if table is None:
                return None
            entry = read_entry(path.stem, {k: v for k, v in table.items() if k != "name"}, str(path))
        else:
            entry = find(candidate.model)
        segment = plan.segment or candidate.segment or entry.segment
        entries.append(dataclasses.replace(entry, segment=segment))
    return entries


def pieces_of(samples: int, cost: Cost) -> list[int]:
    """The lengths of a song's pieces: a new one starts every stride as long as samples are left."""
    first = -cost.border if samples > 2 * cost.border else 0
    return [min(cost.length, samples - start) for start in range(first, samples, cost.stride)]


@functools.cache
def _cost(architecture: str, settings: str, traits: str, overlap: float | str | None, device: str) -> Cost:
    with torch.device("meta"):
        network = models.build(architecture, json.loads(settings), json.loads(traits))
    cut = cut_for(network, overlap, device)
    weights = sum(value.numel() * value.element_size() for value in [*network.parameters(), *network.buffers()])
    # A short window is enough, and quick where a recurrent layer takes its steps one by one.
    short = min(cut.length, -(-SHORT * network.sample_rate // network.grid) * network.grid)
    tried = short + sum(cut.margins(short))
    operations, activations = measured(network, tried)
    longer = (cut.length + sum(cut.margins(cut.length))) / tried
    return Cost(operations * longer, int(activations * longer), weights, cut.length, cut.stride, cut.border)


def cost(entry: Entry, overlap: float | str | None = None, device: str = "cpu") -> Cost:
    """What one piece of an entry's network takes. Raises UsageError and ModelError for settings that cannot be."""
    traits = {name: getattr(entry, name) for name in ("sources", "channels", "sample_rate", "segment", "level")}
    return _cost(entry.architecture, json.dumps(dict(entry.settings)), json.dumps(traits), overlap, device)


def measured(network: Separator, samples: int) -> tuple[float, int]:
    """Arithmetic operations of a forward pass and the most bytes that live at once; zeros where meta cannot run it."""
    holder = Live()
    recurrent = 0.0

    def stand_in(layer: nn.LSTM, sequence: Tensor, state: Any = None) -> tuple[Tensor, None]:
        """The shape of what an LSTM gives, which on the meta device would take its steps one by one."""
        nonlocal recurrent
        directions = 2 if layer.bidirectional else 1
        deep = (layer.num_layers - 1) * (directions + 1) * layer.hidden_size
        columns = layer.input_size + layer.hidden_size + deep
        recurrent += 8.0 * layer.hidden_size * columns * directions * sequence.numel() / layer.input_size
        return sequence.new_empty(*sequence.shape[:-1], directions * layer.hidden_size), None

    for layer in network.modules():
        if isinstance(layer, nn.LSTM):
            setattr(layer, "forward", functools.partial(stand_in, layer))  # noqa: B010 - which mypy forbids
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter, holder:
            network(torch.empty((1, network.channels, samples), device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, ModelError, UsageError):
        return 0.0, 0
    return counter.get_total_flops() + recurrent, holder.most


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.hold(value.untyped_storage())
        return result

    def hold(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.release, key, size)

    def release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@functools.cache
def speed(device: torch.device) -> float:
    """Operations a second that networks reach on a device: a part of what a product of matrices does."""
    size = 512 if device.type == "cpu" else 4096
    matrix = torch.ones(size, size, device=device)
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best * SHARE
