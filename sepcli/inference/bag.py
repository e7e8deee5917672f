"""A bag: Separators run in step over one song, with a weight per member and source. A single model is a bag of one."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sepcli.audio.blocks import BLOCK
from sepcli.errors import ModelError, UsageError
from sepcli.inference.device import Runner, batch_size_for, choose
from sepcli.inference.memory import release
from sepcli.inference.stream import Cut, cut_for, drop, estimates, overlap_add, pieces, reblock
from sepcli.models.separator import Separator
from sepcli.weights.load import load_separator
from sepcli.weights.votes import candidates, check_source, check_votes

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Loudness:
    """A song at the network's rate and channels: mean and deviation of its channel mean, and its largest sample."""

    mean: float
    deviation: float
    peak: float


@dataclass(frozen=True)
class Member:
    """A network of a bag, its weight for each source by name, and the zeros put before the song (a shift)."""

    separator: Separator
    weights: Mapping[str, float]
    name: str = ""
    digest: str = ""
    licence: str = ""
    delay: int = 0


@dataclass
class Bag:
    """What `sepcli.load` returns. Members agree on rate and channels, else ModelError.

    Sources go by name: a member may have only some of those that the widest member has, and votes for these.
    """

    members: Sequence[Member]
    name: str
    device: torch.device
    overlap: float | str | None = None
    """A share of a piece, or a quality, or each network's own: see cut_for."""
    batch_size: int = 1
    precision: str = "float32"
    plain: bool = False
    notice: Callable[[str], None] = lambda _: None
    wanted: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that it was loaded with, as far as they decide what it estimates."""
    runners: dict[int, Runner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widest = self.widest
        for member in self.members:
            for trait in ("sources", "sample_rate", "channels"):
                own, others = getattr(member.separator, trait), getattr(widest.separator, trait)
                if own != others and (trait != "sources" or not set(own) <= set(others)):
                    what = f"{widest.name} and {member.name} cannot share a bag: {trait} {others} and {own}"
                    raise ModelError(what, "choose models that agree")
        for member in self.members:
            key = id(member.separator)
            if key not in self.runners:
                model = member.separator
                self.runners[key] = Runner(
                    model, self.device, precision=self.precision, plain=self.plain, notice=self.notice
                )

    @property
    def widest(self) -> Member:
        """The member with the most sources: what the bag has, in its order."""
        return max(self.members, key=lambda member: len(member.separator.sources))

    @property
    def sources(self) -> tuple[str, ...]:
        """What `run` estimates: the sources wanted, else all of them."""
        return self.wanted or self.widest.separator.sources

    @property
    def sample_rate(self) -> int:
        return self.members[0].separator.sample_rate

    @property
    def channels(self) -> int:
        return self.members[0].separator.channels

    @property
    def limits(self) -> list[str]:
        """What was given up so far for want of memory or of an operator, as it was said."""
        return [text for runner in self.runners.values() for text in runner.limits]

    @property
    def needs_loudness(self) -> bool:
        return any(member.separator.level for member in self.members)

    def run(
        self,
        blocks: Iterable[Tensor],
        loudness: Loudness | None = None,
        tick: Callable[[float], None] = lambda _: None,
    ) -> Iterator[Tensor]:
        """Blocks (C, n) of a song at the bag's rate to blocks (S, C, n) on the CPU, S in the order of `sources`.

        `loudness` is the whole song's, where a member's level rule needs it. `tick` is told the seconds of song that
        each piece moves on, shared among the members.
        """
        streams = itertools.tee(blocks, len(self.members))
        outputs = [
            reblock(self.run_member(member, stream, loudness, tick), BLOCK)
            for member, stream in zip(self.members, streams, strict=True)
        ]
        if len(self.members) == 1:
            yield from outputs[0]
            return
        weights = torch.tensor(
            [[member.weights.get(source, 0.0) for source in self.sources] for member in self.members]
        )
        totals = weights.sum(0)
        if not bool((totals > 0).all()):
            lost = [source for source, total in zip(self.sources, totals, strict=True) if total <= 0]
            raise ModelError(f"no member of bag {self.name} has a weight for {', '.join(lost)}")
        for parts in zip(*outputs, strict=True):
            mixed = torch.zeros(len(self.sources), *parts[0].shape[1:])
            for member, weight, part in zip(self.members, weights, parts, strict=True):
                rows = [source in member.separator.sources for source in self.sources]
                mixed[rows] += weight[rows, None, None] * part
            yield mixed / totals[:, None, None]

    def run_member(
        self,
        member: Member,
        blocks: Iterable[Tensor],
        loudness: Loudness | None,
        tick: Callable[[float], None],
    ) -> Iterator[Tensor]:
        model = member.separator
        runner = self.runners[id(model)]
        cut = cut_for(model, self.overlap, self.device.type)
        offset, scale = level(model.level, loudness)
        order = [model.sources.index(source) for source in self.sources if source in model.sources]
        brought = ((block - offset) / scale for block in blocks) if (offset, scale) != (0.0, 1.0) else blocks
        delayed = itertools.chain([torch.zeros(model.channels, member.delay)], brought) if member.delay else brought
        estimated = counted(estimates(pieces(delayed, cut), runner, self.batch_size), cut, self.seconds_a_sample, tick)
        for block in drop(overlap_add(estimated, cut), member.delay):
            block = block.cpu()[order]
            yield block * scale + offset if (offset, scale) != (0.0, 1.0) else block

    @property
    def seconds_a_sample(self) -> float:
        return 1 / (self.sample_rate * len(self.members))

    def separate(
        self,
        mixture: "numpy.ndarray | Tensor",
        sample_rate: int,
        *,
        progress: Callable[[float, float | None], None] = lambda _done, _total: None,
    ) -> "dict[str, numpy.ndarray] | dict[str, Tensor]":
        """Separate a mixture (channels, time), float, at any rate; stems of the same kind, rate and shape by source.

        `progress` is called with seconds done and in all. Raises AudioError where the network gives no numbers.
        """
        from sepcli.inference import song

        return song.separate_array(self, mixture, sample_rate, progress=progress)


def level(rule: Mapping[str, float], loudness: Loudness | None) -> tuple[float, float]:
    """Offset and scale that bring a song to the loudness a network expects: x -> (x - offset) / scale.

    {} none; {deviation = 1.0} as Demucs: the channel mean's mean removed, its deviation (plus 1e-8) brought to the
    value; {peak = 0.8} as the published CWS file: the largest signed sample, songs below 0.001 left alone.
    """
    if not rule:
        return 0.0, 1.0
    assert loudness is not None
    if "deviation" in rule:
        return loudness.mean, (loudness.deviation + 1e-8) / rule["deviation"]
    return (0.0, loudness.peak / rule["peak"]) if loudness.peak > 1e-3 else (0.0, 1.0)


def delays(count: int, sample_rate: int, seed: int, network: int) -> list[int]:
    """Zeros put before the song for each of `count` shifts of a bag's network: up to half a second, from the seed."""
    draw = random.Random(f"{seed} {network}")
    return [draw.randint(0, sample_rate // 2) for _ in range(count)]


def with_shifts(members: Sequence[Member], shifts: int, seed: int) -> list[Member]:
    """Each member once for each shift, or as it is for none."""
    if not shifts:
        return list(members)
    return [
        Member(**{**vars(member), "delay": delay})
        for index, member in enumerate(members)
        for delay in delays(shifts, member.separator.sample_rate, seed, index)
    ]


def counted(
    items: Iterable[tuple[int, Tensor]], cut: Cut, seconds_a_sample: float, tick: Callable[[float], None]
) -> Iterator[tuple[int, Tensor]]:
    for start, estimate in items:
        yield start, estimate
        tick(max(0, min(cut.stride, estimate.shape[-1]) + min(start, 0)) * seconds_a_sample)
        release()


def load_bag(
    models: str,
    *,
    device: str = "auto",
    stems: Sequence[str] = (),
    weights: Path | None = None,
    architecture: str | None = None,
    settings: Mapping[str, Any] | None = None,
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
) -> Bag:
    """Load one model, a published bag, or several joined by commas, as a Bag.

    `models` are names of the catalog or paths. `stems` are the sources wanted (none: all); a member without a weight
    for any of them is not loaded. `weights` is a TOML file of weights, see read_weights. `segment` is in seconds;
    `overlap` is a share of a piece or a quality, see cut_for; `shifts` counts passes moved by up to half a second,
    averaged. Raises ModelError, UsageError.
    """
    place = choose(device)
    members = []
    named = candidates(models, weights)
    for candidate in named:
        if stems and candidate.votes and not any(candidate.votes.get(stem, 0) > 0 for stem in stems):
            continue
        loaded = load_separator(
            candidate.model,
            architecture=architecture,
            settings=settings,
            segment=segment or candidate.segment,
            sources=[stem for stem in stems if not candidate.votes or stem in candidate.votes],
            offline=offline,
            require_digest=require_digest,
            notice=notice,
            progress=progress,
        )
        sources = loaded.separator.sources
        for name in () if stems else candidate.votes:
            check_source(name, sources, candidate.model)
        votes = {source: candidate.votes.get(source, 0.0) if candidate.votes else 1.0 for source in sources}
        members.append(Member(loaded.separator, votes, candidate.model, loaded.digest, loaded.entry.licence))
        if overlap is not None and loaded.separator.context is not None:
            notice(f"{candidate.model}: --overlap and --quality have no effect, its pieces equal one pass as they are")
    if not members:
        raise UsageError(f"{models} has no weight for {', '.join(stems)}", "see `sepcli models show`")
    bag = Bag(
        with_shifts(members, shifts, seed),
        name=models,
        device=place,
        overlap=overlap,
        batch_size=batch_size or batch_size_for(place),
        precision=precision,
        plain=plain,
        notice=notice,
        wanted=tuple(stems),
        asked={
            "bag_weights": weights,
            "architecture": architecture,
            "wiener_iterations": (settings or {}).get("wiener_iterations"),
            "segment": segment,
            "overlap": overlap,
            "shifts": shifts,
            "seed": seed,
            "precision": precision,
        },
    )
    if weights:
        check_votes(named, bag.sources, weights)
    return bag
