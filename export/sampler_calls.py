"""What a network samples while it runs: every `F.grid_sample`, wherever it is called from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.graph_contract import SamplerAttributes

SIGNATURE = inspect.signature(F.grid_sample)


@dataclass(frozen=True, slots=True)
class SamplerCall:
    """One call of `F.grid_sample`."""

    attributes: SamplerAttributes
    crop: Tensor
    """`[N, C, h, w]`, or `[N, C, d, h, w]`."""

    @property
    def dimensions(self) -> int:
        """2 for images, 3 for volumes."""
        return self.crop.dim() - 2


class SamplerCalls(TorchFunctionMode):
    """Used as a context, collects the calls made inside it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[SamplerCall] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        """Pass every function on, and note those that sample."""
        result = func(*args, **(kwargs or {}))
        if func is F.grid_sample:
            bound = SIGNATURE.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            given = bound.arguments
            attributes = SamplerAttributes(
                mode=given["mode"], padding=given["padding_mode"], align_corners=bool(given["align_corners"])
            )
            self.calls.append(SamplerCall(attributes, result))
        return result
