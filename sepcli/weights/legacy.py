"""Files of torch.save, old (one stream) and new (a zip), read without executing anything.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. The one here has
no way to call: it walks the instructions as data, and a name means something only where `call` says what. All sizes
are compared with the file's before memory is taken. torch.load(weights_only=True) is not used: it cannot read the old
stream with a class in it, and what it allows is a list that any other code of the process may have added to.
"""

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, Any

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}

CLASSES = (
    "demucs.hdemucs.HDemucs",
    "demucs.htdemucs.HTDemucs",
    "demucs.demucs.Demucs",
    "demucs.model.Demucs",
    "demucs.tasnet.ConvTasNet",
    "tasnet.tasnet.ConvTasNet",
)
"""Classes that published files name. They stay names: nothing of this kind is imported."""


class Refused(ValueError):  # noqa: N818
    """The file wants something that a file of weights has no need of."""


class Quantised(Refused):
    """Weights packed by diffq."""


@dataclass(frozen=True)
class Name:
    """A global that a pickle names: `module.qualname`, never looked up."""

    name: str


@dataclass
class Dtype:
    """A numpy dtype as a pickle describes it: its code, then its byte order."""

    code: str
    order: str = "<"


@dataclass(frozen=True)
class Storage:
    """Elements of one storage as a flat tensor."""

    flat: Tensor


class Mark:
    """The place on the stack where a list of arguments begins."""


@dataclass(frozen=True)
class Clamped:
    """A stream of which no more than `limit` bytes are asked for at once, whatever a pickle claims."""

    stream: IO[bytes]
    limit: int

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, self.limit))

    def readline(self) -> bytes:
        return self.stream.readline()

    def tell(self) -> int:
        return self.stream.tell()


# -- what names mean ---------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """One pickle of a file on its way to plain data. `storage(key, dtype, count)` gives a storage's elements."""

    storage: Callable[[str, torch.dtype, int], Tensor]
    budget: int
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def tensor(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        """torch._utils._rebuild_tensor_v2: a view of a storage, no larger than it."""
        flat = storage.flat
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise Refused("a tensor with an impossible shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        count = math.prod(list(size))
        if count > flat.numel() or (count and last >= flat.numel()):
            raise Refused("a tensor that is larger than its storage")
        self.budget -= count * flat.element_size()
        if self.budget < 0:
            raise Refused("tensors that together are far larger than the file")
        return flat.as_strided(size, stride, offset)

    def persistent(self, pid: Any) -> Any:
        """A storage, or in the old stream a class with its source text, of which the name is kept."""
        match pid:
            case ("module", Name() as name, *_):
                return name
            case ("storage", Name(name), str() as key, str(), int() as count, *view) if count >= 0:
                if any(view) or not (kind := re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)):
                    raise Refused(f"a storage of the kind {name}")
                return Storage(self.storage(key, STORAGES[kind[1]], count))
        raise Refused("an unknown kind of outside object")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a name makes of its arguments."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Refused("a call of something that is no name")
        match function.name, arguments:
            case (("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor"), (Storage(), *_)):
                return self.tensor(*arguments)
            case (("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"), (Tensor() as data, *_)):
                return data
            case (("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict"), _):
                pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
                return {key: value for key, value in pairs}  # noqa: C416  pairs may be lists
            case (("builtins.set" | "builtins.frozenset"), (list() as items,)):
                return list(items)
            case "torch.Size", (tuple() as size,):
                return size
            case "torch.device", (str() as device, *_):
                return device
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):
                return text.encode("latin-1")
            case "fractions.Fraction", _:
                return fraction(arguments)
            case "numpy.dtype", (str() as code, *_) if re.fullmatch(r"[iuf][1248]|b1", code):
                return Dtype(code)
            case "numpy.multiarray.scalar", (Dtype() as dtype, bytes() as raw):
                return scalar(dtype, raw)
        raise Refused(f"{function.name} with arguments that it has no use for")

    # -- the machine ---------------------------------------------------------------------------------------------------

    def read(self, stream: Any) -> Any:
        """The object of the pickle that begins where the stream stands; leaves the stream behind its end."""
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise Refused("a pickle without an end")

    def step(self, name: str, argument: Any) -> None:
        """One instruction. Raises Refused for one that plain data does without."""
        stack, memo = self.stack, self.memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(Mark)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                stack.append(self.since_mark())
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                stack.append(pairs(self.since_mark()))
            case "APPEND":
                item = stack.pop()
                items(stack[-1]).append(item)
            case "APPENDS" | "ADDITEMS":
                added = self.since_mark()
                items(stack[-1]).extend(added)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                table(stack[-1]).update(pairs([key, value]))
            case "SETITEMS":
                added = self.since_mark()
                table(stack[-1]).update(pairs(added))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(meaning(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                qualname, module = stack.pop(), stack.pop()
                stack.append(meaning(str(module), str(qualname)))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                build(stack.pop(), stack[-1])
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _ if re.fullmatch(r"(BIN|SHORT_BIN)?(INT|LONG|FLOAT|STRING|UNICODE|BYTES)[1248]?", name):
                stack.append(argument)
            case _:
                raise Refused(f"the pickle instruction {name}")

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        above: list[Any] = []
        while (item := self.stack.pop()) is not Mark:
            above.append(item)
        return above[::-1]


def meaning(module: str, qualname: str) -> Name:
    """A global as a Name, if files of weights have a use for it. Raises Refused, naming it."""
    module = {"__builtin__": "builtins", "torch.serialization": "torch"}.get(module, module)
    name = f"{module}.{qualname}"
    if name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        name = "numpy.multiarray.scalar"
    kind = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name)
    dtype = re.fullmatch(r"torch\.b?(float|int|uint|bool|complex)\d*", name)
    if name in CLASSES or name in KNOWN or dtype or (kind and kind[1] in STORAGES):
        return Name(name)
    if module.split(".")[0] == "diffq":
        raise Quantised
    raise Refused(f"the global {name!r}")


KNOWN = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "builtins.set",
    "builtins.frozenset",
    "fractions.Fraction",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.multiarray.scalar",
)


