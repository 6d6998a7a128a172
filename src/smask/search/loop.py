"""The search loop: trains scores of a frozen random network and turns them into a model that is a file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import integrity
from ..architectures import arch_of
from ..errors import ArgumentError
from ..origins import Base
from ..recipe import EXTERNAL, Recipe, texts_of
from .budget import Budget, Target
from .choice import AUTO, best
from .decoupled import DecoupledSearch
from .densities import DENSEST, layer_densities
from .distillation import relative_entropy
from .finish import Floats, coded_tensors, finished_model
from .identity import fingerprint_of, n_batches_of, name_of
from .initialisation import masked_weights
from .methods import METHODS
from .objective import Objective
from .order import Order
from .plan import OFF, check_options, planned
from .precision import Precision
from .pretrained import Taken
from .progress import Progress
from .ranks import Ranks
from .run import Run
from .schedule import Schedule
from .settings import check_kinds, check_settings, number_of, whole_of
from .shards import share_rows
from .snapshots import Keeper, check_state, copied
from .steps import Search
from .weights import maskable, zero_biases

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# A learned scale or bias in bfloat16, its exponent coded.
N_BYTES_FLOAT = 1.5
# Part of the teacher where it is not said.
TEACHER_WEIGHT = 0.5


def find_masks(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    method: str = "auto",
    density: float = 0.04,
    density_rule: str = "erk",
    first_density: float | None = None,
    last_density: float | None = None,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    base: str = "signed",
    scale: str = "channel",
    learn_scale: bool = True,
    learn_bias: bool = True,
    float_dtype: torch.dtype = torch.bfloat16,
    float_bits: int | None = 4,
    norm_statistics: bool = False,
    hold: float = 0.55,
    settle: float = 0.08,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    device: torch.device | str = "cpu",
    meta: dict[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    patience: int | None = None,
    checkpoints: Keeper | None = None,
    target: Target | None = None,
    only: Collection[str] | None = None,
    origin: Base | None = None,
    initial: str = "magnitude",
    start: Base | None = None,
    teacher: nn.Module | None = None,
    teacher_weight: float = TEACHER_WEIGHT,
    teacher_loss: Callable[[Tensor, Tensor], Tensor] = relative_entropy,
    accumulate: int = 1,
    precision: str = "fp32",
    group: ProcessGroup | None = None,
    shard: bool = False,
    decouple: str = OFF,
    blocks: int | None = None,
    dni_labels: bool = False,
    record: bool = False,
) -> nn.Module:
    """Searches which weights of a frozen, seed-generated network to keep.

    Weights of linear layers, convolutions (transposed ones too), embeddings, attention and recurrent nets become base
    weights of the seed under a mask, one for a weight that several modules share; scales, biases and norms are trained
    beside the scores and stay floats. The density falls from one half to its end on a cubic curve (``falls`` of a
    method), holds, and masks are fixed with exact counts for the last part, in which only the floats still learn.

    With ``origin``, a trained checkpoint, the weights that it has are masked instead of those of the seed, and never
    changed either (:mod:`smask.search.pretrained`).

    Args:
        model: Any module; it is copied, not changed. Parameters that are not masked are trained if they require a
            gradient; weights of the kinds above are masked even if they do not. A model from
            :mod:`smask.architectures` needs no module at load.
        batches: Sized and iterable once an epoch; gives (inputs, targets): tensors, or tuples, lists or mappings of
            them. Inputs that are a tuple or list are the arguments of the model, those of a mapping its keywords. A
            method ``set_progress`` is called before each epoch with the part of them that is done.
        method: One of :data:`smask.search.methods.METHODS`, or ``auto``, see :mod:`smask.search.choice`.
        density: Kept weights over all weights of masked layers, over ``origin`` those that are not zero, in (0, 1].
        density_rule: ``erk`` or ``uniform``, see :func:`smask.search.densities.layer_densities`; the method
            ``threshold`` chooses by itself.
        first_density, last_density: Densities of the first and last layer, in (0, 1].
        epochs: Passes over the batches.
        lr: Learning rate of Adam and Muon at the start; it follows half a cosine to zero.
        seed: Of the base weights and of the search, 0 to 2**64 - 1.
        base: ``signed``, ``uniform`` or ``normal``.
        scale: ``channel`` or ``tensor``.
        learn_scale: Whether scales are trained; else they keep the spread of He initialisation at the end density.
        learn_bias: Whether biases of masked layers are trained; else they are zero.
        float_dtype: Precision to which scales, biases and norms are rounded at the end.
        float_bits: Mantissa bits that scales and biases of masked layers keep, 1 to 22, biases and statistics of norms
            one more; None for those of the dtype.
        norm_statistics: Whether batch norms keep mean and variance, for a model that is to be trained further; else
            weights and biases say the same with a mean of 0 and a variance of 1, in fewer bytes.
        hold: Part of the search at the end density.
        settle: Last part of the search, with masks fixed.
        loss: (outputs of the model, targets) to a scalar.
        device: Where to search.
        meta: Free text to be written into the file.
        progress: Called every few steps.
        validate: Called after every epoch with the masked model in evaluation mode; more is better.
        patience: Epochs at the end density without a better validation (without one: training loss) after which the
            masks are fixed early; None never does.
        checkpoints: Keeps snapshots and may have one to begin from; a resumed search on a CPU gives the bytes that the
            whole one gives.
        only: State-dict names of the parameters to mask; by default all that :func:`smask.search.weights.maskable`
            finds.
        origin: A trained checkpoint, from :func:`smask.open_base`. Every tensor of the model that it has, by name and
            shape, begins as there: masked weights with a scale of 1, all others to be trained if they require a
            gradient. What is not changed costs nothing in the file; weights that it does not have are seeded.
        initial: How scores over ``origin`` begin: ``magnitude``, so that the first masks are those of magnitude
            pruning, or ``random``.
        start: A trained checkpoint, from :func:`smask.open_base`, as which a search over the seed begins: what the
            model has of it by name and shape (:mod:`smask.search.starts`). The file does not need it.
        target: A size that replaces ``density``: the rule shares what its bytes allow.
        teacher: A trained network, whose outputs for the same inputs are to be reached; it is not changed.
        teacher_weight: Part of the distance from the teacher in what is made small, in (0, 1]; the rest is the loss. At
            1 the loss is not computed, and targets may be None.
        teacher_loss: (outputs, those of the teacher) to a scalar; by default both are logits of classes.
        accumulate: Batches that are one step, one after the other, so that large ones fit the device.
        precision: Arithmetic of passes through the model, ``fp32``, ``bf16`` or ``fp16`` (with its loss scaled); scores
            are float32.
        group: Processes that share the search, all called with the same arguments and given the same batches, of which
            each takes its rows; None for this process alone. ``torch.distributed.group.WORLD`` are all. Checkpoints are
            kept by the first.
        shard: Whether each of the group keeps only its rows of the masked weights and all that belongs to them.
        decouple: ``off``, or one of :data:`smask.search.guides.DECOUPLINGS`: the model, a ``Sequential``, is cut in
            blocks, none of which waits for the gradient of those behind it. Processes of the group have a block each.
        blocks: How many, see :func:`smask.search.blocks.cut`; by default one for each process of the group, else for
            each masked module.
        dni_labels: Whether synthetic gradients may depend on the labels.
        record: Whether steps on a CUDA device are recorded and replayed: faster, with the same bytes, for models and
            losses that depend on nothing in Python that changes from step to step.

    Returns:
        A copy of the model on the CPU with its final weights, carrying its recipe: :func:`smask.save` writes it.

    Raises:
        ArgumentError: A value out of range, a model without a layer to mask or that cannot be cut, no batches.
        DivergedError: A loss that is not finite.
        UnreachableError: A target below the size of a model with one kept weight a layer.
        UnsupportedError: An unknown method, base, density rule or scale.
        ArchitectureError: The teacher gives outputs of another shape, or ``origin`` or ``start`` has no weight to
            mask.
        RankError: Processes of the group no longer agree, or one has ended.
        ResumeError, CheckpointError: From ``checkpoints``, whose last one is of other settings or damaged.
    """
    density, lr, seed = number_of("density", density), number_of("lr", lr), whole_of("seed", seed)
    check_settings(method, base, scale, initial, epochs, lr, seed, hold, settle, float_bits, patience)
    check_kinds(target, origin=origin, start=start, checkpoints=checkpoints)
    check_state(model)
    if origin and start:
        raise ArgumentError("start", start.source, "it or origin: masks over one, or of a seed that begin as the other")
    n_batches = n_batches_of(batches, accumulate)
    here, floats, texts = torch.device(device), Floats(float_dtype, float_bits, norm_statistics), texts_of(meta)
    objective = Objective.of(loss, teacher, teacher_weight, here, teacher_loss)
    original, model, ranks = model, copied(model), Ranks(group, here)
    if method == AUTO:
        n_bytes = target.n_bytes if target else None
        known = {"trained": origin is not None, "begun": start is not None}
        method = best(model, maskable(model, only), density=density, n_bytes=n_bytes, **known)
    method_of = METHODS[method]
    passes = Precision(precision, here)
    # Overflow is seen by the rank that has the row, and all would have to leave out the step.
    if shard and precision == "fp16":
        raise ArgumentError("precision", precision, "fp32 or bf16 where scores are spread over ranks")
    if decouple != OFF and method_of.worth:
        raise ArgumentError("method", method, "one whose densities follow the rule, where blocks are decoupled")
    check_options(
        decouple, blocks, dni_labels,
        accumulate=accumulate, precision=precision, shard=shard, size=ranks.size, device=here,
    )  # fmt: skip
    if not shard:
        model.to(here)
    model.train()
    weights = maskable(model, only)
    if origin and not method_of.learns_scale:
        raise ArgumentError("method", method, "one whose scales are trained, over a trained checkpoint")
    found_in = origin or start
    taken = Taken.of(found_in, model, weights) if found_in else None
    shapes = {name: one.weight.shape for name, one in weights.items()}
    plan = planned(decouple, model, weights, blocks=blocks, labels=dni_labels, ranks=ranks)

    def densities_at(density: float) -> dict[str, float]:
        return layer_densities(shapes, density=density, rule=density_rule, first=first_density, last=last_density)

    densities = densities_at(density if target is None else DENSEST)
    settings = {
        "method": method, "densities": densities, "epochs": epochs, "lr": lr, "seed": seed, "base": base,
        "scale": scale, "learn_scale": learn_scale, "learn_bias": learn_bias, "float_dtype": str(float_dtype),
        "float_bits": float_bits, "norm_statistics": norm_statistics,
        "hold": hold, "settle": settle, "patience": patience, "loss": name_of(loss),
        "n_batches": n_batches, "validate": validate is not None,
        "target": target.n_bytes if target else None, "accumulate": accumulate, "precision": precision,
        "teacher": integrity.digest(teacher.state_dict()) if teacher else None,
        "teacher_weight": teacher_weight if teacher else None,
        "teacher_loss": name_of(teacher_loss) if teacher else None, "decouple": plan.settings if plan else None,
        "origin": origin.digest if origin else None, "initial": initial if origin else None,
        "start": start.digest if start else None,
    }  # fmt: skip
    if checkpoints or ranks.size > 1:  # what takes time, and only matters to one who goes on, or to others
        settings |= {"batches": fingerprint_of(batches), "arch": arch_of(original)}
        settings |= {"model": integrity.digest(original.state_dict())}
    ranks.check_same(**settings)
    rows = None
    if shard:
        weights, rows = share_rows(model, weights, ranks, here)
    with (
        torch.random.fork_rng(devices=[here] if here.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed % 2**63)
        schedule = Schedule.of(
            epochs * n_batches // accumulate, lr=lr, hold=hold, settle=settle, early=bool(patience), n_passes=epochs
        )
        layers = masked_weights(
            weights,
            densities,
            method_of,
            base=base,
            seed=seed,
            per_channel=scale == "channel",
            learn_scale=learn_scale,
            rows=rows,
            origins=taken.masked if taken and origin else None,
            initial=initial,
            starts=taken.masked if taken and start else None,
            stride=schedule.stride,
        )
        biases = zero_biases(model, weights, learn=learn_bias, given=taken.others if taken else ())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        ends = zip((next(iter(weights)), next(reversed(weights))), (first_density, last_density), strict=True)
        fixed = {name: density for name, density in ends if density is not None}
        kind = (
            functools.partial(DecoupledSearch, plan=plan)
            if plan
            else functools.partial(Search, fixed=fixed, record=record)
        )
        search = kind(model, layers, schedule, precision=passes, ranks=ranks, seed=seed)

        def finished(levels: Mapping[str, Tensor]) -> nn.Module:
            recipe = Recipe(
                seed, coded_tensors(layers, levels, floats), dict(arch_of(original) or EXTERNAL), texts,
                origin.digest if origin else None,
                {name: ("", tensor) for name, tensor in taken.others.items()} if taken and origin else {},
            )  # fmt: skip
            silent = {names[id(one.bias)]: one.silent(levels[n]) for n, one in layers.items() if one.bias is not None}
            return finished_model(original, model, recipe, floats, biases, silent)

        shared = search.allotted if method_of.worth else densities_at
        n_bytes_float = N_BYTES_FLOAT if float_bits is None else (float_bits + 3) / 8
        budget = Budget(target, search, shared, finished, n_bytes_float, fixed) if target else None
        order = Order(batches, epochs, here, n_batches=n_batches, n_together=accumulate)
        keeper = checkpoints if ranks.rank == 0 else None
        Run(search, order, epochs, n_batches, objective, progress, validate, patience, keeper, budget).go(settings)
        search.gather()
        found = finished(search.fix())
    if ranks.size > 1:
        ranks.check_same(weights_found=integrity.digest(found.state_dict()))
    return found
