"""Searches and trainings as a user starts them: `smask` in a process of its own, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any


def encode(options: Sequence[str], output: str | None = None) -> dict[str, Any]:
    """The report of a search; its file is thrown away unless it is given a place."""
    return reported("encode", options, output)


def reported(command: str, options: Sequence[str], output: str | None = None) -> dict[str, Any]:
    """The report of `smask encode` or `smask train`; its file is thrown away unless it is given a place."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "smask", command, *options, "--json", "-q"]
        words += ["-o", output or f"{folder}/out.smask"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
