"""sepcli/metrics/bss_eval.py: parity with museval 0.4.1, and the true scores where references are band-limited."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.metrics import bss_eval as module
from sepcli.metrics.bss_eval import BssScores, bss_eval, distortion_filters, lag_correlations
from sepcli.metrics.sdr import nsdr, sdr_frames
from tests.metrics.signals import RATE, estimated, museval, musical, white


def theirs(references: Tensor, estimates: Tensor, window: float, hop: float, **settings: Any) -> list[Tensor]:
    """museval's SDR, ISR, SIR, SAR, (S, N) each."""
    scores = museval().metrics.bss_eval(
        references.mT.numpy(), estimates.mT.numpy(), window=window, hop=hop, **settings
    )[:4]
    return [torch.from_numpy(score) for score in scores]


def four(scores: BssScores) -> list[Tensor]:
    return [scores.sdr, scores.isr, scores.sir, scores.sar]


def assert_equal(ours: BssScores, other: list[Tensor], tolerance: float) -> None:
    """Within the tolerance in dB, and NaN at the same frames."""
    for name, mine, museval_s in zip(("SDR", "ISR", "SIR", "SAR"), four(ours), other, strict=True):
        torch.testing.assert_close(mine, museval_s, rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=name: n + m)


def low_passed(sound: Tensor, cutoff: float = 16_000.0) -> Tensor:
    """1023 taps of a Kaiser window, beta 14: nothing is left above the cutoff but rounding."""
    taps = 1023
    time = torch.arange(taps, dtype=torch.float64) - taps // 2
    window = torch.kaiser_window(taps, periodic=False, beta=14.0, dtype=torch.float64)
    response = window * torch.sinc(2 * cutoff / RATE * time) * 2 * cutoff / RATE
    size = sound.shape[-1] + taps
    filtered = torch.fft.irfft(torch.fft.rfft(sound, size) * torch.fft.rfft(response, size), size)
    return filtered[..., taps // 2 : taps // 2 + sound.shape[-1]]


def true_scores(references: Tensor, estimates: Tensor, frame: int = RATE) -> tuple[Tensor, Tensor]:
    """SIR and SAR by how the estimates were made: reference + 0.1 of the next + noise, medians over frames."""
    leak = 0.1 * references.roll(-1, 0)
    energy = [
        term[..., : term.shape[-1] // frame * frame].unfold(-1, frame, frame).square().sum((1, -1))
        for term in (references, leak, references + leak, estimates - references - leak)
    ]
    sir, sar = (10 * torch.log10(energy[i] / energy[i + 1]).median(-1).values for i in (0, 2))
    return sir, sar


# Parity


@pytest.mark.reference
@pytest.mark.parametrize(("sources", "channels"), [(2, 1), (3, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize(("window", "hop"), [(4000, 4000), (4000, 2500), (math.inf, math.inf), (90_000, 1000)])
def test_white_sound_scores_as_musevals(sources: int, channels: int, window: float, hop: float) -> None:
    references = white(sources, channels, 20_001)
    estimates = estimated(references)
    ours = bss_eval(references, estimates, window, hop, taps=64)
    assert_equal(ours, theirs(references, estimates, window, hop, filters_len=64), 1e-9)


@pytest.mark.reference
@pytest.mark.parametrize(("sources", "seconds", "length"), [(2, 1, 4.5), (2, 4, 5), (4, 1, 3)])
def test_musical_sound_scores_as_musevals_with_512_taps(sources: int, seconds: int, length: float) -> None:
    references = musical(sources, 2, int(length * RATE))
    estimates = estimated(references)
    ours = bss_eval(references, estimates, seconds * RATE, seconds * RATE)
    assert ours.notes == ()
    assert_equal(ours, theirs(references, estimates, seconds * RATE, seconds * RATE), 1e-6)


@pytest.mark.reference
def test_mode_v3_makes_filters_from_each_frame_as_museval_does() -> None:
    references = musical(2, 2, 30_000)
    estimates = estimated(references)
    ours = bss_eval(references, estimates, 9000, 7000, taps=64, mode="v3")
    assert_equal(ours, theirs(references, estimates, 9000, 7000, filters_len=64, framewise_filters=True), 1e-6)


@pytest.mark.reference
def test_float32_sound_scores_as_musevals() -> None:
    references = musical(2, 2, 30_000).float()
    estimates = estimated(references.double()).float()
    ours = bss_eval(references, estimates, 9000, 9000, taps=64)
    assert_equal(ours, theirs(references, estimates, 9000, 9000, filters_len=64), 1e-6)


@pytest.mark.reference
def test_silent_frames_are_missing_where_musevals_are() -> None:
    references = musical(3, 2, 40_000)
    estimates = estimated(references)
    references[0, :, 5000:10_000] = 0
    estimates[2, :, 15_000:20_000] = 0
    estimates[1, 1, 30_000:35_000] = -estimates[1, 0, 30_000:35_000]
    ours = bss_eval(references, estimates, 5000, 5000, taps=64)
    assert ours.sir.isnan().all(0).tolist() == [False, True, False, True, False, False, True, False]
    assert_equal(ours, theirs(references, estimates, 5000, 5000, filters_len=64), 1e-6)


@pytest.mark.reference
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_a_source_that_is_mono_within_stereo_scores_as_musevals(right: float) -> None:
    references = musical(2, 2, 60_000)
    references[0, 1] = right * references[0, 0]
    estimates = estimated(references)
    ours = bss_eval(references, estimates, 9000, 9000)
    assert_equal(ours, theirs(references, estimates, 9000, 9000), 1e-6)


# Of itself


def test_correlations_are_linear_and_equal_the_sum_over_samples() -> None:
    first, second = white(1, 2, 70_007)[0], white(1, 3, 70_007, seed=4)[0]
    lags = lag_correlations(first, (first, second), taps=40)
    assert lags.shape == (2, 5, 79)
    for lag in (-39, -1, 0, 7, 39):
        a, b = (first[:, : 70_007 - lag], second[:, lag:]) if lag >= 0 else (first[:, -lag:], second[:, :lag])
        torch.testing.assert_close(lags[:, 2:, 39 + lag], a @ b.T, rtol=0, atol=1e-11)


def test_the_filters_of_a_filtered_source_are_the_filter() -> None:
    references = white(1, 2, 8000)
    response = white(2, 2, 32, seed=3)  # to channel, from channel
    size = 8000 + 31
    spectrum = (torch.fft.rfft(response, size) * torch.fft.rfft(references, size)).sum(1)
    estimate = torch.fft.irfft(spectrum, size)[None]
    filters = distortion_filters(torch.nn.functional.pad(references, (0, 31)), estimate, taps=32)
    torch.testing.assert_close(filters.own[0], response, rtol=0, atol=1e-12)
    torch.testing.assert_close(filters.every[0, :, 0], response, rtol=0, atol=1e-12)


@pytest.mark.parametrize("framing", ["museval", "continuous"])
def test_long_frames_are_filtered_in_pieces_with_the_same_scores(
    framing: module.Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = musical(2, 2, 30_000)
    estimates = estimated(references)
    whole = bss_eval(references, estimates, 11_000, 6000, taps=64, framing=framing)
    monkeypatch.setattr(module, "LONG", 4000)
    assert_equal(bss_eval(references, estimates, 11_000, 6000, taps=64, framing=framing), four(whole), 1e-9)


def test_sdr_equals_the_quick_path_and_over_the_whole_song_nsdr() -> None:
    references = white(2, 2, 20_000)
    estimates = estimated(references)
    assert torch.equal(
        bss_eval(references, estimates, 6000, 6000, taps=32).sdr, sdr_frames(references, estimates, 6000, 6000)
    )
    whole = bss_eval(references, estimates, math.inf, math.inf, taps=32).sdr[:, 0]
    torch.testing.assert_close(whole, nsdr(references, estimates), rtol=0, atol=1e-6)


def test_with_silence_score_a_silent_estimate_keeps_0_dB_and_the_others_keep_all() -> None:
    references = white(3, 2, 20_000)
    estimates = estimated(references)
    clean = bss_eval(references, estimates, 5000, 5000, taps=32)
    estimates[2, :, 5000:10_000] = 0
    references[1] = 0
    scores = bss_eval(references, estimates, 5000, 5000, taps=32, silence="score")
    assert scores.sdr[2].isnan().tolist() == [False] * 4
    assert float(scores.sdr[2, 1]) == 0.0
    for score in four(scores)[1:]:
        assert score.isnan().tolist() == [[False] * 4, [True] * 4, [False, True, False, False]]
    torch.testing.assert_close(scores.isr[0], clean.isr[0], rtol=0, atol=0.5)


def test_exactly_singular_references_on_which_museval_dies_are_scored() -> None:
    references = torch.zeros(2, 2, 4000, dtype=torch.float64)
    references[0, :, 100], references[1, :, 2500] = 4.0, 4.0  # two equal channels, powers of two: no rounding helps
    estimates = references + 0.1 * references.roll(-1, 0)
    scores = bss_eval(references, estimates, math.inf, math.inf, taps=16)
    torch.testing.assert_close(scores.sir, torch.full_like(scores.sir, 20.0), rtol=0, atol=1e-6)
    assert "alike" in scores.notes[0]


def test_a_song_with_a_wholly_silent_estimate_has_no_scores_and_says_so() -> None:
    references = white(2, 2, 9000)
    estimates = estimated(references)
    estimates[1] = 0
    scores = bss_eval(references, estimates, 3000, 3000, taps=16)
    assert all(score.isnan().all() and score.shape == (2, 3) for score in four(scores))
    assert "silent throughout" in scores.notes[0]


def test_the_float32_song_is_never_copied_whole() -> None:
    references = white(2, 2, 20 * RATE).float()
    estimates = references + 0.1 * references.roll(-1, 0)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        bss_eval(references, estimates, RATE, RATE, taps=16)
    largest = max(event.cpu_memory_usage / max(event.count, 1) for event in profile.key_averages())
    assert largest < 0.5 * references.nbytes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "v5"}, "mode = 'v5'"),
        ({"framing": "soft"}, "framing = 'soft'"),
        ({"framing": "continuous", "mode": "v3"}, "v4, not v3"),
        ({"ridge": -1e-9}, "ridge = -1e-09"),
        ({"taps": 0}, "taps = 0"),
        ({"silence": "loud"}, "silence = 'loud'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        bss_eval(white(2, 2, 100), white(2, 2, 100), 50, 50, **settings)
    assert said in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_scores() -> None:
    references = musical(2, 2, 3 * RATE)
    estimates = estimated(references)
    ours = bss_eval(references.cuda(), estimates.cuda(), RATE, RATE)
    assert_equal(ours, four(bss_eval(references, estimates, RATE, RATE)), 1e-6)


# Band-limited references


@pytest.mark.parametrize(("make", "sources"), [(white, 2), (musical, 4)])
def test_without_a_top_band_museval_s_framing_is_wrong_and_said_and_continuous_framing_is_right(
    make: Any, sources: int
) -> None:
    references = low_passed(make(sources, 2, 6 * RATE))
    estimates = estimated(references)
    sir, sar = true_scores(references, estimates)
    broken = bss_eval(references, estimates, RATE, RATE)
    assert (broken.sir.median(-1).values < -20).all()
    assert (broken.sar.median(-1).values < 1).all()
    assert "band-limited" in broken.notes[0]
    assert broken.smallest_eigenvalue < 1e-12
    right = bss_eval(references, estimates, RATE, RATE, framing="continuous")
    assert right.notes == ()
    torch.testing.assert_close(right.sir.median(-1).values, sir, rtol=0, atol=0.05)
    torch.testing.assert_close(right.sar.median(-1).values, sar, rtol=0, atol=0.1)
    torch.testing.assert_close(right.sdr, broken.sdr, rtol=0, atol=0)


def test_a_ridge_of_1e_9_mends_museval_s_framing_for_music() -> None:
    references = low_passed(musical(4, 2, 6 * RATE))
    estimates = estimated(references)
    sir, _ = true_scores(references, estimates)
    mended = bss_eval(references, estimates, RATE, RATE, ridge=1e-9)
    torch.testing.assert_close(mended.sir.median(-1).values, sir, rtol=0, atol=0.15)


def test_the_ridges_leave_full_band_music_as_it_is() -> None:
    references = musical(2, 2, 5 * RATE)
    estimates = estimated(references)
    for framing, ridge in (("museval", 1e-9), ("continuous", 1e-12)):
        plain = bss_eval(references, estimates, RATE, RATE, framing=framing, ridge=0.0)
        assert_equal(bss_eval(references, estimates, RATE, RATE, framing=framing, ridge=ridge), four(plain), 1e-3)


def test_the_ridge_means_the_same_for_a_quiet_source() -> None:
    references = musical(2, 2, 3 * RATE)
    estimates = estimated(references)
    level = torch.tensor([1.0, 1e-3], dtype=torch.float64)[:, None, None]
    own = distortion_filters(references, estimates, 64, 1e-6).own
    quiet = distortion_filters(level * references, level * estimates, 64, 1e-6).own
    torch.testing.assert_close(quiet, own, rtol=0, atol=1e-7)


@pytest.mark.reference
def test_museval_itself_breaks_on_references_without_a_top_band() -> None:
    references = low_passed(white(2, 2, 6 * RATE))
    estimates = estimated(references)
    sdr, _, sir, sar = theirs(references, estimates, RATE, RATE)
    assert (sir.median(-1).values < -50).all()
    assert (sar.median(-1).values.abs() < 0.01).all()
    torch.testing.assert_close(bss_eval(references, estimates, RATE, RATE).sdr, sdr, rtol=0, atol=1e-9)


def song(folder: Any, name: str, first: float, seconds: float) -> Tensor:
    """Stems (S, C, T) of one recorded song, decoded from Ogg Vorbis to float32."""
    soundfile = pytest.importorskip("soundfile")
    stems: list[NDArray[np.float32]] = [
        soundfile.read(path, start=int(first * RATE), frames=int(seconds * RATE), dtype="float32")[0].T
        for path in sorted((folder / "audio" / "songs" / name).glob("*.ogg"))
    ]
    return torch.from_numpy(np.stack(stems))


@pytest.mark.shared
@pytest.mark.reference
def test_a_song_decoded_from_a_lossy_file_both_ways(shared: Any) -> None:
    references = song(shared, "se-sodium-b", 20, 6)
    estimates = estimated(references.double()).float()
    sir, _ = true_scores(references.double(), estimates.double())  # 11 to 32 dB
    ours = bss_eval(references, estimates, RATE, RATE)
    other = theirs(references, estimates, RATE, RATE)
    torch.testing.assert_close(ours.sdr, other[0], rtol=0, atol=1e-9)
    assert "band-limited" in ours.notes[0]
    assert (other[2].median(-1).values < sir - 8).all()
    assert (ours.sir.median(-1).values < sir - 8).all()
    right = bss_eval(references, estimates, RATE, RATE, framing="continuous")
    torch.testing.assert_close(right.sir.median(-1).values, sir, rtol=0, atol=0.5)
