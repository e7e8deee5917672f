"""A published file on this machine, with a proven digest. Standard library only at the top, and no torch.

A file is looked for in the cache, then where demucs, openunmix, torchaudio and the Hugging Face hub keep theirs, then
downloaded. Whatever is handed out had its digest compared: a moment before, or, for a file of the cache, when it was in
the state in which it still is (size, times and inode). Nothing parses a file that is not proven.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sepcli import __version__
from sepcli.errors import ModelError
from sepcli.weights.catalog import FileSpec, cache_folder

if TYPE_CHECKING:
    import http.client

Notice = Callable[[str], None]
Progress = Callable[[int, int | None], None]

CHUNK = 1 << 18
BUNDLED = "`--model mini` needs no download"
NO_WEIGHTS = {b"<!doctype html": "a web page", b"<html": "a web page", b"version https://git-lfs": "a Git LFS pointer"}


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for a connection and for each read; attempts per address, and seconds before the second one."""

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 0.5


class Unavailable(Exception):  # noqa: N818
    """One address did not give the file; `again` where a second attempt may."""

    def __init__(self, reason: object, again: bool = False) -> None:
        super().__init__(" ".join(str(reason).split())[:200])
        self.again = again


def fetch(
    spec: FileSpec,
    *,
    offline: bool,
    notice: Notice,
    require_digest: bool = False,
    progress: Progress | None = None,
    model: str = "NAME",
    patience: Patience = Patience(),
) -> Path:
    """The file of a spec, downloaded where it is not on this machine yet, its digest just proven.

    `model` is the entry's name, for the next step in errors. `progress` hears bytes done and in total. Raises
    ModelError: not there and offline, not to be had, wrong digest, no published digest under `require_digest`.
    """
    if require_digest and not spec.sha256:
        raise ModelError(f"{name_of(spec)}: its publisher states no digest", "leave out --require-digest to accept it")
    if found := at_hand(spec):
        return found
    pull = f"`sepcli models pull {model}`"
    if offline:
        what = f"{name_of(spec)} is not on this machine, and offline nothing is downloaded"
        raise ModelError(what, f"run {pull} with a network, or {pull[:-1]} --from FILE`; {BUNDLED}")
    path, reasons = place(spec), []
    with alone(path, notice):
        if found := at_hand(spec):
            return found
        if not spec.sha256 and not memory(spec).exists():
            notice(f"{name_of(spec)}: its publisher states no digest; the one of this download will be remembered")
        for url in addresses(spec):
            try:
                return obtain(url, spec, progress, patience)
            except Unavailable as error:
                reasons.append(f"{urllib.parse.urlsplit(url).netloc}: {error}")
            except OSError as error:
                raise ModelError(
                    f"{path}: cannot be written ({error.strerror or error})", "see SEPCLI_CACHE"
                ) from error
    raise ModelError(
        f"cannot download {name_of(spec)} ({'; '.join(reasons)})", f"try again, or {pull[:-1]} --from FILE`; {BUNDLED}"
    )


def adopt(spec: FileSpec, path: Path, notice: Notice = lambda text: None) -> Path:
    """Copy a file that the user brought into the cache, if it is the one: its digest is checked all the same."""
    if not is_remote(spec.url):
        raise ModelError(f"{spec.url} is not a download", "only files with an address are taken into the cache")
    target = place(spec)
    try:
        with alone(target, notice):
            part = partial(target)
            forget(part)
            shutil.copyfile(path, part)
            return settle(spec, part)
    except OSError as error:
        raise ModelError(f"{path}: cannot be copied into the cache ({error.strerror or error})") from error
    except Unavailable as error:
        raise ModelError(f"{path} is not {name_of(spec)}: {error}", "bring the published file") from error


def verify(spec: FileSpec) -> str:
    """The full digest of the file on this machine. Raises ModelError if there is none or it is not the published."""
    path = at_hand(spec)
    if path is None:
        raise ModelError(f"{name_of(spec)} is not on this machine", "see `sepcli models pull`")
    seen(path).unlink(missing_ok=True)
    prove(spec, path)
    return proven_digest(path)


def remove(spec: FileSpec) -> Path | None:
    """Delete a download and say where it was. A remembered digest stays: it holds for the next download."""
    first = path = cached(spec)
    while path is not None:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        seen(path).unlink(missing_ok=True)
        path = cached(spec)
    if is_remote(spec.url):
        forget(partial(place(spec)))
    return first


def cached(spec: FileSpec) -> Path | None:
    """A download that is in our cache or the hub's, its digest not looked at; None for other kinds of address."""
    found = (path for path in (place(spec), in_hub(spec.url)) if path and path.is_file())
    return next(found, None) if is_remote(spec.url) else None


def place(spec: FileSpec) -> Path:
    """Where a download lies in our cache, whether it is there or not."""
    key = spec.sha256.lower() or hashlib.sha256(spec.url.encode()).hexdigest()
    return cache_folder() / "weights" / f"{key[:16]}-{name_of(spec)}"


