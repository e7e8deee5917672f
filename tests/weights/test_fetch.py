"""Downloads against a server of our own on 127.0.0.1: what may go wrong on the way, and what must not be believed."""

import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sepcli.errors import ModelError
from sepcli.weights import fetch as fetching
from sepcli.weights.catalog import FileSpec
from sepcli.weights.fetch import Patience, adopt, cached, fetch, place, remove, verify

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(timeout=5, attempts=4, pause=0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the server's `script`: one word a request, the last one for all that follow."""

    server: "Server"

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        word = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        if word.isdecimal():
            self.send_error(int(word))
            return
        if word == "hang":
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the other side leaves
            return
        if word == "html":
            self.answer(200, b"<!DOCTYPE html><p>log in", {"Content-Type": "text/html; charset=utf-8"})
            return
        if word == "html-as-bytes":
            self.answer(200, b"<!DOCTYPE html><p>log in", {})
            return
        body = server.body
        start, status, headers = 0, 200, {"ETag": server.etag}
        span = self.headers.get("Range")
        if span and self.headers.get("If-Range", server.etag) == server.etag and word != "whole":
            start, status = int(span.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = len(body) // 2 if word == "cut" else len(body)
        self.answer(status, body[start:], headers, upto=max(0, cut - start))

    def do_HEAD(self) -> None:
        """What the Hugging Face hub says of a file before it is downloaded."""
        self.server.asked.append((self.path, "HEAD"))
        headers = {"X-Repo-Commit": "c" * 40, "ETag": self.server.etag}
        self.answer(200, self.server.body, headers, upto=0)

    def answer(self, status: int, body: bytes, headers: dict[str, str], upto: int | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:upto])
        self.wfile.flush()
        if upto is not None and upto < len(body):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.body, self.etag = ["ok"], BODY, '"one"'
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEPCLI_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "HF_HOME" / "hub"))
    for name in ("SEPCLI_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def get(spec: FileSpec, notices: list[str] | None = None, **options: object) -> Path:
    said = [] if notices is None else notices
    return fetch(spec, **({"offline": False, "notice": said.append, "patience": QUICK} | options))  # type: ignore[arg-type]


def debris() -> list[str]:
    folder = fetching.cache_folder() / "weights"
    return (
        sorted(p.name for p in folder.iterdir() if not p.name.endswith((".lock", ".sha256", ".seen")))
        if folder.exists()
        else []
    )


def test_a_file_is_downloaded_once_and_then_comes_from_the_cache(server: Server) -> None:
    spec, heard = FileSpec(f"{server.url}/a.th", DIGEST), []
    path = get(spec, progress=lambda done, total: heard.append((done, total)))
    assert path.read_bytes() == BODY
    assert heard[-1] == (len(BODY), len(BODY))
    assert get(spec) == path
    assert len(server.asked) == 1
    assert debris() == [path.name]


@pytest.mark.parametrize("digest", [DIGEST[:8], DIGEST.upper()])
def test_a_publishers_prefix_and_capital_letters_are_digests_too(server: Server, digest: str) -> None:
    assert get(FileSpec(f"{server.url}/a.th", digest)).read_bytes() == BODY


def test_a_cut_connection_is_resumed_where_it_broke(server: Server) -> None:
    server.script = ["cut", "ok"]
    assert get(FileSpec(f"{server.url}/a.th", DIGEST)).read_bytes() == BODY
    assert [span for _, span in server.asked] == [None, f"bytes={len(BODY) // 2}-"]


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server) -> None:
    server.script = ["cut"]
    spec = FileSpec(f"{server.url}/a.th", DIGEST)
    with pytest.raises(ModelError, match=f"cut off after {len(BODY) // 2} of {len(BODY)} bytes"):
        get(spec)
    server.script, server.asked = ["ok"], []
    assert get(spec).read_bytes() == BODY
    assert server.asked[0][1] == f"bytes={len(BODY) // 2}-"


def test_a_file_that_changed_between_two_parts_is_started_again(server: Server) -> None:
    server.script = ["cut"]
    spec = FileSpec(f"{server.url}/a.th")
    with pytest.raises(ModelError):
        get(spec)
    server.script, server.body, server.etag = ["ok"], BODY[::-1], '"two"'
    assert get(spec).read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_the_whole_again(server: Server) -> None:
    server.script = ["cut", "whole"]
    assert get(FileSpec(f"{server.url}/a.th", DIGEST)).read_bytes() == BODY


@pytest.mark.parametrize("code", ["500", "503", "429"])
def test_a_server_in_trouble_is_asked_again(server: Server, code: str) -> None:
    server.script = [code, "ok"]
    assert get(FileSpec(f"{server.url}/a.th", DIGEST)).read_bytes() == BODY


def test_a_missing_file_is_asked_for_once_and_told_with_host_reason_and_next_step(server: Server) -> None:
    server.script = ["404"]
    with pytest.raises(ModelError) as caught:
        get(FileSpec(f"{server.url}/a.th", DIGEST), model="hdemucs")
    assert len(server.asked) == 1
    assert str(caught.value) == (
        f"cannot download a.th (127.0.0.1:{server.server_port}: 404 Not Found); "
        "try again, or `sepcli models pull hdemucs --from FILE`; `--model mini` needs no download"
    )
    assert debris() == []


