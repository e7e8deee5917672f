"""Mean and deviation of magnitudes, bin by bin."""

import pytest
import torch

from sepcli.dsp.statistics import bin_statistics


def test_recordings_weigh_as_many_frames_as_they_have() -> None:
    short = torch.tensor([[[1.0, 3.0]], [[3.0, 5.0]]])  # (C, F, N): channel means 2 and 4
    long = torch.full((2, 1, 4), 9.0)
    mean, deviation = bin_statistics([short, long])
    assert mean.tolist() == pytest.approx([7.0], abs=1e-6)
    assert deviation.tolist() == pytest.approx([(50 / 6) ** 0.5], abs=1e-6)


def test_a_bin_that_never_changes_gets_a_small_part_of_the_largest_deviation() -> None:
    magnitudes = torch.tensor([[[0.0, 2.0], [5.0, 5.0]]])
    mean, deviation = bin_statistics([magnitudes])
    assert mean.tolist() == [1.0, 5.0]
    assert deviation.tolist() == pytest.approx([1.0, 1e-4], rel=1e-6)


def test_without_a_frame_there_are_none() -> None:
    with pytest.raises(ValueError, match="no frame"):
        bin_statistics([])
