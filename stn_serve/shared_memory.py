"""Tensors in system shared memory: regions that a client on the same machine registers by name.

They are read and written like files, never mapped: a region that its owner cuts short is then an error for one request,
and not the end of the process; and what a request has read, nobody can change while it is computed.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stn_serve.errors import AlreadyExists, InvalidRequest, NotFound, Unavailable, Unsupported

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
MAX_REGIONS = 256
"""Each holds a file descriptor."""

_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,255}")


@dataclass(eq=False, slots=True, weakref_slot=True)
class Region:
    """A registered part of a shared memory object; its descriptor is closed when nobody holds it any more."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True, slots=True)
class Span:
    """Where one tensor lies in a region."""

    region: Region
    offset: int
    """From the start of the region."""
    nbytes: int

    def read(self) -> bytes:
        """Its bytes as they are now.

        Raises:
            InvalidRequest: the shared memory has been cut short.
        """
        data = os.pread(self.region.descriptor, self.nbytes, self.region.offset + self.offset)
        if len(data) != self.nbytes:
            raise self._cut_short()
        return data

    def write(self, data: bytes) -> None:
        """Put `data`, of at most `nbytes`, at its start.

        Raises:
            InvalidRequest: the shared memory has been cut short.
        """
        start = self.region.offset + self.offset
        if os.fstat(self.region.descriptor).st_size < start + len(data):
            raise self._cut_short()
        os.pwrite(self.region.descriptor, data, start)

    def _cut_short(self) -> InvalidRequest:
        return InvalidRequest(f"shared memory region '{self.region.name}' is shorter than when it was registered")


class SharedMemory:
    """The registered regions, by name."""

    def __init__(self, allowed: bool = False) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make `byte_size` bytes from `offset` of the POSIX shared memory object `key` known as `name`.

        Raises:
            InvalidRequest: there is no such object, its name is none, or it is smaller.
            AlreadyExists: the name is taken.
            Unavailable: there are too many regions.
            Unsupported: the server does not allow shared memory.
        """
        self._check_allowed()
        if not name:
            raise InvalidRequest("a shared memory region needs a name")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if len(self._regions) >= MAX_REGIONS:
            raise Unavailable(f"{MAX_REGIONS} shared memory regions are registered, more are not allowed")
        self._regions[name] = _open(name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """Forget a region, or with no name all of them; requests in flight finish with theirs."""
        self._check_allowed()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> Iterator[Region]:
        """One region, or with no name all of them.

        Raises:
            NotFound: no such region.
        """
        self._check_allowed()
        if name and name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return iter([self._regions[name]] if name else list(self._regions.values()))

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        """Part of a region, for one tensor.

        Raises:
            NotFound: no such region.
            InvalidRequest: it reaches beyond the region.
        """
        self._check_allowed()
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        if offset < 0:
            raise InvalidRequest(f"Invalid offset for shared memory region: '{name}'")
        if byte_size <= 0 or offset + byte_size > region.byte_size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: '{name}': {offset} + {byte_size} "
                f"is not within its {region.byte_size} bytes"
            )
        return Span(region, offset, byte_size)

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Unsupported("shared memory is not allowed; the server's operator allows it with a flag")


def _open(name: str, key: str, offset: int, byte_size: int) -> Region:
    if not _KEY.fullmatch(key):
        raise InvalidRequest(f"'{key[:256]}' is not the name of a shared memory object")
    try:
        descriptor = os.open(DIRECTORY / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequest(f"Unable to open shared memory region: '{key}'") from error
    region = Region(name, key, offset, byte_size, descriptor)  # from here on it closes the descriptor
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or offset < 0 or byte_size <= 0 or offset + byte_size > status.st_size:
        raise InvalidRequest(
            f"Invalid shared memory region: '{key}': {offset} + {byte_size} is not within its {status.st_size} bytes"
        )
    return region