def test_a_server_that_stays_in_trouble_is_given_up(server: Server) -> None:
    server.script = ["502"]
    with pytest.raises(ModelError, match="502"):
        get(FileSpec(f"{server.url}/a.th", DIGEST))
    assert len(server.asked) == QUICK.attempts


@pytest.mark.parametrize("word", ["html", "html-as-bytes"])
def test_a_web_page_in_place_of_the_file_is_refused(server: Server, word: str) -> None:
    server.script = [word]
    with pytest.raises(ModelError, match="web page"):
        get(FileSpec(f"{server.url}/a.th"))
    assert len(server.asked) == 1


def test_a_git_lfs_pointer_is_refused(server: Server) -> None:
    server.body = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    with pytest.raises(ModelError, match="Git LFS pointer"):
        get(FileSpec(f"{server.url}/a.th"))


def test_a_server_that_hangs_is_left_after_the_timeout(server: Server) -> None:
    server.script = ["hang"]
    with pytest.raises(ModelError, match="timed out"):
        get(FileSpec(f"{server.url}/a.th", DIGEST), patience=Patience(timeout=0.2, attempts=2, pause=0.01))
    assert len(server.asked) == 2


def test_a_refused_connection_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelError, match=rf"127.0.0.1:{port}: .*[Rr]efused"):
        get(FileSpec(f"http://127.0.0.1:{port}/a.th", DIGEST))


def test_a_wrong_digest_is_told_and_nothing_of_it_stays(server: Server) -> None:
    wrong = "0" * 64
    with pytest.raises(ModelError, match=f"expected sha256 {wrong}, found {DIGEST}"):
        get(FileSpec(f"{server.url}/a.th", wrong))
    assert debris() == []


def test_a_poisoned_cache_is_refused_before_anybody_parses_it(server: Server) -> None:
    spec = FileSpec(f"{server.url}/a.th", DIGEST)
    get(spec).write_bytes(b"evil")
    with pytest.raises(ModelError, match="wrong digest"):
        get(spec)
    with pytest.raises(ModelError, match="wrong digest"):
        verify(spec)


def test_the_first_download_without_a_published_digest_is_announced_and_its_digest_enforced(server: Server) -> None:
    spec, said = FileSpec(f"{server.url}/a.th"), []
    path = get(spec, said)
    assert len(said) == 1
    assert "states no digest" in said[0]
    assert remove(spec)
    server.body = BODY[::-1]
    with pytest.raises(ModelError, match="remembered from the first download"):
        get(spec)
    server.body = BODY
    assert get(spec).read_bytes() == BODY
    path.write_bytes(b"evil")
    with pytest.raises(ModelError, match="wrong digest"):
        get(spec)


def test_require_digest_refuses_a_file_without_one_and_asks_no_server(server: Server) -> None:
    with pytest.raises(ModelError, match="states no digest"):
        get(FileSpec(f"{server.url}/a.th"), require_digest=True)
    assert server.asked == []