def build(state: Any, target: Any) -> None:
    """BUILD, where plain data has a use for it: a dtype's byte order, and attributes of a state dict (`_metadata`)."""
    if isinstance(target, Dtype) and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
        target.order = str(state[1]).replace("|", "<")
    elif not isinstance(target, dict):
        raise Refused(f"the state of a {type(target).__name__}")


def items(target: Any) -> list[Any]:
    if not isinstance(target, list):
        raise Refused(f"items added to a {type(target).__name__}")
    return target


def table(target: Any) -> dict[Any, Any]:
    if not isinstance(target, dict):
        raise Refused(f"keys set in a {type(target).__name__}")
    return target


def pairs(flat: list[Any]) -> dict[Any, Any]:
    """key, value, key, value as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def fraction(arguments: tuple[Any, ...]) -> Fraction:
    """A Fraction from two whole numbers or from "39/5": text with an exponent could ask for any amount of memory."""
    match arguments:
        case (int() as top, int() as bottom):
            return Fraction(top, bottom)
        case (str() as text,) if re.fullmatch(r"-?\d{1,18}(/\d{1,18})?", text):
            return Fraction(text)
    raise Refused("a Fraction of an unknown form")


def scalar(dtype: Dtype, raw: bytes) -> int | float | bool:
    """One number of numpy's as Python's."""
    codes = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
    code = codes.get(dtype.code) or codes[dtype.code.replace("u", "i")].upper()
    (value,) = struct.unpack(f"{dtype.order}{code}", raw)
    number: int | float | bool = value
    return number


# -- the two containers ------------------------------------------------------------------------------------------------


def read_zip(stream: IO[bytes], size: int) -> Any:
    """The object in a zip of torch.save, torch 1.6 and later. Raises Refused or ValueError."""
    with zipfile.ZipFile(stream) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise Refused("compressed records, which torch.save does not write")
        if sum(info.file_size for info in records.values()) > size or len(records) != len(archive.infolist()):
            raise Refused("records that together are larger than the file")
        roots = [name.removesuffix("data.pkl") for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise Refused("no single data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in records or any(name.startswith(f"{root}code/") for name in records):
            raise Refused("a TorchScript program")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise Refused("big-endian numbers")
        loaded: dict[tuple[str, torch.dtype], Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if (key, dtype) not in loaded:
                info = records[f"{root}data/{key}"]
                if info.file_size != count * dtype.itemsize:
                    raise Refused(f"a storage of {count} elements in a record of {info.file_size} bytes")
                with archive.open(info) as record:
                    loaded[key, dtype] = filled(record, dtype, count)
            return loaded[key, dtype]

        program = io.BytesIO(archive.read(f"{root}data.pkl"))
        return Reader(storage, budget=4 * size + 2**20).read(program)


def read_stream(stream: IO[bytes], size: int) -> Any:
    """The object in the single stream of torch.save before 1.6. Raises Refused or ValueError.

    Five pickles (magic number, protocol, system, object, keys of the storages), then for each key a count and the raw
    elements. Storages are made as the object asks for them, and filled afterwards.
    """
    made: dict[str, Tensor] = {}
    left = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in made:
            left -= count * dtype.itemsize
            if left < 0:
                raise Refused(f"a storage of {count} elements in a file of {size} bytes")
            made[key] = torch.zeros(count, dtype=dtype)
        if made[key].dtype != dtype or made[key].numel() != count:
            raise Refused("one storage in two forms")
        return made[key]

    def pickled() -> Any:
        return Reader(storage, budget=4 * size + 2**20).read(Clamped(stream, size))

    if pickled() != MAGIC:
        raise Refused("no magic number of torch.save")
    if pickled() != PROTOCOL:
        raise Refused("an unknown protocol of torch.save")
    if table(pickled()).get("little_endian") is not True:
        raise Refused("big-endian numbers")
    value, keys = pickled(), items(pickled())
    if sorted(map(str, keys)) != sorted(made):
        raise Refused("storages that nothing refers to, or that are not there")
    for key in keys:
        flat = made[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != flat.numel():
            raise Refused(f"a storage of {flat.numel()} elements with {count} in the file")
        flat.copy_(filled(stream, flat.dtype, count))
    return value


def filled(stream: IO[bytes], dtype: torch.dtype, count: int) -> Tensor:
    """The next `count` elements of a stream as a flat tensor; raises Refused if it ends before."""
    flat = torch.empty(count, dtype=dtype)
    view = memoryview(flat.view(torch.uint8).numpy().data) if count else memoryview(b"")
    while len(view):
        taken = stream.readinto(view)  # type: ignore[attr-defined]
        if not taken:
            raise Refused("the file ends early")
        view = view[taken:]
    return flat
