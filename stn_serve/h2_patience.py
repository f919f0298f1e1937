"""How many frames a connection bears that cost their sender next to nothing (CVE-2019-9512 to 9518, CVE-2023-44487)."""

from __future__ import annotations

import time

from stn_serve.h2_frames import BrokenConnection, ErrorCode


class Patience:
    """Grows with time and with what is answered; pings, settings, empty frames and resets use it up."""

    MOST = 2000.0
    PER_SECOND = 200.0

    def __init__(self) -> None:
        self._left = self.MOST
        self._seen = time.monotonic()

    def spend(self) -> None:
        """One such frame.

        Raises:
            BrokenConnection: that was one too many.
        """
        self._left -= 1
        if self._left < 0:
            now = time.monotonic()
            self._left += (now - self._seen) * self.PER_SECOND
            self._seen = now
            if self._left < 0:
                raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")
            self._left = min(self._left, self.MOST)

    def restore(self) -> None:
        """A call has been answered: who asks for much may also change their mind about as much.

        So has a part of an answer: callers ping for each to measure their bandwidth (grpc-go does).
        """
        if self._left < self.MOST:
            self._left += 1
