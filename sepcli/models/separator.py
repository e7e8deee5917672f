"""The contract between a network and the rest: what goes in, what comes out, and what the network needs.

Shape letters everywhere: B batch, S sources, C channels, T samples, K bands, F bins, N frames, H hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack

from torch import Tensor, nn

from sepcli.errors import UsageError


class Estimate(NamedTuple):
    """What a network estimates. A tuple, so that DDP and torch.compile pass it through.

    `waveforms` (B, S, C, T). `spectrograms`: whatever the network's own domain is (a complex or magnitude
    spectrogram (B, S, C, F, N), subbands (B, S, C*K, F, N)), where a loss wants it. `stages`: waveforms of earlier
    stages, first to last but one, in training mode only.
    """

    waveforms: Tensor
    spectrograms: Tensor | None = None
    stages: tuple[Tensor, ...] = ()


class Traits(TypedDict):
    """What every network is told, whatever its architecture. All but `sources` have defaults in the Separator."""

    sources: Sequence[str]
    channels: int
    sample_rate: int
    segment: float
    level: Mapping[str, float]


class Separator(nn.Module):
    """A network from a mixture (B, C, T) to an Estimate, at its own sample rate. Every model derives from it directly.

    The constructor of a model is keyword only: its own settings with defaults, then `**traits: Unpack[Traits]`, which
    it passes on. Its signature is the schema of `settings` in weights.toml.

    In eval mode `forward` keeps these promises, which tests/models/test_contract.py holds it to: any length from one
    sample up, the same length out; batch items independent; repeatable; the input unchanged; no float64, no numpy, no
    hop to another device; silence gives finite numbers. Constants are buffers with persistent=False.
    """

    unused: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of parameters that by design get no gradient."""
    tiny: ClassVar[Mapping[str, Any]] = {}
    """Settings of the smallest network that still has every part, for tests."""
    independent: bool = False
    """Each source has a network of its own, under `networks.SOURCE`, and nothing couples them."""
    fade: ClassVar[Literal["triangle", "tenth"]] = "triangle"
    """How pieces that overlap are weighted: by a triangle, or by ones with a tenth of the piece faded at either end."""
    edge: ClassVar[Literal["zeros", "reflect"]] = "zeros"
    """What a piece hears beyond the song's ends: nothing, or the song mirrored there (its margins are then right)."""
    overlaps: ClassVar[Mapping[str, float]] = {"fast": 0.1, "normal": 0.25, "best": 0.5}
    """The share of a piece that overlaps the next, for each quality."""
    quality: ClassVar[Mapping[str, str]] = {}
    """The quality that a kind of device has by default, where it is not `normal`."""

    def __init__(self, **traits: Unpack[Traits]) -> None:
        super().__init__()
        self.sources = tuple(traits["sources"])
        self.channels = traits["channels"]
        self.sample_rate = traits["sample_rate"]
        self.segment = float(traits["segment"])
        self.level = dict(traits["level"])
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise UsageError(f"sources = {list(self.sources)}: needs at least one name, each once")
        require("channels", self.channels, at_least=1)
        require("sample_rate", self.sample_rate, at_least=1)
        if not 0 < self.segment < float("inf"):
            raise UsageError(f"segment = {self.segment}: must be a positive number of seconds")
        if self.level.keys() - {"deviation", "peak"} or len(self.level) > 1 or min(self.level.values(), default=1) <= 0:
            raise UsageError(f"level = {self.level}: must be {{}}, {{deviation = x}} or {{peak = x}} with x above 0")

    @property
    def piece(self) -> int:
        """Preferred length of a piece in samples."""
        return max(1, int(self.segment * self.sample_rate))

    @property
    def context(self) -> int | None:
        """How many samples away an output sample can see in eval mode; None: as far as the piece goes."""
        return None

    @property
    def grid(self) -> int:
        """Pieces start at multiples of this many samples."""
        return 1

    def margins(self, length: int) -> tuple[int, int]:
        """Samples wanted left and right of a piece of `length` samples."""
        context = self.context or 0
        return context, context

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> Estimate with waveforms (B, S, C, T), S in the order of `sources`."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def fast(self) -> nn.Module:
        """A form of this network for float32 inference on the CPU, equal to rounding: itself where it has no other.

        It holds the weights as they are now, and is called as the network is.
        """
        return self

    def reference(self, sources: Tensor) -> Estimate:
        """True sources (B, S, C, T) as an Estimate in the network's own domain: what a loss compares with."""
        return Estimate(sources)

    def extra_repr(self) -> str:
        return (
            f"sources={list(self.sources)}, channels={self.channels}, sample_rate={self.sample_rate}, "
            f"segment={self.segment:g}, context={self.context}, grid={self.grid}"
        )


def require(name: str, value: float, *, at_least: float) -> None:
    """Refuse a setting below its least value, naming field, value and what is allowed. Raises UsageError."""
    if value < at_least:
        raise UsageError(f"{name} = {value}: must be at least {at_least}")
