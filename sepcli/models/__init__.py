"""Architectures by name: "hdemucs.HDemucs" is class HDemucs of sepcli/models/hdemucs.py."""

import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from sepcli.errors import ModelError, UsageError
from sepcli.models.separator import Separator, Traits


def find(architecture: str) -> type[Separator]:
    """The class of an architecture. Only modules of this package are looked at; raises ModelError."""
    if re.fullmatch(r"[a-z0-9_]+\.[A-Z][A-Za-z0-9]*", architecture):
        module_name, class_name = architecture.split(".")
        try:
            found = getattr(importlib.import_module(f"sepcli.models.{module_name}"), class_name, None)
        except ModuleNotFoundError as error:
            if error.name != f"sepcli.models.{module_name}":
                raise
            found = None
        if isinstance(found, type) and issubclass(found, Separator) and found is not Separator:
            return found
    raise ModelError(f"architecture {architecture!r} is not one of sepcli's", "see `sepcli models list`")


def build(architecture: str, settings: Mapping[str, Any], traits: Traits) -> Separator:
    """A network in eval mode from its architecture's name, its own settings and its traits.

    Settings are checked against the constructor's names and types before anything is built. Raises UsageError with
    field, value and what is allowed; ModelError for an unknown architecture.
    """
    model = find(architecture)
    check_settings(model, settings)
    return model(**settings, **traits).eval()


def parameters(model: type[Separator]) -> dict[str, inspect.Parameter]:
    """The settings that a model's constructor takes, by name, without its traits."""
    signature = inspect.signature(model.__init__)
    return {name: p for name, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_settings(model: type[Separator], settings: Mapping[str, Any]) -> None:
    """Refuse unknown names and values of the wrong type. Raises UsageError."""
    known = parameters(model)
    hints = typing.get_type_hints(model.__init__)
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise UsageError(f"{name!r} is not a setting of {model.__name__}", hint)
        if not fits(value, hints[name]):
            options = get_args(hints[name]) if get_origin(hints[name]) is typing.Literal else ()
            wanted = str(known[name].annotation).replace("typing.", "").replace("collections.abc.", "")
            allowed = f"must be one of {', '.join(map(repr, options))}" if options else f"must be {wanted}"
            raise UsageError(f"{name} = {value!r}: {allowed}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from TOML or JSON has the type that an annotation asks for."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin is typing.Literal:
        return value in get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(item, get_args(hint)[1]) for item in value.values())
    if origin is not None:  # Sequence[x], tuple[x, ...], tuple[x, y], list[x]
        options = get_args(hint)
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and options[-1] is not Ellipsis:
            return len(value) == len(options) and all(map(fits, value, options))
        return all(fits(item, options[0]) for item in value)
    return isinstance(value, hint)
