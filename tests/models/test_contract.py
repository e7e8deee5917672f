"""What every network promises (sepcli/models/separator.py), held over every name of the catalog at its tiny size."""

import copy
import inspect
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sepcli.errors import UsageError
from sepcli.inference.stream import cut_for, estimates, overlap_add, pieces
from sepcli.models import build, check_settings, find
from sepcli.models.separator import Separator
from sepcli.weights.catalog import Entry, catalog
from sepcli.weights.seeded import fill

NETWORKS = {name: entry for name, entry in catalog().items() if entry.architecture}


def tiny(entry: Entry, **changes: Any) -> Separator:
    """An entry's network at its smallest, its weights filled from a seed; pieces of a quarter of a second.

    Of dozens of sources six are built: one is like another.
    """
    settings = {**entry.settings, **find(entry.architecture).tiny}
    traits = {
        "sources": entry.sources[:6],
        "channels": entry.channels,
        "sample_rate": entry.sample_rate,
        "segment": 0.25,
        "level": entry.level,
    }
    model = build(entry.architecture, settings, {**traits, **changes})
    fill(model, seed=1)
    return model.eval()


def alike() -> dict[str, Entry]:
    """One name for each network that differs at its tiny size: what the slow promises are tried on."""
    found: dict[str, Entry] = {}
    seen = set()
    for name, entry in NETWORKS.items():
        network = find(entry.architecture)
        usual = inspect.signature(network).parameters
        settings = {k: v for k, v in {**entry.settings, **network.tiny}.items() if v != usual[k].default}
        sources = entry.sources[:6]
        key = json.dumps([entry.architecture, settings, sources, entry.channels, entry.sample_rate], default=list)
        if key not in seen:
            seen.add(key)
            found[name] = entry
    return found


every_name = pytest.mark.parametrize("entry", NETWORKS.values(), ids=NETWORKS.keys())
every_network = pytest.mark.parametrize("entry", alike().values(), ids=alike().keys())


def sound(model: Separator, length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(batch, model.channels, length, generator=torch.Generator().manual_seed(seed))


def forms(model: Separator) -> list[nn.Module]:
    """The network, and its fast form where it has one."""
    return list(dict.fromkeys([model, model.fast()]))


def decibels(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum().clamp_min(1e-30)))


@every_name
def test_the_catalog_says_how_many_parameters_it_has(entry: Entry) -> None:
    model = find(entry.architecture)
    check_settings(model, entry.settings)
    with torch.device("meta"):
        network = build(
            entry.architecture,
            entry.settings,
            {
                "sources": entry.sources,
                "channels": entry.channels,
                "sample_rate": entry.sample_rate,
                "segment": entry.segment,
                "level": entry.level,
            },
        )
    assert sum(p.numel() for p in network.parameters()) == entry.parameters
    assert issubclass(model, Separator)
    assert model.__bases__ == (Separator,), "every model derives from Separator directly"
    assert network.piece >= 1
    assert network.grid >= 1


@every_network
@torch.inference_mode()
def test_any_length_comes_back_with_every_source(entry: Entry) -> None:
    model = tiny(entry)
    for length in (1, 2, 777, model.grid % 20_000 + 1, 9000):
        mixture = sound(model, length)
        before = mixture.clone()
        for form in forms(model):
            waveforms = form(mixture).waveforms
            assert waveforms.shape == (1, len(model.sources), entry.channels, length)
            assert bool(waveforms.isfinite().all()), length
            assert waveforms.dtype == torch.float32
            assert torch.equal(mixture, before), "the input must stay as it was"


@every_network
@torch.inference_mode()
def test_it_repeats_and_items_of_a_batch_are_independent(entry: Entry) -> None:
    model = tiny(entry)
    mixture = torch.cat([sound(model, 9000, seed=1), 3 * sound(model, 9000, seed=2)])
    for form in forms(model):
        both = form(mixture).waveforms
        assert torch.equal(both, form(mixture).waveforms)
        single = torch.cat([form(mixture[:1]).waveforms, form(mixture[1:]).waveforms])
        assert decibels(both, single) > 90


@every_network
@torch.inference_mode()
def test_silence_gives_numbers(entry: Entry) -> None:
    for form in forms(tiny(entry)):
        assert bool(form(torch.zeros(1, entry.channels, 9000)).waveforms.isfinite().all())


