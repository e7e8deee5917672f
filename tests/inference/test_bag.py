"""Bags: members in step, weights, shifts; and the same figures as demucs' own apply_model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepcli import models
from sepcli.errors import ModelError, UsageError
from sepcli.inference.bag import Bag, Loudness, Member, delays, level, load_bag, with_shifts
from sepcli.models.separator import Estimate, Separator, Traits
from sepcli.weights import catalog, checkpoint
from sepcli.weights.seeded import fill
from sepcli.weights.votes import candidates
from tests import passthrough

CPU = torch.device("cpu")


class Coloured(Separator):
    """A network whose estimate depends on the place within a piece and on the whole piece."""

    def __init__(self, tone: float = 1.0, **traits: Any) -> None:
        super().__init__(**traits)
        self.tone = tone

    def forward(self, mixture: Tensor) -> Estimate:
        ramp = torch.linspace(0.5, 2.0, mixture.shape[-1]) * self.tone
        sources = [mixture * ramp, mixture.cumsum(-1) * 0.01, mixture - mixture.mean(-1, keepdim=True)]
        return Estimate(torch.stack(sources[: len(self.sources)], dim=1))


def network(tone: float = 1.0, segment: float = 1.0, **changes: Any) -> Coloured:
    traits = {"sources": ["a", "b", "c"], "channels": 2, "sample_rate": 1000, "segment": segment, "level": {}}
    return Coloured(tone, **{**traits, **changes}).eval()


def member(model: Separator, *weights: float, name: str = "m") -> Member:
    return Member(model, dict(zip(model.sources, weights or [1.0] * len(model.sources), strict=True)), name)


def song(length: int = 3210, seed: int = 0) -> Tensor:
    return torch.randn(2, length, generator=torch.Generator().manual_seed(seed))


def run(bag: Bag, sound: Tensor, loudness: Loudness | None = None) -> Tensor:
    return torch.cat(list(bag.run(sound.split(301, dim=-1), loudness)), dim=-1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_bag_is_the_weighted_mean_of_its_members() -> None:
    one, two = member(network(1.0), 3, 0, 1), member(network(2.0, segment=0.7), 1, 2, 1)
    alone = [run(Bag([m], "x", CPU), song()) for m in (one, two)]
    expected = torch.stack([(3 * alone[0][0] + alone[1][0]) / 4, alone[1][1], (alone[0][2] + alone[1][2]) / 2])
    assert relative(run(Bag([one, two], "x", CPU), song()), expected) < 1e-6


def test_members_may_order_their_sources_differently() -> None:
    one = member(network(1.0))
    two = Member(network(1.0, sources=["c", "a", "b"]), {"a": 0.0, "b": 0.0, "c": 1.0})
    # The second member's source c is its first output.
    expected = run(Bag([one], "x", CPU), song())
    expected[2] = (expected[2] + expected[0]) / 2
    assert relative(run(Bag([one, two], "x", CPU), song()), expected) < 1e-6


def test_a_member_with_some_of_the_sources_votes_for_these() -> None:
    four = member(network(1.0), 1, 1, 3)
    one = Member(network(2.0, sources=["c"], segment=0.4), {"c": 1.0}, "one")  # its c is the mixture under a ramp
    alone = [run(Bag([m], "x", CPU), song()) for m in (four, one)]
    expected = torch.stack([alone[0][0], alone[0][1], (3 * alone[0][2] + alone[1][0]) / 4])
    for members in ([four, one], [one, four]):
        bag = Bag(members, "x", CPU)
        assert bag.sources == ("a", "b", "c")
        assert relative(run(bag, song()), expected) < 1e-6
    some = run(Bag([one, four], "x", CPU, wanted=("c", "a")), song())
    assert relative(some, expected[[2, 0]]) < 1e-6


def test_only_the_wanted_sources_come_back_in_the_order_asked() -> None:
    whole = run(Bag([member(network())], "x", CPU), song())
    some = run(Bag([member(network())], "x", CPU, wanted=("c", "a")), song())
    assert torch.equal(some, whole[[2, 0]])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sources": ["a", "b", "d"]}, "sources"),
        ({"sources": ["d"]}, "sources"),
        ({"sample_rate": 2000}, "sample_rate"),
    ],
)
def test_members_that_do_not_agree_are_refused(change: dict[str, Any], word: str) -> None:
    other = network(**change)
    with pytest.raises(ModelError, match=word):
        Bag([member(network()), member(other, name="other")], "x", CPU)


def test_a_source_without_any_weight_is_refused() -> None:
    with pytest.raises(ModelError, match="no member of bag x has a weight for b"):
        run(Bag([member(network(), 1, 0, 1), member(network(), 1, 0, 1)], "x", CPU), song())


def test_shifts_come_from_the_seed_for_each_network() -> None:
    assert delays(3, 44100, 5, 0) == delays(3, 44100, 5, 0)
    assert delays(3, 44100, 5, 0) != delays(3, 44100, 5, 1)
    assert delays(3, 44100, 5, 0) != delays(3, 44100, 6, 0)
    assert all(0 <= delay <= 22050 for delay in delays(200, 44100, 0, 0))
    shifted = with_shifts([member(network()), member(network())], 3, 0)
    assert len(shifted) == 6
    assert len({m.delay for m in shifted}) == 6
    assert with_shifts(shifted, 0, 0) == shifted


def test_batches_change_nothing() -> None:
    sound = song(9000)
    one, many = (run(Bag([member(network(segment=0.5))], "x", CPU, batch_size=size), sound) for size in (1, 4))
    assert relative(many, one) < 1e-6


def test_the_members_wait_for_each_other() -> None:
    """A short member must not run ahead of a long one: blocks would pile up."""
    taken = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield torch.ones(2, 500)

    bag = Bag([member(network(segment=0.1)), member(network(segment=70.0))], "x", CPU)
    next(bag.run(blocks()))
    assert taken * 500 < 3 * 70_000


def test_level_rules_bring_and_undo_the_loudness() -> None:
    loud = Loudness(mean=0.1, deviation=0.25, peak=0.5)
    assert level({}, None) == (0.0, 1.0)
    assert level({"deviation": 1.0}, loud) == pytest.approx((0.1, 0.25))
    assert level({"peak": 0.8}, loud) == pytest.approx((0.0, 0.625))
    assert level({"peak": 0.8}, Loudness(0, 0, 0.0005)) == (0.0, 1.0)

    class Hearing(Coloured):
        def forward(self, mixture: Tensor) -> Estimate:
            self.heard = mixture
            return Estimate(torch.stack([mixture] * 3, dim=1))

    model = Hearing(sources=["a", "b", "c"], channels=2, sample_rate=1000, segment=9.0, level={"peak": 0.8})
    sound = song()
    loud = Loudness(0.0, 1.0, float(sound.max()))
    out = run(Bag([member(model)], "x", CPU), sound, loud)
    assert float(model.heard.max()) == pytest.approx(0.8, rel=1e-6)
    assert relative(out[0], sound) < 1e-6


def test_candidates_of_a_published_bag_have_its_weights_and_segment() -> None:
    found = {c.model: c for c in candidates("mdx")}
    assert len(found) == 4
    assert found["c511e2ab"].votes == {"drums": 1, "bass": 0, "other": 1, "vocals": 1}
    assert found["7ecf8ec1"].votes == {"drums": 0, "bass": 1, "other": 0, "vocals": 0}
    assert {c.segment or catalog.find(c.model).segment for c in found.values()} == {44}


def test_the_best_bag_takes_each_stem_from_one_member() -> None:
    assert all(catalog.find(c.model).commercial for c in candidates("best"))
    members = []
    for candidate in candidates("best"):
        entry = catalog.find(candidate.model)
        settings = {**entry.settings, **models.find(entry.architecture).tiny}
        small = models.build(entry.architecture, settings, {**traits_of(entry), "segment": 1.0})
        fill(small, seed=5)
        members.append(Member(small, candidate.votes, candidate.model))
    sound, loud = 0.1 * song(60_000), Loudness(0.0, 0.1, 0.4)
    bag = Bag(members, "best", CPU, overlap="normal")
    assert bag.sources == ("drums", "bass", "other", "vocals")
    large, voice = (run(Bag([m], "x", CPU, overlap="normal"), sound, loud) for m in members)
    assert relative(run(bag, sound, loud), torch.cat([large[:3], voice])) < 1e-6


def test_a_network_listed_twice_runs_once_with_both_weights(tmp_path: Path) -> None:
    (found,) = candidates("hdemucs_mmi,hdemucs")
    assert found.model == "hdemucs_mmi"
    assert set(found.votes.values()) == {2.0}


def test_weights_from_a_file_count_for_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find", passthrough.find)
    one = passthrough.save(tmp_path / "one.safetensors", {"a": 1.0, "b": 0.0})
    two = passthrough.save(tmp_path / "two.safetensors", {"a": 0.0, "b": 1.0})
    weights = tmp_path / "weights.toml"
    weights.write_text(f'["{one}"]\na = 3\nb = 1\n["{two}"]\na = 1\nb = 0\n')
    bag = load_bag(f"{one},{two}", device="cpu", weights=weights)
    sound = song(100)
    out = run(bag, sound)
    assert relative(out[0], 0.75 * sound) < 1e-6
    assert float(out[1].abs().max()) == 0
    only = load_bag(f"{one},{two}", device="cpu", weights=weights, stems=["b"])
    assert [m.name for m in only.members] == [str(one)]
    few = passthrough.save(tmp_path / "few.safetensors", {"b": 0.5})
    weights.write_text(f'["{one}"]\na = 1\nb = 1\n["{few}"]\nb = 3\n')
    mixed = load_bag(f"{few},{one}", device="cpu", weights=weights, stems=["a", "b"])
    out = run(mixed, sound)
    assert relative(out[0], sound) < 1e-6
    assert relative(out[1], 0.375 * sound) < 1e-6
    weights.write_text('["elsewhere"]\na = 3\n')
    with pytest.raises(UsageError, match="elsewhere is not among the models"):
        load_bag(f"{one},{two}", weights=weights)
    weights.write_text(f'["{one}"]\na = 1\n')
    with pytest.raises(UsageError, match=f"--bag-weights {weights}: no model has a weight for b"):
        load_bag(str(one), weights=weights)
    weights.write_text(f'["{one}"]\na = 3\nc = 1\n')
    with pytest.raises(UsageError, match=rf"--bag-weights {weights}: {one} has no stem 'c'; it has a, b"):
        load_bag(f"{one},{two}", weights=weights)
    weights.write_text(f'["{one}"]\na = -1\n')
    with pytest.raises(UsageError, match="none below 0"):
        load_bag(f"{one},{two}", weights=weights)


def test_where_sources_are_independent_only_the_wanted_ones_are_built(tmp_path: Path) -> None:
    entry = catalog.find("cws-mdensenet")
    network = models.build(entry.architecture, entry.settings, traits_of(entry))
    fill(network, seed=3)
    path = tmp_path / "two.safetensors"
    checkpoint.save(path, network.state_dict(), {"name": "two", **catalog.as_table(entry)}, {})
    said: list[str] = []
    whole = load_bag(str(path), notice=said.append)
    part = load_bag(str(path), stems=["accompaniment"], overlap="best", notice=said.append)
    assert said == [f"{path}: --overlap and --quality have no effect, its pieces equal one pass as they are"]
    assert list(part.members[0].separator.networks) == ["accompaniment"]
    sound = 0.1 * song(9000)
    loud = Loudness(0.0, 1.0, 0.8)
    index = whole.sources.index("accompaniment")
    assert relative(run(part, sound, loud)[0], run(whole, sound, loud)[index]) < 1e-6


def traits_of(entry: catalog.Entry) -> Traits:
    return {
        "sources": entry.sources,
        "channels": entry.channels,
        "sample_rate": entry.sample_rate,
        "segment": entry.segment,
        "level": entry.level,
    }


class Theirs(nn.Module):
    """One of our networks as demucs' apply_model wants it."""

    def __init__(self, model: Coloured) -> None:
        super().__init__()
        self.model = model
        self.anchor = nn.Parameter(torch.zeros(1))
        self.sources, self.samplerate = list(model.sources), model.sample_rate
        self.audio_channels, self.segment = model.channels, model.segment

    def forward(self, mixture: Tensor) -> Tensor:
        return self.model(mixture).waveforms


@pytest.mark.reference
@pytest.mark.parametrize("length", [1, 700, 3210])
@pytest.mark.parametrize("shifts", [0, 1, 3])
def test_a_bag_with_shifts_is_that_of_demucs(length: int, shifts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = pytest.importorskip("demucs.apply")
    networks = [network(1.0), network(1.7)]
    weights = [[1.0, 0.0, 2.0], [1.0, 1.0, 0.5]]
    members = with_shifts([member(n, *w) for n, w in zip(networks, weights, strict=True)], shifts, seed=4)
    draws = iter([500 - m.delay for m in members])  # their offset into half a second of zeros
    monkeypatch.setattr(apply.random, "randint", lambda low, high: next(draws))
    theirs = apply.BagOfModels([Theirs(n) for n in networks], weights, segment=1.0)
    sound = song(length)
    expected = apply.apply_model(theirs, sound[None], shifts=shifts, overlap=0.25)[0]
    found = run(Bag(members, "x", CPU), sound)
    assert relative(found, expected) < 1e-6
