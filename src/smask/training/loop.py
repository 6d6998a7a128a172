"""The training loop: weights of a model under masks, from where they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import integrity
from ..architectures import arch_of
from ..errors import ArgumentError, CheckpointError, UnsupportedError
from ..recipe import EXTERNAL, Recipe, attach, texts_of
from ..search.identity import fingerprint_of, n_batches_of, name_of
from ..search.nested import moved
from ..search.order import Order
from ..search.precision import Precision
from ..search.progress import Meter, Progress
from ..search.ranks import Ranks
from ..search.settings import check_kinds, whole_of
from ..search.snapshots import Keeper, Snapshot, check_state, copied
from ..search.weights import maskable
from .optimizers import OPTIMIZERS, RATES
from .steps import Change, Training

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Steps between two looks at the loss.
N_REPORT = 40
# Gradients are not scaled, as float16 would need.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Attributes:
        model: On the CPU, in evaluation mode; :func:`smask.save` writes it to the bit.
        masks: As they were at the end, bool [C, ...] by name, on the CPU.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]


def train_weights(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    masks: Mapping[str, Tensor] | None = None,
    outside: Mapping[str, Tensor] | None = None,
    change: Change | None = None,
    optimizer: str = "adam",
    lr: float | None = None,
    rate: str = "cosine",
    weight_decay: float = 0.0,
    epochs: int = 20,
    seed: int = 0,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    meta: dict[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoints: Keeper | None = None,
    settings: Mapping[str, Any] | None = None,
    group: ProcessGroup | None = None,
) -> Trained:
    """Trains the weights of a model, those outside of a mask held where they are told.

    The same model, batches and settings give the same weights on a CPU with as many threads, resumed or not.

    Args:
        model: Any module, trained from the weights that it has; it is copied, not changed. Parameters that require no
            gradient stay.
        batches: Sized and iterable once an epoch; gives (inputs, targets), as for :func:`smask.find_masks`.
        masks: Which weights are trained, bool [C, ...] by the first state-dict name of each; a parameter without a mask
            is trained whole.
        outside: What weights outside of their masks are held at, float32 [C, ...] by name; zero where there is none.
        change: Changes masks on the way.
        optimizer: ``adam``, or ``sgd`` with a momentum of 0.9.
        lr: Learning rate at the start; by default that of :data:`smask.training.optimizers.OPTIMIZERS`.
        rate: ``cosine``, half of one to zero, or ``constant``.
        weight_decay: Times the weights, added to their gradients.
        epochs: Passes over the batches.
        seed: Of whatever the model draws, 0 to 2**64 - 1.
        loss: (outputs of the model, targets) to a scalar.
        device: Where to train.
        precision: Arithmetic of passes through the model, one of :data:`PRECISIONS`; weights are float32.
        meta: Free text to be written into the file.
        progress: Called every few steps.
        validate: Called after every epoch with the model in evaluation mode; more is better.
        checkpoints: Keeps snapshots and may have one to begin from.
        settings: Plain values that a training which goes on has to have in common with the kept one, beside its own.
        group: Processes that ``change`` brings to the same weights, and that train apart between its steps, all called
            with the same arguments but ``model`` and ``masks``; None for this process alone. Checkpoints are kept by
            the first, when all are the same.

    Raises:
        ArgumentError: A value out of range, a mask that does not fit, no batches.
        UnsupportedError: An unknown optimiser, rate or precision.
        DivergedError: A loss that is not finite.
        RankError: Processes of the group no longer agree, or one has ended.
        ResumeError, CheckpointError: From ``checkpoints``, whose last one is of other settings or damaged.
    """
    masks, outside, texts = dict(masks or {}), dict(outside or {}), texts_of(meta)
    for what, got, known in (
        ("optimizer", optimizer, tuple(OPTIMIZERS)), ("rate", rate, tuple(RATES)), ("precision", precision, PRECISIONS),
    ):  # fmt: skip
        if got not in known:
            raise UnsupportedError(what, got, known)
    lr = OPTIMIZERS[optimizer].lr if lr is None else lr
    seed = whole_of("seed", seed)
    _check(lr, weight_decay, epochs, seed)
    check_kinds(None, origin=None, start=None, checkpoints=checkpoints)
    check_state(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("model", "no parameter that requires a gradient", "some to train")
    n_batches, here = n_batches_of(batches), torch.device(device)
    original, model = model, copied(model)
    _check_masks(model, masks, outside)
    own = {
        "optimizer": optimizer, "lr": lr, "rate": rate, "weight_decay": weight_decay, "epochs": epochs, "seed": seed,
        "loss": name_of(loss), "precision": precision, "n_batches": n_batches, "validate": validate is not None,
        "change": dict(change.settings()) | {"every": change.every} if change else None,
    }  # fmt: skip
    ranks = Ranks(group, here)
    if checkpoints or ranks.size > 1:  # what takes time, and only matters to one who goes on, or to others
        own |= {"batches": fingerprint_of(batches), "arch": arch_of(original)}
        own |= {"model": integrity.digest(original.state_dict()), "masks": integrity.digest(masks)}
        own |= {"outside": integrity.digest(outside)}
    own = dict(settings or {}) | own
    ranks.check_same(**{name: value for name, value in own.items() if name not in ("model", "masks")})
    model.to(here).train()
    parameters = dict(model.named_parameters())
    n_steps, factor = epochs * n_batches, RATES[rate]
    with (
        torch.random.fork_rng(devices=[here] if here.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed % 2**63)
        training = Training(
            model, {name: parameters[name] for name in masks}, masks, outside, optimizer=OPTIMIZERS[optimizer],
            weight_decay=weight_decay, rate=lambda step: lr * factor(step / n_steps), change=change,
            precision=Precision(precision, here),
        )  # fmt: skip
        order = Order(batches, epochs, here, n_batches=n_batches)
        _run(training, order, n_steps, loss, progress, validate, checkpoints if ranks.rank == 0 else None, own, ranks)
    model.cpu().eval()
    ranks.check_same(weights_trained=integrity.digest(model.state_dict()) if ranks.size > 1 else None)
    attach(model, Recipe(seed, {}, dict(arch_of(original) or EXTERNAL), texts))
    return Trained(model, {name: mask.cpu() for name, mask in training.masks.items()})


def _run(
    training: Training,
    order: Order,
    n_steps: int,
    loss: Callable[[Any, Any], Tensor],
    progress: Callable[[Progress], None] | None,
    validate: Callable[[nn.Module], float] | None,
    keeper: Keeper | None,
    settings: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """All steps, from the keeper's snapshot if it has one; of several ranks the first asks its keeper."""
    device = next(training.model.parameters()).device
    meter, validation = Meter(Ranks(None, device)), None
    kept = ranks.snapshot(lambda: keeper.last(settings) if keeper else None)
    place = keeper.place if kept and keeper else None
    if kept:
        try:
            training.restore(kept.step, kept.tensors)
            states = {n.removeprefix("random."): t for n, t in kept.tensors.items() if n.startswith("random.")}
            order.restore(kept.numbers["order"], states)
            validation = kept.numbers["validation"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise CheckpointError(str(place), f"its state is not that of a training: {error!r}") from None
    n_batches, first_step = settings["n_batches"], training.done
    for ((x, y),) in () if training.done >= n_steps else order:
        meter.add(training.step(moved(x, device), moved(y, device), loss, seen=meter.seen))
        if validate and order.taken == n_batches:
            training.model.eval()
            validation = float(validate(training.model))
            training.model.train()
        finished = training.done == n_steps
        if training.done % N_REPORT == 0 or finished:
            meter.check(training.done, place)
            mean, accuracy = meter.read()
            if progress:
                progress(
                    Progress(
                        training.done, n_steps, order.epoch + 1, settings["epochs"], mean, training.density(),
                        training.n_bytes(), accuracy, validation, first_step,
                    )
                )  # fmt: skip
        # Several ranks have the same weights after a change of masks, and at the end.
        if keeper and (ranks.size == 1 or training.changed or finished) and (keeper.due() or finished):
            meter.check(training.done, place)
            tensors = {f"random.{name}": state for name, state in order.tensors().items()}
            numbers = {"order": order.numbers(), "validation": validation}
            keeper.keep(Snapshot(training.done, numbers, training.tensors() | tensors))
            place = keeper.place
        if finished:
            break


def _check_masks(model: nn.Module, masks: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> None:
    known = {name: one.weight for name, one in maskable(model, list(masks)).items()} if masks else {}
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != known[name].shape:
            want = f"torch.bool {list(known[name].shape)}"
            raise ArgumentError("masks", f"{name}: {mask.dtype} {list(mask.shape)}", want)
        if not bool(mask.any()):
            raise ArgumentError("masks", f"{name}: no weight", "masks that keep a weight of every layer")
    for name, value in outside.items():
        if name not in masks or value.shape != known[name].shape:
            raise ArgumentError("outside", f"{name}: {list(value.shape)}", "weights of masked parameters")


def _check(lr: float, weight_decay: float, epochs: int, seed: int) -> None:
    if not (lr > 0 and math.isfinite(lr)):
        raise ArgumentError("lr", lr, "a number above 0")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ArgumentError("weight_decay", weight_decay, "a number, 0 or more")
    if epochs < 1:
        raise ArgumentError("epochs", epochs, "1 or more")
    if not 0 <= seed < 2**64:
        raise ArgumentError("seed", seed, "0 to 2**64 - 1")
