"""How much may be in work at the same time: beyond that, refusing at once is kinder than keeping everybody waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stn_serve.errors import Unavailable


class Budget:
    """An amount of something, spent and given back on one event loop."""

    def __init__(self, limit: int, unit: str) -> None:
        self._limit = limit
        self._unit = unit
        self._spent = 0

    @contextmanager
    def spend(self, amount: int) -> Iterator[None]:
        """Hold an amount for the time of a `with`; whoever comes first gets it, however much it is.

        Raises:
            Unavailable: it would be more than the limit, together with what is in work.
        """
        self.exchange(0, amount)
        try:
            yield
        finally:
            self.exchange(amount, 0)

    def exchange(self, spent: int, amount: int) -> None:
        """Spend another amount than before.

        Raises:
            Unavailable: see `spend`; what was spent before still is.
        """
        others = self._spent - spent
        if amount > spent and others and others + amount > self._limit:
            raise Unavailable(
                f"{others} {self._unit} are in work, {amount} more would exceed the {self._limit} allowed"
            )
        self._spent = others + amount
