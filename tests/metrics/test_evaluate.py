"""sepcli/metrics/stems.py, evaluate.py, results.py, compare.py and plots.py: folders of songs to results."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sepcli.errors import AudioError, UsageError
from sepcli.metrics import evaluate, sounds
from sepcli.metrics.compare import compared
from sepcli.metrics.evaluate import score_all, score_song
from sepcli.metrics.plots import box_plots
from sepcli.metrics.protocols import protocol
from sepcli.metrics.results import document, finished, key_of, to_csv, to_json
from sepcli.metrics.scoring import Kind, Scoring
from sepcli.metrics.sdr import nsdr, si_sdr
from sepcli.metrics.stems import Pair, Stem, StemSet, find_sets, open_stem, pair, source_of
from tests.metrics.signals import estimated, museval, musical, stem_mp4, white

RATE = 44100
ALL = ("SDR", "ISR", "SIR", "SAR", "nSDR")
Write = Callable[..., Path]


def scoring(name: str = "musdb18", kind: Kind = "estimates", metrics: tuple[str, ...] = ("SDR", "nSDR"), **changes: Any) -> Scoring:  # fmt: skip # noqa: E501
    model = changes.pop("model", kind)
    return Scoring(protocol=protocol(name), kind=kind, model=model, metrics=metrics, **changes)


def write(folder: Path, stems: dict[str, Any], rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, sound in stems.items():
        samples = np.asarray(sound, dtype=np.float32).T
        soundfile.write(folder / (name if "." in name else f"{name}.wav"), samples, rate, subtype="FLOAT")
    return folder


def one(data: Path, estimates: Path | None = None) -> Pair:
    pairs, problems = pair(find_sets([data]), find_sets([estimates]) if estimates else None)
    assert not problems
    assert len(pairs) == 1
    return pairs[0]


def stems(folder: Path) -> StemSet:
    """A song's stems in the usual order."""
    names = ("vocals", "drums", "bass", "other")
    return StemSet(folder.name, folder, {name: Stem(folder / f"{name}.wav") for name in names})


@pytest.fixture
def four() -> dict[str, torch.Tensor]:
    """Four mono sources of 3.2 s, as they come back from float32."""
    sound = musical(4, 1, int(3.2 * RATE)).float()
    return dict(zip(("vocals", "drums", "bass", "other"), sound, strict=True))


# Names and folders


@pytest.mark.parametrize(
    ("spelling", "source"),
    [
        *(("Vocals", "vocals"), ("voice", "vocals"), ("DRUMS", "drums"), ("no_vocals", "accompaniment")),
        *(("Instrumental", "accompaniment"), ("accompaniment", "accompaniment"), ("no vocals", "accompaniment")),
        *(("mix", "mixture"), ("others", "other"), ("no-drums", "no_drums"), ("strings", None), ("vocals2", None)),
    ],
)
def test_common_spellings_of_stems_are_understood(spelling: str, source: str | None) -> None:
    assert source_of(spelling) == source


def test_stems_of_all_layouts_are_found_by_song(tmp_path: Path) -> None:
    sound = white(1, 1, 100)[0]
    write(tmp_path / "demucs" / "A - B", {"vocals": sound, "no_vocals": sound})
    write(
        tmp_path / "flat", {"1_C - D_(Vocals)_UVR": sound, "1_C - D_(Instrumental)_UVR": sound, "E f - vocals": sound}
    )
    write(tmp_path / "flat", {"E f - no_vocals": sound, "notes.txt.wav": sound})
    found = {one.name: sorted(one.stems) for one in find_sets([tmp_path])}
    assert found == {name: ["accompaniment", "vocals"] for name in ("A - B", "C - D", "E f")}


