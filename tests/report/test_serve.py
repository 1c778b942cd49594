"""The served page changes with the results, and answers this machine only."""

import base64
import gzip
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest

from rankwise.errors import FileFormatError
from rankwise.report.serve import HOST, Server
from tests.report.synthetic import write_json, write_results

pytest.importorskip("plotly")
pytest.importorskip("jinja2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_results(tmp_path, ["svd"], [0.5], 1)
    with Server(tmp_path) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, path: str, host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection(HOST, server.server_address[1], timeout=30)
    headers = {} if host is None else {"Host": host}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def trials(server: Server) -> int:
    return len(json.loads(gzip.decompress(base64.b64decode(get(server, "/data")[1])))["trials"])


def test_a_new_trial_appears(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page = get(server, "/")
    assert status == 200 and "connect-src 'self'" in page and 'data-watch="yes"' in page
    before = get(server, "/state")[1]
    assert trials(server) == 1 and get(server, "/state")[1] == before
    write_json(server.path / "trials" / "next" / "metrics.json", {"method": "svd", "failed": "no"})
    assert get(server, "/state")[1] != before and trials(server) == 2


def test_other_paths_and_other_names_are_refused(server: Server) -> None:
    assert get(server, "/trials/0000/metrics.json")[0] == 404
    assert get(server, "/../etc/passwd")[0] == 404
    assert get(server, "/", host="evil.example")[0] == 403
    assert get(server, "/state", host=f"localhost:{server.server_address[1]}")[0] == 200


def test_nothing_to_serve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        Server(tmp_path)
