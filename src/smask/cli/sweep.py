"""``smask sweep``: accuracy (bits per byte of text) against bytes, one search a point, as JSON and as a picture."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, DataError, OutputError, printable
from . import screen

EPILOG = """\
examples:
  smask sweep --sizes 800,1200,2kB                                    digits, about 20 s; writes sweep.json, sweep.png
  smask sweep --sizes 4kB,6.5kB,10kB --methods auto,multicoat --seeds 0,1 -o mnist -- --data mnist/
  smask sweep --densities 0.02,0.05,0.1 -o cnn -- --data mnist/ --arch mnist-cnn --epochs 5

What follows -- are options of `smask encode`, the same for all points. Every point is kept when it is done, and a
search that is interrupted goes on from its last checkpoint: give the same command again. A point that is out of reach
is noted and the others go on. The picture needs matplotlib (pip install 'smask[pictures]').
"""
# What says how good a file is, one of them, and what else of the result of a search is kept.
JUDGED = ("accuracy", "bits_per_byte")
KEYS = ("n_test", "loss", "n_bytes", "n_kept", "n_weights", "epochs", "seconds_search", "digest")
# What tells points apart.
NAMES: tuple[str, ...] = ("method", "target-size", "density", "seed")
# Options that a sweep gives itself.
OWN = ("--output", "-o", "--seed", "--method", "--target-size", "--density", "--accuracy", "--bits-per-byte",
       "--checkpoint", "--resume", "--tensorboard", "--json", "--force", "--quiet", "-q", "--help", "-h")  # fmt: skip


def add(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "sweep", help="accuracy against bytes: a search for every size",
        description="Searches at several sizes, keeps every point and draws the curve.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    option = parser.add_argument
    option("--sizes", default="", metavar="A,B", help="whole files of at most these sizes: 4kB,6.5kB")
    option("--densities", default="", metavar="A,B", help="in place of sizes, the parts of weights that are kept")
    option("--methods", default="auto", metavar="A,B", help="search methods, a curve each (default %(default)s)")
    option("--seeds", default="0", metavar="A,B", help="seeds; the curve is their mean (default %(default)s)")
    option("-o", "--output", default="sweep", metavar="OUT", help="writes OUT.json and OUT.png (default %(default)s)")
    option("--tensorboard", metavar="DIR", help="curves of each search in a folder of its own in DIR")
    option("--json", action="store_true", help="result as one JSON object")
    option("-q", "--quiet", action="store_true", help="no narration and no progress bar")
    option("options", nargs="*", metavar="-- OPTION ...", help="options of smask encode")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Searches what is missing, keeps it, draws."""
    settings = _settings(arguments)
    out = Path(arguments.output)
    if not out.parent.is_dir():
        raise OutputError(str(out), f"there is no folder {out.parent}")
    report = _begun(out.with_name(f"{out.name}.json"), arguments.options)
    points = {_key(point): point for point in report["points"] if _judged(point)}
    for n_done, setting in enumerate(settings):
        if _key(setting) in points:
            continue
        screen.say(f"{n_done + 1} of {len(settings)}: smask {shlex.join(_command(setting))}", quiet=arguments.quiet)
        points[_key(setting)] = setting | _search(setting, arguments, out)
        report["points"] = list(points.values())
        _keep(out.with_name(f"{out.name}.json"), report)
    wanted = [points[_key(setting)] for setting in settings]
    drawn = _draw(report["points"], out.with_name(f"{out.name}.png"))
    failed = [point for point in wanted if "problem" in point]
    fields = report | {"points": wanted, "file": str(out.with_name(f"{out.name}.json"))}
    rows = [("points", fields["file"]), *_rows(wanted)]
    rows.append(("picture", f"{out.name}.png" if drawn else "none: pip install 'smask[pictures]', then run this again"))
    screen.result(fields, rows, as_json=arguments.json)
    return 1 if failed else 0


