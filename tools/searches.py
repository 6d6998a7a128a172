"""Searches as a user starts them: `smask encode` in a process of its own, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any


def encode(options: Sequence[str], output: str | None = None) -> dict[str, Any]:
    """The report of a search; its file is thrown away unless it is given a place."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "smask", "encode", *options, "--json", "-q"]
        command += ["-o", output or f"{folder}/out.smask"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
