"""sepcli/metrics/sdr.py: energy ratios without filters, against closed forms and code that we did not write."""

import math

import pytest
import torch

from sepcli.errors import UsageError
from sepcli.metrics.sdr import FrameSums, frame_slices, nsdr, sdr_frames, si_sdr, silent, snr, validate
from tests.metrics.signals import estimated, museval, white


def test_nsdr_of_a_scaled_reference_is_the_closed_form() -> None:
    reference = white(3, 2, 20_011)
    energy = reference.square().sum((-2, -1))
    expected = 10 * torch.log10((energy + 1e-7) / (0.01 * energy + 1e-7))
    torch.testing.assert_close(nsdr(reference, 0.9 * reference), expected, rtol=0, atol=1e-12)


def test_nsdr_of_silence_for_silence_is_0_dB_and_of_minus_40_dBFS_for_silence_minus_69() -> None:
    silence = torch.zeros(2, 4000)
    assert float(nsdr(silence, silence)) == 0.0
    assert float(nsdr(silence, torch.full((2, 4000), 0.01))) == pytest.approx(-69.0309, abs=1e-4)


def test_float32_sound_is_summed_in_float64() -> None:
    sound = torch.full((1, 1, 3_000_000), 1 / 3)
    exact = sound.double()
    score = nsdr(sound, 0.5 * sound)
    assert score.dtype == torch.float64
    assert float(score) == pytest.approx(
        10 * math.log10(float(exact.square().sum() / (exact / 2).square().sum())), 1e-9
    )


def test_snr_has_no_value_for_a_silent_reference_and_is_infinite_for_a_perfect_estimate() -> None:
    reference = torch.cat([white(1, 2, 1000), torch.zeros(1, 2, 1000)])
    scores = snr(reference, reference)
    assert math.isinf(scores[0])
    assert math.isnan(scores[1])


def test_si_sdr_ignores_the_estimates_level_and_is_the_projections_ratio() -> None:
    reference, other = white(2, 1, 9000)
    other = other - (other * reference).sum() / reference.square().sum() * reference  # orthogonal
    expected = 10 * math.log10(float(reference.square().sum() / (0.04 * other.square().sum())))
    for level in (1.0, -3.0, 40.0):
        score = si_sdr(reference, level * (reference + 0.2 * other))
        assert float(score) == pytest.approx(expected, abs=1e-6)


def test_si_sdr_per_channel_averages_what_each_channel_scores_alone() -> None:
    reference = white(2, 2, 5000)
    estimate = estimated(reference)
    alone = torch.stack([si_sdr(reference[:, [c]], estimate[:, [c]]) for c in range(2)]).mean(0)
    torch.testing.assert_close(si_sdr(reference, estimate, per_channel=True), alone, rtol=0, atol=1e-12)
    assert (si_sdr(reference, estimate) - alone).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("length", "window", "hop", "expected"),
    [
        (41, 10, 10, 4),
        (49, 10, 10, 4),
        (50, 10, 10, 5),
        (10, 10, 10, 1),
        (9, 10, 10, 1),
        (50, math.inf, math.inf, 1),
        (50, 10, 7.5, 6),
        (50, 10, math.inf, 1),
    ],
)
def test_frames_are_cut_as_museval_cuts_them(length: int, window: float, hop: float, expected: int) -> None:
    frames = frame_slices(length, window, hop)
    assert len(frames) == expected
    assert all(f.stop <= length for f in frames)
    if hop == 7.5:
        assert [f.start for f in frames] == [0, 7, 15, 22, 30, 37]