def name_of(spec: FileSpec) -> str:
    """The file's own name, without a query and with nothing that a file system minds."""
    return re.sub(r"[^\w.+-]", "_", urllib.parse.unquote(spec.name.split("?")[0]))[-100:]


def digest_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal. Raises ModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def proven_digest(path: Path) -> str:
    """The sha256 of a file; of one in our cache as it was computed in the state in which the file still is."""
    if path.parent != cache_folder() / "weights":
        return digest_of(path)
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(seen(path).read_text())
        if known["state"] == state:
            return str(known["sha256"])
    digest = digest_of(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written is read in full each time
        seen(path).write_text(json.dumps({"sha256": digest, "state": state}))
    return digest


def seen(path: Path) -> Path:
    """Where the digest of a file of the cache is remembered, with the state that the file was in."""
    return path.with_name(f"{path.name}.seen")


def is_remote(url: str) -> bool:
    return url.startswith(("https://", "http://", "hf://"))


def at_hand(spec: FileSpec) -> Path | None:
    """The file if it is on this machine, its digest proven; opens no socket. Raises ModelError on a wrong digest."""
    if not is_remote(spec.url):
        return prove(spec, local(spec.url))
    if path := cached(spec):
        return prove(spec, path)
    for path in torch_hub(spec) if spec.sha256 else ():
        if path.is_file() and digest_of(path).startswith(spec.sha256.lower()):
            return path
    return None


def prove(spec: FileSpec, path: Path) -> Path:
    """The path again, if the file has the published digest, or the one remembered from its first download."""
    if reason := misfit(spec, path, proven_digest(path)):
        raise ModelError(f"{path}: {reason}", "delete this file, then `sepcli models pull` again")
    return path


def misfit(spec: FileSpec, path: Path, found: str = "") -> str:
    """What is wrong with a file's digest, or with the one `found`; empty where nothing is."""
    wanted = spec.sha256.lower() or (memory(spec).read_text().strip() if memory(spec).exists() else "")
    found = found or digest_of(path)
    if found.startswith(wanted):
        return ""
    whence = "" if spec.sha256 else f" (remembered from the first download in {memory(spec)})"
    return f"wrong digest, expected sha256 {wanted}{whence}, found {found[: len(wanted)] or found}"


def memory(spec: FileSpec) -> Path:
    """Where the digest of a first download is kept for a file without a published one."""
    return place(spec).with_name(f"{place(spec).name}.sha256")


def local(url: str) -> Path:
    """A path on this machine, or `package:file` inside the installed package. Raises ModelError if there is none."""
    if re.match(r"[a-z0-9+]{2,}://", url):
        raise ModelError(f"{url}: an address is https, http or hf, or a path")
    if url.startswith("package:"):
        package = Path(__file__).resolve().parents[1]
        path = (package / url.removeprefix("package:")).resolve()
        if not path.is_relative_to(package):
            raise ModelError(f"{url}: leads out of the package")
    else:
        path = Path(url).expanduser()
    if not path.is_file():
        raise ModelError(f"{path}: no such file", "see `sepcli models show`")
    return path


def torch_hub(spec: FileSpec) -> list[Path]:
    """Where demucs and openunmix, and torchaudio, keep a download of this name."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    hub = Path(os.environ.get("TORCH_HOME") or base).expanduser() / "hub"
    return [hub / "checkpoints" / name_of(spec), hub / "torchaudio" / "models" / name_of(spec)]


def addresses(spec: FileSpec) -> Iterator[str]:
    """Where to try, in order: the user's mirror, the published address, its own mirrors."""
    if mirror := os.environ.get("SEPCLI_MIRROR"):
        if not mirror.startswith(("https://", "http://")):
            raise ModelError(f"SEPCLI_MIRROR = {mirror}: must begin with https://")
        yield f"{mirror.rstrip('/')}/{spec.name.split('?')[0]}"
    yield spec.url
    yield from spec.mirrors


@contextmanager
def alone(path: Path, notice: Notice) -> Iterator[None]:
    """One process at a time works on a file of the cache; a second one waits and says so."""
    import filelock

    lock = filelock.FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            notice(f"another sepcli is at {path.name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise ModelError(f"{path.parent}: cannot be written ({error.strerror or error})", "see SEPCLI_CACHE") from error
    try:
        yield
    finally:
        lock.release()


def obtain(url: str, spec: FileSpec, progress: Progress | None, patience: Patience) -> Path:
    """The file from one address, proven and in its place. Raises Unavailable with the reason, also a wrong digest."""
    if url.startswith("hf://"):
        path = from_hub(url, patience)
        if reason := misfit(spec, path):
            raise Unavailable(reason)
        if not spec.sha256:
            memory(spec).write_text(digest_of(path))
        return path
    part = partial(place(spec))
    for attempt in range(1, patience.attempts + 1):
        try:
            request(url, part, progress, patience.timeout)
            break
        except Unavailable as error:
            if not error.again or attempt == patience.attempts:
                raise
        time.sleep(min(patience.pause * 2 ** (attempt - 1), 10))
    return settle(spec, part)


def settle(spec: FileSpec, part: Path) -> Path:
    """Prove a finished download and give it its name. Deletes it and raises Unavailable where the digest is wrong."""
    if reason := misfit(spec, part):
        forget(part)
        raise Unavailable(reason)
    if not spec.sha256:
        memory(spec).write_text(digest_of(part))
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(place(spec))
    forget(part)
    return place(spec)


def partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def state_of(part: Path) -> Path:
    """Beside a partial download: its address, the server's mark of its version, and its whole size."""
    return part.with_name(f"{part.name}.json")


def forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    state_of(part).unlink(missing_ok=True)


def request(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Ask once for what is missing of a partial download and append it. Raises Unavailable."""
    import http.client  # here, since they take a tenth of a second and every `--help` reads this file
    import urllib.error
    import urllib.request

    state = resumable(url, part)
    done = part.stat().st_size if state else 0
    headers = {"User-Agent": f"sepcli/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if state.get("mark"):
            headers["If-Range"] = str(state["mark"])
    asked = urllib.request.Request(urllib.parse.quote(url, safe=":/?&=%#@+,;!$'()*[]~"), headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as reply:
            done, total = agree(reply, url, part, state, done)
            receive(reply, part, done, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing there to continue
            forget(part)
        raise Unavailable(f"{error.code} {error.reason}", error.code in (408, 416, 429) or error.code >= 500) from error
    except urllib.error.URLError as error:
        raise Unavailable(error.reason, again=True) from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise Unavailable(error or type(error).__name__, again=True) from error


def resumable(url: str, part: Path) -> dict[str, object]:
    """What is known of a partial download from the same address; empty where there is nothing to continue."""
    try:
        state = json.loads(state_of(part).read_text())
        if isinstance(state, dict) and state.get("url") == url and part.stat().st_size > 0:
            return state
    except (OSError, ValueError):
        pass
    return {}


def agree(
    reply: "http.client.HTTPResponse", url: str, part: Path, state: dict[str, object], done: int
) -> tuple[int, int | None]:
    """Where the body of a reply belongs and how long the whole file is. Raises Unavailable if it is not our file."""
    if reply.headers.get_content_type() == "text/html":
        raise Unavailable("sent a web page in place of the file")
    length = reply.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    etag = reply.headers.get("ETag") or ""
    mark = etag if etag and not etag.startswith("W/") else reply.headers.get("Last-Modified")
    if reply.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        whole = int(span[2]) if span else None
        if not span or int(span[1]) != done or whole != state.get("total", whole) or mark != state.get("mark"):
            forget(part)
            raise Unavailable("the file changed while it was downloaded", again=True)
        return done, whole
    part.unlink(missing_ok=True)
    state_of(part).write_text(json.dumps({"url": url, "mark": mark} | ({"total": total} if total is not None else {})))
    return 0, total


def receive(reply: IO[bytes], part: Path, done: int, total: int | None, progress: Progress | None) -> None:
    """Append a reply's body. Raises Unavailable if it ends early or begins as no weights do."""
    with part.open("ab") as file:
        while chunk := read_some(reply):
            if done == 0:
                begin = chunk[:64].lstrip().lower()
                for sign, what in NO_WEIGHTS.items():
                    if begin.startswith(sign):
                        file.truncate(0)
                        raise Unavailable(f"sent {what} in place of the file")
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done != total:
        raise Unavailable(f"cut off after {done} of {total} bytes", again=True)


def read_some(reply: IO[bytes]) -> bytes:
    try:
        return reply.read(CHUNK)
    except OSError as error:  # of the network, as those of the disk are not
        raise Unavailable(error or type(error).__name__, again=True) from error


def hub_address(url: str) -> tuple[str, str, str] | None:
    """hf://owner/name@commit/file as (owner/name, commit, file)."""
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)@([^/@]+)/(.+)", url)
    return (found[1], found[2], found[3]) if found else None


def in_hub(url: str) -> Path | None:
    """A file of the Hugging Face hub that is already in the hub's own cache."""
    address = hub_address(url)
    if address is None:
        return None
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(address[0], address[2], revision=address[1])
    return Path(found) if isinstance(found, str) else None


def from_hub(url: str, patience: Patience) -> Path:
    """Download through huggingface_hub into its own cache, at the commit named. Raises Unavailable."""
    address = hub_address(url)
    if address is None:
        raise Unavailable(f"{url} is not of the form hf://owner/name@commit/file")
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    owner, commit, file = address
    disable_progress_bars()
    try:
        return Path(huggingface_hub.hf_hub_download(owner, file, revision=commit, etag_timeout=patience.timeout))
    except Exception as error:  # its transport, and so its errors, differ from version to version
        raise Unavailable(f"{type(error).__name__}: {error}") from error
