"""When a client asks again: only what a server has refused for now, or never got. Never once the time is up."""

from __future__ import annotations

import random
import time

from stn_serve.errors import Unavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Attempts:
    """The attempts of one call, which share its time."""

    def __init__(self, retries: int, timeout_s: float) -> None:
        self._retries_left = retries
        self._deadline_s = time.monotonic() + timeout_s
        self._pause_s = FIRST_PAUSE_S

    @property
    def remaining_s(self) -> float:
        """What is left of the call's time, at least a millisecond."""
        return max(self._deadline_s - time.monotonic(), 0.001)

    def pause_s(self, error: Unavailable) -> float:
        """How long to wait before the next attempt: longer each time, and as long as the server asks for.

        Raises:
            Unavailable: the error itself, where there is no other attempt, or no time for it.
        """
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - so that clients do not come back all at once
        pause_s = max(self._pause_s * jitter, error.retry_after_s)
        if not self._retries_left or pause_s >= self.remaining_s:
            raise error
        self._retries_left -= 1
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s