def test_of_musdb_only_the_split_is_taken_in_order_of_name(tmp_path: Path) -> None:
    for name in ("test/b", "test/B", "test/A", "train/c"):
        write(tmp_path / name, {"vocals": white(1, 1, 50)[0]})
    assert [one.name for one in find_sets([tmp_path], "test")] == ["A", "B", "b"]
    assert [one.name for one in find_sets([tmp_path], "train")] == ["c"]
    assert len(find_sets([tmp_path], "all")) == 4


def test_songs_without_a_partner_or_with_one_name_are_named_and_the_others_paired(tmp_path: Path) -> None:
    def sets(*names: str) -> list[StemSet]:
        return [StemSet(name.split("/")[-1], Path(name), {"vocals": Stem(Path(name))}) for name in names]

    pairs, problems = pair(sets("d/a", "d/b", "d/only", "d/x/twice", "d/y/twice"), sets("e/A", "e/b.stem", "e/spare", "e/twice"))  # fmt: skip # noqa: E501
    assert [p.name for p in pairs] == ["a", "b"]
    assert sorted(problems) == ["only", "spare", "twice"]
    assert problems["only"] == "only: no estimates of this song"
    assert "no references" in problems["spare"]
    assert "two songs with this name in --data: d/x/twice and d/y/twice" in problems["twice"]


def test_two_files_for_one_stem_are_a_problem_of_that_song(tmp_path: Path) -> None:
    write(tmp_path / "a", {"vocals": white(1, 1, 50)[0], "instrumental": white(1, 1, 50)[0], "no_vocals.aiff": 0 * white(1, 1, 50)[0]})  # fmt: skip # noqa: E501
    pairs, problems = pair(find_sets([tmp_path]), None)
    assert pairs == []
    assert "instrumental.wav and no_vocals.aiff are both accompaniment" in problems["a"]


def test_a_stem_mp4_is_read_stream_by_stream_at_sixteen_bits(tmp_path: Path) -> None:
    time = np.arange(RATE) / RATE
    stem_mp4(tmp_path / "A - B.stem.mp4", [0.3 * np.sin(2 * np.pi * 220 * (index + 1) * time) for index in range(5)])
    song = find_sets([tmp_path])[0]
    assert (song.name, list(song.stems)) == ("A - B", ["mixture", "drums", "bass", "other", "vocals"])
    for index, name in enumerate(("mixture", "drums", "bass", "other", "vocals")):
        clip = open_stem(song.stems[name])
        assert (clip.sample_rate, clip.channels) == (RATE, 2)
        sound = torch.from_numpy(np.concatenate(list(clip.read())).T)
        assert torch.equal(sound * 32768, torch.round(sound * 32768))
        spectrum = torch.fft.rfft(sound[0, 8192 : 8192 + 22050]).abs()
        assert int(spectrum.argmax()) * 2 == 220 * (index + 1)
    entry = score_song(Pair(song), scoring("mdx", "mixture"))  # whose lengths are known when it has been read
    assert entry["seconds"] == pytest.approx(1.0, abs=0.1)
    assert entry["sources"]["drums"]["nSDR"] < -3


# One song


def test_sdr_of_a_known_error_is_exact(tmp_path: Path, four: dict[str, torch.Tensor]) -> None:
    data = write(tmp_path / "data" / "a", four)
    gains = {"vocals": 0.5, "drums": 0.9, "bass": 1.1, "other": 0.0625}
    made = write(tmp_path / "made" / "a", {name: gain * four[name] for name, gain in gains.items()})
    entry = score_song(one(data.parent, made.parent), scoring())
    for name, gain in gains.items():
        expected = -20 * math.log10(abs(1 - gain))
        assert entry["sources"][name]["SDR"] == pytest.approx(expected, abs=1e-4)
        assert entry["frames"][name]["SDR"] == pytest.approx([expected] * 3, abs=1e-3)
        assert entry["sources"][name]["ISR"] is None


