"""The README says what is: its commands run, its Python runs, its figures are those of the committed measurements."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "find_masks" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits.smask").exists()


def test_commands_exist() -> None:
    from smask.cli.main import parser

    commands = next(action.choices for action in parser()._actions if action.choices)
    used = re.findall(r"^smask (\w+)((?: +[^#\n]*)?)", "\n".join(blocks("bash")).replace("\\\n", ""), re.MULTILINE)
    assert {name for name, _ in used} == set(commands)
    for name, rest in used:
        commands[name].parse_args(rest.split())


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {re.split(r"[<>=]", requirement)[0].lower() for requirement in wanted} <= pins
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_figures_are_the_measured_ones() -> None:
    measured = json.loads((ROOT / "docs/measurements.json").read_text())
    assert measured["searches"]
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import cifar_table
        import language_table
        import measurements
        import methods_table
        import packed_table
        import sparse_table
        import tasks_table
        import tickets_table
    finally:
        sys.path.pop(0)
    for mark, path in packed_table.FILES.items():
        assert f"<!-- {mark} -->" in README
        if path.exists():
            assert "\n".join(packed_table.rows(mark, json.loads(path.read_text()))) in README
    assert "\n".join(cifar_table.rows(json.loads((ROOT / "docs/cifar.json").read_text()))) in README
    assert "\n".join(language_table.table(json.loads((ROOT / "docs/language.json").read_text()))) in README
    assert "\n".join(methods_table.rows(json.loads((ROOT / "docs/methods.json").read_text()))) in README
    measured_tasks = json.loads((ROOT / "docs/tasks.json").read_text())
    page = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    assert "\n".join(tasks_table.summary(measured_tasks["permuted"])) in README
    for section, measured_section in measured_tasks.items():
        assert "\n".join(tasks_table.SECTIONS[section][1](measured_section)) in page
    tickets = json.loads((ROOT / "docs/tickets.json").read_text())
    assert tickets_table.page(tickets) == (ROOT / "docs/tickets.md").read_text(encoding="utf-8")
    page = sparse_table.page(json.loads((ROOT / "docs/sparse.json").read_text()))
    assert (ROOT / "docs/sparse.md").read_text(encoding="utf-8") == page
    for rows in (measurements.search_rows(measured), measurements.figure_rows(measured)):
        assert "\n".join(rows) in README
