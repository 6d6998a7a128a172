"""What a net is searched for: sorting inputs into classes, or predicting text. Its data, batches, loss, score."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArchitectureError
from .accuracy import Score, check_fit, score
from .data import Batches, Dataset
from .text import Text, TextBatches, TextScore, check_text_fit, score_text, token_loss

Device: TypeAlias = torch.device | str
NAMES = ("classify", "lm")
# Batches that say what a net sees, and their inputs: means and variances of a thousand are right to a few percent.
N_SOME_BATCHES, N_SOME = 8, 128


@dataclass(frozen=True, eq=False)
class Classification:
    """Inputs to classes.

    Attributes:
        data: Labelled inputs.
        shift, flip, erase, cutmix, sizes: Changes of training images, see :class:`smask.search.data.Batches`.
    """

    data: Dataset
    shift: int = 0
    flip: bool = False
    erase: int = 0
    cutmix: float = 0.0
    sizes: Sequence[tuple[int, float]] = ()

    @property
    def training_inputs(self) -> str:
        """How many there are, in words."""
        return f"{len(self.data.x_train):,} training inputs"

    @property
    def meta(self) -> Mapping[str, str]:
        """What a file has to say for its model to be used on other data."""
        return self.data.meta

    def split(self, part: float, *, seed: int) -> tuple[Classification, Classification]:
        """The task with fewer training inputs, and one whose test part they are."""
        rest, judge = self.data.validation(part, seed=seed)
        return replace(self, data=rest), replace(self, data=judge)

    def batches(self, batch_size: int, *, seed: int, device: Device) -> Batches:
        """Training batches."""
        return Batches(
            self.data, batch_size=batch_size, seed=seed, shift=self.shift, flip=self.flip, erase=self.erase,
            cutmix=self.cutmix, sizes=self.sizes, device=device, channels_last=True,
        )  # fmt: skip

    def loss(self, label_smoothing: float) -> Callable[[Any, Any], Tensor]:
        """Cross-entropy of the classes, or of each label where an input has several."""
        if self.data.several:
            return functools.partial(labels_loss, label_smoothing=label_smoothing)
        return functools.partial(classes_loss, label_smoothing=label_smoothing)

    def check_fit(self, model: nn.Module) -> None:
        """Raises ArchitectureError if the model does not take the inputs, in all sizes that they are to have."""
        check_fit(model, self.data, sizes=[n_pixels for n_pixels, _ in self.sizes])

    def score(self, model: nn.Module, *, device: Device) -> Score:
        """On the test part."""
        return score(model, self.data, device=device)

    def judged(self, model: nn.Module, *, device: Device) -> float:
        """Accuracy on the test part: more is better."""
        return self.score(model, device=device).accuracy


def classes_loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of logits [N, outputs] with classes, int64 [N], or parts of classes, float32 [N, classes]."""
    if targets.dim() == 2:  # a net may have more outputs than the data has classes
        targets = F.pad(targets, (0, outputs.shape[1] - targets.shape[1]))
    return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)


def labels_loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean binary cross-entropy of logits [N, labels] with targets of zeros and ones, these moved towards a half."""
    targets = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(outputs, targets)


@dataclass(frozen=True, eq=False)
class Language:
    """Every token of a text from those before it.

    Attributes:
        data: The text.
        context: Tokens that the model sees at most.
    """

    data: Text
    context: int

    @property
    def training_inputs(self) -> str:
        """How many there are, in words."""
        return f"{len(self.data.train):,} training tokens ({self.data.n_classes} different ones)"

    @property
    def meta(self) -> Mapping[str, str]:
        """What a file has to say for its model to be used on other text."""
        return self.data.meta

    def split(self, part: float, *, seed: int) -> tuple[Language, Language]:
        """The task with less text, and one whose test part that is."""
        rest, judge = self.data.validation(part, seed=seed)
        return replace(self, data=rest), replace(self, data=judge)

    def batches(self, batch_size: int, *, seed: int, device: Device) -> TextBatches:
        """Training batches."""
        return TextBatches(self.data, context=self.context, batch_size=batch_size, seed=seed, device=device)

    def loss(self, label_smoothing: float) -> Callable[[Any, Any], Tensor]:
        """Cross-entropy of the tokens."""
        return functools.partial(token_loss, label_smoothing=label_smoothing)

    def check_fit(self, model: nn.Module) -> None:
        """Raises ArchitectureError if the model does not take the tokens."""
        check_text_fit(model, self.data, context=self.context)

    def score(self, model: nn.Module, *, device: Device) -> TextScore:
        """On the test part."""
        return score_text(model, self.data, context=self.context, device=device)

    def judged(self, model: nn.Module, *, device: Device) -> float:
        """Minus bits per byte of the test part: more is better, and below zero it is no accuracy."""
        return -self.score(model, device=device).bits_per_byte


Task: TypeAlias = Classification | Language


def context_of(arch: Mapping[str, Any]) -> int:
    """Tokens that a language model sees at most, by the input of its architecture.

    Raises:
        ArchitectureError: It says nothing of that.
    """
    shape = arch.get("input")
    if not isinstance(shape, list | tuple) or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise ArchitectureError((f"input {shape} of the architecture is not one number of tokens, like [128]",))
    return shape[0]


def some_inputs(task: Task) -> Iterator[Tensor]:
    """Of the training part, on the CPU, as a model sees them in training, in batches; always the same ones."""
    return (x for x, _ in itertools.islice(task.batches(N_SOME, seed=0, device="cpu"), N_SOME_BATCHES))
