"""The size of a file as the target of a search."""

from __future__ import annotations

from torch import nn

from .. import codec
from ..conversion.goals import size_of
from ..recipe import recipe_of


class TargetSize:
    """A :class:`smask.search.budget.Target`: the whole file, as the codec writes it.

    Args:
        size: Bytes, or text such as ``8kB`` (decimal).
        keep_best: Whether a model that cannot be so small is wanted as small as it gets, instead of an error.

    Raises:
        ArgumentError: Not a size.
    """

    def __init__(self, size: int | str, *, keep_best: bool = False) -> None:
        self.n_bytes, self.keep_best = size_of(size), keep_best

    def measure(self, model: nn.Module) -> int:
        """Bytes of the file."""
        return len(codec.encode(model.state_dict(), recipe_of(model)))
