"""sepcli/metrics/statistics.py: the tests of significance, against scipy and by hand."""

import math

import numpy as np
import pytest

from sepcli.errors import UsageError
from sepcli.metrics.statistics import holm, paired_bootstrap, wilcoxon


def songs(n: int, seed: int = 0, decimals: int | None = None) -> tuple[list[float], list[float]]:
    draw = np.random.default_rng(seed)
    a, b = draw.normal(6.3, 2, n), draw.normal(6, 2, n)
    return (a.tolist(), b.tolist()) if decimals is None else (a.round(decimals).tolist(), b.round(decimals).tolist())


@pytest.mark.reference
@pytest.mark.parametrize(
    ("n", "decimals"), [(1, None), (5, None), (14, None), (50, None), (50, 0), (51, None), (120, 1)]
)
def test_wilcoxon_equals_scipys(n: int, decimals: int | None) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = songs(n, seed=n, decimals=decimals)
    differences = {abs(x - y) for x, y in zip(a, b, strict=True)}
    exact = n <= 50 and len(differences) == n and 0 not in differences
    expected = stats.wilcoxon(a, b, method="exact" if exact else "approx", correction=False)
    ours = wilcoxon(a, b)
    assert ours.statistic == expected.statistic
    assert ours.p == pytest.approx(expected.pvalue, rel=1e-10)


def test_wilcoxon_of_five_songs_all_better_is_one_sixteenth() -> None:
    assert wilcoxon([1.1, 2.2, 3.3, 4.4, 5.5], [1, 2, 3, 4, 5]) == (0.0, 0.0625, 5)


def test_songs_without_a_score_in_both_are_left_out_and_counted() -> None:
    a, b = songs(12)
    assert wilcoxon([*a, math.nan, 5.0, math.inf], [*b, 4.0, math.nan, 1.0]) == wilcoxon(a, b)
    assert wilcoxon(a, b).songs == 12


def test_equal_systems_do_not_differ() -> None:
    a, _ = songs(9)
    assert wilcoxon(a, a) == (0.0, 1.0, 9)
    interval = paired_bootstrap(a, a).of_differences
    assert interval == (0.0, 0.0, 0.0)


@pytest.mark.reference
def test_the_bootstrap_of_the_mean_equals_scipys_percentile_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = songs(50)
    d = np.subtract(a, b)
    expected = stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    ours = paired_bootstrap(a, b, "mean", count=20_000).of_differences
    assert ours.point == pytest.approx(d.mean(), abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.03)  # 0.01 is the drawing's own


def test_the_bootstrap_repeats_by_its_seed_and_gives_both_statistics() -> None:
    a, b = songs(31)
    first = paired_bootstrap(a, b, seed=3)
    assert first == paired_bootstrap(a, b, seed=3)
    assert first != paired_bootstrap(a, b, seed=4)
    assert first.of_differences.point == pytest.approx(np.median(np.subtract(a, b)))
    assert first.between.point == pytest.approx(np.median(a) - np.median(b))
    for interval in first:
        assert interval.low < interval.point < interval.high


def test_the_bootstraps_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        a = draw.normal(0.5, 1, 40)
        interval = paired_bootstrap(a.tolist(), [0.0] * 40, "mean", count=500, seed=seed).of_differences
        covered += interval.low < 0.5 < interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_holm_multiplies_by_the_tests_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.03])
    assert [corrected[0], corrected[2]] == pytest.approx([0.04, 0.04])
    assert math.isnan(corrected[1])


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([1.0], [1.0, 2.0], "(1,) and (2,)"), ([math.nan], [1.0], "no song"), ([], [], "no song")],
)
def test_what_cannot_be_paired_is_refused_in_one_line(a: list[float], b: list[float], said: str) -> None:
    with pytest.raises(UsageError) as error:
        wilcoxon(a, b)
    assert said in str(error.value)