@pytest.mark.reference
def test_the_runner_gives_musevals_scores_for_an_accompaniment_that_it_sums(
    tmp_path: Path, four: dict[str, torch.Tensor]
) -> None:
    accompaniment = four["drums"] + four["bass"] + four["other"]
    references = torch.stack([four["vocals"], accompaniment])
    estimates = estimated(references.double()).float()
    data = write(tmp_path / "data" / "a", four)
    made = write(tmp_path / "made" / "a", {"vocals": estimates[0], "instrumental": estimates[1]})
    entry = score_song(one(data.parent, made.parent), scoring("cws", metrics=ALL))
    theirs = museval().evaluate(references.mT.double().numpy(), estimates.mT.double().numpy(), win=RATE, hop=RATE)
    for metric, table in zip(("SDR", "ISR", "SIR", "SAR"), theirs, strict=True):
        for row, name in zip(table, ("vocals", "accompaniment"), strict=True):
            assert entry["frames"][name][metric] == pytest.approx(row.tolist(), abs=1e-5)
            assert entry["sources"][name][metric] == pytest.approx(float(np.mean(row)), abs=1e-5)  # over frames: mean


def test_si_sdr_is_scored_where_it_is_asked_for(tmp_path: Path, four: dict[str, torch.Tensor]) -> None:
    data = write(tmp_path / "data" / "a", four)
    guess = 0.5 * four["vocals"] + 0.003 * white(1, 1, four["vocals"].shape[-1])[0].float()
    made = write(tmp_path / "made" / "a", four | {"vocals": guess})
    both = one(data.parent, made.parent)
    scored = score_song(both, scoring(metrics=("SDR", "nSDR", "SI-SDR")))["sources"]["vocals"]
    assert scored["SI-SDR"] == pytest.approx(float(si_sdr(four["vocals"], guess)), abs=1e-6)
    assert score_song(both, scoring())["sources"]["vocals"]["SI-SDR"] is None


def test_mdx_scores_whole_songs_and_silence_too(tmp_path: Path, four: dict[str, torch.Tensor]) -> None:
    four["bass"] = torch.zeros_like(four["bass"])
    data = write(tmp_path / "data" / "a", four)
    made = write(tmp_path / "made" / "a", {name: 0.9 * sound for name, sound in four.items()})
    entry = score_song(one(data.parent, made.parent), scoring("mdx", metrics=("nSDR",)))
    assert entry["sources"]["bass"]["nSDR"] == pytest.approx(0, abs=1e-9)
    assert entry["sources"]["vocals"]["nSDR"] == pytest.approx(
        float(nsdr(four["vocals"], 0.9 * four["vocals"])), abs=1e-4
    )
    assert entry["frames"] == {}


def test_multiband_scores_at_its_own_rate(tmp_path: Path) -> None:
    time = torch.arange(5 * RATE) / RATE
    low, high = (0.2 * torch.sin(2 * math.pi * hertz * time)[None] for hertz in (440, 15000))
    noise = 0.02 * white(1, 1, 5 * RATE)[0].float()
    data = write(tmp_path / "data" / "a", {"vocals": low, "other": 0.5 * low + noise})
    made = write(tmp_path / "made" / "a", {"vocals": 0.9 * low + high, "no_vocals": 0.5 * low + 0.5 * noise})
    entry = score_song(one(data.parent, made.parent), scoring("multiband"))
    assert entry["sources"]["vocals"]["SDR"] == pytest.approx(20, abs=0.03)  # 15 kHz is not heard at 22.05 kHz
    assert len(entry["frames"]["vocals"]["SDR"]) == 1


def test_the_mixture_as_estimate_scores_minus_the_ratio_of_energies(tmp_path: Path) -> None:
    a, b = white(2, 1, 2 * RATE).float()
    data = write(tmp_path / "a", {"vocals": a, "other": 2 * b})
    entry = score_song(one(data.parent), scoring("cws", "mixture"))
    assert entry["sources"]["vocals"]["SDR"] == pytest.approx(-20 * math.log10(2), abs=0.1)
    assert entry["sources"]["accompaniment"]["SDR"] == pytest.approx(20 * math.log10(2), abs=0.1)


