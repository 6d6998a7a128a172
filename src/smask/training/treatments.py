"""What the weights of a ticket begin with: Zhou et al., "Deconstructing Lottery Tickets" (2019), section 4.

========= ================================================================================= =======
kept      weights begin with                                                                a file
========= ================================================================================= =======
rewind    what the seed gave them (Frankle and Carbin 2019)                                 yes
reinit    new numbers of the seed, of the same kind                                         yes
constant  the spread of the layer's initial weights, with a sign: the signed base           yes
reshuffle the initial values of the kept weights of their layer, in a random order          no
========= ================================================================================= =======

With ``signs`` kept a weight has its initial sign, else a new one of the seed. Weights that are pruned are zero, or they
stay at their initial value and are not trained, which no file holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..coded import CodedTensor
from ..errors import ArgumentError, UnsupportedError
from ..reconstruction import reconstruct
from ..search.ranks import mixed
from .initial import Origin

# (origin, one drawn anew) to the origin of the magnitudes; None where they are values in another order.
KEPT: Mapping[str, Callable[[Origin, Origin], Origin] | None] = {
    "rewind": lambda origin, fresh: origin,
    "reinit": lambda origin, fresh: fresh,
    "constant": lambda origin, fresh: origin if origin.base == "signed" else replace(fresh, base="signed"),
    "reshuffle": None,
}
SIGNS = ("kept", "random")
PRUNED = ("zero", "initial")


@dataclass(frozen=True)
class Treatment:
    """What kept and pruned weights of a ticket become; fields as in the table above."""

    kept: str = "rewind"
    signs: str = "kept"
    pruned: str = "zero"

    def __post_init__(self) -> None:
        for what, got, known in (
            ("kept", self.kept, KEPT),
            ("signs", self.signs, SIGNS),
            ("pruned", self.pruned, PRUNED),
        ):
            if got not in known:
                raise UnsupportedError(what, got, tuple(known))

    @property
    def obstacle(self) -> tuple[str, str] | None:
        """Name and value of what no file can hold, if there is such a thing."""
        if self.kept == "reshuffle":
            return "kept", self.kept
        return ("pruned", self.pruned) if self.pruned == "initial" else None

    def check_file(self) -> None:
        """Raises ArgumentError if no ticket file can hold it."""
        if self.obstacle:
            want = (
                "rewind, reinit or constant with pruned zero: a file has no other weights than those that the seed "
                "gives; or to train the ticket at once (--train), for trained weights can be stored"
            )
            raise ArgumentError(*self.obstacle, want)

    def coded(self, origin: Origin, mask: Tensor, *, n_streams: int, seed: int) -> CodedTensor | None:
        """The kept weights as a file holds them, zero elsewhere; None for an order that no seed gives."""
        choose, fresh = KEPT[self.kept], origin.fresh(n_streams)
        if choose is None:
            return None
        new = choose(origin, fresh)
        if self.signs == "random" and new.stream != origin.stream:
            return new.coded(mask)  # drawn anew with all else
        signs = origin if self.signs == "kept" else replace(fresh, base="signed")
        return new.coded(mask, mask & (new.weights(seed).sign() != signs.weights(seed).sign()))

    def weights(self, origin: Origin, mask: Tensor, *, n_streams: int, seed: int) -> Tensor:
        """Kept and pruned weights, float32 [C, ...]."""
        coded, initial = self.coded(origin, mask, n_streams=n_streams, seed=seed), origin.weights(seed)
        if coded is not None:
            kept = reconstruct(coded, seed)
        else:
            random = torch.Generator().manual_seed(mixed(seed, origin.stream, 0, 0))
            values = initial[mask]
            moved = values[torch.randperm(len(values), generator=random)]
            if self.signs == "kept":
                moved = moved.abs() * values.sign()
            kept = torch.zeros_like(initial).masked_scatter_(mask, moved)
        return torch.where(mask, kept, initial) if self.pruned == "initial" else kept


def treated(
    start: nn.Module, origins: Mapping[str, Origin], masks: Mapping[str, Tensor], treatment: Treatment, *, seed: int
) -> nn.Module:
    """A copy of the initial model, in evaluation mode, with kept and pruned weights as a treatment says."""
    model = copy.deepcopy(start).eval()
    with torch.no_grad():
        for name, origin in origins.items():
            weights = treatment.weights(origin, masks[name], n_streams=len(origins), seed=seed)
            model.get_parameter(name).copy_(weights)
    return model
