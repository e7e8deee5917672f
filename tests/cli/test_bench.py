"""`sepcli bench`: figures that can be checked by hand."""

import json

import pytest
import torch
from torch import nn

from sepcli.cli import run
from sepcli.inference.bench import count, untrained
from sepcli.weights.catalog import find


def test_operations_are_counted_by_their_sizes() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(2, 8, 4, stride=2)
            self.back = nn.ConvTranspose1d(8, 2, 4, stride=2)
            self.lstm = nn.LSTM(8, 5, num_layers=2, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            self.lstm(y.permute(2, 0, 1))
            return self.back(y)

    frames = 49  # of 100 samples
    lstm = 2 * frames * 2 * 4 * 5 * ((8 + 5) + (10 + 5))
    assert count(Small(), torch.randn(1, 2, 100)) == 2 * frames * 8 * 2 * 4 + 2 * frames * 8 * 2 * 4 + lstm


def test_an_mdensenet_costs_what_the_paper_says() -> None:
    """Table 2: 5.07 G at K = 8, of one of the two networks over 3 s, a multiplication and its addition counted as one.

    5.05 of them are convolutions and two operations for each output of a batch norm, which `count` leaves out.
    """
    model = untrained(find("cws-mdensenet"), 3.0)
    network = model.networks["vocals"]
    spectrum = model.subbands.analyse(torch.randn(1, 2, 132_300))
    assert spectrum.shape == (1, 32, 129, 376)
    normed = 0

    def add(_norm: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal normed
        normed += 2 * output.numel()

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(add) for norm in norms]
    convolutions = count(network, spectrum) / 2
    assert len(handles) == 38
    assert (convolutions + normed) / 1e9 == pytest.approx(5.05, abs=0.005)


def test_the_command_prints_a_row_or_a_document(capfdbinary) -> None:
    assert run(["bench", "cws-mdensenet", "--seconds", "0.5", "--passes", "1", "--threads", "1", "--json"]) == 0
    document = json.loads(capfdbinary.readouterr().out)
    assert document["schema"] == 1
    assert document["parameters"] == 566_756
    assert document["seconds"] == 0.5
    assert 5 < document["gflops"] < 20
    assert document["memory"] > 1e8
    assert run(["bench", "mdx"]) == 3
    assert b"is a bag" in capfdbinary.readouterr().err