def test_oracles_are_better_than_the_mixture_and_sum_their_accompaniment(
    tmp_path: Path, four: dict[str, torch.Tensor]
) -> None:
    data = write(tmp_path / "a", four)
    mixture = score_song(one(data.parent), scoring("cws", "mixture"))["sources"]
    for kind in ("ibm", "irm1", "irm2", "mwf"):
        got = score_song(one(data.parent), scoring("cws", "oracle", model=kind))["sources"]
        for source in ("vocals", "accompaniment"):
            assert got[source]["SDR"] > mixture[source]["SDR"] + 1.5


def test_museval_exact_scores_vocals_in_a_set_of_two_where_an_accompaniment_is_estimated(
    tmp_path: Path, four: dict[str, torch.Tensor]
) -> None:
    four["bass"][..., :RATE] = 0  # takes the first frame from the set of four, not from the set of two
    data = write(tmp_path / "data" / "a", four)
    rest = four["drums"] + four["bass"] + four["other"]
    made = {name: 0.9 * sound for name, sound in four.items()} | {"accompaniment": 0.9 * rest}
    pair_of = one(data.parent, write(tmp_path / "made" / "a", made).parent)
    entry = score_song(pair_of, scoring(museval_exact=True))
    assert [entry["frames"][name]["SDR"][0] is None for name in ("drums", "bass", "other")] == [True] * 3
    assert entry["frames"]["vocals"]["SDR"][0] == pytest.approx(20, abs=0.02)
    assert entry["unscored_frames"] == {"vocals": 0, "drums": 1, "bass": 1, "other": 1, "accompaniment": 0}
    assert list(score_song(pair_of, scoring())["sources"]) == ["vocals", "drums", "bass", "other"]


# What is wrong with a song's files


