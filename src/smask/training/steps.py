"""Steps of a training under masks: gradients and weights outside of a mask do not move, and masks may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import bitcoding
from ..search.nested import called
from ..search.precision import Precision
from ..search.snapshots import plain_state
from .optimizers import Optimizer


class Change(Protocol):
    """Changes masks during a training: dynamic sparse training is one of these.

    Attributes:
        every: It is called in every so many steps, never in the first.
    """

    every: int

    def __call__(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor] | None:
        """New masks, of all weights or of some; None where none change, and the step is one as any other.

        The tensors that it is given are not to be changed.

        Args:
            step: Steps done.
            weights: Masked weights, float32 [C, ...] by name, zero outside of their masks.
            gradients: Of the loss of this batch in all of these weights, also in those outside.
            masks: bool [C, ...].
        """
        ...

    def arrange(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called when its masks are in place; may change weights inside of masks, all other tensors, and moments."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Plain values that decide what it does; a training goes on only with the same."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What it has to remember from step to step."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Takes over what :meth:`tensors` gave, of whatever process; masks that this one has otherwise, by name."""
        ...


class Training:
    """A model, its masks and its optimiser.

    Args:
        model: Trained in place.
        weights: Masked parameters by name.
        masks: bool [C, ...] by name, for each of them.
        outside: What weights outside of their masks are, float32 [C, ...] by name; zero where there is none.
        optimizer: Moves the weights.
        weight_decay: Of all parameters, as the optimiser has it (added to gradients).
        rate: Step to learning rate.
        change: Changes masks; in its steps weights do not move otherwise, as in Evci et al., "Rigging the Lottery"
            (2020), algorithm 1.
        precision: Of passes through the model; in float32 by default.

    Attributes:
        changed: Whether the last step did so.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        outside: Mapping[str, Tensor],
        *,
        optimizer: Optimizer,
        weight_decay: float,
        rate: Callable[[int], float],
        change: Change | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.precision = precision or Precision("fp32", torch.device("cpu"))
        self.model, self.weights, self.rate, self.change, self.done = model, weights, rate, change, 0
        self.changed = False
        self.optimizer = optimizer.make([p for p in model.parameters() if p.requires_grad], weight_decay)
        self.masks = {name: mask.to(weights[name].device, copy=True) for name, mask in masks.items()}
        # Products with floats take a fifth of the time of those with booleans.
        self._inside = {name: mask.to(weights[name]) for name, mask in masks.items()}
        self._outside = {name: value.to(weights[name]) for name, value in outside.items()}
        self._project()

    def step(
        self,
        x: Any,
        y: Any,
        loss: Callable[[Any, Any], Tensor],
        *,
        seen: Callable[[Any, Any], None] | None = None,
    ) -> Tensor:
        """One batch: forward, backward, and an update of the weights or of the masks; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.passes():
            outputs = called(self.model, x)
        outputs = self.precision.outputs(outputs)
        value = loss(outputs, y)
        value.backward()  # type: ignore[no-untyped-call]
        if seen is not None:
            seen(outputs, y)
        masks = None
        if self.change and self.done and self.done % self.change.every == 0:
            masks = self.change(self.done, self._detached(), self._gradients(), self.masks)
        self.changed = masks is not None
        if masks is not None:
            self._put(masks)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.done)
            for name, inside in self._inside.items():
                gradient = self.weights[name].grad
                if gradient is not None:
                    gradient.mul_(inside)
            self.optimizer.step()
            if self._outside:  # decay moves what is not zero
                self._project()
        self.done += 1
        return value.detach()

    @torch.no_grad()
    def _project(self) -> None:
        """Puts weights outside of their masks where they are held."""
        for name, inside in self._inside.items():
            held = self._outside[name] * (1 - inside) if name in self._outside else 0.0
            # The sum also makes +0 of the -0 that a product of zero and a negative weight is.
            self.weights[name].mul_(inside).add_(held)

    @torch.no_grad()
    def _put(self, masks: Mapping[str, Tensor]) -> None:
        """Takes new masks: weights that are new begin at zero, and for all that changed the optimiser forgets."""
        for name, mask in masks.items():
            weight = self.weights[name]
            stays = (mask == self.masks[name]).to(weight)
            self.masks[name], self._inside[name] = mask.clone(), mask.to(weight)
            weight.mul_(stays)
            for moment in self.optimizer.state[weight].values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.mul_(stays)
        if self.change:
            self.change.arrange(self.model, self.optimizer)
        self._project()

    def _detached(self) -> dict[str, Tensor]:
        return {name: self.weights[name].detach() for name in self.masks}

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: self.weights[name].grad for name in self.masks}
        return {name: torch.zeros_like(self.weights[name]) if g is None else g for name, g in found.items()}

    def density(self) -> float:
        """Weights inside of masks over weights that have one; 1 where none has."""
        n_weights = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / n_weights if n_weights else 1.0

    def n_bytes(self) -> int:
        """About what the trained weights take in a file: masks as independent bits, and four bytes a float."""
        counts = {name: (int(mask.sum()), mask.numel()) for name, mask in self.masks.items()}
        n_floats = sum(p.numel() for p in self.model.parameters()) - sum(n - kept for kept, n in counts.values())
        return round(sum(bitcoding.entropy_bytes(kept, n) for kept, n in counts.values()) + 4 * n_floats)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the state, not copied."""
        found = plain_state(self.model, dict(self.model.named_parameters()))
        found |= {f"mask.{name}": mask for name, mask in self.masks.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{part}": m for part, m in moments.items() if isinstance(m, Tensor)}
        if self.change:
            found |= {f"change.{name}": tensor for name, tensor in self.change.tensors().items()}
        return found

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Takes over the state of a training of the same settings.

        Raises:
            KeyError, RuntimeError, ValueError: That is no state of this training.
        """
        self.done = step
        with torch.no_grad():
            here = plain_state(self.model, dict(self.model.named_parameters()))
            for name, tensor in (here | {f"mask.{name}": mask for name, mask in self.masks.items()}).items():
                tensor.copy_(tensors[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, part = name.split(".")
                moments.setdefault(int(index), {})[part] = tensor
        parameters = self.optimizer.param_groups[0]["params"]
        for place, parts in moments.items():
            if any(tensor.dim() and tensor.shape != parameters[place].shape for tensor in parts.values()):
                raise ValueError(f"moments of parameter {place}")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        if self.change:
            prefix = "change."
            own = self.change.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            for name, mask in own.items():
                self.masks[name].copy_(mask)
        self._inside = {name: mask.to(self.weights[name]) for name, mask in self.masks.items()}
