"""Pieces, estimates and overlap-add against one pass, against a plain loop, and against demucs."""

import itertools

import pytest
import torch
from torch import Tensor

from sepcli.errors import UsageError
from sepcli.inference.stream import Cut, cut_for, drop, estimates, overlap_add, pieces, reblock, tenth, triangle
from sepcli.models.separator import Estimate, Separator
from tests.models import public_code

TRAITS = {"sources": ["a", "b"], "channels": 2, "sample_rate": 1000, "level": {}}


class Filter(Separator):
    """A network with a finite context: two smoothings and a threshold on a grid of 16 samples."""

    context = 40
    grid = 16

    def forward(self, mixture: Tensor) -> Estimate:
        kernel = torch.linspace(0.1, 1.0, 41).expand(2, 1, 41) / 20
        smooth = torch.nn.functional.conv1d(mixture, kernel, padding=20, groups=2)
        again = torch.nn.functional.conv1d(smooth.tanh(), kernel, padding=20, groups=2)
        phase = (torch.arange(mixture.shape[-1]) % 16 < 8).float()  # what a strided network does: it knows the grid
        return Estimate(torch.stack([again * phase, mixture - again], dim=1))


def song(length: int, seed: int = 0) -> Tensor:
    return torch.randn(2, length, generator=torch.Generator().manual_seed(seed))


def blocks(sound: Tensor, size: int) -> list[Tensor]:
    return list(sound.split(size, dim=-1))


def in_pieces(model: Separator, sound: Tensor, cut: Cut, size: int = 777, batch_size: int = 1) -> Tensor:
    parts = overlap_add(estimates(pieces(blocks(sound, size), cut), lambda x: model(x).waveforms, batch_size), cut)
    return torch.cat(list(parts), dim=-1)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 303, 304, 305, 608, 3 * 304 + 17, 65_537])
@pytest.mark.parametrize("size", [1, 777, 65_536])
def test_pieces_of_a_finite_context_equal_one_pass(length: int, size: int) -> None:
    if size == 1 and length > 1000:
        pytest.skip("blocks of one sample are tried on short songs")
    model = Filter(segment=0.3, **TRAITS).eval()
    sound = song(length)
    cut = cut_for(model)
    assert (cut.length, cut.stride, cut.edge) == (304, 304, "clipped")
    joined = in_pieces(model, sound, cut, size)
    torch.testing.assert_close(joined, model(sound[None]).waveforms[0], rtol=0, atol=1e-6)


def test_too_small_a_context_is_noticed_by_that_comparison() -> None:
    model = Filter(segment=0.3, **TRAITS).eval()
    sound = song(2000)
    small = Cut(304, 304, lambda _: (16, 16), torch.ones(304), "clipped")
    assert (in_pieces(model, sound, small) - model(sound[None]).waveforms[0]).abs().max() > 1e-3


def loop(model: Separator, sound: Tensor, cut: Cut) -> Tensor:
    """What the three generators do, written plainly over the whole song."""
    total, weights = torch.zeros(2, *sound.shape), torch.zeros(sound.shape[-1])
    for start in range(0, sound.shape[-1], cut.stride):
        length = min(cut.length, sound.shape[-1] - start)
        left, right = cut.margins(length)
        padded = torch.nn.functional.pad(sound, (left, right))
        window = padded[:, start : start + left + length + right]
        estimate = model(window[None]).waveforms[0][..., left : left + length]
        total[..., start : start + length] += cut.window[:length] * estimate
        weights[start : start + length] += cut.window[:length]
    return total / weights


@pytest.mark.parametrize("length", [1, 63, 64, 100, 101, 255, 1234])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_overlapping_pieces_equal_a_plain_loop_bit_for_bit(length: int, overlap: float, batch_size: int) -> None:
    model = Filter(segment=0.1, **TRAITS).eval()
    stride = max(1, int((1 - overlap) * 100))
    # Margins that grow as the piece shrinks, as those of Demucs may.
    cut = Cut(100, stride, lambda n: (130 - n, 128 - n + n % 7), triangle(100))
    sound = song(length)
    assert torch.equal(in_pieces(model, sound, cut, 37, batch_size), loop(model, sound, cut))


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_blocks_of_every_size_give_the_same_pieces(size: int) -> None:
    cut = Cut(100, 75, lambda n: (20, 20), triangle(100))
    sound = song(990)
    expected = list(pieces([sound], cut))
    found = list(pieces(blocks(sound, size), cut))
    assert [(p.start, p.left, p.length) for p in found] == [(p.start, p.left, p.length) for p in expected]
    assert all(torch.equal(one.samples, other.samples) for one, other in zip(found, expected, strict=True))


