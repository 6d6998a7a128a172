"""The trained network that ``smask encode --teacher`` names, ready to run, and how good it is."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from torch import nn

from .. import architectures, codec, container, named_nets
from ..conversion.networks import model_of
from ..errors import ArgumentError
from ..search.accuracy import score
from ..search.data import Dataset
from .screen import numbers_of

# Training inputs on which a teacher is tried.
N_TRIED = 2000


def teacher_of(arguments: argparse.Namespace, dataset: Dataset, *, default_arch: str) -> nn.Module:
    """The network.

    A ``.smask`` file says itself what it is, if it has an architecture; for all else it is ``--teacher-arch`` or else
    that of the search, with ``--teacher-mean`` and ``--teacher-std`` for what a named net does not say: the
    normalisation of its inputs.

    Raises:
        ArchitectureError: The checkpoint does not fit the architecture.
        ArgumentError, UnsupportedError: Not an architecture, or one of mean and std only.
        CheckpointError, FormatError, LimitError, IntegrityError, OSError: The file cannot be read.
    """
    path = Path(arguments.teacher)
    mean, std = (numbers_of(arguments, option) for option in ("teacher_mean", "teacher_std"))
    if (mean is None) != (std is None):
        raise ArgumentError("--teacher-mean and --teacher-std", "one of them", "both or none")
    is_own = path.is_file() and path.read_bytes()[: len(container.MAGIC)] == container.MAGIC
    if is_own and arguments.teacher_arch is None:
        return codec.load(path)
    arch = named_nets.architecture(
        arguments.teacher_arch or default_arch,
        input_shape=dataset.input_shape, n_classes=dataset.n_classes, mean=mean, std=std,
    )  # fmt: skip
    return codec.load(path, model=architectures.build(arch)) if is_own else model_of(path, arch)


def accuracy_of(teacher: nn.Module, dataset: Dataset) -> float:
    """Part of some training inputs that it gets right: a wrong normalisation shows here.

    Raises:
        ArchitectureError: It does not take these inputs or has too few outputs.
    """
    some = dataset.y_train[:N_TRIED]
    return score(teacher, replace(dataset, x_test=dataset.x_train[:N_TRIED], y_test=some)).accuracy
