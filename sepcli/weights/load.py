"""From a name or a path to a network with its weights: catalog, fetch, read, build, strict fit."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from sepcli import models
from sepcli.errors import ModelError, UsageError
from sepcli.models.separator import Separator, Traits
from sepcli.weights import catalog
from sepcli.weights.catalog import Entry, FileSpec
from sepcli.weights.fetch import cached, digest_of, fetch, is_remote, proven_digest
from sepcli.weights.foreign import describe
from sepcli.weights.layouts import LAYOUTS
from sepcli.weights.read import Published, read
from sepcli.weights.trainer import by_keys, config_beside, heads_of, is_scnet, with_config
from sepcli.weights.votes import check_source, is_config, is_path, weights_file

BROKEN = (RuntimeError, TypeError, ValueError, OverflowError, MemoryError, ArithmeticError, LookupError, AttributeError)

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, the entry as it was built (settings and traits final), the weights' sha256."""

    separator: Separator
    entry: Entry
    digest: str


def load_separator(
    model: str,
    *,
    device: str | torch.device = "cpu",
    offline: bool = False,
    require_digest: bool = False,
    architecture: str | None = None,
    segment: float | None = None,
    sources: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    notice: Notice = lambda text: None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Loaded:
    """One network, in eval mode on `device`, from a name of the catalog or the path of a file or of a run's folder.

    A file known by its digest has its entry's settings; our own checkpoints carry theirs; otherwise what the file says
    counts, and what it lacks comes from the entry `architecture`, else from the first entry that it fits; for a file of
    the public trainer `architecture` may be its yaml, which is also looked for beside the file. `segment`
    (seconds) and `settings` go over all that. Where each source has a network of its own, only those of `sources`
    (none: all) are built. Raises ModelError (not to be had, refused, no fit), UsageError.
    """
    if is_path(model):
        entry, tensors, digest = from_path(weights_file(model), architecture, settings or {}, require_digest, notice)
    else:
        entry = only_wanted(catalog.find(model), sources, settings or {})
        if segment is not None and segment > entry.segment:  # may be refused: before anything is downloaded
            built_from_file(replace(entry, segment=segment), model, asked=True)
        entry, tensors, digest = from_catalog(entry, offline, require_digest, notice, progress)
    if settings:
        models.check_settings(models.find(entry.architecture), settings)
        entry = replace(entry, settings={**entry.settings, **settings})
    if segment is not None:
        entry = replace(entry, segment=segment)
    for source in sources:
        check_source(source, entry.sources, model)
    asked = bool(settings) or segment is not None
    network = built_from_file(entry, model, asked=asked)
    if sources and network.independent and set(sources) < set(entry.sources):
        others = tuple(f"networks.{source}." for source in entry.sources if source not in sources)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
        entry = replace(entry, sources=tuple(sources))
        network = built_from_file(entry, model, asked=asked)
    fill(network, tensors, model)
    return Loaded(network.eval().to(device), entry, digest)


def only_wanted(entry: Entry, sources: Sequence[str], settings: Mapping[str, Any]) -> Entry:
    """The entry without the files of sources that are not wanted, where each has a network and a file of its own."""
    if not sources or not any(spec.part.startswith("networks.") for spec in entry.files):
        return entry
    if not built_from_file(replace(entry, settings={**entry.settings, **settings}), entry.name, asked=True).independent:
        return entry
    others = {f"networks.{source}" for source in entry.sources if source not in sources}
    return replace(entry, files=tuple(spec for spec in entry.files if spec.part not in others))


def from_catalog(
    entry: Entry,
    offline: bool,
    require_digest: bool,
    notice: Notice,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[Entry, dict[str, Tensor], str]:
    """Entry, tensors under our names, and digest of a model of the catalog. Raises ModelError."""
    if entry.bag:
        raise ModelError(f"{entry.name} is a bag of {', '.join(vote.model for vote in entry.bag)}, not one network")
    catalog.require_weights(entry)
    if not offline and any(is_remote(spec.url) and cached(spec) is None for spec in entry.files):
        notice(f"{entry.name}: downloading its weights; their licence: {entry.licence or 'none stated'}")
    tensors: dict[str, Tensor] = {}
    digests = []
    for spec in entry.files:
        path = fetch(
            spec, offline=offline, require_digest=require_digest, notice=notice, progress=progress, model=entry.name
        )
        digests.append(spec.sha256.lower() if len(spec.sha256) == 64 else proven_digest(path))
        published = read(path)
        entry = agreed(entry, published, str(path), notice)
        more = mapped(spec, published.tensors, str(path))
        if both := tensors.keys() & more.keys():
            raise ModelError(f"{path}: {min(both)} comes from two files of {entry.name}")
        tensors |= more
    return entry, tensors, "+".join(digests)


def from_path(
    path: Path, architecture: str | None, settings: Mapping[str, Any], require_digest: bool, notice: Notice
) -> tuple[Entry, dict[str, Tensor], str]:
    """Entry, tensors under our names, and digest of a file of the user's. Raises ModelError."""
    digest = digest_of(path)
    known = None if architecture is not None and is_config(architecture) else known_by(digest)
    if require_digest and known is None:
        raise ModelError(f"{path}: no published digest is known for it", "leave out --require-digest to accept it")
    published = read(path)
    if published.entry is not None:
        return own_entry(published.entry, path), published.tensors, digest
    if known:
        entry, spec = known
        if spec.part:
            what = f"{path} is one of the {len(entry.files)} files of {entry.name}"
            raise ModelError(what, f"use --model {entry.name}")
        return agreed(entry, published, str(path), notice), mapped(spec, published.tensors, str(path)), digest
    published, architecture = completed(published, architecture, path, notice)
    if architecture is not None:
        entry = catalog.find(architecture)
        models.check_settings(models.find(entry.architecture), settings)
        candidates = [replace(entry, settings={**entry.settings, **settings})]
    else:
        candidates = [entry for entry in catalog.catalog().values() if not entry.bag]
    entry, tensors = recognised(published, candidates, path, notice)
    if architecture is None and not published.klass:
        notice(f"{path}: taken for {entry.name} ({entry.architecture}); --architecture says otherwise")
    entry = replace(entry, licence="", commercial=False, scores=())  # those are of the published files
    return entry, tensors, digest


def completed(
    published: Published, architecture: str | None, path: Path, notice: Notice
) -> tuple[Published, str | None]:
    """A bare file with what the yaml beside it, or given as its architecture, or its own names say of its network.

    With the name of the architecture where one is still to be looked up. Raises ModelError.
    """
    if architecture is not None:
        told = with_config(published, Path(architecture), str(path)) if is_config(architecture) else published
        return told, None if is_config(architecture) else architecture
    if published.klass or not heads_of(published):
        return published, None
    if (config := config_beside(path)) is not None:
        return with_config(published, config, str(path)), None
    if is_scnet(published):  # those of the catalog are told apart by their shapes
        return published, None
    told, words = by_keys(published, str(path))
    notice(f"{path}: no yaml beside it; {words} are taken for granted")
    return told, None


def known_by(digest: str) -> tuple[Entry, FileSpec] | None:
    """The entry that publishes a file with this digest."""
    for entry in catalog.catalog().values():
        for spec in entry.files:
            if len(spec.sha256) >= 8 and digest.startswith(spec.sha256.lower()):
                return entry, spec
    return None


def own_entry(table: Mapping[str, Any], path: Path) -> Entry:
    """The entry that our own checkpoint carries, as far as it can be one. Raises ModelError naming the field."""
    name = table.get("name")
    plain = {key: value for key, value in table.items() if key not in ("name", "files", "bag", "alias")}
    whole = lambda value: type(value) is int and value > 0  # noqa: E731 - one line of the table below
    number = lambda value: type(value) in (int, float) and value > 0  # noqa: E731 - one line of the table below
    wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "architecture": (lambda value: isinstance(value, str), "text"),
        "sources": (are_sources, "names of stems"),
        "sample_rate": (whole, "a whole number above 0"),
        "channels": (whole, "a whole number above 0"),
        "segment": (number, "a number above 0"),
        "level": (lambda v: isinstance(v, dict) and all(map(number, v.values())), "a table of numbers"),
        "settings": (lambda value: isinstance(value, dict), "a table"),
        "licence": (lambda value: isinstance(value, str), "text"),
    }
    for key, (good, what) in wanted.items():
        if key in plain and not good(plain[key]):
            raise ModelError(f"{path}: {key} in its metadata must be {what}")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]{0,63}", name):
        name = path.stem
    return catalog.read_entry(name, plain, str(path))


