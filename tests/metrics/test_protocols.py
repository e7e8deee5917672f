"""sepcli/metrics/protocols.py: protocols by name, aggregation, and files that museval's stores read."""

import json
import math
from pathlib import Path

import pytest
import torch

from sepcli.errors import SepcliError, UsageError
from sepcli.metrics.protocols import (
    PROTOCOLS,
    aggregate,
    evaluation_sets,
    protocol,
    read_museval_json,
    summary,
    write_museval_json,
)
from tests.metrics.signals import museval

METRICS = ("SDR", "ISR", "SIR", "SAR")


def frames(seed: int, count: int = 7) -> dict[str, dict[str, list[float]]]:
    drawn = 10 * torch.randn(2, 4, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, :, 2] = math.nan
    drawn[1, 2, 4] = math.inf
    return {
        source: {metric: drawn[i, k].tolist() for k, metric in enumerate(METRICS)}
        for i, source in enumerate(("vocals", "drums"))
    }


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sisec18", ("musdb18", 1.0, 44100, "median", "median", 4)),
        ("multiband", ("multiband", 4.0, 22050, "median", "median", 2)),
        ("cws", ("cws", 1.0, 44100, "mean", "median", 2)),
        ("mdx21", ("mdx", math.inf, 0, "median", "mean", 4)),
        ("hdemucs-nsdr", ("mdx", math.inf, 0, "median", "mean", 4)),
    ],
)
def test_protocols_are_the_papers(name: str, facts: tuple[object, ...]) -> None:
    entry = protocol(name)
    assert facts == (
        entry.name,
        entry.window,
        entry.sample_rate,
        entry.over_frames,
        entry.over_songs,
        len(entry.sources),
    )
    assert entry.window == entry.hop


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean multiband"):
        protocol("multi-band")
    assert len({name for entry in PROTOCOLS for name in (entry.name, *entry.alias)}) == 10


def test_with_an_accompaniment_there_are_two_sets_as_in_museval() -> None:
    four = ("vocals", "drums", "bass", "other")
    two = ("vocals", "accompaniment")
    assert evaluation_sets(["bass", "other", "drums", "vocals"]) == [(four, four)]
    assert evaluation_sets(["accompaniment", *four]) == [(four, four[1:]), (two, two)]
    assert evaluation_sets(["accompaniment", "vocals"]) == [(two, two)]
    assert evaluation_sets(["vocals"]) == []


def test_aggregation_leaves_out_what_is_no_number_and_takes_the_middle_of_two() -> None:
    table = torch.tensor([[1.0, 2.0, math.nan, 10.0, 4.0], [math.nan, math.inf, math.nan, -math.inf, math.nan]])
    median, missing = aggregate(table, "median")
    assert (median, math.isnan(missing)) == (3.0, True)
    assert aggregate(table[0].tolist(), "mean") == [4.25]


def test_the_average_is_the_mean_of_the_sources_aggregated_scores() -> None:
    songs = [{"vocals": {"SDR": x}, "bass": {"SDR": y}} for x, y in ((1.0, 5.0), (2.0, math.nan), (9.0, 7.0))]
    result = summary(songs, "median")
    assert result == {"vocals": {"SDR": 2.0}, "bass": {"SDR": 6.0}, "average": {"SDR": 4.0}}
    assert summary(songs, "mean")["average"]["SDR"] == 5.0


def test_a_file_of_scores_comes_back_to_a_hundred_thousandth(tmp_path: Path) -> None:
    path = tmp_path / "test" / "A - B.json"
    write_museval_json(path, frames(0), window=1.0, hop=0.5)
    assert [entry["time"] for entry in json.loads(path.read_text())["targets"][0]["frames"]] == [
        0.5 * i for i in range(7)
    ]
    assert list(path.parent.iterdir()) == [path]
    for source, scores in read_museval_json(path).items():
        for metric, values in scores.items():
            expected = torch.tensor(frames(0)[source][metric]).masked_fill(
                torch.tensor(frames(0)[source][metric]).isinf(), math.nan
            )
            torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=6e-6, equal_nan=True)


def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"targets": [{"name": "vocals"}]}')
    with pytest.raises(SepcliError, match=r"x\.json: no scores"):
        read_museval_json(path)


@pytest.mark.reference
@pytest.mark.parametrize("over_frames", ["median", "mean"])
@pytest.mark.parametrize("over_songs", ["median", "mean"])
def test_musevals_store_reads_our_files_and_has_our_aggregates(
    over_frames: str, over_songs: str, tmp_path: Path
) -> None:
    store = museval().EvalStore(frames_agg=over_frames, tracks_agg=over_songs)
    songs = []
    for seed in range(4):
        write_museval_json(tmp_path / "test" / f"song {seed}.json", frames(seed), window=1.0, hop=1.0)
        songs.append(
            {
                source: {metric: aggregate(values, over_frames)[0] for metric, values in scores.items()}  # type: ignore[arg-type]
                for source, scores in frames(seed).items()
            }
        )
    store.add_eval_dir(str(tmp_path))
    theirs = store.agg_frames_tracks_scores()
    ours = summary(songs, over_songs)  # type: ignore[arg-type]
    for source in ("vocals", "drums"):
        for metric in METRICS:
            assert ours[source][metric] == pytest.approx(theirs[source][metric], abs=1e-5)


@pytest.mark.reference
def test_musevals_own_file_is_read(tmp_path: Path) -> None:
    track = museval().TrackStore("song", win=1, hop=1)
    for source, scores in frames(5).items():
        track.add_target(source, scores)
    track.save(tmp_path / "song.json")
    read = read_museval_json(tmp_path / "song.json")
    assert read["drums"]["SAR"] == pytest.approx(
        [x if math.isfinite(x) else math.nan for x in frames(5)["drums"]["SAR"]], abs=6e-6, nan_ok=True
    )
