"""What the project promises of a whole search; takes minutes: ``pytest -m long``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_mnist_with_all_defaults(real_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smask", "encode", "--data", str(real_data / "mnist"), "--arch", "lenet-300-100"]
    done = subprocess.run(
        [*command, "--json", "-q", "-o", str(tmp_path / "mnist.smask")], capture_output=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.983
    assert report["n_bytes"] == (tmp_path / "mnist.smask").stat().st_size <= 11_000
    assert report["n_plane_bytes"] <= report["entropy_bytes"]
    assert report["seconds_encode"] <= 0.02 * report["seconds_search"]


@pytest.mark.long
def test_digits_with_no_argument(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smask", "encode", "--json", "-q"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["accuracy"] >= 0.95
    assert report["n_bytes"] == (tmp_path / "digits.smask").stat().st_size <= 1_500
    assert report["seconds_search"] < 60