def are_sources(value: Any) -> bool:
    """Whether a foreign file's sources can be names of stems: they become names of files."""
    names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return names and bool(value) and all(re.fullmatch(r"\w[\w .+-]{0,63}", name) for name in value)


def agreed(entry: Entry, published: Published, where: str, notice: Notice, *, known: bool = True) -> Entry:
    """An entry with what the file itself says about its network over it.

    The segment stays the entry's where the file is `known` to be of it (fine-tuned files carry the length they were
    tuned at, far too long for use), else it is the smaller of the two, or the file's if it is said to be that of use.
    Raises ModelError where the file is of another architecture, or says what cannot be.
    """
    said = describe(published, where)
    if said is None:
        return entry
    if said.architecture != entry.architecture:
        raise ModelError(f"{where}: is a {said.architecture}, and {entry.name} is a {entry.architecture}")
    if said.dropped:
        notice(f"{where}: arguments that {published.klass} no longer has are left out: {', '.join(said.dropped)}")
    for name, value in entry.settings.items():
        if name in said.settings and said.settings[name] != value:
            notice(f"{where}: says {name} = {str(said.settings[name])[:40]}, the catalog {value}; the file is followed")
    traits = dict(said.traits)
    if not are_sources(traits.get("sources", entry.sources)):
        raise ModelError(f"{where}: its sources are no names of stems")
    for key in ("channels", "sample_rate", "segment"):
        if key in traits and (type(traits[key]) not in (int, float) or not traits[key] > 0):
            raise ModelError(f"{where}: {key} = {str(traits[key])[:40]} must be a number above 0")
    segment = traits.get("segment", entry.segment)
    if not said.in_use:
        segment = entry.segment if known else min(segment, entry.segment)
    return replace(
        entry,
        settings={**entry.settings, **said.settings},
        sources=tuple(traits.get("sources", entry.sources)),
        channels=traits.get("channels", entry.channels),
        sample_rate=traits.get("sample_rate", entry.sample_rate),
        segment=segment,
        level=traits.get("level", entry.level),
    )