def test_no_samples_give_no_pieces() -> None:
    cut = Cut(100, 75, lambda n: (0, 0), triangle(100))
    assert list(pieces([], cut)) == []
    assert list(overlap_add([], cut)) == []


def test_the_first_piece_is_ready_before_the_song_is_read() -> None:
    taken = 0

    def endless() -> "itertools.chain[Tensor]":
        nonlocal taken
        while True:
            taken += 1
            yield torch.zeros(2, 50)

    cut = Cut(100, 75, lambda n: (10, 10), triangle(100))
    found = list(itertools.islice(pieces(endless(), cut), 20))
    assert [piece.start for piece in found] == [75 * k for k in range(20)]
    assert taken * 50 <= 19 * 75 + 100 + 10 + 1 + 50


def test_the_triangle_rises_to_one_and_is_never_zero() -> None:
    torch.testing.assert_close(triangle(5), torch.tensor([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]))
    torch.testing.assert_close(triangle(4), torch.tensor([0.5, 1.0, 1.0, 0.5]))
    assert triangle(1).tolist() == [1.0]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_impossible_overlap_is_refused(overlap: float) -> None:
    with pytest.raises(UsageError, match="--overlap"):
        cut_for(Filter(segment=0.1, **TRAITS), overlap)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_reblock_and_drop_keep_every_sample(size: int) -> None:
    sound = song(333)
    joined = list(reblock(blocks(sound, 50), size))
    assert all(part.shape[-1] == size for part in joined[:-1])
    assert torch.equal(torch.cat(joined, dim=-1), sound)
    assert torch.equal(torch.cat(list(drop(blocks(sound, 50), 123)), dim=-1), sound[:, 123:])


@pytest.mark.reference
@pytest.mark.parametrize("length", [1, 50, 901, 4000, 4001, 13_231])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
def test_pieces_and_joins_are_those_of_demucs(length: int, overlap: float) -> None:
    apply = pytest.importorskip("demucs.apply")

    class Gain(torch.nn.Module):
        """Tells positions within a chunk apart, so that a chunk at the wrong place is seen."""

        def __init__(self) -> None:
            super().__init__()
            self.sources, self.samplerate, self.audio_channels, self.segment = ["a", "b"], 1000, 2, 4.0
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, mixture: Tensor) -> Tensor:
            ramp = torch.linspace(0.5, 2.0, mixture.shape[-1])
            return torch.stack([mixture * ramp, mixture.cumsum(-1) * 0.01], dim=1)

    theirs = Gain()
    sound = song(length)
    expected = apply.apply_model(theirs, sound[None], shifts=0, overlap=overlap, segment=4.0)[0]

    class Ours(Separator):
        def forward(self, mixture: Tensor) -> Estimate:
            return Estimate(theirs(mixture))

    model = Ours(segment=4.0, **TRAITS)
    joined = in_pieces(model, sound, cut_for(model, overlap))
    assert (joined - expected).abs().max() == 0.0


class Whole(Separator):
    """A network of one fixed piece length, as the public trainer runs them; it tells places within a piece apart."""

    fade = "tenth"
    edge = "reflect"
    overlaps = {"fast": 0.1, "normal": 0.5, "best": 0.75}  # noqa: RUF012
    quality = {"cuda": "best"}  # noqa: RUF012

    def margins(self, length: int) -> tuple[int, int]:
        return 0, self.piece - length

    def forward(self, mixture: Tensor) -> Estimate:
        assert mixture.shape[-1] == self.piece
        ramp = torch.linspace(0.5, 2.0, self.piece)
        return Estimate(torch.stack([mixture * ramp, mixture.flip(-1).cumsum(-1) * 0.01 + mixture], dim=1))


class Identity(Whole):
    def forward(self, mixture: Tensor) -> Estimate:
        assert mixture.shape[-1] == self.piece
        return Estimate(torch.stack([mixture, -mixture], dim=1))


