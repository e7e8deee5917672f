"""The catalog is found from a wheel, from a source distribution and from a checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROBE = "import sepcli.weights.catalog as c; print(c.__file__); print(c.find('hdemucs').name)"


def build(kind: str, folder: Path) -> Path:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def ask(folder: Path, somewhere: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=somewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_wheel_carries_the_catalog_and_no_tests(tmp_path: Path) -> None:
    wheel = build("wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "sepcli/weights.toml" in names
    assert "sepcli/dsp/pqmf.json" in names
    assert not [name for name in names if name.startswith("tests")]
    place, found = ask(tmp_path / "site", tmp_path)
    assert Path(place).is_relative_to(tmp_path / "site")
    assert found == "hdemucs_mmi"
    assert {"sepcli/mini.safetensors", "sepcli/mini.md"} <= {*names}, "the bundled network and its card"
    assert wheel.stat().st_size < 5_000_000


def test_a_source_distribution_carries_what_it_needs(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (folder,) = (tmp_path / "source").iterdir()
    for name in ("weights.toml", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"):
        assert (folder / name).is_file(), name
    place, found = ask(folder, tmp_path)
    assert Path(place).is_relative_to(folder)
    assert found == "hdemucs_mmi"


def test_a_checkout_finds_the_catalog_beside_the_package(tmp_path: Path) -> None:
    _, found = ask(ROOT, tmp_path)
    assert found == "hdemucs_mmi"
