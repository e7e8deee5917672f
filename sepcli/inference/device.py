"""Where a network runs: the device asked for, and what to do when it lacks an operator or memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sepcli.errors import AudioError, UsageError
from sepcli.models.separator import Separator

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(name: str = "auto") -> torch.device:
    """The device of a name: auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps. Raises UsageError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: not a device", "use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: this machine has {count} CUDA devices", "use --device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available on this machine", "use --device auto")
    return device


def batch_size_for(device: torch.device) -> int:
    """How many pieces share a forward pass when the user does not say: one where memory is the computer's own."""
    return 4 if device.type == "cuda" else 1


class TooLong(Exception):  # noqa: N818
    """A single piece does not fit into memory, and the network's pieces were made shorter: the song begins again."""


class Runner:
    """Runs a Separator's forward on a device: windows (B, C, n) on the CPU in, waveforms (B, S, C, n) out.

    On the CPU in float32 the network's fast form runs, unless it is to be `plain`.

    Out of memory: the batch is halved for the rest of the run. Where a single piece does not fit, the network's
    segment is halved, as far as that makes its windows shorter, and TooLong asks for the song to begin again; then
    the network moves to the CPU, as it does where the device lacks an operator. Each is said once through `notice`,
    and stands in `limits`.
    """

    def __init__(
        self,
        model: Separator,
        device: torch.device,
        *,
        precision: str = "float32",
        plain: bool = False,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.device = device
        self.plain = plain
        self.precision = PRECISIONS[precision]
        self.notice = notice
        self.limits: list[str] = []
        self.largest = 2**31  # windows that fit in one batch, as far as is known
        self.model = model
        self.form: nn.Module = model
        self.move(device)
        self.choose_form()

    def move(self, device: torch.device) -> None:
        self.device = device
        try:
            self.model.to(device)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if device.type == "cpu" or not (out_of_memory(error) or unsupported(error)):
                raise
            self.fall_back(error)

    def __call__(self, windows: Tensor) -> Tensor:
        if windows.shape[0] > self.largest:
            return torch.cat([self(part) for part in torch.split(windows, self.largest)])
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                waveforms: Tensor = self.form(windows.to(self.device)).waveforms
            return waveforms.float()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            memory = out_of_memory(error)
            if not memory and (self.device.type == "cpu" or not unsupported(error)):
                raise
            if memory and windows.shape[0] > 1:
                self.largest = windows.shape[0] // 2
                self.say(f"{self.device} is out of memory: going on with {self.largest} pieces at a time")
                shorter = False
            else:
                shorter = memory and self.shorten()
                if not shorter and self.device.type == "cpu":
                    what = f"out of memory, and pieces of {self.model.segment:g} s cannot be shorter"
                    raise AudioError(what, "free some memory", reason="memory") from error
                if not shorter:
                    self.fall_back(error)
        if shorter:
            raise TooLong
        return self(windows)  # outside the except block, so that the failed attempt's tensors are freed

    def shorten(self) -> bool:
        """Halve the network's segment, if it keeps a second at least and its windows become shorter by a third."""
        segment, before = self.model.segment, window(self.model)
        self.model.segment = segment / 2
        if segment < 2 or 3 * window(self.model) > 2 * before:
            self.model.segment = segment
            return False
        self.say(f"{self.device} is out of memory: beginning again with pieces of {segment / 2:g} s")
        return True

    def fall_back(self, error: Exception) -> None:
        reason = "is out of memory" if out_of_memory(error) else f"cannot run this network ({first_line(error)})"
        self.say(f"{self.device} {reason}: going on with the CPU")
        self.device = torch.device("cpu")
        self.model.to(self.device)
        self.choose_form()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def choose_form(self) -> None:
        """The network's fast form where that is one: in single precision on the CPU."""
        fast = self.device.type == "cpu" and self.precision is None and not self.plain
        self.form = self.model.fast() if fast else self.model

    def say(self, text: str) -> None:
        self.limits.append(text)
        self.notice(text)


def window(model: Separator) -> int:
    """How many samples a full piece's window has."""
    return model.piece + sum(model.margins(model.piece))


def out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def unsupported(error: Exception) -> bool:
    """Whether a device says that it lacks an operator, a type, or a size of one."""
    text = str(error).lower()
    signs = ("not currently implemented", "not implemented for", "could not run", "not supported", "doesn't support")
    return isinstance(error, NotImplementedError) or any(sign in text for sign in signs)


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]
