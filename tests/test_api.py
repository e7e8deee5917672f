"""The Python face: what it gives, and what importing it costs."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import sepcli
from sepcli import models
from sepcli.errors import AudioError, ModelError, UsageError
from tests import passthrough


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "find", passthrough.find)
    return passthrough.save(tmp_path / "pass.safetensors")


@pytest.fixture
def song(tmp_path: Path, noise) -> Path:
    soundfile.write(tmp_path / "song.wav", noise(100_000), 48_000, subtype="FLOAT")
    return tmp_path / "song.wav"


def test_importing_it_loads_nothing_heavy() -> None:
    probe = "import sys, sepcli; print([n for n in ('torch', 'numpy', 'soundfile', 'typer') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_a_mixture_becomes_stems_of_its_kind_rate_and_shape(kind, weights: Path, noise) -> None:
    mixture = np.ascontiguousarray(noise(70_001).T)
    told: list[tuple[float, float | None]] = []
    separator = sepcli.load(str(weights), device="cpu")
    stems = separator.separate(kind(mixture), 48_000, progress=lambda done, total: told.append((done, total)))
    assert list(stems) == ["drums", "bass", "other", "vocals"]
    assert all(type(stem) is type(kind(mixture)) and stem.shape == (2, 70_001) for stem in stems.values())
    total = sum(np.asarray(stem) for stem in stems.values())
    assert np.abs(total - mixture).max() < 1e-6
    assert told[-1][0] == pytest.approx(70_001 / 48_000, rel=0.01)


def test_a_file_becomes_stems_on_disk_and_is_skipped_when_they_are_there(weights, song, tmp_path: Path) -> None:
    told: list[float] = []
    first = sepcli.separate_file(
        song, tmp_path / "out", model=str(weights), two_stems="vocals", progress=lambda done, _: told.append(done)
    )
    assert first.status == "done"
    assert list(first.stems) == ["vocals", "no_vocals"]
    assert all(Path(path).exists() for path in first.stems.values())
    assert told
    again = sepcli.separate_file(str(song), str(tmp_path / "out"), model=str(weights), two_stems="vocals")
    assert (again.status, again.stems) == ("skipped", first.stems)


def test_a_loaded_separator_is_used_as_it_was_loaded(weights, song, tmp_path: Path) -> None:
    loaded = [sepcli.load(str(weights), device="cpu", shifts=shifts) for shifts in (0, 2)]
    records = [sepcli.separate_file(song, tmp_path / "out", model=bag) for bag in loaded]
    assert [record.status for record in records] == ["done", "done"], "other shifts are another set"
    assert sepcli.separate_file(song, tmp_path / "out", model=str(weights)).status == "done"
    only = sepcli.load(str(weights), device="cpu", stems=["bass"])
    assert list(sepcli.separate_file(song, tmp_path / "two", model=only).stems) == ["bass"]


def test_a_separator_of_some_stems_cannot_say_what_the_others_are(weights, song, tmp_path: Path) -> None:
    some = sepcli.load(str(weights), stems=["bass", "drums"], device="cpu")
    with pytest.raises(UsageError, match="loaded with bass, drums alone"):
        sepcli.separate_file(song, tmp_path / "out", model=some, two_stems="bass")


def test_tensors_of_half_precision_stay_so_and_rates_are_whole_numbers(weights: Path) -> None:
    loaded = sepcli.load(str(weights), device="cpu")
    mixture = torch.linspace(-0.5, 0.5, 8000).reshape(2, -1)
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        stems = loaded.separate(mixture.to(kind), 44100.0)
        assert {stem.dtype for stem in stems.values()} == {kind}
    for rate in (44100.5, 0, float("nan")):
        with pytest.raises(UsageError, match="sample_rate = "):
            loaded.separate(mixture, rate)
    with pytest.raises(UsageError, match="must be floats"):
        loaded.separate(mixture.long(), 44100)


def test_a_run_with_a_dot_in_its_name_has_a_folder_of_its_own(song, tmp_path: Path, weights: Path) -> None:
    for name in ("lr0.1", "lr0.2"):
        (tmp_path / name).mkdir()
        shutil.copy(weights, tmp_path / name / "best.safetensors")
        record = sepcli.separate_file(song, tmp_path / "out", model=str(tmp_path / name))
        assert record.status == "done"
        assert Path(record.stems["drums"]).parent.parent.name == name


def test_errors_are_those_of_the_command_line(weights, song, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        sepcli.separate_file(tmp_path / "missing.wav", tmp_path / "out", model=str(weights))
    with pytest.raises(UsageError, match="exclude each other"):
        sepcli.separate_file(song, tmp_path / "out", model=str(weights), stems=["bass"], two_stems="bass")
    with pytest.raises(ModelError, match="unknown model"):
        sepcli.load("hdemuks")
    separator = sepcli.load(str(weights))
    with pytest.raises(UsageError, match="floats"):
        separator.separate(np.zeros((2, 100), np.int16), 44_100)
    with pytest.raises(AudioError, match="not finite"):
        separator.separate(np.full((2, 100), np.nan, np.float32), 44_100)
