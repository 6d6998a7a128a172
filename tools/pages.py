"""Tables of the README and of pages in docs: each lies between two marks, as <!-- packed --> and <!-- /packed -->."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def write_table(mark: str, lines: Iterable[str], *, page: Path = README) -> None:
    """Puts lines in place of those between two marks."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise SystemExit(f"{page} has no marks {start.strip()} and {end}")
    page.write_text(before + start + "".join(f"{line}\n" for line in lines) + end + after, encoding="utf-8")
