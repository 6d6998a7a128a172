"""How the reference decoder refuses a file: every error names the clause of spec/smask-1.md that is violated."""

from typing import Any


class Refused(Exception):  # noqa: N818
    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"{clause}: {message}")
        self.clause = clause


class Unsupported(Refused): ...


class OverLimit(Refused): ...


def need(ok: Any, clause: str, message: str, error: type[Refused] = Refused) -> None:
    if not ok:
        raise error(clause, message)