@pytest.mark.parametrize(
    ("reference", "estimate", "message"),
    [
        ({"bass": None}, {}, r"a: no reference of bass"),
        ({"bass": "short"}, {}, r"a: the references bass and drums have 44,100 and 88,200 samples"),
        ({"bass": "rate"}, {}, r"a: the references bass and drums have 22050 and 44100 Hz"),
        ({"bass": "silent"}, {}, r"a: the reference of bass is silent throughout.*--silence score leaves it out"),
        ({}, {"bass": None}, r"a: no estimate of bass; there is vocals, drums, other"),
        ({}, {"bass": "nan"}, r"a: the estimate of bass: .*bass.wav: a sample is not a number at 0.00 s"),
        ({}, {"bass": "short"}, r"a: the estimate of bass is 1.00 s long, the references are 2.00 s.*--allow-length"),
        ({}, {"bass": "rate"}, r"a: the estimate of bass has 22050 Hz, the references have 44100 Hz"),
        ({}, {"bass": "stereo"}, r"a: the estimate of bass has 2 channels, the references have 1"),
        ({}, {"bass": "silent"}, r"a: the estimate of bass is silent throughout.*--silence score gives it 0 dB"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_file_is_said_with_song_and_stem(
    reference: dict[str, Any], estimate: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sound = dict(zip(("vocals", "drums", "bass", "other"), white(4, 1, 2 * RATE).float(), strict=True))
    for folder, faults in (("data", reference), ("made", estimate)):
        stems = dict(sound)
        place = tmp_path / folder / "a"
        for name, fault in faults.items():
            bad = stems.pop(name)
            if fault == "rate":
                write(place, {name: bad[..., :RATE]}, rate=22050)
            elif fault:
                changed = {
                    "short": bad[..., :RATE],
                    "silent": 0 * bad,
                    "nan": torch.full_like(bad, torch.nan),
                    "stereo": bad.repeat(2, 1),
                }
                stems[name] = changed[fault]
        write(place, stems)
    with pytest.raises(AudioError) as caught:
        score_song(one(tmp_path / "data", tmp_path / "made"), scoring())
    assert re.search(message, str(caught.value)), str(caught.value)


def test_lengths_that_no_header_tells_are_found_unequal_in_the_end(
    tmp_path: Path, four: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sounds.open_stem
    monkeypatch.setattr(sounds, "open_stem", lambda *stem, **how: dataclasses.replace(known(*stem, **how), frames=None))
    write(tmp_path / "data" / "a", four | {"bass": four["bass"][..., :-70_000]})
    made = write(tmp_path / "made" / "a", four)
    with pytest.raises(AudioError, match=r"a: the references vocals and bass have 141,120 and 71,120 samples"):
        score_song(Pair(stems(tmp_path / "data" / "a"), stems(made)), scoring())
    write(tmp_path / "data" / "a", four)
    write(made, {"bass": four["bass"][..., :-70_000]})
    with pytest.raises(AudioError, match=r"a: the estimate of bass is 1.61 s long, the references are 3.20 s"):
        score_song(Pair(stems(tmp_path / "data" / "a"), stems(made)), scoring())


def test_with_silence_score_a_silent_reference_is_left_out_and_a_silent_estimate_gets_0_db(tmp_path: Path) -> None:
    sound = dict(zip(("vocals", "drums", "bass", "other"), white(4, 1, 2 * RATE).float(), strict=True))
    data = write(tmp_path / "data" / "a", sound | {"bass": 0 * sound["bass"]})
    made = {name: 0.9 * value for name, value in sound.items()} | {"drums": 0 * sound["drums"]}
    entry = score_song(one(data.parent, write(tmp_path / "made" / "a", made).parent), scoring(silence="score"))
    got = {name: scores["SDR"] for name, scores in entry["sources"].items()}
    assert got == pytest.approx({"vocals": 20, "drums": 0, "bass": None, "other": 20}, abs=1e-3)
    assert entry["notes"] == ["left out, its reference is silent: bass"]


def test_an_estimate_that_is_a_few_samples_longer_or_shorter_is_fitted_and_said(tmp_path: Path) -> None:
    sound = dict(zip(("vocals", "accompaniment"), white(2, 1, 2 * RATE).float(), strict=True))
    data = write(tmp_path / "data" / "a", sound)
    made = {
        "vocals": sound["vocals"][..., :-1000],
        "no_vocals": torch.nn.functional.pad(sound["accompaniment"], (0, 7)),
    }
    entry = score_song(one(data.parent, write(tmp_path / "made" / "a", made).parent), scoring("cws"))
    assert entry["seconds"] == 2.0
    assert entry["notes"] == [
        "the estimate of vocals is -1,000 samples longer: cut or filled at its end",
        "the estimate of accompaniment is +7 samples longer: cut or filled at its end",
    ]
    expected = -10 * math.log10(1000 / RATE)  # the error is what is missing
    assert entry["frames"]["vocals"]["SDR"][1] == pytest.approx(expected, abs=0.5)
    assert entry["frames"]["vocals"]["SDR"][0] is None  # no error at all: infinite


# Many songs, and the file


def songs(tmp_path: Path, count: int = 3, gain: float = 0.9) -> list[Pair]:
    for index in range(count):
        sound = dict(zip(("vocals", "accompaniment"), white(2, 1, RATE, seed=index).float(), strict=True))
        write(tmp_path / "data" / f"song {index}", sound)
        noise = white(2, 1, RATE, seed=100 + index).float() * 0.1 * (index + 1)
        made = zip(sound, torch.stack([*sound.values()]) * gain + noise, strict=True)
        write(tmp_path / f"made {gain}" / f"song {index}", dict(made))
    return pair(find_sets([tmp_path / "data"]), find_sets([tmp_path / f"made {gain}"]))[0]


def result(pairs: list[Pair], settings: Scoring) -> dict[str, Any]:
    entries = [{"key": key_of(one, settings)} | score_song(one, settings) for one in pairs]
    return document(settings, entries, {}, data=["data"], complete=True, frames=True)


def test_a_song_that_fails_does_not_stop_the_others_and_processes_agree_with_one(tmp_path: Path) -> None:
    pairs = songs(tmp_path)
    (tmp_path / "made 0.9" / "song 1" / "vocals.wav").write_bytes(b"no sound")
    alone = list(score_all(pairs, scoring("cws"), 1, lambda _name, _share: None))
    assert [bool(score.entry) for score in alone] == [True, False, True]
    assert "song 1: the estimate of vocals" in alone[1].problem
    told: list[tuple[str, float]] = []
    spread = sorted(score_all(pairs, scoring("cws"), 2, lambda *done: told.append(done)), key=lambda one: one.name)
    assert [score.entry for score in spread] == [score.entry for score in alone]
    assert sorted(told) == [(f"song {i}", 1.0) for i in range(3)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory; fewer --jobs"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory; fewer --jobs"),
        (MemoryError(), "out of memory; fewer --jobs"),
        (RuntimeError("the filters' equations are singular\n at x.cpp"), "the filters' equations are singular"),
    ],
    ids=str,
)
def test_a_song_that_memory_or_arithmetic_does_not_allow_does_not_stop_the_others(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.score_song

    def failing(pair: Pair, *rest: Any) -> dict[str, Any]:
        if pair.name == "song 1":
            raise error
        return real(pair, *rest)

    monkeypatch.setattr(evaluate, "score_song", failing)
    scores = list(score_all(songs(tmp_path), scoring("cws"), 1, lambda *_: None))
    assert [bool(score.entry) for score in scores] == [True, False, True]
    assert scores[1].problem.startswith("song 1: ")
    assert words in scores[1].problem
    assert "\n" not in scores[1].problem


def test_the_document_has_the_layout_of_the_interface(tmp_path: Path) -> None:
    settings = scoring("cws")
    text = json.loads(to_json(result(songs(tmp_path), settings)))
    assert (text["schema"], text["protocol"], text["model"]) == (1, "cws", "estimates")
    assert [song["name"] for song in text["songs"]] == ["song 0", "song 1", "song 2"]
    scores = [song["sources"]["vocals"]["SDR"] for song in text["songs"]]
    assert text["aggregate"]["vocals"]["SDR"] == sorted(scores)[1]
    assert text["aggregate"]["vocals"]["SIR"] is None
    assert text["average"]["SDR"] == pytest.approx((text["aggregate"]["vocals"]["SDR"] + text["aggregate"]["accompaniment"]["SDR"]) / 2)  # fmt: skip # noqa: E501
    assert list(text["songs"][0]["frames"]["vocals"]) == ["SDR"]
    assert text["settings"]["rule"].startswith("cws: {vocals, accompaniment} at 44.1 kHz; SDR, SIR, SAR of BSSEval v4")
    assert (text["settings"]["over_frames"], text["settings"]["over_songs"]) == ("mean", "median")
    lines = to_csv(text).splitlines()
    assert len(lines) == 1 + 2 * 4
    assert lines[0] == "model,protocol,song,source,SDR,ISR,SIR,SAR,nSDR,SI-SDR"


def test_a_finished_song_is_found_again_unless_a_file_or_a_setting_changed(tmp_path: Path) -> None:
    pairs, settings = songs(tmp_path), scoring("cws")
    path = tmp_path / "out.json"
    path.write_text(to_json(result(pairs, settings)))
    keys = [key_of(one, settings) for one in pairs]
    assert list(finished(path, keys, frames=True)) == keys
    assert not {key_of(one, dataclasses.replace(settings, silence="score")) for one in pairs} & {*keys}
    write(tmp_path / "made 0.9" / "song 1", {"vocals": white(1, 1, 1000)[0]})
    again = [key_of(one, settings) for one in pairs]
    assert [a == b for a, b in zip(keys, again, strict=True)] == [True, False, True]
    path.write_text('{"songs": [3')
    assert finished(path, keys, frames=True) == {}


def test_a_result_without_frames_does_not_stand_for_one_with_them(tmp_path: Path) -> None:
    pairs, settings = songs(tmp_path, 1), scoring("cws")
    bare = document(settings, [{"key": "k"} | score_song(pairs[0], settings)], {}, data=[], complete=True, frames=False)
    path = tmp_path / "out.json"
    path.write_text(to_json(bare))
    assert list(finished(path, ["k"], frames=False)) == ["k"]
    assert finished(path, ["k"], frames=True) == {}


# Comparison and plots


def test_compared_songs_are_paired_by_name_and_their_differences_are_those_of_their_scores(tmp_path: Path) -> None:
    a, b = (result(songs(tmp_path, 3, gain), scoring("cws")) for gain in (0.9, 0.7))
    b["songs"].reverse()
    row = next(row for row in compared(a, b).rows if (row.source, row.metric) == ("vocals", "SDR"))
    first, second = ({s["name"]: s["sources"]["vocals"]["SDR"] for s in one["songs"]} for one in (a, b))
    differences = {name: first[name] - second[name] for name in first}
    assert row.per_song == differences
    assert row.difference == sorted(differences.values())[1]
    assert row.low <= row.difference <= row.high
    assert (row.songs, row.p) == (3, 0.25)  # three songs, all one way: 2 / 2^3
    assert row.p_holm == 1.0  # four rows: SDR and nSDR of two sources


def test_results_of_different_rules_are_not_compared(tmp_path: Path) -> None:
    a = result(songs(tmp_path, 1), scoring("cws"))
    with pytest.raises(UsageError, match="protocols cws and hdemucs"):
        compared(a, a | {"protocol": "hdemucs"})
    with pytest.raises(UsageError, match="silence = museval and score"):
        compared(a, a | {"settings": a["settings"] | {"silence": "score"}})


def test_box_plots_are_written_for_each_metric_as_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [result(songs(tmp_path, 3, gain), scoring("cws")) for gain in (0.9, 0.7)]
    results[1]["model"] = "another model"
    paths = box_plots(results, tmp_path / "plots")
    assert [path.name for path in paths] == ["sdr.svg", "sdr.png", "nsdr.svg", "nsdr.png"]
    assert paths[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    svg = paths[0].read_text()
    assert svg.count("<!-- another model -->") == 1
    assert "<!-- accompaniment -->" in svg


def test_without_matplotlib_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        box_plots([], tmp_path)
    assert str(caught.value) == "--plots needs matplotlib; pip install 'sepcli[plots]'"


def test_a_link_to_a_folder_above_is_not_entered_again(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a", {"vocals": white(1, 1, 50)[0]})
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    assert [one.name for one in find_sets([tmp_path / "data"])] == ["a"]


def test_a_mixture_that_is_not_the_sum_of_the_stems_is_taken_and_said(tmp_path: Path) -> None:
    a, b = white(2, 1, RATE).float()
    data = write(tmp_path / "a", {"vocals": a, "other": b, "mixture": a + 0.5 * b})
    entry = score_song(one(data.parent), scoring("cws", "mixture"))
    assert entry["notes"] == ["mixture and sum of the stems differ: -9 dB of the sum"]  # 0.25 of 2
    assert entry["sources"]["accompaniment"]["SDR"] == pytest.approx(-10 * math.log10(1.25), abs=0.05)


def test_framing_and_ridge_stand_in_the_rule_where_filters_are_made() -> None:
    assert scoring("cws").rule.endswith("mean over frames, median over songs")
    filters = scoring("cws", metrics=ALL, framing="continuous", ridge=1e-12)
    assert filters.rule.endswith("median over songs; continuous framing, ridge 1e-12")
    assert filters.document()["ridge"] == 1e-12