def recognised(
    published: Published, candidates: Iterable[Entry], path: Path, notice: Notice
) -> tuple[Entry, dict[str, Tensor]]:
    """The first entry whose network a file fits, under any published naming of it or our own. Raises ModelError."""
    said = describe(published, str(path))
    candidates = [entry for entry in candidates if said is None or entry.architecture == said.architecture]
    expected: dict[str, dict[str, Tensor]] = {}
    tried: dict[tuple[str, FileSpec], list[str]] = {}
    foreign: set[tuple[str, FileSpec]] = set()  # whose names begin otherwise: other sizes of them are not built
    for candidate in candidates:
        entry = agreed(candidate, published, str(path), notice, known=False)
        for spec in namings(entry):
            key = json.dumps([entry.architecture, entry.settings, entry.sources, entry.channels, entry.sample_rate])
            if (key, spec) in tried or (entry.architecture, spec) in foreign:
                continue
            if key not in expected:
                expected[key] = built_from_file(entry, str(path)).state_dict()
            try:
                tensors = mapped(spec, published.tensors, str(path))
            except ModelError as error:
                tried[key, spec] = [error.what]
                continue
            tried[key, spec] = misfits(tensors, expected[key])
            if not tried[key, spec]:
                return entry, tensors
            if not beginnings(tensors) & beginnings(expected[key]):
                foreign.add((entry.architecture, spec))
    if said is not None and not tried:
        raise ModelError(f"{path}: the catalog has no {said.architecture}", "see `sepcli models list`")
    families = sorted({entry.architecture for entry in candidates})
    if len(families) == 1:
        nearest = min(tried.values(), key=len)
        raise ModelError(f"{path}: does not fit {families[0]}: {'; '.join(nearest)}")
    raise ModelError(f"{path}: fits none of {', '.join(families)}", "say what it is with --architecture NAME")


