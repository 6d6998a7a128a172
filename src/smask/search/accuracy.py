"""Accuracy and loss of a classifier on the test part of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArchitectureError
from .changes import resized
from .data import Dataset

# What a ResNet-18 has between its layers is 26 MB so, which the system's allocator uses again. 1,000 inputs at once
# take half as long again on a processor, most of that in page faults.
N_BATCH = 100


@dataclass(frozen=True)
class Score:
    """Result of :func:`score`: ``accuracy`` is a fraction, ``loss`` the mean cross-entropy in nats."""

    accuracy: float
    loss: float
    n_inputs: int


@dataclass(frozen=True)
class LabelScore(Score):
    """The same where an input has several labels: ``accuracy`` is the part of inputs with all labels right,
    ``label_accuracy`` that of labels, ``loss`` the mean binary cross-entropy of a label in nats.
    """

    label_accuracy: float


@torch.no_grad()
def score(model: nn.Module, dataset: Dataset, *, device: torch.device | str = "cpu") -> Score:
    """Runs a model in evaluation mode over the test part; of several labels those above 0 are what it says.

    Raises:
        ArchitectureError: The model does not take these inputs or has too few outputs.
    """
    check_fit(model, dataset, device=device)
    model.eval()
    n_right, n_labels, loss = 0, 0, 0.0
    for start in range(0, len(dataset.x_test), N_BATCH):
        x = dataset.inputs(dataset.x_test[start : start + N_BATCH].to(device))
        y = dataset.y_test[start : start + N_BATCH].to(device)
        outputs = model(x)
        if dataset.several:
            right = (outputs > 0) == (y > 0)
            n_right, n_labels = n_right + int(right.all(1).sum()), n_labels + int(right.sum())
            loss += float(F.binary_cross_entropy_with_logits(outputs, y, reduction="sum"))
        else:
            n_right += int((outputs.argmax(1) == y).sum())
            loss += float(F.cross_entropy(outputs, y, reduction="sum"))
    n = len(dataset.x_test)
    if dataset.several:
        n_all = dataset.y_test.numel()
        return LabelScore(n_right / n, loss / n_all, n, n_labels / n_all)
    return Score(n_right / n, loss / n, n)


@torch.no_grad()
def check_fit(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    sizes: Sequence[int] = (),
) -> None:
    """Puts one input through a model, and as an image whose shorter side has so many pixels too.

    Raises:
        ArchitectureError: It does not go through, or the outputs are not one score for each class.
    """
    training = model.training
    model.eval()
    x = dataset.inputs(dataset.x_test[:1].to(device))
    try:
        for given in (*(resized(x, n_pixels) for n_pixels in sizes), x):
            outputs: Tensor = model(given)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ArchitectureError(
            (f"inputs of shape {list(given.shape[1:])} do not go through the model: {reason}",)
        ) from None
    finally:
        model.train(training)
    n_classes = dataset.n_classes if dataset.several else max(dataset.n_classes, int(dataset.y_test.max()) + 1)
    if outputs.dim() != 2 or outputs.shape[1] < n_classes or (dataset.several and outputs.shape[1] > n_classes):
        what = "labels" if dataset.several else "classes"
        raise ArchitectureError(
            (f"the model gives outputs of shape {list(outputs.shape)}, the data has {n_classes} {what}",)
        )
