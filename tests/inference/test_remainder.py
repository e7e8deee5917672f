"""Stems that sum to the mixture to the last bit, and how little they move for that."""

import numpy as np
import pytest

from sepcli.inference.remainder import FULL, Sharing, add_upper_band, consistent, keeper


def stems_of(count: int, peak: float, seed: int = 0, frames: int = 20_000) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Random stems (frames, 2) and a mixture that their sum misses by a thousandth; clipped where peak says so."""
    draw = np.random.default_rng([seed, count])
    parts = draw.uniform(-peak, peak, (count, frames, 2)).astype(np.float32)
    mixture = np.clip(parts.sum(axis=0) + draw.normal(0, 1e-3, (frames, 2)), -1, 1).astype(np.float32)
    return {f"stem{index}": part for index, part in enumerate(parts)}, mixture


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("depth", ["16", "24"])
@pytest.mark.parametrize("peak", [0.1, 0.6, 1.0], ids=["quiet", "some clipped", "mostly clipped"])
def test_the_sum_is_the_mixture_to_no_unit(count: int, depth: str, peak: float) -> None:
    stems, mixture = stems_of(count, peak)
    full = FULL[depth]
    result = consistent(stems, mixture, depth)
    units = {name: np.asarray(stem, np.float64) * full for name, stem in result.items()}
    assert all(np.array_equal(unit, np.rint(unit)) for unit in units.values()), "each is on the steps of the depth"
    assert all(unit.min() >= -full and unit.max() <= full - 1 for unit in units.values())
    target = np.clip(np.rint(np.asarray(mixture, np.float64) * full), -full, full - 1)
    assert np.abs(sum(units.values()) - target).max() == 0


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("depth", ["16", "24"])
def test_no_stem_moves_more_than_its_share_of_the_remainder_and_a_unit(count: int, depth: str) -> None:
    stems, mixture = stems_of(count, 0.9 / count)
    share = np.abs(mixture - sum(np.asarray(stem, np.float64) for stem in stems.values())).max() / count
    moved = max(np.abs(result - stems[name]).max() for name, result in consistent(stems, mixture, depth).items())
    print(f"{count} stems, {depth} bit: moved by {moved:.2e}, of which the remainder {share:.2e}")
    assert moved <= share + 1.0 / FULL[depth] + 1e-7


def test_in_float_the_sum_is_the_mixture_to_its_rounding() -> None:
    stems, mixture = stems_of(4, 0.3)
    result = consistent(stems, mixture, "32f")
    total = sum(np.asarray(stem, np.float64) for stem in result.values())
    assert np.abs(total - mixture).max() < 2**-24


def test_the_upper_band_goes_to_the_accompaniment_or_to_all_alike() -> None:
    assert keeper({"vocals": ("vocals",), "no_vocals": ("drums", "other")}) == ["no_vocals"]
    assert keeper({"a": ("a",), "b": ("b",)}) == ["a", "b"]
    assert keeper({"vocals": ("vocals",), "no_vocals": ()}) == ["no_vocals"]
    upper = np.ones((5, 2), np.float32)
    result = add_upper_band({"a": upper, "b": upper}, upper, ["a", "b"])
    assert np.array_equal(result["a"], 1.5 * upper)
    assert np.array_equal(add_upper_band({"a": upper, "b": upper}, upper, ["b"])["a"], upper)


def test_without_the_accompaniment_among_some_stems_nobody_gets_the_upper_band() -> None:
    assert keeper({"vocals": ("vocals",)}, whole=False) == []
    assert keeper({"vocals": ("vocals",), "other": ("other",)}, whole=False) == ["other"]
    assert keeper({"speech": ("speech",), "noise": ("noise",)}) == ["speech", "noise"]


def test_shared_by_what_each_stem_has_of_the_highest_tones_it_sums_up_and_glides() -> None:
    draw = np.random.default_rng(0)
    bright = draw.standard_normal((1000, 2)).astype(np.float32)
    dull = np.cumsum(draw.standard_normal((1000, 2)), axis=0).astype(np.float32) * 0.01
    upper = draw.standard_normal((1000, 2)).astype(np.float32)
    share = Sharing()
    first = share({"a": bright, "b": dull}, upper)
    assert np.abs(sum(first.values()) - (bright + dull + upper)).max() < 1e-5
    assert np.square(first["a"] - bright).sum() > 100 * np.square(first["b"] - dull).sum()
    second = share({"a": dull, "b": bright}, upper)
    assert np.abs(second["a"][0] - dull[0] - upper[0]).max() < 0.01, "the share of the block before, where they meet"
    assert np.abs(second["a"][-1] - dull[-1]).max() < 0.01
