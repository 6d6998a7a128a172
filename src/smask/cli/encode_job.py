"""The searches of one ``smask encode``: data, net, batches, and what is kept on the way."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import architectures, codec, named_nets
from ..errors import ArgumentError
from ..readers.reading import PREFIX
from ..recipe import recipe_of
from ..runs.board import Board
from ..runs.folder import Checkpoints
from ..runs.goal import Goal, Trial, smallest
from ..runs.log import Log
from ..runs.rounds import Rounds
from ..runs.size import TargetSize
from ..search.data import Batches, load_dataset
from ..search.loop import TEACHER_WEIGHT, find_masks
from ..search.pretrained import Taken
from ..search.tasks import Classification, Language, Task, context_of
from ..search.text import TextBatches, load_text
from ..search.weights import maskable
from . import bars, data_options, decoupled_options, pretrained, screen
from .image_changes import changed
from .processes import Processes
from .teacher import accuracy_of, teacher_of

DEFAULTS = {"digits": ("mlp:64-128-10", 0.08), "other": ("lenet-300-100", 0.04), "lm": ("gpt:4x128x4", 0.3)}
BATCH_SIZES = {"classify": 128, "lm": 32}
# Over a trained checkpoint.
DENSITY_OF_TRAINED = 0.5
# Steps of a search when the number of epochs is left to us.
N_STEPS = 18_000

# Part of the training data that judges searches for an accuracy, or for bits per byte.
VALIDATION = 0.1


class Job:
    """All that the options ask for.

    Attributes:
        device: Where to search.
        base: The checkpoint whose weights are masked, None for those of the seed.
        start: The checkpoint as which a search over the seed begins, or None.
        whole: What is searched for, with all training inputs.
        name: Of the architecture.
        epochs: Of each search.
        n_blocks: Of the net, None where its blocks are not decoupled.
        log, board: The log and the curves, if they are wanted.
        seconds_encode: What coding the files took so far.
    """

    def __init__(self, arguments: argparse.Namespace, meta: Mapping[str, str], joined: Processes) -> None:
        if joined.rank:  # one process writes and speaks
            quiet = {"quiet": True, "log": None, "checkpoint": None, "tensorboard": None}
            arguments = argparse.Namespace(**{**vars(arguments), **quiet})
        self.arguments, self.meta, self._joined = arguments, dict(meta), joined
        self._goal = goal_of(arguments)
        self._target = None
        if arguments.target_size is not None:
            self._target = TargetSize(arguments.target_size, keep_best=arguments.keep_best)
        self.device: torch.device = joined.device
        named = pretrained.open_named(arguments)
        self.base = None if arguments.start is not None else named
        self.start = None if self.base else named
        self.whole, self._net, self.name = task_and_net(arguments, trained=pretrained.checkpoint_of(arguments))
        self.whole.check_fit(self._net)
        self._only = pretrained.masked_names(self._net, self.base, arguments)
        self.n_blocks = decoupled_options.n_blocks_of(arguments, self._net, joined)
        for key in self.meta:
            if key.startswith(PREFIX):
                raise ArgumentError("--meta", key, f"another key: {PREFIX} says how data is read")
        self.meta |= self.whole.meta
        self._teacher, self._taught = None, dict[str, Any]()
        if arguments.teacher is not None:
            if not isinstance(self.whole, Classification) or self.whole.data.several:
                want = "a task of classes; teacher= of find_masks takes any"
                raise ArgumentError("--teacher", arguments.teacher, want)
            self._teacher = teacher_of(arguments, self.whole.data, default_arch=self.name)
            right = accuracy_of(self._teacher, self.whole.data)
            self._taught = {"teacher": arguments.teacher, "teacher_accuracy": right}
        if self.base:
            new = pretrained.new_layers(self._net, self.base, self._only)
            self._taught |= {"base": arguments.base, "base_digest": self.base.digest, "new": new}
        if self.start:
            self.start = pretrained.with_statistics(self.start, self._net, self._only, self.whole)
            new = pretrained.new_layers(self._net, self.start, self._only)
            self._taught |= {"start": arguments.start, "new": new}
            if isinstance(self.whole, Classification) and not self.whole.data.several and not new:
                begun = copy.deepcopy(self._net)
                Taken.of(self.start, begun, maskable(begun, self._only))
                self._taught["start_accuracy"] = accuracy_of(begun, self.whole.data)
        task = self.whole
        self._judge: Task | None = None
        part = VALIDATION if self._goal is not None and arguments.validation is None else arguments.validation
        if part is not None:
            task, self._judge = self.whole.split(part, seed=arguments.seed)
        self._task: Task = task
        n_steps = len(self._batches()) // arguments.accumulate or 1
        self.epochs = arguments.epochs or min(max(math.ceil(N_STEPS / n_steps), 10), 300)
        self._loss = self.whole.loss(arguments.label_smoothing)
        self.seconds_encode = 0.0
        self.log = Log(arguments.log, problem=self._problem) if arguments.log else None
        self.board = Board(arguments.tensorboard, problem=self._problem) if arguments.tensorboard else None
        if arguments.checkpoint and self._goal is None:
            self._checkpoints(arguments.checkpoint)  # refused before anything is said

    @property
    def target_bytes(self) -> int | None:
        """The size asked for, if one was."""
        return self._target.n_bytes if self._target else None

    def run(self) -> tuple[bytes, dict[str, Any]]:
        """Searches; the file, and what there is to say beyond what is in it."""
        arguments = self.arguments
        if self.log:
            options = {name: value for name, value in vars(arguments).items() if name != "run"}
            self.log.event("begin", arguments=options)
        n_weights = sum(parameter.numel() for parameter in self._net.parameters())
        self._say(
            f"{self.name}, {n_weights:,} parameters; {self._task.training_inputs} from "
            f"{arguments.data}; {self.epochs} epochs on {self.device}"
            + decoupled_options.words(arguments, self.n_blocks, self._joined)
        )
        if self._teacher:
            self._say(
                f"teacher {arguments.teacher}: right on {self._taught['teacher_accuracy']:.2%} of training inputs"
            )
        if "start_accuracy" in self._taught:
            self._say(f"begins as {arguments.start}: right on {self._taught['start_accuracy']:.2%} of training inputs")
        density = arguments.density or (DENSITY_OF_TRAINED if self.base else _defaults(arguments)[1])
        if self._goal is None:
            trial = self._search(density, arguments.checkpoint)
            return trial.data, self._taught | ({} if self._judge is None else {"validation": abs(trial.judged)})
        best, tried = smallest(self._one_of_several, self._goal, density=density, keep_best=arguments.keep_best)
        own = self._goal.own
        trials = [{"density": t.density, "n_bytes": len(t.data), "validation": own(t.judged)} for t in tried]
        said = {"goal": self._goal.value, "validation": own(best.judged), "trials": trials}
        return best.data, self._taught | said

    def _one_of_several(self, density: float) -> Trial:
        folder, name = self.arguments.checkpoint, f"density-{density:.6f}"
        if self.board:
            self.board.begin(name)
        trial = self._search(density, folder and str(Path(folder) / name))
        self._say(f"density {density:.4f}: {len(trial.data):,} bytes, validation {bars.judged(trial.judged)}")
        return trial

    def _search(self, density: float, folder: str | None) -> Trial:
        arguments = self.arguments
        checkpoints = self._checkpoints(folder) if folder else None
        if checkpoints and checkpoints.place:
            self._say(f"goes on from {checkpoints.place}")
        with kept_on_interrupt(checkpoints), bars.search_bar(quiet=arguments.quiet) as bar:
            found = find_masks(
                self._net, self._batches(), record=True, method=arguments.method, density=density, target=self._target,
                density_rule=arguments.density_rule, first_density=arguments.first_density,
                last_density=arguments.last_density, epochs=self.epochs, lr=arguments.lr, seed=arguments.seed,
                base="signed" if self.base else arguments.base, origin=self.base, start=self.start, only=self._only,
                initial=arguments.initial or "magnitude", scale=arguments.scale,
                learn_scale=not arguments.no_learn_scale, learn_bias=not arguments.no_learn_bias,
                float_bits=arguments.float_bits, norm_statistics=arguments.norm_statistics,
                float_dtype=getattr(torch, arguments.float_dtype), loss=self._loss,
                device=self.device, meta=self.meta, progress=bars.listener(bar, self.log, self.board),
                validate=self._validate if self._judge else None, patience=arguments.patience, checkpoints=checkpoints,
                teacher=self._teacher, teacher_weight=arguments.teacher_weight or TEACHER_WEIGHT,
                accumulate=arguments.accumulate, precision=arguments.precision, group=self._joined.group,
                shard=arguments.shard, decouple=arguments.decouple, blocks=arguments.blocks,
                dni_labels=arguments.dni_labels,
            )  # fmt: skip
        started = time.perf_counter()
        data = codec.encode(found.state_dict(), recipe_of(found))
        self.seconds_encode += time.perf_counter() - started
        judged = self._validate(codec.load(data, device=self.device, base=self.base)) if self._judge else math.nan
        return Trial(density, data, judged)

    def _batches(self) -> Batches | TextBatches:
        size = self.arguments.batch_size or BATCH_SIZES[self.arguments.task]
        return self._task.batches(size, seed=self.arguments.seed, device=self.device)

    def _validate(self, model: nn.Module) -> float:
        assert self._judge is not None
        return self._judge.judged(model, device=self.device)

    def _checkpoints(self, folder: str) -> Checkpoints:
        arguments = self.arguments
        return Checkpoints(folder, resume=arguments.resume, every=arguments.checkpoint_every, problem=self._problem)

    def _problem(self, text: str) -> None:
        screen.say(f"smask: {text}")
        if self.log:
            self.log.event("problem", text=text)

    def _say(self, text: str) -> None:
        screen.say(text, quiet=self.arguments.quiet)


def goal_of(arguments: argparse.Namespace) -> Goal | None:
    """What the file has to reach, None where its density or size is said."""
    if arguments.accuracy is not None:
        return Goal("accuracy", fraction_of(arguments.accuracy))
    return None if arguments.bits_per_byte is None else Goal("bits_per_byte", arguments.bits_per_byte)


def fraction_of(text: str) -> float:
    """An accuracy, ``0.97`` or ``97%``, as a fraction.

    Raises:
        ArgumentError: Anything else.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ArgumentError("--accuracy", text, "a fraction above 0 and at most 1, or a percentage: 0.97 or 97%")
    return value


