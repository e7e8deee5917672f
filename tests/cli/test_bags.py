"""Bags across families, whose members share some sources only, through the command line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import passthrough

TERMS = {"four": "weights: MIT", "voice": "weights: MIT, of a model card"}


@pytest.fixture
def both(weights: Path, tmp_path: Path) -> Path:
    """A catalogue with `four`, `voice` (vocals only) and the bag `both` of them."""
    shares = {"four": passthrough.SHARES, "voice": {"vocals": 0.5}}
    tables = ['[both]\nbag = [{ model = "four", weights = [1, 1, 1, 1] }, { model = "voice", weights = [3] }]\n']
    for name, of in shares.items():
        path = passthrough.save(tmp_path / f"{name}.safetensors", of)
        facts = 'architecture = "passthrough.PassThrough"\nsample_rate = 44100\nchannels = 2\nsegment = 1.0\n'
        file = f'files = [{{ url = "{path}", sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}" }}]\n'
        terms = f'licence = "{TERMS[name]}"\ncommercial = {str(name == "four").lower()}\n'
        tables.append(f"[{name}]\n{facts}sources = {json.dumps([*of])}\n{terms}{file}")
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    (cache / "weights.toml").write_text("\n".join(tables))
    return cache


@pytest.mark.parametrize("model", ["both", "four,voice", "voice,four"])
def test_a_member_with_one_target_votes_for_it_alone(both, model: str, sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", subtype="FLOAT")
    weights = tmp_path / "bag.toml"
    weights.write_text("[four]\ndrums = 1\nbass = 1\nother = 1\nvocals = 1\n[voice]\nvocals = 3\n")
    done = sepcli(path, "--model", model, *([] if model == "both" else ["--bag-weights", weights]))
    assert [Path(line).stem for line in done.lines] == ["drums", "bass", "other", "vocals"], done.err
    mixture, _ = soundfile.read(path)
    stems = {Path(line).stem: soundfile.read(tmp_path / line)[0] for line in done.lines}
    assert np.abs(stems["drums"] - 0.5 * mixture).max() < 1e-6
    assert np.abs(stems["vocals"] - (0.125 + 3 * 0.5) / 4 * mixture).max() < 1e-6
    records = json.loads((tmp_path / done.lines[0]).with_name("stems.json").read_text())["sets"][0]["weights"]
    assert {record["model"]: record["licence"] for record in records} == TERMS


def test_members_without_a_say_are_not_loaded(both, sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", subtype="FLOAT")
    (tmp_path / "voice.safetensors").unlink()
    assert sepcli(path, "--model", "both", "--stems", "drums,bass").code == 0
    missing = sepcli(path, "--model", "both", "--stems", "vocals")
    assert (missing.code, "voice.safetensors" in missing.err) == (3, True)
    (tmp_path / "four.safetensors").unlink()
    assert sepcli(path, "--model", "both", "--stems", "drums", "--out", "again").code == 3


def test_some_stems_of_a_bag_are_those_of_all(both, sepcli, song, tmp_path: Path) -> None:
    path = song("a.wav", subtype="FLOAT")
    whole, some = (
        sepcli(path, "--model", "both"),
        sepcli(path, "--model", "both", "--stems", "vocals,drums", "--out", "o"),
    )
    assert [Path(line).stem for line in some.lines] == ["vocals", "drums"]
    for line in some.lines:
        full = next(one for one in whole.lines if Path(one).stem == Path(line).stem)
        assert np.array_equal(soundfile.read(tmp_path / line)[0], soundfile.read(tmp_path / full)[0])
    two = sepcli(path, "--model", "both", "--two-stems", "vocals", "--dry-run", "--json")
    assert list(json.loads(two.out)["stems"]) == ["vocals", "no_vocals"]
    unknown = sepcli(path, "--model", "both", "--stems", "piano")
    assert (unknown.code, "both has no stem 'piano'" in unknown.err) == (2, True)


def test_a_bag_is_commercial_if_every_member_is(both, sepcli, song) -> None:
    shown = json.loads(sepcli("models", "show", "both", "--json").out)
    assert (shown["commercial"], shown["licence"]) == (False, "; ".join(TERMS.values()))
    refused = sepcli(song("a.wav"), "--model", "both", "--licence", "commercial")
    assert (refused.code, "voice: weights: MIT, of a model card" in refused.err) == (3, True)
    assert sepcli(song("a.wav"), "--model", "four", "--licence", "commercial").code == 0


@pytest.mark.parametrize(
    ("model", "table", "words"),
    [
        ("four,voice", "[voice]\nvocal = 1.0\n", "bag.toml: voice has no stem 'vocal'; did you mean vocals?"),
        ("both", "[both]\ndrumz = 2\nvocals = 1\n", "bag.toml: both has no stem 'drumz'; did you mean drums?"),
        ("four,voice", "[four]\nvocals = 1\n", "bag.toml: no model has a weight for drums, bass, other"),
        ("four", "[four]\nvocals = 1\n", "bag.toml: no model has a weight for drums, bass, other"),
    ],
)
def test_weights_for_other_sources_than_the_models_have_are_refused(both, model, table, words, sepcli, song, tmp_path):
    (tmp_path / "bag.toml").write_text(table)
    done = sepcli(song("a.wav"), "--model", model, "--bag-weights", "bag.toml")
    assert (done.code, words in done.err, done.err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "separated").exists()


def test_stems_without_a_weight_may_be_left_out(both, sepcli, song, tmp_path: Path) -> None:
    (tmp_path / "bag.toml").write_text("[four]\nvocals = 1\n")
    done = sepcli(song("a.wav"), "--model", "four", "--bag-weights", "bag.toml", "--stems", "vocals")
    assert [Path(line).stem for line in done.lines] == ["vocals"], done.err
