"""How a model's requests queue and batch: the scheduling part of its `config.pbtxt`, as Triton understands it.

The fields are those of Triton's model_config.proto (`ModelDynamicBatching`, `ModelQueuePolicy`), and they mean what its
core/src/dynamic_batch_scheduler.cc and scheduler_utils.cc make of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching, ModelQueuePolicy

DEFAULT_MAX_QUEUE_SIZE = 1024
"""Requests that may wait where `config.pbtxt` sets no bound: without one, overload would end in the memory."""


class Urgency(NamedTuple):
    """What a request says about its place in the queue; 0 is what the model's configuration says."""

    priority: int = 0
    """1 is the highest."""
    timeout_us: int = 0
    """How long it may wait."""


AS_CONFIGURED = Urgency()


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePolicy:
    """The rules of the queue of one priority level."""

    max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE
    """Requests that may wait."""
    timeout_us: int = 0
    """How long a request may wait; 0 is for ever."""
    delays_expired: bool = False
    """Whether a request that has waited for so long runs after all others of its level, rather than not at all."""
    allow_timeout_override: bool = False
    """Whether a request may shorten its own timeout."""

    @classmethod
    def from_config(cls, policy: ModelQueuePolicy) -> Self:
        """A queue policy of `config.pbtxt`."""
        return cls(
            max_queue_size=policy.max_queue_size or DEFAULT_MAX_QUEUE_SIZE,
            timeout_us=policy.default_timeout_microseconds,
            delays_expired=policy.timeout_action == ModelQueuePolicy.DELAY,
            allow_timeout_override=policy.allow_timeout_override,
        )

    def timeout_s(self, requested_us: int) -> float | None:
        """Seconds that a request with its own `timeout` parameter (0: none) may wait; None for as long as it takes."""
        allowed_us = self.timeout_us
        if requested_us and self.allow_timeout_override:
            allowed_us = min(allowed_us, requested_us) if allowed_us else requested_us
        return allowed_us / 1e6 if allowed_us else None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingPolicy:
    """The rules of a model's batches and of its queues."""

    max_batch_size: int
    """Rows of the largest batch; 0 runs each request alone."""
    max_queue_delay_us: int = 0
    """How long the first request of a batch may wait for company."""
    preferred_batch_sizes: frozenset[int] = frozenset()
    """Rows of batches that wait for no more company; none for `max_batch_size` alone."""
    preserve_ordering: bool = False
    """Whether answers leave in the order in which requests came."""
    priority_levels: int = 0
    """Levels from 1, the highest, to this; 0 for a single queue."""
    default_priority_level: int = 0
    has_batch_axis: bool = True
    batch_buckets: tuple[int, ...] = ()
    """Rows that batches are padded to, ascending; none for batches as they come."""
    queue: QueuePolicy = QueuePolicy()
    """Of every level that has none of its own."""
    level_queues: Mapping[int, QueuePolicy] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: ModelConfig, pad: bool = False) -> Self:
        """The policy of a model; without `dynamic_batching` each request runs alone, as with Triton.

        `pad` is for providers that prepare themselves for each size of a batch: CUDA chooses convolution algorithms,
        TensorRT builds engines. They shall meet a few sizes only. On the CPU the surplus rows would cost time instead.
        """
        batching = config.dynamic_batching
        return cls(
            max_batch_size=config.max_batch_size if config.HasField("dynamic_batching") else 0,
            has_batch_axis=config.max_batch_size > 0,
            batch_buckets=_buckets(config) if pad else (),
            max_queue_delay_us=batching.max_queue_delay_microseconds,
            preferred_batch_sizes=frozenset(batching.preferred_batch_size),
            preserve_ordering=batching.preserve_ordering,
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level if batching.priority_levels else 0,
            queue=QueuePolicy.from_config(batching.default_queue_policy),
            level_queues={
                level: QueuePolicy.from_config(policy) for level, policy in batching.priority_queue_policy.items()
            },
        )

    def level(self, priority: int) -> int:
        """The queue of a request; a priority that there is not is the default, as with Triton."""
        return priority if 1 <= priority <= self.priority_levels else self.default_priority_level

    def padded(self, rows: int) -> int:
        """The rows that a batch runs with."""
        return next((bucket for bucket in self.batch_buckets if bucket >= rows), rows)

    def queue_of(self, level: int) -> QueuePolicy:
        """The rules of one level."""
        return self.level_queues.get(level, self.queue)


def _buckets(config: ModelConfig) -> tuple[int, ...]:
    """The powers of two, the preferred sizes and the largest batch."""
    largest = config.max_batch_size
    powers = {2**power for power in range(largest.bit_length())}
    return tuple(sorted(size for size in {*powers, *config.dynamic_batching.preferred_batch_size, largest} if size))


def problems(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """What contradicts itself in the `dynamic_batching` of a configuration, and a remedy; Triton refuses the same."""
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if size < 1:
            yield f"dynamic batching preferred size must be positive, is {size}", "leave it out"
        elif size > config.max_batch_size:
            problem = f"dynamic batching preferred size must be <= max batch size: {size} > {config.max_batch_size}"
            yield problem, "lower it, or leave it out: batches of any size run as well"
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        problem = f"default priority level must be in range [1, {levels}], is {batching.default_priority_level}"
        yield problem, "set default_priority_level"
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            problem = f"priority_queue_policy names level {level}, expected one in range [1, {levels}]"
            yield problem, "set priority_levels, or name another level"
    if batching.preserve_ordering:
        yield from _reordering(batching)


def _reordering(batching: ModelDynamicBatching) -> Iterator[tuple[str, str]]:
    if batching.priority_levels > 1:
        yield "preserve_ordering allows one priority level only", "take one of them away"
    for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
        expires = policy.default_timeout_microseconds or policy.allow_timeout_override
        if expires and policy.timeout_action == ModelQueuePolicy.DELAY:
            yield "preserve_ordering does not allow the timeout_action DELAY", "set REJECT, or take one of them away"
