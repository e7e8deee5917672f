"""`sepcli models`, and models that cannot be had: one line, exit code 3."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sepcli.weights import fetch, parity
from sepcli.weights.catalog import catalog
from sepcli.weights.own import toml
from tests import passthrough

QUICK = fetch.Patience(timeout=2, attempts=2, pause=0.01)


@pytest.fixture
def server(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """server("404", sha256): a catalogue with the model `far`, whose file a server answers like that."""
    monkeypatch.setitem(fetch.fetch.__kwdefaults__, "patience", QUICK)
    content = weights.read_bytes()
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        word = ""

        def do_GET(self) -> None:
            if self.word.isdecimal():
                self.send_error(int(self.word))
            elif self.word == "hang":
                stop.wait(5)
            else:
                body = b"<!DOCTYPE html><p>log in" if self.word == "page" else content
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if self.word == "cut" else body)

        def log_message(self, *_: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()

    def answer(word: str, digest: str = "") -> None:
        Handler.word = word
        cache = weights.parents[1] / "cache"
        cache.mkdir(exist_ok=True)
        address = f"http://127.0.0.1:{serving.server_port}/far.safetensors"
        digest = digest or hashlib.sha256(content).hexdigest()
        facts = 'architecture = "passthrough.PassThrough"\nsample_rate = 44100\nchannels = 2\nsegment = 1.0\n'
        stems = 'sources = ["drums", "bass", "other", "vocals"]\nlicence = "for tests only"\n'
        (cache / "weights.toml").write_text(
            f'[far]\n{facts}{stems}files = [{{ url = "{address}", sha256 = "{digest}" }}]\n'
        )

    yield answer
    stop.set()
    serving.shutdown()
    serving.server_close()


@pytest.mark.parametrize(
    ("word", "digest", "words"),
    [
        ("404", "", "404 Not Found"),
        ("500", "", "500 Internal Server Error"),
        ("page", "", "sent a web page in place of the file"),
        ("hang", "", "timed out"),
        ("cut", "", "cut off after"),
        ("whole", "0" * 64, "wrong digest"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing_whole(
    word: str, digest: str, words: str, server, sepcli, song, tmp_path: Path
) -> None:
    server(word, digest)
    done = sepcli("--model", "far", song("a.wav"))
    errors = [line for line in done.err.splitlines() if line.startswith("sepcli: error: ")]
    assert (done.code, len(errors)) == (3, 1), done.err
    assert words in errors[0]
    assert "models pull far" in errors[0]
    assert not (tmp_path / "separated").exists()
    assert not list((tmp_path / "cache").rglob("*-far.safetensors"))
    print(done.code, word, errors[0])


def test_the_licence_is_said_before_a_download_and_stands_beside_the_stems(server, sepcli, song, tmp_path) -> None:
    server("whole")
    done = sepcli("--model", "far", song("a.wav"))
    assert done.code == 0, done.err
    assert done.err.count("\n") == 1
    assert "licence: for tests only" in done.err
    record = json.loads((tmp_path / "separated/far/a/stems.json").read_text())["sets"][0]
    assert record["weights"][0]["licence"] == "for tests only"
    assert sepcli("--model", "far", song("b.wav")).err == "", "what is here is not said again"


def test_commercial_use_is_refused_where_the_terms_do_not_allow_it(server, sepcli, song, tmp_path: Path) -> None:
    server("whole")
    for model in ("far", "hdemucs", tmp_path / "weights/pass.safetensors"):
        done = sepcli("--model", model, "--licence", "commercial", song("a.wav"))
        assert (done.code, done.err.count("\n")) == (3, 1)
        assert "--licence commercial refuses it" in done.err
    free = passthrough.save(tmp_path / "free.safetensors", commercial=True)
    assert sepcli("--model", free, "--licence", "commercial", song("a.wav")).code == 0


def test_offline_with_a_cold_cache_says_how_to_bring_the_model(sepcli, song, tmp_path: Path) -> None:
    done = sepcli("--model", "hdemucs", "--offline", song("a.wav"))
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "sepcli models pull hdemucs_mmi" in done.err
    assert not (tmp_path / "separated").exists()


def test_a_file_of_another_architecture_is_refused(sepcli, song, tmp_path: Path) -> None:
    import torch

    torch.save({"some.weight": torch.ones(3)}, tmp_path / "foreign.th")
    for more in ([], ["--architecture", "hdemucs"]):
        done = sepcli("--model", tmp_path / "foreign.th", *more, song("a.wav"))
        assert (done.code, done.err.count("\n")) == (3, 1)
        assert "foreign.th" in done.err
        assert "fit" in done.err


def test_a_file_gets_a_name_of_its_own_and_loses_it_again(sepcli, song, weights: Path, tmp_path: Path) -> None:
    assert sepcli("models", "add", weights, "--name", "mine").code == 0
    assert sepcli("--model", "mine", song("a.wav")).code == 0
    assert (tmp_path / "separated/mine/a/drums.wav").exists()
    listed = json.loads(sepcli("models", "list", "--json").out)["models"]
    (mine,) = [entry for entry in listed if entry["name"] == "mine"]
    assert mine["files"][0]["url"] == str(weights)
    assert sepcli("models", "verify", "mine").code == 0
    again = sepcli("models", "add", weights, "--name", "mine")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert sepcli("models", "add", weights, "--name", "hdemucs").code == 2
    assert sepcli("models", "add", weights, "--name", "../x").code == 2
    assert sepcli("models", "remove", "mine").code == 0
    assert weights.exists()
    assert sepcli("--model", "mine", song("a.wav")).code == 3


def test_a_name_is_not_given_to_a_file_that_says_nothing_of_its_network(sepcli, tmp_path: Path) -> None:
    (tmp_path / "x.th").write_bytes(b"nothing")
    done = sepcli("models", "add", tmp_path / "x.th", "--name", "x")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "does not say what network it is for" in done.err


def test_what_is_written_as_toml_reads_back() -> None:
    import tomllib

    value = {"a": [1, 2.5, True, '\x00\x7f"\\é\n'], "b c": {"d": float("inf"), "e": []}, "f": 1e-8}
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


@pytest.mark.parametrize("architecture", sorted(parity.stored()))
def test_an_architecture_gives_the_numbers_that_are_stored(architecture: str) -> None:
    difference = parity.difference(parity.first_entries()[architecture])
    assert difference is not None
    assert difference < parity.BOUND


def test_every_architecture_has_stored_numbers() -> None:
    known = {entry.architecture for entry in catalog().values() if not entry.bag}
    hint = "python -m sepcli.weights.parity > numbers.json && mv numbers.json sepcli/weights/parity.json"
    assert known == set(parity.stored()), hint


def test_a_network_that_computes_something_else_is_found(sepcli, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = parity.stored()
    wrong["umx.OpenUnmix"]["samples"][3] += 0.01 * wrong["umx.OpenUnmix"]["rms"]
    monkeypatch.setattr(parity, "stored", lambda: wrong)
    done = sepcli("models", "verify", "umxhq")
    assert done.code == 3
    assert "umx.OpenUnmix: numbers differ by 1.0e-02 of their rms" in done.err


def test_a_folder_brings_all_files_of_a_model_and_what_it_lacks_is_named(sepcli, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    files = []
    for source in ("vocals", "drums"):
        (folder / f"{source}.pth").write_bytes(source.encode())
        digest = hashlib.sha256(source.encode()).hexdigest()
        files.append(f'{{ url = "https://example.org/{source}.pth", sha256 = "{digest}" }}')
    cache = weights.parents[1] / "cache"
    cache.mkdir(exist_ok=True)
    facts = 'architecture = "umx.OpenUnmix"\nsources = ["vocals", "drums"]\nsample_rate = 44100\nsegment = 1.0\n'
    (cache / "weights.toml").write_text(f"[two]\n{facts}files = [{', '.join(files)}]\n")
    done = sepcli("models", "pull", "two", "--from", folder)
    assert done.code == 0, done.err
    assert [Path(line).read_bytes() for line in done.out.splitlines()] == [b"vocals", b"drums"]
    (folder / "drums.pth").unlink()
    done = sepcli("models", "pull", "two", "--from", folder)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "lacks drums.pth; two has vocals.pth, drums.pth" in done.err
    done = sepcli("models", "pull", "two", "--from", folder / "vocals.pth")
    assert done.code == 2
    assert "is one file, two has 2" in done.err
