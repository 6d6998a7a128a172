"""What ``smask train`` and ``smask ticket`` have in common: their options, and a training as these say."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import inspection
from . import bars, data_options, image_changes, screen

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from ..runs.board import Board
    from ..runs.folder import Checkpoints
    from ..runs.log import Log
    from ..search.accuracy import Score
    from ..search.data import Batches
    from ..search.tasks import Task
    from ..search.text import TextBatches, TextScore
    from ..training.loop import Trained
    from ..training.steps import Change

# Steps of a training when the number of epochs is left to us.
N_STEPS = 6_000


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    option = parser.add_argument
    option("--data", default="digits", metavar="D", help="training and test data (default %(default)s)")
    option("--task", default="classify", choices=("classify", "lm"), help="lm: predict text (default %(default)s)")
    option("--arch", metavar="A", help="architecture, as for smask encode")
    option("--base", metavar="B", help="initial weights of the seed: normal, uniform or signed (default normal)")
    option("--spread", metavar="R", help="of these weights: he or glorot (default he)")
    option("--seed", type=int, default=0, metavar="S", help="of weights, batches and what is drawn (default 0)")
    option(
        "--epochs", type=int, metavar="N",
        help=f"passes over the data (default: about {N_STEPS:,} steps, 3 to 100 epochs)",
    )  # fmt: skip
    option("--batch-size", type=int, metavar="B", help="inputs a step (default 128; 32 windows of a text)")
    option("--optimizer", default="adam", metavar="O", help="adam, or sgd with momentum (default %(default)s)")
    option("--lr", type=float, metavar="L", help="learning rate at the start (default 1e-3 for adam, 0.1 for sgd)")
    option("--rate", default="cosine", metavar="R", help="how it falls: cosine or constant (default %(default)s)")
    option("--weight-decay", type=float, default=0.0, metavar="X", help="times the weights, added to their gradients")
    option(
        "--precision", default="fp32", metavar="P", help="arithmetic of the model: fp32 or bf16 (default %(default)s)"
    )
    option(
        "--label-smoothing", type=float, default=0.0, metavar="X", help="part of every target spread over all classes"
    )
    option("--meta", action="append", default=[], metavar="KEY=TEXT", help="free text to keep; may be repeated")
    screen.add_device(parser)
    data_options.add(parser)
    image_changes.add(parser)
    kept = parser.add_argument_group("long runs").add_argument
    kept("--checkpoint", metavar="DIR", help="keep the state of the training in DIR, to go on after a crash")
    kept("--resume", action="store_true", help="go on from the last checkpoint in DIR, if there is one")
    kept(
        "--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds between two (default %(default).0f)"
    )
    kept("--log", metavar="FILE", help="append progress to FILE, one JSON object a line")
    kept("--tensorboard", metavar="DIR", help="curves of the training in DIR (pip install 'smask[tensorboard]')")
    option("--force", action="store_true", help="overwrite an existing file")
    option("--json", action="store_true", help="result as one JSON object")
    option("-q", "--quiet", action="store_true", help="no narration and no progress bar")


def check(arguments: argparse.Namespace) -> None:
    """What needs no data is refused before any is read.

    Raises:
        ArgumentError: A value out of range.
        UnsupportedError: A name that is not known.
    """
    from ..errors import ArgumentError, UnsupportedError
    from ..runs import board
    from ..training.initial import SPREADS, UNIT_SPREADS
    from ..training.loop import PRECISIONS
    from ..training.optimizers import OPTIMIZERS, RATES

    if arguments.task == "lm" and arguments.data == "digits":
        raise ArgumentError("--task lm", "no text", "--data FILE.txt beside it")
    names = {"optimizer": OPTIMIZERS, "rate": RATES, "base": UNIT_SPREADS, "spread": SPREADS, "precision": PRECISIONS}
    for name, known in names.items():
        if getattr(arguments, name) not in (*known, None):
            raise UnsupportedError(name, getattr(arguments, name), tuple(known))
    if arguments.tensorboard:
        board.check_installed(arguments.tensorboard)
    if arguments.resume and not arguments.checkpoint:
        raise ArgumentError("--resume", True, "it together with --checkpoint DIR")
    if not 0 <= arguments.label_smoothing < 1:
        raise ArgumentError("--label-smoothing", arguments.label_smoothing, "a part from 0 to below 1")
    for name, least in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("erase", 0), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ArgumentError(f"--{name.replace('_', '-')}", value, f"{least} or more")


class TrainingJob:
    """Trainings of one command.

    Attributes:
        task: What is learned.
        device: Where to train.
        epochs: Of each training.
        meta: What a file says beside its weights.
        log, board: The log and the curves, if they are wanted.
    """

    def __init__(self, arguments: argparse.Namespace, task: Task) -> None:
        from ..runs.board import Board
        from ..runs.log import Log
        from ..search.tasks import Language
        from .encode_job import BATCH_SIZES

        self.arguments, self.task, self.device = arguments, task, screen.device_of(arguments)
        self.meta = {**screen.meta_of(arguments), **task.meta}
        self._batch_size = arguments.batch_size or BATCH_SIZES["lm" if isinstance(task, Language) else "classify"]
        self.epochs = arguments.epochs or min(max(math.ceil(N_STEPS / max(1, len(self.batches()))), 3), 100)
        self.log: Log | None = Log(arguments.log, problem=self.problem) if arguments.log else None
        wanted = arguments.tensorboard
        self.board: Board | None = Board(wanted, problem=self.problem) if wanted else None
        self._started = time.perf_counter()
        if self.log:
            self.log.event("begin", arguments={name: value for name, value in vars(arguments).items() if name != "run"})

    def batches(self) -> Batches | TextBatches:
        """Training batches, from their beginning."""
        return self.task.batches(self._batch_size, seed=self.arguments.seed, device=self.device)

    def options(self, bar: Any) -> dict[str, Any]:
        """Arguments of :func:`smask.training.loop.train_weights` that the command line gives."""
        arguments = self.arguments
        return {
            "optimizer": arguments.optimizer, "lr": arguments.lr, "rate": arguments.rate,
            "weight_decay": arguments.weight_decay, "epochs": self.epochs, "seed": arguments.seed,
            "precision": arguments.precision,
            "loss": self.task.loss(arguments.label_smoothing), "device": self.device, "meta": self.meta,
            "progress": bars.listener(bar, self.log, self.board),
        }  # fmt: skip

    def train(
        self,
        model: nn.Module,
        *,
        masks: Mapping[str, Tensor] | None = None,
        outside: Mapping[str, Tensor] | None = None,
        change: Change | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        """One training from the weights of a model."""
        from ..training.loop import train_weights
        from .encode_job import kept_on_interrupt

        if checkpoints and checkpoints.place:
            self.say(f"goes on from {checkpoints.place}")
        with kept_on_interrupt(checkpoints), bars.search_bar(quiet=self.arguments.quiet, label="train") as bar:
            return train_weights(
                model, self.batches(), masks=masks, outside=outside, change=change, checkpoints=checkpoints,
                **self.options(bar),
            )  # fmt: skip

    def score(self, model: nn.Module) -> Score | TextScore:
        """On the test part."""
        return self.task.score(copy.deepcopy(model).to(self.device), device=self.device)

    def describe(self, name: str, model: nn.Module) -> None:
        """Says what is going to be trained."""
        n_weights = sum(parameter.numel() for parameter in model.parameters())
        self.say(
            f"{name}, {n_weights:,} parameters; {self.task.training_inputs} from {self.arguments.data}; "
            f"{self.epochs} epochs on {self.device}"
        )

    def report(
        self,
        output: Path,
        scored: Score | TextScore,
        fields: dict[str, Any],
        rows: list[tuple[str, str]],
        *,
        label: str | None = None,
    ) -> None:
        """Shows what came of it: the file, its score (under another label), then the other rows and its bytes."""
        report = inspection.inspect(output)
        seconds = round(time.perf_counter() - self._started, 3)
        everything = {
            "file": str(output), "data": self.arguments.data, **screen.score_fields(scored),
            "n_test": scored.n_inputs, "epochs": self.epochs, "seed": self.arguments.seed, "device": str(self.device),
            **screen.file_fields(report), "seconds": seconds, **fields,
        }  # fmt: skip
        if self.log:
            self.log.event("result", **everything)
        rows = [(label or name, text) for name, text in screen.score_rows(scored)] + rows
        rows = [("file", str(output)), *rows, *screen.file_rows(report), ("time", f"{seconds:.1f} s")]
        screen.result(everything, rows, as_json=self.arguments.json)

    def problem(self, text: str) -> None:
        """Narrates what went wrong without ending the command."""
        screen.say(f"smask: {text}")
        if self.log:
            self.log.event("problem", text=text)

    def say(self, text: str) -> None:
        """Narrates."""
        screen.say(text, quiet=self.arguments.quiet)
