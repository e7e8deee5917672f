"""A first separation: the weights come over the network, cut off on the way, and are resumed."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sepcli import models
from sepcli.weights import catalog
from sepcli.weights.seeded import fill


class Hub(http.server.ThreadingHTTPServer):
    """Serves one file with ranges and an ETag; the first answer breaks off in the middle."""

    body = b""
    cuts = 1

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.ranges: list[str | None] = []


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.ranges.append(span)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        body = self.server.body
        self.send_response(206 if span else 200)
        self.send_header("ETag", '"seeded"')
        self.send_header("Content-Length", str(len(body) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            self.wfile.write(body[start : len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def published(hub: Hub, weights: Path, tmp_path: Path) -> str:
    """The name of a small HDemucs in the user's catalog, its file (published format, seeded weights) at the hub."""
    settings = {"width": 8, "depth": 5, "nfft": 1024}
    traits = {"sources": ["drums", "bass", "other", "vocals"], "channels": 2, "sample_rate": 44100}
    network = models.build("hdemucs.HDemucs", settings, {**traits, "segment": 1.0, "level": {"deviation": 1.0}})
    fill(network, seed=2)
    file = tmp_path / "seeded.th"
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, file)
    hub.body = file.read_bytes()
    file.unlink()
    lines = [
        "[seeded]",
        'architecture = "hdemucs.HDemucs"',
        'sources = ["drums", "bass", "other", "vocals"]',
        "sample_rate = 44100",
        "channels = 2",
        "segment = 1.0",
        "level = { deviation = 1.0 }",
        "settings = { width = 8, depth = 5, nfft = 1024 }",
        'licence = "for tests"',
        f'files = [{{ url = "http://127.0.0.1:{hub.server_port}/seeded.th", '
        f'sha256 = "{hashlib.sha256(hub.body).hexdigest()}" }}]',
    ]
    catalog.user_catalog().parent.mkdir(parents=True, exist_ok=True)
    catalog.user_catalog().write_text("\n".join(lines))
    return "seeded"


def test_a_cut_download_is_resumed_and_the_song_separated(sepcli, song, hub: Hub, published: str) -> None:
    done = sepcli(song("a.wav", seconds=1.5), "--model", published)
    assert done.code == 0, done.err
    assert len(done.lines) == 4
    assert hub.ranges == [None, f"bytes={len(hub.body) // 2}-"]
    assert "for tests" in done.err, "the licence is said before a download"
    again = sepcli(song("b.wav", seed=1), "--model", published, "--offline")
    assert again.code == 0, again.err
    assert len(hub.ranges) == 2, "what is in the cache is not asked for again"


def test_a_file_with_another_digest_is_refused_before_it_is_read(sepcli, song, hub: Hub, published: str) -> None:
    hub.body = hub.body[:-1] + bytes([hub.body[-1] ^ 1])
    done = sepcli(song("a.wav"), "--model", published)
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("sepcli: error: ")
    assert "sha256" in done.err or "digest" in done.err
    assert not list(catalog.cache_folder().rglob("*seeded.th"))


def test_offline_with_a_cold_cache_says_what_to_do(sepcli, song, hub: Hub, published: str) -> None:
    done = sepcli(song("a.wav"), "--model", published, "--offline")
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert "sepcli models pull seeded" in done.err
    assert hub.ranges == []
