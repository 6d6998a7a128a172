"""Densities that make a file of a given size: estimated at first, measured now and then, met exactly at the end.

What a file is and how large it gets is told by the caller (:class:`Target`); a search knows only its masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ..errors import ArgumentError, UnreachableError
from .densities import DENSEST
from .sizes import estimated_bytes
from .steps import Search

# How often the estimate is compared with a file on the way to the moment at which masks are fixed.
N_CALIBRATIONS = 12
# A file this part below its target is near enough.
TOLERANCE = 0.0005
# Densities on the way there that are told by the sizes of the files before; then halves of what is left, which never
# fail. A file of a megabyte takes seconds to measure.
N_GUESSES = 6
SPARSEST = 1e-7


class Target(Protocol):
    """A size to meet; :class:`smask.runs.size.TargetSize` is the one for files.

    Attributes:
        n_bytes: Never exceeded.
        keep_best: Whether a model that cannot be so small is wanted as small as it gets, instead of an error.
    """

    n_bytes: int
    keep_best: bool

    def measure(self, model: nn.Module) -> int:
        """Bytes of the file that holds a finished model."""
        ...


class Budget:
    """Turns a target into densities, all layers by one number: their density together.

    Args:
        target: The size.
        search: Whose layers are given their densities.
        densities_at: Density of all layers together to the density of each; may refuse with ArgumentError.
        finished: Masks to the model that the search would give with them now.
        float_bytes: Bytes that one learned float takes in the file, about.
        fixed: Densities that the caller gave layers, by name.

    Raises:
        UnreachableError: What the caller fixed is too much.
    """

    def __init__(
        self,
        target: Target,
        search: Search,
        densities_at: Callable[[float], Mapping[str, float]],
        finished: Callable[[Mapping[str, Tensor]], nn.Module],
        float_bytes: float,
        fixed: Mapping[str, float],
    ) -> None:
        self._fixed = fixed
        self.target, self.search, self._densities_at, self._finished = target, search, densities_at, finished
        n_floats = sum(tensor.numel() for tensor in search.floats())
        self._others = round(n_floats * float_bytes) + estimated_bytes({}, [])
        self._aim(target.n_bytes - self._others)
        if fixed:
            self._least()

    def calibrate(self) -> None:
        """Corrects the densities by the size of the file that the search would give now."""
        self.search.gather()
        counts = self.search.counts()
        measured = self.target.measure(self._finished(self.search.levels_of(counts)))
        planes = self._planes(
            {name: counts[name] / max(1, layer.n_usable) for name, layer in self.search.layers.items()}
        )
        for_planes = round((self.target.n_bytes - self._others) * planes / max(1, measured - self._others))
        if for_planes <= 0:
            self._least()
        self._aim(for_planes)

    def due(self) -> bool:
        """Whether to calibrate before the next step; not at first, when scores say little about their bytes."""
        step, n = self.search.done, self.search.schedule.n_search
        every = max(1, n // N_CALIBRATIONS)
        return not self.search.levels and n // 4 < step < n and step % every == 0

    def meet(self) -> None:
        """Densities whose exact counts give the largest file that is not above the target.

        Raises:
            UnreachableError: One weight a layer is too much.
        """
        self.search.gather()
        orders = {name: layer.order() for name, layer in self.search.layers.items()}
        sizes: dict[tuple[int, ...], int] = {}

        def size(counts: Mapping[str, int]) -> int:
            key = tuple(counts.values())
            if key not in sizes:
                sizes[key] = self.target.measure(self._finished(self.search.levels_of(counts, orders)))
            return sizes[key]

        # Beyond one half a plane shrinks again.
        low, high = math.log(SPARSEST), math.log(DENSEST)
        if not self._least():
            return self._take(self._at(SPARSEST))
        middle = min(math.log(max(self.search.density_at_end(), SPARSEST)), high - 1e-6)
        found, aim = list[tuple[float, float]](), math.log(self.target.n_bytes * (1 - TOLERANCE / 2))
        while self.search.counts(self._at(math.exp(low))) != self.search.counts(self._at(math.exp(high))):
            n_bytes = size(self.search.counts(self._at(math.exp(middle))))
            if n_bytes > self.target.n_bytes:
                high = middle
            else:
                low = middle
                if self.target.n_bytes - n_bytes <= TOLERANCE * self.target.n_bytes:
                    break
            found.append((middle, math.log(n_bytes)))
            guess = _on_line(found, aim)
            middle = guess if len(found) <= N_GUESSES and low < guess < high else (low + high) / 2
            if high - low < 1e-9:
                break
        return self._take(self._at(math.exp(low)))

    def _least(self) -> bool:
        """Whether a model with one weight a layer is small enough; raises UnreachableError if it is not and must be."""
        counts = self.search.counts(self._at(SPARSEST))
        n_bytes = self.target.measure(self._finished(self.search.levels_of(counts)))
        if n_bytes > self.target.n_bytes and not self.target.keep_best:
            raise UnreachableError("target size", self.target.n_bytes, n_bytes)
        return n_bytes <= self.target.n_bytes

    def _at(self, density: float) -> Mapping[str, float]:
        """Densities of the layers; where the rule refuses, as those that the user set keep more, nothing of others."""
        try:
            return self._densities_at(density)
        except ArgumentError:
            return dict.fromkeys(self.search.layers, 0.0) | dict(self._fixed)

    def _take(self, densities: Mapping[str, float]) -> None:
        for name, layer in self.search.layers.items():
            layer.density = densities[name]

    def _planes(self, densities: Mapping[str, float]) -> float:
        """Estimated bytes of the planes.

        Levels are left out, which measured files put right: a search of three then begins with some more weights than
        it ends with, and that is better. On test images of MNIST, two seeds each, 98.22 to 97.94 % at 4 kB and 98.71 to
        98.58 % at 6.5 kB.
        """
        layers = self.search.layers
        planes = {name: (one.part_of_all(densities[name]), one.n_weights, 1) for name, one in layers.items()}
        return estimated_bytes(planes, []) - estimated_bytes({}, [])

    def _aim(self, n_bytes: float) -> None:
        """Takes the densities whose planes are estimated at so many bytes."""
        low, high = math.log(SPARSEST), math.log(DENSEST)
        for _ in range(40):
            middle = (low + high) / 2
            over = self._planes(self._at(math.exp(middle))) > n_bytes
            low, high = (low, middle) if over else (middle, high)
        self._take({name: max(density, 1e-9) for name, density in self._at(math.exp(low)).items()})


def _on_line(points: Sequence[tuple[float, float]], y: float) -> float:
    """Where the line through the last two points has this height; it rises by one a step where they say nothing."""
    (x_0, y_0), (x_1, y_1) = points[-2:] if len(points) > 1 else (points[0], points[0])
    slope = (y_1 - y_0) / (x_1 - x_0) if x_1 != x_0 else 1.0
    return x_1 + (y - y_1) / (slope if slope > 0 else 1.0)
