from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from stn_serve import shared_memory
from stn_serve.errors import AlreadyExists, InvalidRequest, NotFound, ServingError, Unavailable, Unsupported
from stn_serve.shared_memory import SharedMemory

NUMBERS = bytes(range(256))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/shm; holds `numbers` and things that are no shared memory."""
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path / "shm")
    (tmp_path / "shm" / "folder").mkdir(parents=True)
    (tmp_path / "shm" / "numbers").write_bytes(NUMBERS)
    (tmp_path / "shm" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(NUMBERS)
    os.mkfifo(tmp_path / "shm" / "fifo")
    return tmp_path / "shm"


@pytest.fixture
def memory(directory: Path) -> SharedMemory:
    assert directory.is_dir()
    memory = SharedMemory(allowed=True)
    memory.register("r", "/numbers", 16, 64)
    return memory


def test_a_span_reads_and_writes_its_part(memory: SharedMemory, directory: Path) -> None:
    span = memory.span("r", 8, 4)
    assert span.read() == NUMBERS[24:28]
    span.write(b"ab")
    assert (directory / "numbers").read_bytes() == NUMBERS[:24] + b"ab" + NUMBERS[26:]


@pytest.mark.parametrize(
    ("key", "offset", "byte_size", "message"),
    [
        ("/nope", 0, 8, "Unable to open shared memory region: '/nope'"),
        ("/../secret", 0, 8, "is not the name of a shared memory object"),
        ("..", 0, 8, "is not the name of a shared memory object"),
        ("/", 0, 8, "is not the name of a shared memory object"),
        ("", 0, 8, "is not the name of a shared memory object"),
        ("a\0b", 0, 8, "is not the name of a shared memory object"),
        ("n" * 300, 0, 8, "is not the name of a shared memory object"),
        ("/link", 0, 8, "Unable to open"),
        ("/folder", 0, 8, "Unable to open"),
        ("/fifo", 0, 8, "Invalid shared memory region"),
        ("/numbers", 0, 257, "Invalid shared memory region: '/numbers': 0 [+] 257 is not within its 256 bytes"),
        ("/numbers", 250, 8, "Invalid shared memory region"),
        ("/numbers", -8, 8, "Invalid shared memory region"),
        ("/numbers", 0, 0, "Invalid shared memory region"),
        ("/numbers", 2**63, 2**63, "Invalid shared memory region"),
    ],
)
def test_what_is_no_shared_memory_is_refused(
    memory: SharedMemory, key: str, offset: int, byte_size: int, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        memory.register("x", key, offset, byte_size)
    assert [region.name for region in memory.status("")] == ["r"]


@pytest.mark.parametrize(
    ("region", "offset", "byte_size", "error"),
    [
        ("x", 0, 8, NotFound),
        ("r", -1, 8, InvalidRequest),
        ("r", 60, 5, InvalidRequest),
        ("r", 0, 0, InvalidRequest),
        ("r", 0, -8, InvalidRequest),
        ("r", 2**63, 8, InvalidRequest),
    ],
)
def test_a_span_stays_in_its_region(
    memory: SharedMemory, region: str, offset: int, byte_size: int, error: type[ServingError]
) -> None:
    with pytest.raises(error):
        memory.span(region, offset, byte_size)


def test_memory_that_its_owner_cuts_short_is_an_error_and_not_the_end(memory: SharedMemory, directory: Path) -> None:
    span = memory.span("r", 0, 64)
    os.truncate(directory / "numbers", 20)
    with pytest.raises(InvalidRequest, match="region 'r' is shorter than when it was registered"):
        span.read()
    with pytest.raises(InvalidRequest, match="region 'r' is shorter"):
        span.write(bytes(64))
    assert (directory / "numbers").stat().st_size == 20


def is_open(path: Path) -> bool:
    gc.collect()
    return any(entry.samefile(path) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


def test_a_request_in_flight_keeps_its_region(memory: SharedMemory, directory: Path) -> None:
    span = memory.span("r", 0, 4)
    memory.unregister("r")
    with pytest.raises(NotFound):
        memory.span("r", 0, 4)
    assert span.read() == NUMBERS[16:20]
    assert is_open(directory / "numbers")
    del span
    assert not is_open(directory / "numbers")


def test_names_are_unique_needed_and_not_too_many(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AlreadyExists, match="shared memory region 'r' already in manager"):
        memory.register("r", "/numbers", 0, 8)
    with pytest.raises(InvalidRequest, match="needs a name"):
        memory.register("", "/numbers", 0, 8)
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 1)
    with pytest.raises(Unavailable, match="1 shared memory regions are registered"):
        memory.register("s", "/numbers", 0, 8)
    memory.unregister("")
    memory.unregister("nobody")
    memory.register("s", "/numbers", 0, 8)
    with pytest.raises(NotFound):
        memory.status("r")


def test_it_is_off_unless_allowed() -> None:
    memory = SharedMemory()
    for call in (
        lambda: memory.register("r", "/numbers", 0, 8),
        lambda: memory.unregister(""),
        lambda: memory.status(""),
        lambda: memory.span("r", 0, 8),
    ):
        with pytest.raises(Unsupported, match="shared memory is not allowed"):
            call()
