"""Callers that each wait for their answer and ask again: what a server answers to a number of them, and how fast."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelWarmup

from stn_serve import tensor_messages
from stn_serve.machine import cpu_seconds
from stn_serve.warmup import sample_array

METHOD = "/inference.GRPCInferenceService/ModelInfer"
WARM_UP_S = 0.4
PATIENCE_S = 30.0
"""Until an answer is given up."""
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Each caller has a connection of its own: with several workers each gets some.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What a number of callers saw."""

    concurrency: int
    seconds: float
    latencies_ms: tuple[float, ...]
    """Of the requests that were answered."""
    failures: int
    cpu_s: float
    """Of the server."""
    problem: str = ""
    """What the server said to one of those that failed."""

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """The server's CPU time for an answer."""
        return 1e3 * self.cpu_s / len(self.latencies_ms) if self.latencies_ms else float("inf")

    def latency_ms(self, percent: float) -> float:
        """What so many percent of the answers took at most; for ever where there is none."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else float("inf")

    @property
    def p99_ms(self) -> float:
        """What 99 % of the answers took at most."""
        return self.latency_ms(99)

    def with_another(self, other: Point) -> Point:
        """Both measurements as one."""
        return Point(
            concurrency=self.concurrency,
            seconds=self.seconds + other.seconds,
            latencies_ms=self.latencies_ms + other.latencies_ms,
            failures=self.failures + other.failures,
            cpu_s=self.cpu_s + other.cpu_s,
            problem=self.problem or other.problem,
        )


@dataclass
class _Outcome:
    latencies_ms: list[float] = field(default_factory=list)
    failures: int = 0
    problem: str = ""


def request_for(directory: Path, config: ModelConfig) -> bytes:
    """A request of one row for a model: what its first `model_warmup` runs on, else noise.

    Raises:
        ConfigurationError: its inputs have sizes that no warm-up names.
    """
    sample = config.model_warmup[0] if config.model_warmup else _noise(config)
    rows = (1,) if config.max_batch_size else ()
    where = f"model '{config.name}': model_warmup '{sample.name}'"
    arrays = {name: sample_array(where, tensor, rows, directory) for name, tensor in sample.inputs.items()}
    message: bytes = tensor_messages.infer_request(config.name, "", arrays, ()).SerializeToString()
    return message


def _noise(config: ModelConfig) -> ModelWarmup:
    inputs = {
        tensor.name: ModelWarmup.Input(data_type=tensor.data_type, dims=tensor.dims, random_data=True)
        for tensor in config.input
    }
    return ModelWarmup(name="(none: give one)", inputs=inputs)


async def load(address: str, server: int, request: bytes, concurrency: int, seconds: float) -> Point:
    """Ask for `seconds`, after a warm-up; `server` is the process whose CPU time counts."""
    async with asyncio.TaskGroup() as callers:
        began = time.perf_counter() + WARM_UP_S
        outcome = _Outcome()
        for _ in range(concurrency):
            callers.create_task(_call(address, request, began, began + seconds, outcome))
        await asyncio.sleep(WARM_UP_S)
        before = cpu_seconds(server)
        await asyncio.sleep(began + seconds - time.perf_counter())
        used_s = cpu_seconds(server) - before
    return Point(
        concurrency=concurrency,
        seconds=seconds,
        latencies_ms=tuple(outcome.latencies_ms),
        failures=outcome.failures,
        cpu_s=used_s,
        problem=outcome.problem,
    )


async def _call(address: str, request: bytes, began: float, end: float, outcome: _Outcome) -> None:
    async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        # Bytes in, bytes out: what the load costs is not the server's.
        infer: Any = channel.unary_unary(METHOD)
        while (sent := time.perf_counter()) < end:
            try:
                await infer(request, timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                outcome.failures += 1
                outcome.problem = error.details() or error.code().name
                await asyncio.sleep(0.01)  # a server that refuses everything shall not be hammered
                continue
            if began <= (now := time.perf_counter()) <= end:
                outcome.latencies_ms.append(1e3 * (now - sent))