def test_offline_opens_no_socket_and_says_how_to_bring_the_file(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FileSpec(f"{server.url}/a.th", DIGEST)
    hub = FileSpec(f"hf://owner/name@{'a' * 40}/a.th", DIGEST)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", opened)
        patch.setattr(socket, "create_connection", opened)
        patch.setattr(socket, "getaddrinfo", opened)
        for absent in (spec, hub):
            with pytest.raises(ModelError, match=r"models pull hdemucs`.*--from FILE"):
                get(absent, offline=True, model="hdemucs")
    get(spec)
    monkeypatch.setattr(socket, "socket", opened)
    assert get(spec, offline=True).read_bytes() == BODY


def test_a_mirror_is_asked_first_and_the_publisher_where_it_fails(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPCLI_MIRROR", f"{server.url}/mirror/")
    server.script = ["404", "ok"]
    get(FileSpec(f"{server.url}/deep/a.th?download=1", DIGEST))
    assert [path for path, _ in server.asked] == ["/mirror/a.th", "/deep/a.th?download=1"]


def test_a_files_own_mirrors_are_asked_last(server: Server) -> None:
    server.script = ["404", "ok"]
    get(FileSpec(f"{server.url}/a.th", DIGEST, mirrors=(f"{server.url}/b.th",)))
    assert [path for path, _ in server.asked] == ["/a.th", "/b.th"]


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.script = ["ok"]
    original = Handler.do_GET

    def slow(self: Handler) -> None:
        time.sleep(1)
        original(self)

    Handler.do_GET = slow  # type: ignore[method-assign]
    try:
        program = (
            "import sys\nfrom sepcli.weights.fetch import fetch\nfrom sepcli.weights.catalog import FileSpec\n"
            "print(fetch(FileSpec(sys.argv[1], sys.argv[2]), offline=False, notice=print))"
        )
        command = [sys.executable, "-c", program, f"{server.url}/a.th", DIGEST]
        root = Path(fetching.__file__).parents[2]
        jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
        outputs = [job.communicate(timeout=60)[0].splitlines() for job in jobs]
    finally:
        Handler.do_GET = original  # type: ignore[method-assign]
    assert [job.returncode for job in jobs] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert len(server.asked) == 1


def test_a_file_that_torch_hub_keeps_is_used_where_it_lies(server: Server, tmp_path: Path) -> None:
    for name, folder in (("a.th", "hub/checkpoints"), ("b.pt", "hub/torchaudio/models")):
        kept = tmp_path / "TORCH_HOME" / folder / name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(BODY)
        assert get(FileSpec(f"{server.url}/{name}", DIGEST)) == kept
    assert server.asked == []
    kept.write_bytes(b"another file of the name")
    assert get(FileSpec(f"{server.url}/{name}", DIGEST)).read_bytes() == BODY


def test_a_file_brought_by_hand_is_taken_if_its_digest_fits(tmp_path: Path) -> None:
    spec, mine = FileSpec("https://example.invalid/a.th", DIGEST), tmp_path / "mine.bin"
    mine.write_bytes(b"another")
    with pytest.raises(ModelError, match="expected sha256"):
        adopt(spec, mine)
    assert debris() == []
    mine.write_bytes(BODY)
    assert adopt(spec, mine) == place(spec)
    assert get(spec, offline=True).read_bytes() == BODY
    assert verify(spec) == DIGEST
    assert cached(spec) == remove(spec) == place(spec)
    assert remove(spec) is None
    assert mine.exists()


def test_a_path_is_used_in_place_and_its_digest_checked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.th"
    mine.write_bytes(BODY)
    assert get(FileSpec(str(mine), DIGEST)) == mine
    with pytest.raises(ModelError, match="wrong digest"):
        get(FileSpec(str(mine), "1" * 64))
    with pytest.raises(ModelError, match="no such file"):
        get(FileSpec(str(tmp_path / "none.th")))


def test_a_file_of_the_package_is_found_and_nothing_outside_of_it() -> None:
    assert get(FileSpec("package:py.typed")).name == "py.typed"
    with pytest.raises(ModelError, match="out of the package"):
        get(FileSpec("package:../pyproject.toml"))


@pytest.mark.parametrize("url", ["ftp://host/a.th", "file:///etc/passwd", "hf://no-commit/a.th"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ModelError):
        get(FileSpec(url))


def test_the_hub_is_asked_for_the_commit_and_its_answer_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    given = tmp_path / "given"
    given.write_bytes(BODY)

    def download(owner: str, file: str, *, revision: str, etag_timeout: float) -> str:
        asked.append((owner, file, revision))
        return str(given)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    commit = "c" * 40
    assert get(FileSpec(f"hf://owner/name@{commit}/folder/a.th", DIGEST)) == given
    assert asked == [("owner/name", "folder/a.th", commit)]
    with pytest.raises(ModelError, match="expected sha256"):
        get(FileSpec(f"hf://owner/name@{commit}/folder/a.th", "2" * 64))


def test_the_hubs_own_library_brings_the_file_and_a_second_time_asks_nobody(server: Server, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom sepcli.weights.fetch import fetch\nfrom sepcli.weights.catalog import FileSpec\n"
        "print(fetch(FileSpec(sys.argv[1], sys.argv[2]), offline=False, notice=print))"
    )
    command = [sys.executable, "-c", program, f"hf://owner/name@{'c' * 40}/a.th", DIGEST]
    more = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    root = Path(fetching.__file__).parents[2]
    for first in (True, False):
        server.asked.clear()
        done = subprocess.run(command, env=os.environ | more, cwd=root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.splitlines()[-1])
        assert path.is_relative_to(tmp_path / "HF_HOME")
        assert path.read_bytes() == BODY
        assert bool(server.asked) is first


def test_an_unwritable_cache_is_one_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "file"))
    call: Callable[[], Path] = lambda: get(FileSpec(f"{server.url}/a.th", DIGEST))  # noqa: E731
    with pytest.raises(ModelError, match="cannot be written"):
        call()


def test_a_file_of_the_cache_is_read_in_full_once_and_again_when_it_has_changed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FileSpec(f"{server.url}/a.th", DIGEST)
    path = get(spec)
    assert get(spec) == path
    read: list[Path] = []
    monkeypatch.setattr(fetching, "digest_of", lambda path, whole=fetching.digest_of: read.append(path) or whole(path))
    assert get(spec) == path
    assert not read, "its state is that in which it was proven"
    verify(spec)
    assert read == [path], "`models verify` reads it whatever is remembered"
    status = path.stat()
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time, but not the same change
    with pytest.raises(ModelError, match="wrong digest"):
        get(spec)
    fetching.seen(path).write_text("[]")
    path.write_bytes(BODY)
    assert get(spec) == path, "a note that says nothing is passed over"
    remove(spec)
    assert not fetching.seen(path).exists()