def beginnings(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def namings(entry: Entry) -> Iterator[FileSpec]:
    """How the names of an entry's network may read in a file: as in its published files, and as they are here."""
    rules = ((spec.rename, spec.drop, spec.layout) for spec in entry.files if not spec.part)
    for rename, drop, layout in dict.fromkeys([*rules, ((), (), "")]):
        yield FileSpec("", rename=rename, drop=drop, layout=layout)


def mapped(spec: FileSpec, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A file's tensors under our names: dropped, laid out, renamed in order, put into their part."""
    kept = {name: tensor for name, tensor in tensors.items() if not any(re.search(p, name) for p in spec.drop)}
    if spec.layout:
        try:
            kept = LAYOUTS[spec.layout](kept)
        except (LookupError, RuntimeError, ValueError) as error:
            raise ModelError(f"{where}: is not laid out as {spec.layout} (no {error})"[:300]) from error
    result = {}
    for name, tensor in kept.items():
        for pattern, replacement in spec.rename:
            name = re.sub(pattern, replacement, name)
        name = f"{spec.part}.{name}" if spec.part else name
        if name in result:
            raise ModelError(f"{where}: two of its tensors would be {name}")
        result[name] = tensor
    return result


def misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How tensors differ from what a network expects: up to three names of each kind; empty if they fit."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    return [
        f"{what} {', '.join(name[:80] for name in names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shapes:", shapes))
        if names
    ]


def fill(network: Separator, tensors: dict[str, Tensor], where: str) -> None:
    """Give a network its weights, every one and no other. Takes the tensors out of the dict. Raises ModelError."""
    expected = network.state_dict()
    if problems := misfits(tensors, expected):
        raise ModelError(f"{where}: does not fit {type(network).__name__}: {'; '.join(problems)}")
    own = {name: tensors.pop(name).to(tensor.dtype, copy=True).contiguous() for name, tensor in expected.items()}
    network.load_state_dict(own, strict=True, assign=True)


def built_from_file(entry: Entry, where: str, *, asked: bool = False) -> Separator:
    """`skeleton`, where settings come out of a file: what cannot be is the file's fault, unless the user asked for it.

    Raises ModelError; UsageError where the user `asked`.
    """
    try:
        return skeleton(entry)
    except UsageError as error:
        if asked:
            raise
        raise ModelError(f"{where}: {error.what}", error.hint) from error
    except BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{where}: {entry.architecture} cannot be built from its settings ({reason})") from error


class Undrawn(TorchFunctionMode):
    """Tensors without memory are not initialised. For a normal draw of one torch imports its compiler: a second."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init" or function in (Tensor.normal_, Tensor.uniform_):
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


def skeleton(entry: Entry) -> Separator:
    """A network whose parameters take neither memory nor time to initialise, and whose constants are real.

    Parameters go to the meta device as they are registered; where a constructor cannot work with that, it is built
    in full.
    """
    traits: Traits = {
        "sources": entry.sources,
        "channels": entry.channels,
        "sample_rate": entry.sample_rate,
        "segment": entry.segment,
        "level": entry.level,
    }

    def empty(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        with Undrawn():
            network = models.build(entry.architecture, entry.settings, traits)
        if not any(buffer.is_meta for buffer in network.buffers()):
            return network
    except (RuntimeError, NotImplementedError):
        pass
    finally:
        handle.remove()
    return models.build(entry.architecture, entry.settings, traits)
