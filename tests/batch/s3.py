"""A real S3 server in this process (moto's), behind a door that fails when it is told to."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Door:
    """How the server misbehaves: `fault(request number, method, path)` is "", "500", "503" or "stall" (seconds)."""

    address: str = ""
    fault: Callable[[int, str, str], str] = lambda _number, _method, _path: ""
    stall: float = 7.0
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, fault

    def through(self, server: Wsgi) -> Wsgi:
        def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            fault = self.fault(len(self.seen), method, path)
            self.seen.append((method, path, fault))
            if fault == "stall":
                time.sleep(self.stall)
            elif fault:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(f"{fault} Injected", [("Content-Type", "text/plain"), ("Content-Length", "0")])
                return [b""]
            return server(environ, start)

        return application


@contextmanager
def serving() -> Iterator[Door]:
    """An S3 server at `door.address`, with no buckets."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    door = Door()
    server = make_server("127.0.0.1", 0, door.through(DomainDispatcherApplication(create_backend_app)), threaded=True)
    door.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        server.shutdown()
        thread.join()
