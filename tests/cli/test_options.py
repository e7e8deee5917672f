"""Options that reach into a network."""

from pathlib import Path

import pytest

from sepcli import models
from sepcli.cli import run
from sepcli.models.separator import Traits
from sepcli.weights import checkpoint
from sepcli.weights.catalog import as_table, find
from sepcli.weights.seeded import fill


@pytest.fixture
def unmix(tmp_path: Path, weights: Path) -> Path:
    """A checkpoint of a tiny Open-Unmix."""
    from dataclasses import replace

    entry = find("umx")
    tiny = {**models.find(entry.architecture).tiny}
    entry = replace(entry, settings={**entry.settings, **tiny}, segment=1.0, parameters=0)
    traits: Traits = {
        "sources": entry.sources,
        "channels": 2,
        "sample_rate": 44100,
        "segment": 1.0,
        "level": {},
    }
    network = models.build(entry.architecture, entry.settings, traits)
    fill(network, seed=1)
    path = tmp_path / "unmix.safetensors"
    checkpoint.save(path, network.state_dict(), {"name": "unmix", **as_table(entry)}, {})
    return path


def test_wiener_iterations_change_the_stems_and_are_part_of_what_made_them(sepcli, song, unmix: Path) -> None:
    import soundfile

    path = song("a.wav")
    found = {}
    for count in ("0", "1"):
        done = sepcli(path, "--model", unmix, "--wiener-iterations", count)
        assert done.code == 0, done.err
        found[count] = soundfile.read(done.lines[0])[0]
    assert abs(found["0"] - found["1"]).max() > 1e-3
    again = sepcli(path, "--model", unmix, "--wiener-iterations", "1", "--json")
    assert '"skipped"' in again.out


@pytest.mark.parametrize("command", [[], ["models"]], ids=["sepcli", "sepcli models"])
def test_where_nothing_is_asked_the_help_is_shown_line_by_line(command: list[str], capfd) -> None:
    assert run(command) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"Usage: sepcli{''.join(f' {word}' for word in command)} [OPTIONS] COMMAND")
    assert len(err.splitlines()) > 5


def test_offline_nothing_is_read_or_written_at_an_address(sepcli, song) -> None:
    path = song("a.wav", seconds=0.1)
    for words in (["s3://bucket/a.wav"], [path, "https://host/b.wav"], [path, "--out", "s3://bucket/stems"]):
        done = sepcli(*words, "--offline")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "lies on the network" in done.err
    assert sepcli(f"file://{path}", "--offline").code == 0


def test_a_network_without_that_filter_refuses_the_option(sepcli, song) -> None:
    done = sepcli(song("a.wav"), "--wiener-iterations", "1")
    assert done.code == 2
    assert "'wiener_iterations' is not a setting of PassThrough" in done.err


def test_a_model_without_published_weights_names_one_that_has_them_at_once(sepcli, song) -> None:
    done = sepcli(song("a.wav"), "--model", "cde-htcn")
    assert done.code == 3
    assert "use scnet, or train it with `sepcli train --model cde-htcn`" in done.err


@pytest.mark.parametrize(
    ("model", "architecture", "words"),
    [
        ("mini", "nonsense", "--architecture nonsense: unknown model 'nonsense'"),
        ("weights/pass.safetensors", "hdemuks", "--architecture hdemuks: unknown model 'hdemuks'; did you mean"),
        ("mini", "hdemucs", "--architecture hdemucs: has no effect on mini"),
    ],
)
def test_an_architecture_that_says_nothing_is_refused(model: str, architecture: str, words: str, sepcli, song) -> None:
    done = sepcli(song("a.wav"), "--model", model, "--architecture", architecture)
    assert (done.code, words in done.err, done.err.count("\n")) == (2, True, 1), done.err