def _settings(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """What differs from point to point: options of ``smask encode`` without their dashes.

    Raises:
        ArgumentError: Neither or both of sizes and densities, an empty list, or an option that a sweep gives itself.
    """
    lists = {name: _parts(getattr(arguments, name)) for name in ("sizes", "densities", "methods", "seeds")}
    if bool(lists["sizes"]) == bool(lists["densities"]):
        raise ArgumentError("sweep", "sizes and densities" if lists["sizes"] else "nothing", "--sizes or --densities")
    for name in ("methods", "seeds"):
        if not lists[name]:
            raise ArgumentError(f"--{name}", getattr(arguments, name), "one or more with commas between them")
    for given in arguments.options:
        if given.split("=")[0] in OWN:
            raise ArgumentError("options of encode", given, "options that the sweep does not give itself")
    goal = "target-size" if lists["sizes"] else "density"
    return [
        {"method": method, goal: value, "seed": seed}
        for method in lists["methods"] for value in lists["sizes"] or lists["densities"] for seed in lists["seeds"]
    ]  # fmt: skip


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _key(point: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(point.get(name, "")) for name in NAMES)


def _command(setting: dict[str, str]) -> list[str]:
    return ["encode", *(word for name, value in setting.items() for word in (f"--{name}", value))]


def _begun(path: Path, options: Sequence[str]) -> dict[str, Any]:
    """The report that is there, or a new one.

    Raises:
        DataError: A file that is no report, or one of other options.
    """
    from ..measurement import facts

    fresh: dict[str, Any] = {"options": list(options), "machine": facts(), "points": []}
    if not path.exists():
        return fresh
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        there, points = list(report["options"]), [_point(point) for point in report["points"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(str(path), "it is not the report of a sweep; name another with -o") from None
    if there != list(options):
        said = shlex.join(map(str, there)) or "none"
        raise DataError(str(path), f"its points are of other options ({said}); name another report with -o")
    return fresh | {"points": points}


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """A point of a report, if it is one; raises ValueError, KeyError or TypeError if not."""
    settings = [point[name] for name in NAMES if name in point]
    judged = _judged(point)
    measured = [point[judged], point["n_bytes"]] if judged else []
    if len(settings) != len(NAMES) - 1 or "method" not in point or "seed" not in point:
        raise ValueError(point)
    if not all(isinstance(value, str) for value in settings) or not all(type(v) in (int, float) for v in measured):
        raise TypeError(point)
    return point


def _search(setting: dict[str, str], arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One search in a process of its own, with checkpoints that are removed when it is done."""
    digest = hashlib.sha256(repr((_key(setting), arguments.options)).encode()).hexdigest()[:12]
    folder = out.with_name(f"{out.name}.runs") / digest
    command = [sys.executable, "-m", "smask", *_command(setting), *arguments.options, "-o", str(folder / "out.smask")]
    command += ["--force", "--json", "--checkpoint", str(folder / "checkpoints"), "--resume"]
    if arguments.tensorboard:
        command += ["--tensorboard", str(Path(arguments.tensorboard) / "-".join(setting.values()))]
    folder.mkdir(parents=True, exist_ok=True)
    # stderr stays that of the sweep: the progress bar of the search is the one that is wanted.
    errors = subprocess.PIPE if arguments.quiet else None
    command += ["-q"] if arguments.quiet else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode in (130, -2):
        raise KeyboardInterrupt
    if done.returncode:
        said = (done.stderr or "").strip().splitlines()[-1:] or [f"exit code {done.returncode}, see above"]
        return {"problem": printable(said[0])}
    printed = json.loads(done.stdout)
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return {key: printed[key] for key in (_judged(printed), *KEYS) if key in printed}


def _keep(path: Path, report: dict[str, Any]) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _judged(point: Mapping[str, Any]) -> str:
    """What says how good a file is: ``accuracy``, or ``bits_per_byte`` for text; nothing where there is no file."""
    return next((name for name in JUDGED if name in point), "")


def _curves(points: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float, list[float]]]]:
    """By method: mean bytes, mean accuracy or bits per byte, and those of all seeds, at each size, smallest first."""
    groups: dict[str, dict[tuple[str, ...], list[dict[str, Any]]]] = {}
    for point in points:
        if _judged(point):
            groups.setdefault(point["method"], {}).setdefault(_key(point)[1:3], []).append(point)
    return {
        method: sorted(
            (
                sum(point["n_bytes"] for point in group) / len(group),
                sum(point[_judged(point)] for point in group) / len(group),
                [point[_judged(point)] for point in group],
            )
            for group in sizes.values()
        )
        for method, sizes in groups.items()
    }


def _rows(points: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    rows, of_text = [], any(_judged(point) == "bits_per_byte" for point in points)

    def shown(value: float) -> str:
        return f"{value:.3f}" if of_text else f"{value:.2%}"

    for method, curve in _curves(points).items():
        lines = []
        for n_bytes, mean, every in curve:
            spread = f" ({shown(min(every))} to {shown(max(every))}, {len(every)} seeds)" if len(every) > 1 else ""
            lines.append(f"{n_bytes:>10,.0f} bytes  {shown(mean)}{' bits per byte' * of_text}{spread}")
        rows.append((method, "\n".join(lines)))
    for point in points:
        if "problem" in point:
            setting: dict[str, str] = {name: point[name] for name in NAMES if name in point}
            rows.append(("failed", printable(f"smask {shlex.join(_command(setting))}: {point['problem']}")))
    return rows


def _draw(points: Sequence[dict[str, Any]], path: Path) -> bool:
    """Whether there is something to draw with."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    of_text = any(_judged(point) == "bits_per_byte" for point in points)
    factor = 1 if of_text else 100
    for method, curve in _curves(points).items():
        x, y = [n_bytes / 1000 for n_bytes, _, _ in curve], [factor * mean for _, mean, _ in curve]
        low = [factor * (mean - min(every)) for _, mean, every in curve]
        high = [factor * (max(every) - mean) for _, mean, every in curve]
        axes.errorbar(x, y, yerr=[low, high], marker="o", markersize=4, capsize=3, label=method)
    axes.set(xlabel="file, kB", ylabel="bits per byte of test text" if of_text else "accuracy on test inputs, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return True
