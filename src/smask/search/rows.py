"""Which rows of a weight a process holds, where processes share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ranks import Ranks


@dataclass(frozen=True)
class Rows:
    """The rows of a weight that this rank holds.

    Attributes:
        first, last: From and up to which.
        ranks: Those that hold the others; None if this one holds all.
    """

    first: int
    last: int
    ranks: Ranks | None

    @property
    def n(self) -> int:
        """How many."""
        return self.last - self.first

    def local(self, tensor: Any) -> Any:
        """These rows of a parameter or of its gradient, in its memory; where rows are shared it is a DTensor."""
        if not self.ranks:
            return tensor
        with torch.no_grad():
            return tensor.to_local()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all that hold rows, in place."""
        if self.ranks:
            self.ranks.sum([value])
        return value

    def whole(self, rows: Tensor, n: int) -> Tensor:
        """All n rows of all ranks."""
        if not self.ranks:
            return rows
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[self.first : self.last] = rows
        return self.sum(whole)
