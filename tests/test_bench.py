from __future__ import annotations

import json

import pytest

from smask import bench, kernels
from smask.cli.main import main
from smask.errors import ArgumentError


def test_tables_hold_kernels_and_rivals() -> None:
    (table,) = bench.measure([(48, 256)], [2], planes=2, rounds=2)
    rows = {row.name: row for row in table.rows}
    assert {"dense float32", "dense bfloat16", "materialised", "auto", "auto, signs regenerated", "eager"} <= set(rows)
    assert table.chosen in kernels.KERNELS
    assert rows["dense float32"].weight_bytes == 4 * 48 * 256
    assert rows["auto"].weight_bytes == 3 * 48 * 256 // 8 + 4 * 48
    assert rows["auto, signs regenerated"].weight_bytes == 2 * 48 * 256 // 8 + 4 * 48
    for row in table.rows:
        assert 0 < row.best_milliseconds <= row.milliseconds
        assert (row.error is None) == (
            row.name in ("dense float32", "dense bfloat16", "int4pack", "int8pack", "materialised")
        )
        assert row.error is None or row.error < (0.02 if row.name == "int8" else 0.004)
        assert all(value > 0 for value in row.times_faster.values())
        assert row.name not in row.times_faster


def test_json_on_stdout_and_narration_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --shape 20x33 --batch 1,3 --rounds 1 --kernels eager --activations float32 --json --device cpu"
    assert main(command.split()) == 0
    out, _ = capsys.readouterr()
    report = json.loads(out)
    assert report["machine"]["torch"]
    assert [table["batch"] for table in report["tables"]] == [1, 3]
    names = [row["name"] for row in report["tables"][0]["rows"]]
    assert "eager" in names
    assert "tiled" not in names
    assert "int4pack" not in names  # needs columns in whole groups
    errors = [row["error"] for row in report["tables"][0]["rows"] if row["error"] is not None]
    assert max(errors) < 1e-5


def test_weights_of_nothing_but_zeros_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --shape 1x1 --batch 1 --rounds 1 --kernels eager --json --device cpu"
    assert main(command.split()) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is none
    assert {row["error"] for row in report["tables"][0]["rows"]} == {None, 0.0}


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "--shape", "16x32", "--batch", "1", "--rounds", "1", "--kernels", "tiled", "--device", "cpu"])
        == 0
    )
    out, _ = capsys.readouterr()
    assert "16 x 32, 1 plane and signs, batch 1, bfloat16; auto is" in out
    assert "x materialised" in out


@pytest.mark.parametrize(
    ("options", "name"),
    [("--shape 4x", "--shape"), ("--shape 4x0", "--shape"), (f"--batch {'1' * 5000}", "--batch"), ("--batch 1,x", "--batch"), ("--planes 8", "sizes"), ("--kernels magic", "kernels"), ("--activations int8", "dtype"), ("--rounds 0", "sizes")],
)  # fmt: skip
def test_bad_options(options: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cpu", *options.split()]) == 2
    assert capsys.readouterr().err.startswith(f"smask: {name}: got ")


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError) as error:
        next(bench.measure([(4, 4)], [0]))
    assert error.value.name == "sizes"
