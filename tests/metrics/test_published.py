"""sepcli/metrics/published.py: the papers' rows, and that their averages are the means of their values."""

import pytest

from sepcli.metrics.protocols import PROTOCOLS
from sepcli.metrics.published import beside, published

ODD = {("Spleeter", "CDE-HTCN, table II"), ("KUIELAB-MDX-Net", "Hybrid Demucs (arXiv:2111.03600), table 1")}


def test_averages_are_the_means_of_their_rows_but_for_two_that_the_papers_print_otherwise() -> None:
    odd = set()
    for row in published():
        values = [value for name, value in row.scores.items() if name != "average"]
        if "average" in row.scores and abs(sum(values) / len(values) - row.scores["average"]) > 0.0051:
            odd.add((row.model, row.of))
            assert row.model in row.note
    assert odd == ODD


@pytest.mark.parametrize(
    ("protocol", "model", "name", "value"),
    [
        ("cde-htcn", "CDE-HTCN", "average", 6.89),
        ("multiband", "M5", "SIR vocals", 15.29),
        ("cws", "UNET-6+CWS K=8", "SDR accompaniment", 15.97),
        ("mdx", "Hybrid Demucs", "nSDR drums", 8.04),
        ("hdemucs", "Hybrid Demucs", "SDR bass", 8.76),
        ("xscheme", "X-UMX", "SDR vocals", 6.612),
    ],
)
def test_rows_stand_beside_their_protocol(protocol: str, model: str, name: str, value: float) -> None:
    rows = [row for row in beside(protocol) if row.model == model]
    assert rows[0].scores[name] == value
    assert rows[0].data


def test_every_protocol_has_rows_and_the_plain_one_those_of_its_kin() -> None:
    assert {entry.name: len(beside(entry.name)) for entry in PROTOCOLS} == {
        "musdb18": 27,
        "cde-htcn": 20,
        "multiband": 8,
        "cws": 25,
        "hdemucs": 5,
        "mdx": 7,
        "xscheme": 2,
    }
    assert len(published()) == 69


def test_means_over_songs_do_not_stand_beside_medians() -> None:
    assert [row.scores["SDR vocals"] for row in beside("xscheme")] == [6.612, 7.565]
