"""A file of the public trainer through the command line: with the yaml beside it, named, or in one line refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.models.test_roformer import ALONE, ours, write, yaml


@pytest.fixture(autouse=True)
def noise(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    soundfile.write(tmp_path / "song.wav", draw.uniform(-0.3, 0.3, (30_000, 2)), 44100, subtype="FLOAT")


def test_a_single_target_gives_two_stems_that_sum_to_the_song(sepcli, tmp_path: Path) -> None:
    weights = write(tmp_path, ours("vocals", hop=512), x=yaml(ALONE, heads=1))
    done = sepcli("song.wav", "--model", weights, "--segment", "0.5", "--bit-depth", "32f", "--clip", "none")
    assert done.code == 0, done.err
    stems = {Path(line).stem: soundfile.read(line, dtype="float64")[0] for line in done.lines}
    assert stems.keys() == {"vocals", "no_vocals"}
    assert np.abs(stems["vocals"]).max() > 1e-3
    mixture = soundfile.read(tmp_path / "song.wav", dtype="float64")[0]
    assert np.abs(stems["vocals"] + stems["no_vocals"] - mixture).max() < 1e-6


def test_what_cannot_be_is_one_line_and_nothing_is_left(sepcli, tmp_path: Path) -> None:
    weights = write(tmp_path, ours("vocals", hop=512), x="model: {a: !!python/object/apply:os.system [ls]}")
    for options, words, code in [
        ([], "has the tag python/object/apply:os.system; only tuples are known beside plain data", 3),
        (["--architecture", "none.yaml"], "none.yaml: cannot be read as yaml", 3),
        (["--architecture", "htdemucs"], "does not fit htdemucs.HTDemucs: missing", 3),
    ]:
        done = sepcli("song.wav", "--model", weights, *options)
        assert done.code == code, done.err
        assert words in done.err
        assert len(done.err.strip().splitlines()) == 1, done.err
    assert not (tmp_path / "separated").exists()