@pytest.mark.parametrize("quality", ["fast", "normal", "best"])
@pytest.mark.parametrize("segment", [0.1, 0.101])
def test_an_identity_comes_back_at_every_length_and_quality(quality: str, segment: float) -> None:
    model = Identity(segment=segment, **TRAITS)
    for length in [*range(1, 3 * model.piece, 7), model.piece, 2 * model.piece, 3 * model.piece]:
        sound = song(length)
        joined = in_pieces(model, sound, cut_for(model, quality), size=37)
        torch.testing.assert_close(joined, torch.stack([sound, -sound]), rtol=0, atol=1e-6)


def test_pieces_that_only_meet_have_no_hole_where_they_do() -> None:
    model, sound = Identity(segment=0.1, **TRAITS), song(1001)
    joined = in_pieces(model, sound, cut_for(model, 0.0))
    torch.testing.assert_close(joined[0], sound, rtol=0, atol=1e-6)


def test_the_window_of_a_tenth_rises_stays_and_falls() -> None:
    window = tenth(50)
    torch.testing.assert_close(window[:6], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0]), rtol=0, atol=1e-7)
    assert torch.equal(window, window.flip(0))
    assert bool((window[5:45] == 1).all() and (window > 0).all())
    assert tenth(3).tolist() == [1.0, 1.0, 1.0]


def test_a_quality_is_an_overlap_of_the_networks_own() -> None:
    trainers, demucs = Whole(segment=0.1, **TRAITS), Filter(segment=0.1, **TRAITS)
    demucs.context, demucs.grid = None, 1
    assert [cut_for(trainers, word).stride for word in ("fast", "normal", "best", None)] == [90, 50, 25, 50]
    assert [cut_for(demucs, word).stride for word in ("fast", "normal", "best", None)] == [90, 75, 50, 75]
    assert (cut_for(trainers, None, "cuda").stride, cut_for(demucs, None, "cuda").stride) == (25, 75)
    assert cut_for(trainers, 0.2, "cuda").stride == 80
    with pytest.raises(UsageError, match="--quality finest: is not one of fast, normal, best"):
        cut_for(trainers, "finest")


def test_a_mirrored_song_is_not_read_further_than_needed() -> None:
    taken = 0

    def endless() -> "itertools.chain[Tensor]":
        nonlocal taken
        while True:
            taken += 1
            yield torch.zeros(2, 10)

    found = list(itertools.islice(pieces(endless(), cut_for(Whole(segment=0.1, **TRAITS), 0.75)), 20))
    assert [piece.start for piece in found] == [25 * k - 75 for k in range(20)]
    assert taken * 10 <= 19 * 25 - 75 + 100 + 1 + 10


@pytest.mark.reference
@pytest.mark.parametrize("overlaps", [2, 4])
@pytest.mark.parametrize("segment", [0.1, 0.101])
def test_pieces_and_joins_are_those_of_the_public_trainer(overlaps: int, segment: float, monkeypatch) -> None:
    path = "Music-Source-Separation-Training/utils/model_utils.py"
    public = public_code.module(path, monkeypatch, ml_collections={"ConfigDict": dict}, muon={"Muon": None})
    model = Whole(segment=segment, **TRAITS)
    settings = {
        "training": {"instruments": ["a", "b"], "target_instrument": None, "use_amp": False},
        "inference": {"num_overlap": overlaps, "batch_size": 1},
        "audio": {"chunk_size": model.piece},
    }
    for length in [1, 2, 40, 50, 51, 52, 75, 99, 100, 101, 102, 149, 150, 151, 152, 153, 199, 200, 201, 777, 1234]:
        sound = song(length)
        expected = public.demix(
            public_code.Settings(settings), lambda x: model(x).waveforms, sound.numpy(), "cpu", "scnet"
        )
        joined = in_pieces(model, sound, cut_for(model, 1 - 1 / overlaps), size=777)
        found = torch.stack([torch.from_numpy(expected[name]) for name in ("a", "b")])
        # Of a short song the trainer loses the samples that it weighs with nothing; ours have their piece's estimate.
        lost = found.abs().amax((0, 1)) == 0
        assert int(lost.sum()) <= (1 if length <= 2 * cut_for(model, 1 - 1 / overlaps).border else 0)
        torch.testing.assert_close(joined[..., ~lost], found[..., ~lost], rtol=0, atol=1e-5)
