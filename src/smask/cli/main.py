"""Entry point: parses, runs one subcommand, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from ..errors import SmaskError, printable

# As a shell reports a process that SIGINT ended.
INTERRUPTED = 130

EPILOG = """\
examples:
  smask encode                                   a first file, digits.smask, from bundled data
  smask encode --data mnist/ --arch lenet-300-100 -o mnist.smask
  smask sweep --sizes 4kB,8kB -o mnist -- --data mnist/
  smask ticket --data mnist/ -o ticket.smask
  smask train ticket.smask --data mnist/ -o trained.smask
  smask convert model.safetensors -o model.smask --target-size 1.5MB
  smask eval mnist.smask --data mnist/
  smask inspect mnist.smask
  smask verify mnist.smask
  smask decode mnist.smask -o mnist.safetensors
  smask pack a.smask b.smask -o many.smask
  smask bench --batch 1,16

exit codes: 0 done, 1 the answer is no, 2 usage, 3 bad file, 4 unsupported, 5 over a limit, 6 architecture or device,
130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from . import bench, convert, decode, encode, eval, inspect, pack, sweep, ticket, train, unpack, verify

    root = argparse.ArgumentParser(
        prog="smask",
        description="Neural networks stored as an architecture, a seed and compressed bitmasks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"smask {_version()}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (encode, sweep, ticket, train, convert, eval, decode, inspect, verify, pack, unpack, bench):
        command.add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except SmaskError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (smask inspect | head); the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"cannot read {error.filename or 'input'}: {(error.strerror or str(error)).lower()}", 3)
    except MemoryError:
        return _fail("not enough memory", 5)
    except RuntimeError as error:
        # torch has no class of its own for a CPU allocation that failed.
        if "allocate memory" in str(error) or "out of memory" in str(error):
            return _fail(f"not enough memory: {str(error).splitlines()[0]}", 5)
        raise
    return code


def entry() -> NoReturn:
    """The process: runs :func:`main` and exits with its code."""
    interrupts: list[int] = []

    def interrupted(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr has it: where stdout has no letters for a name, a result is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    try:
        code = main()
    except Exception:
        # What an interrupt raises may arrive as something else: Python makes a RuntimeError of it in a class body whose
        # attributes are told their names, and so may an extension.
        if not interrupts:
            raise
        code = _fail("interrupted; nothing was written", INTERRUPTED)
    if code == INTERRUPTED:
        # An interrupt that passed through code run by an extension leaves a mark in the interpreter, which would then
        # end by SIGINT instead of with our code. Everything is closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _fail(message: str, code: int) -> int:
    from .processes import rank

    who = f"smask, rank {rank()}" if rank() and "rank " not in message else "smask"
    print(f"{who}: {printable(message)}", file=sys.stderr)
    return code


def _version() -> str:
    from .. import __version__

    return __version__
