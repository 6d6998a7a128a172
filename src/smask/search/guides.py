"""What tells a block of a net how its output should change while the blocks behind it are still at work."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .objective import Objective

# Learning rate of Adam for guides at the start; it falls with that of the search.
RATE = 1e-2
# Places in each direction to which a local classifier averages an image.
N_PLACES = 2


class Guide(nn.Module, abc.ABC):
    """Trained beside one block, on this block's outputs; no part of the file. All of it starts at zero."""

    optimizer: torch.optim.Adam

    def ready(self, device: torch.device) -> None:
        """Begins: zeros, and an optimiser for them."""
        self.to(device)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=RATE, fused=True)

    @abc.abstractmethod
    def backward(self, outputs: Tensor, x: Any, y: Any, objective: Objective, rate: float) -> None:
        """Backward pass of the block that gave these outputs for a batch of inputs x of the net and targets y."""

    def learn(self, loss: Tensor, rate: float) -> None:
        """A step on the gradients of a loss.

        Args:
            loss: Scalar.
            rate: Learning rate over that at the start.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments, not copied."""
        found = {f"parameter.{name}": p.detach() for name, p in self.named_parameters()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{index}.{part}": tensor for part, tensor in moments.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[f"parameter.{name}"])
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, part = name.split(".")
                state.setdefault(int(index), {})[part] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


class Generator(Guide):
    """Predicts the gradient of the loss in a block's output by a linear map of that output.

    What it predicts is the gradient for one input: that of a batch's mean loss times the inputs of the batch. A vector
    [N, C] or a sequence [N, T, C] is mapped from features to features, an image [N, C, H, W] by a kernel of 3 x 3
    pixels (Jaderberg et al. 2017, section 3.2; the term of the label, "cDNI", is of the same section).

    Args:
        shape: Of the block's outputs.
        n_labels: Classes, or labels that an input may have; 0 for a generator that does not see them.
        several: Whether an input may have several labels: targets are then float32 [N, labels], else int64.
    """

    def __init__(self, shape: torch.Size, n_labels: int, *, several: bool) -> None:
        super().__init__()
        n = shape[1] if len(shape) == 4 else shape[-1]
        self.map: nn.Module = nn.Conv2d(n, n, 3, padding=1) if len(shape) == 4 else nn.Linear(n, n)
        self.term: nn.Module | None = None
        if n_labels:
            self.term = nn.Linear(n_labels, n, bias=False) if several else nn.Embedding(n_labels, n)

    def forward(self, outputs: Tensor, y: Any) -> Tensor:
        gradient: Tensor = self.map(outputs)
        if self.term is None:
            return gradient
        term: Tensor = self.term(y)
        if gradient.dim() == 4:
            return gradient + term[:, :, None, None]
        return gradient + (term[:, None] if term.dim() < gradient.dim() else term)

    @torch.no_grad()
    def predicted(self, outputs: Tensor, y: Any) -> Tensor:
        """The gradient of the mean loss of a batch in these outputs."""
        gradient: Tensor = self(outputs, y)
        return gradient.div_(len(outputs))

    def backward(self, outputs: Tensor, x: Any, y: Any, objective: Objective, rate: float) -> None:
        outputs.backward(self.predicted(outputs.detach(), y))  # type: ignore[no-untyped-call]

    def correct(self, outputs: Tensor, y: Any, gradient: Tensor, rate: float) -> None:
        """Learns from the gradient that the next block came to for its input, which was these outputs."""
        with torch.enable_grad():
            self.learn(F.mse_loss(self(outputs, y), gradient * len(outputs)), rate)


class LocalClassifier(Guide):
    """A linear classifier of a block's outputs; the block learns to make its loss small.

    Images are averaged to 2 x 2 places first (Belilovsky et al. 2020, section 3.1), sequences over all places where the
    net has one output for all of them.

    Args:
        shape: Of the block's outputs.
        outputs: Shape of the net's outputs, [N, outputs] or [N, T, outputs].

    Raises:
        ArgumentError: Outputs of another shape.
    """

    def __init__(self, shape: torch.Size, outputs: torch.Size) -> None:
        super().__init__()
        if len(outputs) != 2 and (len(outputs) != 3 or shape[:-1] != outputs[:-1]):
            got = f"outputs {list(outputs)} behind a block that gives {list(shape)}"
            raise ArgumentError(
                "decouple", got, "outputs [N, outputs], or [N, T, outputs] of blocks that give [N, T, C]"
            )
        self._over_places = len(shape) == 3 and len(outputs) == 2
        self.map = nn.Linear(shape[1] * N_PLACES**2 if len(shape) == 4 else shape[-1], outputs[-1])

    def forward(self, outputs: Tensor) -> Tensor:
        if outputs.dim() == 4:
            outputs = F.adaptive_avg_pool2d(outputs, N_PLACES).flatten(1)
        elif self._over_places:
            outputs = outputs.mean(1)
        mapped: Tensor = self.map(outputs)
        return mapped

    def backward(self, outputs: Tensor, x: Any, y: Any, objective: Objective, rate: float) -> None:
        # One pass for both: the gradient of the block goes on through the graph of its outputs.
        self.learn(objective(self(outputs), x, y), rate)


@dataclass(frozen=True)
class Decoupling:
    """A way to train blocks without a backward pass through all of them.

    Attributes:
        name: As on the command line.
        paper: Where it was published, and what is different here.
        guide: (shape of a block's outputs, shape of the net's outputs, targets, whether labels may be seen) to its
            guide.
        answers: Whether a block tells the one before it the gradient of its input.
    """

    name: str
    paper: str
    guide: Callable[[torch.Size, torch.Size, Any, bool], Guide]
    answers: bool


def generator(shape: torch.Size, outputs: torch.Size, y: Any, labels: bool) -> Guide:
    """A generator, of labels too if these are wanted.

    Raises:
        ArgumentError: Labels that are neither classes, int64 [N] or [N, T], nor float [N, labels].
    """
    if not labels:
        return Generator(shape, 0, several=False)
    if isinstance(y, Tensor):
        if y.is_floating_point() and y.dim() == 2:
            return Generator(shape, y.shape[1], several=True)
        fits = y.dim() == 1 or (y.dim() == 2 and len(shape) == 3 and y.shape == shape[:2])
        if y.dtype == torch.int64 and fits:
            return Generator(shape, outputs[1] if y.dim() == 1 else outputs[-1], several=False)
    got = f"targets {y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else f"targets {type(y).__name__}"
    raise ArgumentError("dni_labels", got, "a class for each input or place, or float labels [N, labels]")


def local_classifier(shape: torch.Size, outputs: torch.Size, y: Any, labels: bool) -> Guide:
    """A local classifier.

    Raises:
        ArgumentError: The net has outputs that it cannot have too.
    """
    return LocalClassifier(shape, outputs)


DECOUPLINGS: Mapping[str, Decoupling] = {
    one.name: one
    for one in (
        Decoupling(
            "dni",
            'Jaderberg et al., "Decoupled Neural Interfaces using Synthetic Gradients", ICML 2017, section 2; here a '
            "generator learns from the gradient of an earlier step, so that no block waits, and what is trained are "
            "scores",
            generator,
            answers=True,
        ),
        Decoupling(
            "local",
            'Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, section 2 (the '
            'prediction loss alone); Belilovsky et al., "Decoupled Greedy Learning of CNNs", ICML 2020, section 3: '
            "all blocks at once, a linear classifier each",
            local_classifier,
            answers=False,
        ),
    )
}
