"""What `stn tune` may change, and where `config.pbtxt` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.providers import CPU, execution_providers
from stn_serve.session import instance_count, intra_op_threads

THREADS = "intra_op_thread_count"
BATCH_STEP = 4
"""Batches are tried that are so many times smaller."""
FEWEST_ROWS = 2
DELAYS = (0, 1 / 40, 1 / 10)
"""Shares of the latency that is allowed."""
GPU_INSTANCES = (1, 2, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to serve a model."""

    instances: int
    """Batches that may run at the same time, in each worker."""
    threads: int
    """That each batch computes with, on a CPU."""
    batch: int
    """Rows that batches are gathered up to; 1 gathers none."""
    delay_us: int = 0
    """How long a batch waits for company."""
    workers: int = 1
    """Processes; the only one that `config.pbtxt` does not hold."""

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        """What a configuration says, in one process on this machine."""
        batching = config.dynamic_batching
        gathers = config.HasField("dynamic_batching") and config.max_batch_size > 0
        return cls(
            instances=instance_count(config),
            threads=intra_op_threads(config),
            batch=max(batching.preferred_batch_size, default=config.max_batch_size) if gathers else 1,
            delay_us=batching.max_queue_delay_microseconds,
        )

    def applied(self, config: ModelConfig, current: Setting) -> ModelConfig:
        """A copy of a configuration that is `current`, changed to this.

        `max_batch_size` stays as it is, however small the batches that are gathered: callers rely on it.
        """
        changed = ModelConfig()
        changed.CopyFrom(config)
        if (self.instances, self.threads, self.workers) != (current.instances, current.threads, 1):
            if not changed.instance_group:
                changed.instance_group.add()
            changed.instance_group[0].count = self.instances
            changed.parameters[THREADS].string_value = str(self.threads)
        if self.batch != current.batch:
            whole = self.batch == config.max_batch_size
            changed.dynamic_batching.preferred_batch_size[:] = [] if whole else [self.batch]
            changed.dynamic_batching.SetInParent()
        if self.delay_us != current.delay_us:
            changed.dynamic_batching.max_queue_delay_microseconds = self.delay_us
        return changed


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What there is to try."""

    cpus: int
    max_batch_size: int
    """0 for a model that does not batch."""
    target_us: int
    most_workers: int
    on_cpu: bool = True

    @classmethod
    def of(cls, config: ModelConfig, cpus: int, target_s: float, most_workers: int) -> Self:
        """Of a model.

        Raises:
            ConfigurationError: its instances are spread over several groups, which this cannot tune.
        """
        if len(config.instance_group) > 1:
            raise ConfigurationError(
                f"model '{config.name}': expected one instance_group to tune, found {len(config.instance_group)}"
            )
        return cls(
            cpus=cpus,
            max_batch_size=config.max_batch_size,
            target_us=round(target_s * 1e6),
            most_workers=most_workers,
            on_cpu=execution_providers(config)[0][0] == CPU,
        )

    def stages(self) -> Sequence[Callable[[Setting], Iterator[Setting]]]:
        """What to try one after the other, each around the best of what came before."""
        return self.shapes, self.batches, self.delays, self.processes

    def shapes(self, best: Setting) -> Iterator[Setting]:
        """Threads against instances, on all CPUs and on half of them: the rest is for receiving and answering."""
        if not self.on_cpu:
            yield from (replace(best, instances=count) for count in GPU_INSTANCES)
            return
        for threads in [*_powers(self.cpus - 1), self.cpus]:
            for cpus in (self.cpus, self.cpus // 2):
                yield replace(best, threads=threads, instances=max(cpus // threads, 1))

    def batches(self, best: Setting) -> Iterator[Setting]:
        """Smaller batches answer their first request sooner."""
        rows = self.max_batch_size
        while rows >= FEWEST_ROWS:
            yield replace(best, batch=rows)
            rows //= BATCH_STEP

    def delays(self, best: Setting) -> Iterator[Setting]:
        """Waiting for company pays where a batch costs hardly more than a row."""
        if best.batch > 1:
            yield from (replace(best, delay_us=round(share * self.target_us)) for share in DELAYS)

    def processes(self, best: Setting) -> Iterator[Setting]:
        """Workers share the CPUs."""
        for workers in _powers(min(self.cpus, self.most_workers)):
            if workers > 1:
                cpus = self.cpus // workers
                threads = min(best.threads, cpus) if self.on_cpu else best.threads
                instances = min(best.instances, max(cpus // threads, 1)) if self.on_cpu else best.instances
                yield replace(best, workers=workers, threads=threads, instances=instances)


def _powers(largest: int) -> list[int]:
    """The powers of two up to a number."""
    return [2**power for power in range(max(largest, 0).bit_length())]
