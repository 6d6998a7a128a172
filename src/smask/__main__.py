"""``python -m smask``."""

from .cli.main import entry

entry()
