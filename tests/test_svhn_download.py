"""Archives of SVHN from a server that speaks HTTP: resumed, checked, unpacked whole or not at all."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from svhn_files import archive, write_part

from training.data.mnist import DataError
from training.data.svhn_download import download_part


class Archives(ThreadingHTTPServer):
    """Serves one archive with ranges; cuts the connection after some bytes once."""

    content: bytes
    cut_after: int | None = None
    ranges: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Archives

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = self.server.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Archives]:
    write_part(tmp_path / "made" / "train", {"1.png": ((40, 40), [(1, 5, 5, 20, 20)])})
    server = Archives(("127.0.0.1", 0), Handler)
    server.content, server.ranges = archive(tmp_path / "made" / "train"), []
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_that_was_cut_off_goes_on(tmp_path: Path, server: Archives) -> None:
    root, size = tmp_path / "svhn", len(server.content)
    server.cut_after = 700
    with pytest.raises(DataError, match=rf"700 of {size:,} bytes are in .*train.tar.gz.part. Run again"):
        download_part("train", root, url=server.url, size=size)
    assert not (root / "train").exists()
    seen: list[tuple[int, int]] = []
    download_part("train", root, lambda done, total: seen.append((done, total)), url=server.url, size=size)
    assert server.ranges == [None, "bytes=700-"]
    assert seen[-1] == (size, size)
    assert sorted(path.name for path in root.iterdir()) == ["train"]
    assert sorted(path.name for path in (root / "train").iterdir()) == ["1.png", "digitStruct.mat"]


def test_an_archive_of_another_size_is_not_unpacked(tmp_path: Path, server: Archives) -> None:
    with pytest.raises(DataError, match="published are 99,999,999; it was deleted"):
        download_part("train", tmp_path / "svhn", url=server.url, size=99_999_999)
    assert list((tmp_path / "svhn").iterdir()) == []


def test_an_archive_put_there_by_hand_is_checked(tmp_path: Path, server: Archives) -> None:
    root = tmp_path / "svhn"
    root.mkdir()
    (root / "train.tar.gz").write_bytes(server.content[:-9])
    with pytest.raises(DataError, match=r"train.tar.gz has .* bytes, published are .*; delete it"):
        download_part("train", root, url=server.url, size=len(server.content))
    (root / "train.tar.gz").write_bytes(server.content)
    download_part("train", root, url="http://127.0.0.1:9", size=len(server.content))
    assert (root / "train" / "1.png").exists()


def test_a_damaged_archive_leaves_nothing_half(tmp_path: Path, server: Archives) -> None:
    middle = len(server.content) // 2
    server.content = server.content[:middle] + bytes(50) + server.content[middle + 50 :]
    with pytest.raises(DataError, match=r"train.tar.gz is damaged .*delete it and run again"):
        download_part("train", tmp_path / "svhn", url=server.url, size=len(server.content))
    assert [path.name for path in (tmp_path / "svhn").iterdir()] == ["train.tar.gz"]


def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ConnectError.*put train.tar.gz into .* yourself"):
        download_part("train", tmp_path, url="http://127.0.0.1:9", size=1000)


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(DataError, match=r"extra.tar.gz needs 4.3 GB in .*0.0 GB are free; make room"):
        download_part("extra", tmp_path, url="http://127.0.0.1:9")
