"""Bridges: plain averages."""

import torch

from sepcli.nn.bridge import average


def test_every_path_gets_the_mean_of_all():
    paths = [torch.full((1, 2, 3), value) for value in (1.0, 2.0, 6.0)]
    assert [path.tolist() for path in average(paths)] == [torch.full((1, 2, 3), 3.0).tolist()] * 3


def test_equal_paths_pass_a_bridge_of_four_unchanged():
    path = torch.randn(2, 3, 4)
    assert all(torch.equal(bridged, path) for bridged in average([path] * 4))
