"""What is measured: a server with a model, and the ways to ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from benchmarks.peers.workload import Workload


class Way(NamedTuple):
    """How a server is asked."""

    input: str
    """tensor or jpeg."""
    protocol: str
    """grpc, http or none."""
    client: str
    """perf_analyzer or h2load; of the bare loop, how it shares the CPUs."""

    @property
    def is_bare(self) -> bool:
        """The loop that serves nobody."""
        return self.protocol == "none"


TENSOR_GRPC = Way("tensor", "grpc", "perf_analyzer")
TENSOR_HTTP = Way("tensor", "http", "perf_analyzer")
RAW_GRPC = Way("tensor", "grpc", "h2load")
RAW_HTTP = Way("tensor", "http", "h2load")
JPEG_GRPC = Way("jpeg", "grpc", "h2load")
JPEG_HTTP = Way("jpeg", "http", "h2load")
BARE = Way("tensor", "none", "none")
BARE_INSTANCES = Way("tensor", "none", "instances")


class Unavailable(Exception):
    """A server cannot be installed or started here; says why."""


@dataclass(frozen=True)
class Call:
    """One request, which `h2load` repeats."""

    url: str
    body: bytes
    read_logits: Callable[[bytes], NDArray[Any]] | None = None
    """Of the answer's body, without its gRPC frame; None where it holds none, and its status must do."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    process: int
    addresses: Mapping[str, str]
    """`host:port` by protocol, where it speaks the Open Inference Protocol."""
    calls: Mapping[Way, Call]


@dataclass(frozen=True)
class Peer:
    """A server, with the configuration that it is measured with."""

    name: str
    title: str
    ways: tuple[Way, ...]
    note: str
    """How it is configured and asked, for who reads the results."""
    serve: Callable[[Workload, Path], AbstractContextManager[Running]]
    """Serves a model for the time of a `with`; the folder is for its files. Raises Unavailable."""
