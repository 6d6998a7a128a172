"""``smask ticket``: find a lottery ticket and write the file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bars, data_options, screen, training_job

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..runs.rounds import Rounds
    from ..training.loop import Trained
    from ..training.tickets import Ticket
    from ..training.treatments import Treatment

EPILOG = f"""\
examples:
  smask ticket                                          bundled digits, writes digits-ticket.smask
  smask ticket --data mnist/ --density 0.21 -o ticket.smask
  smask train ticket.smask --data mnist/ -o trained.smask
  smask ticket --data mnist/ --density 0.05 --rounds 10 --checkpoint run/      then, after a crash, with --resume
  smask ticket --data mnist/ --density 0.5 --criterion large-final-same-sign --kept constant
  smask ticket --data mnist/ --density 0.2 --kept reshuffle --train -o trained.smask

criteria: which weights a layer keeps, those with the largest
  large-final, small-final, large-init, small-init, large-init-large-final, small-init-small-final,
  magnitude-increase, movement, random
each also with -same-sign or -diff-sign: only among weights that end with the sign they began with, or with the other.

A ticket file holds the seed and one mask a layer, so that its weights are those that the seed gives: --kept rewind
(their initial weights), reinit (others of the seed) or constant (the layer's spread with a sign), signs kept or not. No
file holds --kept reshuffle or --pruned initial (pruned weights stay at their initial value): these are for --train,
which trains the ticket at once and writes the trained weights.

{data_options.KINDS}
"""


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "ticket", help="find a lottery ticket: train, prune, rewind",
        description="Trains a net from the seed's weights, prunes it, goes back to these weights, once or in rounds.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    training_job.add(parser)
    option = parser.add_argument_group("ticket").add_argument
    option("--density", type=float, default=0.2, metavar="P", help="kept weights of a layer over all (default 0.2)")
    option("--last-density", type=float, metavar="P", help="of the last layer (default: the root of --density)")
    option("--rounds", type=int, default=1, metavar="N", help="each keeps P^(1/N) of what is left (default 1)")
    option("--criterion", default="large-final", metavar="C", help="what is kept, see below (default %(default)s)")
    option("--kept", default="rewind", metavar="K", help="rewind, reinit, constant or reshuffle (default %(default)s)")
    option("--signs", default="kept", metavar="S", help="of kept weights: kept or random (default %(default)s)")
    option("--pruned", default="zero", metavar="Z", help="pruned weights are zero, or stay initial (default zero)")
    option("--train", action="store_true", help="train the ticket too, and write the trained weights instead of it")
    option("--target-size", metavar="SIZE", help="with --train: round them to a file of at most this size")
    parser.add_argument("-o", "--output", metavar="OUT", help="file to write (default: name of the data)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains, prunes, writes, reads back, scores what was read."""
    from .. import codec, container
    from ..conversion.goals import size_of
    from ..errors import ArgumentError, UnsupportedError
    from ..runs.rounds import Rounds
    from ..search.densities import check_density
    from ..training.criteria import CRITERIA
    from ..training.treatments import Treatment
    from . import train
    from .encode import stem_of
    from .encode_job import task_and_net

    treatment = Treatment(arguments.kept, arguments.signs, arguments.pruned)
    if arguments.criterion not in CRITERIA:
        raise UnsupportedError("criterion", arguments.criterion, tuple(CRITERIA))
    for option in ("density", "last_density"):
        if getattr(arguments, option) is not None:
            check_density(f"--{option.replace('_', '-')}", getattr(arguments, option))
    if arguments.rounds < 1:
        raise ArgumentError("--rounds", arguments.rounds, "1 or more")
    if arguments.target_size is not None:
        size_of(arguments.target_size, name="--target-size")
    if not arguments.train:
        treatment.check_file()
        if arguments.target_size is not None:
            raise ArgumentError(
                "--target-size", arguments.target_size, "--train beside it: a ticket has no more to round"
            )
    kind = "trained" if arguments.train else "ticket"
    output = Path(arguments.output or f"{stem_of(arguments.data)}-{kind}.smask")
    container.check_output(output, overwrite=arguments.force)
    training_job.check(arguments)
    task, net, name = task_and_net(arguments)
    task.check_fit(net)
    job, rounds = training_job.TrainingJob(arguments, task), None
    if arguments.checkpoint:
        rounds = Rounds(
            arguments.checkpoint, resume=arguments.resume, every=arguments.checkpoint_every, problem=job.problem
        )
    train.check_size(net, arguments)
    job.describe(name, net)
    ticket, told = _found(job, net, treatment, rounds)
    untrained = job.score(ticket.model)
    fields: dict[str, Any] = {
        "arch": name, "criterion": arguments.criterion, "kept": arguments.kept, "signs": arguments.signs,
        "pruned": arguments.pruned, "density": _density(ticket.masks), "rounds": told, "trained": arguments.train,
        "untrained": screen.score_fields(untrained),
    }  # fmt: skip
    rows = [("trained", ", ".join(f"{_judged(one)} with {one['density']:.2%} kept" for one in told))]
    if arguments.train:
        rows.insert(0, ("untrained", screen.score_rows(untrained)[0][1]))
        trained = job.train(
            ticket.model, masks=ticket.masks, outside=ticket.outside,
            checkpoints=rounds(arguments.rounds + 1) if rounds else None,
        )  # fmt: skip
        train.write(trained.model, output, arguments)
    else:
        codec.save(ticket.model, output, overwrite=arguments.force)
    scored = job.score(codec.load(output, device=job.device))
    job.report(output, scored, fields, rows, label=None if arguments.train else "untrained")
    return 0


def _found(
    job: training_job.TrainingJob, net: nn.Module, treatment: Treatment, rounds: Rounds | None
) -> tuple[Ticket, list[dict[str, Any]]]:
    """The ticket, and of each round what was kept and how good its trained net was."""
    from ..training.tickets import find_ticket
    from .encode_job import kept_on_interrupt

    arguments, told = job.arguments, list[dict[str, Any]]()

    def trained(n_round: int, found: Trained) -> None:
        if job.board:
            job.board.begin("train" if n_round == arguments.rounds else f"round-{n_round + 1}")
        told.append({"density": _density(found.masks), **screen.score_fields(job.score(found.model))})
        one = told[-1]
        job.say(f"round {n_round} of {arguments.rounds}: {one['density']:.2%} kept, {_judged(one)} when trained")

    if job.board:
        job.board.begin("round-1")
    if rounds and rounds.place:
        job.say(f"goes on from {rounds.place}")
    with kept_on_interrupt(rounds), bars.search_bar(quiet=arguments.quiet, label="train") as bar:
        ticket = find_ticket(
            net, job.batches(), density=arguments.density, last_density=arguments.last_density,
            rounds=arguments.rounds, criterion=arguments.criterion, treatment=treatment,
            base=arguments.base or "normal", spread=arguments.spread or "he", trained=trained, checkpoints=rounds,
            **job.options(bar),
        )  # fmt: skip
    return ticket, told


def _density(masks: Mapping[str, Tensor]) -> float:
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def _judged(scored: dict[str, Any]) -> str:
    return bars.judged(scored.get("accuracy", -scored.get("bits_per_byte", 0.0)))
