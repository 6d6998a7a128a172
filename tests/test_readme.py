"""README and pages say what is: commands exist, Python runs, links lead somewhere, figures are the measured ones."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def blocks(language: str, *texts: str) -> list[str]:
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def test_python_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks("python", README, *PAGES.values()))  # pages go on from what the README made
    assert "find_masks" in code
    assert "materialize" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits.smask").exists()


def test_commands_exist() -> None:
    from smask.cli.main import parser

    commands = next(action.choices for action in parser()._actions if action.choices)
    pattern = re.compile(r"^(?:[\w ]*=\S+ +)*(?:torchrun [^#\n]*-m )?smask (\w+)((?: +[^#\n]*)?)", re.MULTILINE)

    def used(*texts: str) -> list[tuple[str, str]]:
        return pattern.findall("\n".join(blocks("bash", *texts)).replace("\\\n", ""))

    assert {name for name, _ in used(README)} == set(commands)
    for name, rest in used(README, *PAGES.values()):
        commands[name].parse_args(rest.split())


def test_links_lead_somewhere() -> None:
    n_seen = 0
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            place, _, anchor = link.partition("#")
            if place.startswith(("http://", "https://")):
                continue
            target = path.parent / place if place else path
            assert target.exists(), f"{path.name}: {link}"
            n_seen += 1
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link
    assert n_seen > 40


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
        assert f"<!-- {mark} -->" in PAGES["packed"]
        if path.exists():
            assert "\n".join(packed_table.rows(mark, json.loads(path.read_text()))) in PAGES["packed"]
    assert "\n".join(cifar_table.rows(json.loads((ROOT / "docs/cifar.json").read_text()))) in README
    assert "\n".join(language_table.table(json.loads((ROOT / "docs/language.json").read_text()))) in PAGES["searches"]
    assert "\n".join(methods_table.rows(json.loads((ROOT / "docs/methods.json").read_text()))) in PAGES["searches"]
    measured_tasks = json.loads((ROOT / "docs/tasks.json").read_text())
    page = PAGES["tasks"]
    assert "\n".join(tasks_table.summary(measured_tasks["permuted"])) in PAGES["searches"]
    for section, measured_section in measured_tasks.items():
        assert "\n".join(tasks_table.SECTIONS[section][1](measured_section)) in page
    tickets = json.loads((ROOT / "docs/tickets.json").read_text())
    assert tickets_table.page(tickets) == PAGES["tickets"]
    assert sparse_table.page(json.loads((ROOT / "docs/sparse.json").read_text())) == PAGES["sparse"]
    assert "\n".join(measurements.search_rows(measured)) in README
    assert "\n".join(measurements.figure_rows(measured)) in PAGES["speed"]
