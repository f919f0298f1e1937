"""Random numbers from one generator: what is drawn depends on its seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws on the generator's device."""

    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Between low and high."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device) * (high - low) + low

    def normal(self, deviation: float, *shape: int) -> Tensor:
        """Around zero."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device) * deviation

    def chance(self, probability: float, *shape: int) -> Tensor:
        """1.0 with this probability, else 0.0."""
        return (self.uniform(0, 1, *shape) < probability).float()

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """From low up to below high."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.generator.device)

    def sign(self, *shape: int) -> Tensor:
        """1.0 or -1.0."""
        return 1 - 2 * self.chance(0.5, *shape)
