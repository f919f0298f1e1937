from __future__ import annotations

import pytest

from stn_serve.budget import Budget
from stn_serve.errors import Unavailable


def test_what_is_spent_comes_back() -> None:
    budget = Budget(10, "pixels")
    with budget.spend(6):
        with (
            budget.spend(4),
            pytest.raises(Unavailable, match="10 pixels are in work, 1 more would exceed the 10 allowed"),
        ):
            budget.spend(1).__enter__()
        with pytest.raises(KeyError), budget.spend(4):
            raise KeyError
        with budget.spend(4):
            pass


def test_whoever_comes_alone_is_served() -> None:
    with Budget(10, "pixels").spend(11):
        pass
