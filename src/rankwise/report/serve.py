"""The page while a sweep runs: served on this machine only, its figures renewed as trials finish."""

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report.page import packed_content, render
from rankwise.report.trials import read_study
from rankwise.results import EXPERIMENT_FILE, METRICS_FILE

HOST = "127.0.0.1"
_POLICY = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def fingerprint(path: Path) -> str:
    """A text that changes when a result below ``path`` appears, changes or goes."""
    digest = hashlib.sha256()
    for file in sorted(file for name in (EXPERIMENT_FILE, METRICS_FILE) for file in path.rglob(name)):
        try:
            status = file.stat()
        except OSError:
            continue  # gone since it was listed
        digest.update(f"{file}\0{status.st_mtime_ns}\0{status.st_size}\n".encode())
    return digest.hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``/`` (the page), ``/state`` (a fingerprint) and ``/data`` (the packed content) of ``path``.

    Raises:
        FileFormatError: there are no results at ``path``.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, path: Path, port: int = 0) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._packed: tuple[str, str] = (fingerprint(path), packed_content(read_study(path)))
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def data(self) -> str:
        """The packed content as it is now, made again only where a result has changed."""
        with self._lock:
            now = fingerprint(self.path)
            if now != self._packed[0]:
                self._packed = (now, packed_content(read_study(self.path)))
            return self._packed[1]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        # Another site could make its name lead to this address; only a browser that means it is answered.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        pages = {"/": self._page, "/state": self._state, "/data": self.server.data}
        make = pages.get(self.path.partition("?")[0])
        if make is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            body = make().encode()
        except RankwiseError as error:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        kind = "text/html" if make == self._page else "text/plain"
        self.send_response(HTTPStatus.OK)
        for name, value in {**_POLICY, "Content-Type": f"{kind}; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self) -> str:
        return render(read_study(self.server.path), watch=True)

    def _state(self) -> str:
        return fingerprint(self.server.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows where the page is, not who reads it."""
