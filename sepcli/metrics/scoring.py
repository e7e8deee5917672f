"""What `sepcli evaluate` scores, and how: what decides a song's scores beside its files."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sepcli.metrics.bss_eval import Framing
from sepcli.metrics.protocols import BSS, Protocol
from sepcli.metrics.sdr import Silence

Kind = Literal["model", "estimates", "oracle", "mixture"]

METRICS = (*BSS, "nSDR", "SI-SDR")


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how: all that decides a song's scores beside its files."""

    protocol: Protocol
    kind: Kind
    model: str
    """A model's name or path, an oracle, "mixture"; or what the estimates are called."""
    metrics: tuple[str, ...]
    """Those computed, of METRICS."""
    framing: Framing = "museval"
    ridge: float = 0.0
    silence: Silence = "museval"
    museval_exact: bool = False
    mwf_legacy: bool = False
    allow_length_mismatch: bool = False
    device: str = "auto"
    segment: float | None = None
    overlap: float | None = None
    shifts: int = 0
    seed: int = 0
    offline: bool = False

    @property
    def rule(self) -> str:
        """How songs are scored, in one line."""
        framing = f"; {self.framing} framing, ridge {self.ridge:g}" * ("SIR" in self.metrics)
        return told(self.protocol) + framing + "; silence scored" * (self.silence == "score")

    def document(self) -> dict[str, Any]:
        """As it stands in the result file."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("protocol", "kind", "model", "offline"):
            del own[name]
        for name in ("device", "segment", "overlap", "shifts", "seed") if self.kind != "model" else ():
            del own[name]
        protocol = dataclasses.asdict(self.protocol)
        rule = {name: protocol[name] for name in ("sources", "window", "hop", "sample_rate")}
        rule |= {name: protocol[name] for name in ("over_frames", "over_songs")}
        return {"kind": self.kind, "rule": self.rule, **plain(rule), **plain(own)}


def told(protocol: Protocol) -> str:
    """A protocol's rule in one line."""
    rate = f" at {protocol.sample_rate / 1000:g} kHz" if protocol.sample_rate else ""
    text = f"{protocol.name}: {{{', '.join(protocol.sources)}}}{rate}; {', '.join(protocol.metrics)}"
    if math.isinf(protocol.window):
        return f"{text} of whole songs; {protocol.over_songs} over songs"
    frames = f"frames of {protocol.window:g} s every {protocol.hop:g} s"
    return f"{text} of BSSEval v4, {frames}; {protocol.over_frames} over frames, {protocol.over_songs} over songs"


def plain(value: Any) -> Any:
    """As JSON has it: NaN and infinite numbers as None, tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