@contextmanager
def kept_on_interrupt(checkpoints: Checkpoints | Rounds | None) -> Iterator[None]:
    """Says how an interrupted search goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoints and checkpoints.place:
            screen.say(f"kept: {checkpoints.place}; the same command with --resume goes on from there")
        raise


def _defaults(arguments: argparse.Namespace) -> tuple[str, float]:
    """Architecture and density where they are left to us."""
    return DEFAULTS["lm"] if arguments.task == "lm" else DEFAULTS.get(arguments.data, DEFAULTS["other"])


def task_and_net(arguments: argparse.Namespace, *, trained: str | None = None) -> tuple[Task, nn.Module, str]:
    """The data, and the net for it, its free parameters drawn from the seed; the name of the net.

    Args:
        arguments: Of a command with options of data and a seed.
        trained: A checkpoint that is masked or begun with, which may bring the architecture.

    Raises:
        ArgumentError, ArchitectureError, DataError, UnsupportedError: Data or architecture cannot be read or used.
    """
    name, reading = arguments.arch or _defaults(arguments)[0], data_options.reading_of(arguments)
    task: Task
    if not Path(arguments.data).is_file() and arguments.data != "digits":
        screen.say(f"reading {arguments.data} ...", quiet=arguments.quiet)  # folders and collections may take a while
    if arguments.task == "lm":
        text = load_text(arguments.data, reading)
        own = pretrained.own_arch(arguments, text.n_classes) if trained else None
        arch = own or named_nets.architecture(name, n_classes=text.n_classes)
        task = changed(Language(text, context_of(arch)), arguments)
    else:
        data = load_dataset(arguments.data, reading)
        mean, std = data.statistics()
        if trained and arguments.mean is not None:
            mean, std = (screen.numbers_of(arguments, option) or [] for option in ("mean", "std"))
        own = pretrained.own_arch(arguments, data.n_classes) if trained else None
        arch = own or named_nets.architecture(
            name, input_shape=data.input_shape, n_classes=data.n_classes, mean=mean, std=std
        )
        task = changed(Classification(data), arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed % 2**63)
        return task, architectures.build(arch), f"the net of {trained}" if own else name