@every_network
@torch.inference_mode()
def test_a_fast_form_is_the_network_to_rounding(entry: Entry) -> None:
    model = tiny(entry)
    for length in (1, 777, 9000):
        mixture = torch.cat([sound(model, length), sound(model, length, seed=2)])
        mixture[1, :, length // 2 :] = 0
        assert decibels(model.fast()(mixture).waveforms, model(mixture).waveforms) > 100


class NoDoubles(TorchDispatchMode):
    """A device without float64 and complex128, as MPS is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for value in (*args, *(kwargs or {}).values(), *(results if isinstance(results, tuple | list) else [results])):
            kind = value.dtype if isinstance(value, Tensor) else value
            if kind in (torch.float64, torch.complex128):
                raise TypeError(f"{func} needs {kind}")
        return results


@every_network
@torch.inference_mode()
def test_it_runs_without_float64(entry: Entry) -> None:
    model = tiny(entry)
    mixture = sound(model, 9000)
    with NoDoubles():
        estimate = model(mixture)
    assert estimate.waveforms.dtype == torch.float32


@every_network
@torch.inference_mode()
def test_it_runs_in_half_precision(entry: Entry) -> None:
    model = tiny(entry)
    mixture = sound(model, 9000)
    full = model(mixture).waveforms
    with torch.autocast("cpu", torch.bfloat16):
        half = model(mixture).waveforms.float()
    assert bool(half.isfinite().all())
    assert decibels(half, full) > 0, "the same sound, roughly"


def reach(model: Separator, length: int, at: int) -> tuple[int, int]:
    """How far before and after sample `at` of the output the input matters, by gradients."""
    mixture = sound(model, length).requires_grad_()
    model(mixture).waveforms[..., at].sum().backward()
    assert mixture.grad is not None
    touched = mixture.grad.abs().amax((0, 1)).nonzero().flatten()
    return at - int(touched.min()), int(touched.max()) - at


@every_network
def test_pieces_equal_one_pass_where_the_context_is_finite(entry: Entry) -> None:
    model = tiny(entry)
    if model.context is None:
        cut = cut_for(model)
        assert cut.stride % model.grid == 0
        assert cut.edge != "clipped"
        return
    cut = cut_for(model)
    mixture = sound(model, 2 * sum(cut.margins(cut.length)) + 2 * cut.length + 17)  # so that windows lie inside it
    with torch.inference_mode():
        parts = estimates(pieces(mixture[0].split(65_536, dim=-1), cut), lambda windows: model(windows).waveforms)
        joined = torch.cat(list(overlap_add(parts, cut)), dim=-1)
        assert decibels(joined, model(mixture).waveforms[0]) > 100
    length = 2 * model.context + model.grid * 3
    for at in (length // 2, length // 2 + model.grid // 2 + 1):
        before, after = reach(model, length, at)
        assert max(before, after) <= model.context
        assert max(before, after) > 0.3 * model.context, "a context much too wide only costs time"


@every_network
def test_gradients_reach_every_parameter_that_is_used(entry: Entry) -> None:
    model = tiny(entry).train()
    mixture = sound(model, max(9000, model.piece), batch=2)
    truth = sound(model, mixture.shape[-1] * len(model.sources), batch=2, seed=3)
    truth = truth.unflatten(-1, (len(model.sources), -1)).movedim(2, 1)
    estimate, reference = model(mixture), model.reference(truth)
    loss = (estimate.waveforms - reference.waveforms).abs().mean()
    for stage in estimate.stages:
        loss = loss + (stage - reference.waveforms).abs().mean()
    if estimate.spectrograms is not None:
        assert reference.spectrograms is not None
        assert estimate.spectrograms.shape == reference.spectrograms.shape
        loss = loss + (estimate.spectrograms - reference.spectrograms).abs().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        by_design = not parameter.requires_grad or any(re.search(pattern, name) for pattern in model.unused)
        assert touched != by_design, name


@every_network
@torch.inference_mode()
def test_the_state_goes_there_and_back(entry: Entry) -> None:
    model = tiny(entry)
    other = copy.deepcopy(model)
    fill(other, seed=2)
    mixture = sound(model, 5000)
    assert not torch.equal(other(mixture).waveforms, model(mixture).waveforms)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(mixture).waveforms, model(mixture).waveforms)


def test_impossible_traits_are_refused_by_name() -> None:
    entry = next(iter(NETWORKS.values()))
    for change, field in [
        ({"sources": []}, "sources"),
        ({"sources": ["a", "a"]}, "sources"),
        ({"channels": 0}, "channels"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"segment": 0.0}, "segment"),
        ({"level": {"loud": 1.0}}, "level"),
    ]:
        with pytest.raises(UsageError, match=field):
            tiny(entry, **change)
