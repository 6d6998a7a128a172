"""The tool that draws accuracy against bytes: points are kept, and only those that are missing are made."""

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_points_are_kept(
    found: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("accuracy_curve")
    (tmp_path / "net.json").write_text(json.dumps(dict(found.smask_recipe.arch)))
    state = found.state_dict()
    torch.save(state, tmp_path / "m.pt")
    out = tmp_path / "curve"
    command = [
        str(tmp_path / "m.pt"),
        "--arch",
        str(tmp_path / "net.json"),
        "--eval",
        "digits",
        "-o",
        str(out),
        "--sizes",
    ]
    for sizes, n_made in (("2kB", 1), ("2kB,1500", 1), ("1500", 0)):
        assert tool.main([*command, sizes]) == 0
        printed = capsys.readouterr()
        assert printed.err.count("data-free ") == n_made
    report = json.loads(out.with_suffix(".json").read_text())
    assert json.loads(printed.out) == report
    assert [point["setting"] for point in report["points"]] == ["1500", "2kB"]
    for point, most in zip(report["points"], (1500, 2000), strict=True):
        assert 0.99 * most <= point["n_bytes"] <= most
        assert point["machine"]["processor"]
        assert 0.5 < point["accuracy"] <= report["original"]["accuracy"] + 0.02
    assert tool.main([*command, "1500", "--folded", "1500"]) == 0
    assert capsys.readouterr().err.count("folded 1500: ") == 1
    torch.save(
        {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        tmp_path / "m.pt",
    )
    assert tool.main([*command, "2kB"]) == 2
    assert "checkpoint_sha256 differ" in capsys.readouterr().err
