"""Computes the quantile table of the ``normal`` base with 60 digits and compares it with the shipped data.

    python tools/normal_table.py            # says whether the shipped table is the defined one
    python tools/normal_table.py --write    # writes it

Entry k is the standard normal quantile at (65536 + 2k + 1) / 131072, rounded to the nearest float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from array import array
from pathlib import Path

import mpmath

PATH = Path(__file__).parents[1] / "src/smask/data/normal.f32"


def table() -> bytes:
    mpmath.mp.dps = 60
    values = array("f")
    for k in range(2**15):
        # Phi(x) = p  <=>  x = sqrt(2) * erfinv(2p - 1), and 2p - 1 = (2k + 1) / 65536.
        values.append(float(mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(2 * k + 1) / 65536)))
    return values.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing")
    content = table() if parser.parse_args().write or PATH.exists() else b""
    if parser.parse_args().write:
        PATH.write_bytes(content)
    same = PATH.read_bytes() == content
    print(json.dumps({"same": same, "sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
