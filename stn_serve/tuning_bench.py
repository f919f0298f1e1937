"""Trials of a model's settings: a real server each time, on a copy of the model that nobody else sees."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import uvloop
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.config_rules import CONFIG_FILE
from stn_serve.config_text import rewrite
from stn_serve.repository import read_config
from stn_serve.server_process import ServerProcess, ServerProcessError
from stn_serve.tuning_load import Point, load, request_for
from stn_serve.tuning_search import Trial, between, meets
from stn_serve.tuning_setting import Setting

REFINEMENTS = 2
"""Numbers of callers that are tried between the most that met the target and the fewest that missed it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measures settings."""

    repository: Path
    """Of the copy."""
    directory: Path
    """The copy."""
    text: str
    """Of the `config.pbtxt` as it is."""
    current: Setting
    request: bytes
    concurrencies: Sequence[int]
    """Numbers of callers, ascending."""
    seconds: float
    """With each of them."""
    target_ms: float
    runner: asyncio.Runner

    @classmethod
    @contextmanager
    def of(cls, model: Path, concurrencies: Sequence[int], seconds: float, target_ms: float) -> Iterator[Self]:
        """For the time of a `with`; `model` is the directory of the model.

        Raises:
            ConfigurationError: the model cannot be served, or be asked without knowing what its inputs are.
        """
        config = read_config(model)
        with (
            tempfile.TemporaryDirectory(prefix="stn-tune-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            directory = Path(folder) / model.name
            shutil.copytree(model, directory)
            yield cls(
                repository=Path(folder),
                directory=directory,
                text=(model / CONFIG_FILE).read_text(encoding="utf-8"),
                current=Setting.of(config),
                request=request_for(model, config),
                concurrencies=sorted(set(concurrencies)),
                seconds=seconds,
                target_ms=target_ms,
                runner=runner,
            )

    def text_with(self, setting: Setting) -> str:
        """The `config.pbtxt` of a setting."""
        written = text_format.Parse(self.text, ModelConfig())
        return rewrite(self.text, setting.applied(written, self.current))

    def measure(self, setting: Setting, concurrencies: Sequence[int] = ()) -> Trial:
        """Serve with a setting; load the server with so many callers, or with ever more until it misses the target."""
        (self.directory / CONFIG_FILE).write_text(self.text_with(setting), encoding="utf-8")
        flags = "--workers", str(setting.workers), "--log-level", "error"
        try:
            with ServerProcess(self.repository, *flags) as server:
                points = [self._point(server, count) for count in concurrencies] or self._points(server)
        except ServerProcessError as error:
            return Trial(setting, (), str(error))
        return Trial(setting, tuple(points), next((point.problem for point in points if point.problem), ""))

    def _points(self, server: ServerProcess) -> list[Point]:
        """Up to the first that misses the target, and closer to where it is just met."""
        points: list[Point] = []
        for concurrency in self.concurrencies:
            points.append(self._point(server, concurrency))
            if not meets(points[-1], self.target_ms):
                break
        for _ in range(REFINEMENTS):
            if concurrency := between(points, self.target_ms):
                points.append(self._point(server, concurrency))
        return sorted(points, key=lambda point: point.concurrency)

    def _point(self, server: ServerProcess, concurrency: int) -> Point:
        return self.runner.run(load(server.grpc, server.pid, self.request, concurrency, self.seconds))