@pytest.mark.parametrize(
    ("window", "hop"), [(400, 400), (400, 150), (100, 250), (250.5, 100.25), (5000, 400), (math.inf, 7)]
)
@pytest.mark.parametrize("size", [7, 400, 1999, 2000])
def test_a_song_in_blocks_scores_as_in_one_piece(window: float, hop: float, size: int) -> None:
    references = white(2, 2, 2000).float()
    references[1, :, 300:1000] = 0
    estimates = 0.9 * references + 0.01 * white(*references.shape, seed=1).float()
    sums = FrameSums(window, hop, scaled=True)
    for start in range(0, references.shape[-1], size):
        sums.add(references[..., start : start + size], estimates[..., start : start + size])
    for silence in ("museval", "score"):
        whole = []  # each frame cut out, and scored alone
        for frame in frame_slices(references.shape[-1], window, hop):
            whole.append(snr(references[..., frame], estimates[..., frame]))
            if silence == "museval" and bool(whole[-1].isnan().any()):
                whole[-1] = torch.full_like(whole[-1], math.nan)
        torch.testing.assert_close(
            sums.sdr(silence), torch.stack(whole, dim=-1), rtol=0, atol=1e-10, equal_nan=True
        )  # fmt: skip
    torch.testing.assert_close(sums.nsdr(), nsdr(references, estimates), rtol=0, atol=1e-10)
    torch.testing.assert_close(sums.si_sdr(), si_sdr(references, estimates), rtol=0, atol=1e-7)


def test_one_silent_reference_or_estimate_takes_the_frame_from_all_sources() -> None:
    references = white(3, 2, 5000)
    estimates = estimated(references)
    references[0, :, 1000:2000] = 0
    estimates[2, :, 3000:4000] = 0
    estimates[1, 1, 4000:] = -estimates[1, 0, 4000:]  # left = -right is silence for museval
    scores = sdr_frames(references, estimates, 1000, 1000)
    assert scores.isnan().any(0).tolist() == scores.isnan().all(0).tolist() == [False, True, False, True, True]


def test_silence_can_be_each_sources_own_affair() -> None:
    references = white(3, 2, 4000)
    estimates = estimated(references)
    references[0, :, 1000:2000] = 0
    estimates[2, :, 3000:] = 0
    scores = sdr_frames(references, estimates, 1000, 1000, silence="score")
    assert scores.isnan().nonzero().tolist() == [[0, 1]]
    assert float(scores[2, 3]) == 0.0


def test_a_wholly_silent_source_takes_the_song_or_with_score_only_itself() -> None:
    references = white(2, 2, 4000)
    estimates = estimated(references)
    references[1] = 0
    assert sdr_frames(references, estimates, 1000, 1000).isnan().all()
    scores = sdr_frames(references, estimates, 1000, 1000, silence="score")
    assert scores.isnan().all(-1).tolist() == [False, True]


def test_silence_is_judged_over_the_whole_length() -> None:
    sound = torch.zeros(2, 2, 100_000)
    sound[1, 0, -1] = 1e-30
    assert silent(sound).tolist() == [True, False]


@pytest.mark.parametrize(
    ("reference", "estimate", "said"),
    [
        (torch.ones(2, 2, 9), torch.ones(2, 2, 8), "(2, 2, 9) and (2, 2, 8)"),
        (torch.ones(9), torch.ones(9), "(channels, samples)"),
        (torch.ones(2, 0), torch.ones(2, 0), "none empty"),
        (torch.ones(2, 9, dtype=torch.int16), torch.ones(2, 9, dtype=torch.int16), "torch.int16"),
        (torch.ones(2, 9), torch.full((2, 9), math.nan), "estimates hold NaN"),
        (torch.full((2, 9), math.inf), torch.ones(2, 9), "references hold NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    reference: torch.Tensor, estimate: torch.Tensor, said: str
) -> None:
    said = said.replace("(channels", "(..., channels")
    with pytest.raises(UsageError) as error:
        validate(reference, estimate)
    assert said in str(error.value)


@pytest.mark.reference
@pytest.mark.parametrize(("window", "hop"), [(4000, 4000), (5000, 2500), (math.inf, math.inf)])
def test_sdr_frames_equal_musevals(window: float, hop: float) -> None:
    references = white(2, 2, 21_000)
    estimates = estimated(references)
    scores = museval().metrics.bss_eval(
        references.mT.numpy(), estimates.mT.numpy(), window=window, hop=hop, filters_len=8
    )
    ours = sdr_frames(references, estimates, window, hop)
    torch.testing.assert_close(ours, torch.from_numpy(scores[0]), rtol=0, atol=1e-12)
