"""The one published checkpoint that lies at hand, on real songs, through the whole command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepcli.metrics.sdr import nsdr
from tests.cli.conftest import Answer

pytestmark = pytest.mark.shared

FILE = "weights/cws_mdensenet_k8_model155700.pth"
SONG = "audio/songs/bristol7s-political-captain"


def mixture(shared: Path, path: Path, seconds: float, gain: float = 1.0) -> dict[str, np.ndarray]:
    """Write the sum of the song's stems as floats; the stems by name."""
    frames = round(seconds * 44100)
    stems = {file.stem: soundfile.read(file, frames=frames)[0] for file in (shared / SONG).glob("*.ogg")}
    soundfile.write(path, (gain * sum(stems.values())).astype(np.float32), 44100, subtype="FLOAT")
    return stems


def separate(sepcli: Callable[..., Answer], name: str, *options: str) -> dict[str, torch.Tensor]:
    common = ["--model", "cws-mdensenet", "--bit-depth", "32f", "--clip", "none", "--existing", "overwrite"]
    done = sepcli(name, *common, *options)
    assert done.code == 0, done.err
    return {Path(line).stem: torch.from_numpy(soundfile.read(line)[0].T) for line in done.lines}


@pytest.fixture
def pulled(sepcli: Callable[..., Answer], shared: Path) -> Callable[..., Answer]:
    done = sepcli("models", "pull", "cws-mdensenet", "--from", shared / FILE)
    assert done.code == 0, done.err
    return sepcli


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


def test_pieces_of_any_length_equal_one_pass(pulled, shared: Path, tmp_path: Path) -> None:
    mixture(shared, tmp_path / "song.wav", 15)
    whole = separate(pulled, "song.wav", "--segment", "60")
    for segment in ("2", "7.3"):
        pieces = separate(pulled, "song.wav", "--segment", segment)
        for stem, expected in whole.items():
            assert decibels(pieces[stem], expected) > 100, segment


def test_a_quieter_copy_gives_the_same_stems_quieter(pulled, shared: Path, tmp_path: Path) -> None:
    mixture(shared, tmp_path / "song.wav", 8)
    loud = separate(pulled, "song.wav")
    for gain in (0.5, 0.1):
        mixture(shared, tmp_path / "quiet.wav", 8, gain)
        for stem, quiet in separate(pulled, "quiet.wav").items():
            assert decibels(quiet / gain, loud[stem]) > 80


def test_a_real_song_is_separated_better_than_not_at_all(pulled, shared: Path, tmp_path: Path) -> None:
    stems = mixture(shared, tmp_path / "song.wav", 20)
    estimates = separate(pulled, "song.wav")
    for name, truth in (("vocals", stems["vocals"]), ("accompaniment", stems["other"])):
        reference = torch.from_numpy(truth.T)
        score = float(nsdr(reference, estimates[name]))
        untreated = float(nsdr(reference, torch.from_numpy(sum(stems.values()).T)))
        assert score > untreated + 3, f"{name}: {score:.2f} dB, the mixture {untreated:.2f} dB"
