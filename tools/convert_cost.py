"""Time, peak memory and bytes of a conversion and of decoding it, each in a process of its own.

    python tools/convert_cost.py                                    # 1 GB of fp32, 16 MiB a tensor, as safetensors
    python tools/convert_cost.py --bits 3                           # the same, lossy
    python tools/convert_cost.py --form pt --density 0.1
    python tools/convert_cost.py --bits 3 --checkpoint ../shared/data/checkpoints/resnet56-4bfd9763.th \\
        --nncodec .venv-nncodec/bin/python

Peak memory is the largest resident set of the process, pages of mapped files included; the baseline is that of a
process that has only imported the same modules. Rivals in the same run: torch.save and zstd -3 on its bytes, and for a
lossy conversion NNCodec at one step, which it is given, where `--nncodec` names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smask.measurement import facts

MAKE = """
import sys, torch
from safetensors.torch import save_file
path, n_tensors, n_weights, density, dtype = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), sys.argv[5]
random = torch.Generator().manual_seed(0)
state = {}
for index in range(n_tensors):
    weights = torch.randn(1024, n_weights // 1024, generator=random) * 0.02
    if density < 1:
        weights *= torch.rand(weights.shape, generator=random) < density
    state[f"layer{index}.weight"] = (weights + 0.0).to(getattr(torch, dtype))
save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)
"""
RUN = """
import json, resource, sys, time
import smask, torch, zstandard, safetensors.torch
from smask.conversion.converter import convert_checkpoint
what, source, out, bits, ranged = sys.argv[1:]
started, report = time.perf_counter(), {}
if what == "convert":
    coding = {"": None, "0": False, "1": True}[ranged]
    done = convert_checkpoint(source, out, bits=float(bits) or None, range_coding=coding)
    if done.n_weights < 1 << 24:  # once more, without what a process does but once; a large one takes long enough
        started = time.perf_counter()
        done = convert_checkpoint(source, out, bits=float(bits) or None, range_coding=coding, overwrite=True)
    wall = time.perf_counter() - started
    report = {"n_weights": done.n_weights, "raw_bytes": done.raw_bytes, "n_bytes": done.n_bytes,
              "zstd_bytes": done.zstd_bytes, "zstd_level": done.zstd_level, "seconds": done.seconds,
              "seconds_with_zstd_of_report": round(wall, 3), "error": done.error,
              "largest_tensor_bytes": max(tensor.raw_bytes for tensor in done.tensors)}
elif what == "decode":
    smask.decode(source)
    first = time.perf_counter()
    smask.decode(source)  # without what a process does but once: modules, tables, a collection of garbage
    report = {"seconds_first": round(first - started, 3), "seconds": round(time.perf_counter() - first, 3)}
elif what == "zstd":
    import io
    from smask.checkpoints import open_checkpoint
    checkpoint = open_checkpoint(source)
    state = {entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries}
    started = time.perf_counter()
    saved = io.BytesIO()
    torch.save(state, saved)
    packed = zstandard.ZstdCompressor(level=3, threads=-1).compress(saved.getbuffer())
    compressed = time.perf_counter()
    torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(packed)), weights_only=True)
    report = {"n_bytes": len(packed), "seconds": round(compressed - started, 3),
              "seconds_decode": round(time.perf_counter() - compressed, 3)}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
# Of all threads: what the work costs where other programs take their share of the machine.
print(json.dumps({**report, "seconds_of_processor": round(time.process_time(), 3), "peak_bytes": peak}))
"""
NNCODEC = """
import json, resource, sys, tempfile, time
import numpy as np
from nncodec import nn
with np.load(sys.argv[1]) as file:
    tensors = {name: file[name] for name in file.files}
started = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    stream = nn.encode(tensors, {"qp": int(sys.argv[2]), "verbose": False, "results": folder})
encoded = time.perf_counter()
nn.decode(stream)
print(json.dumps({"qp": int(sys.argv[2]), "n_bytes": len(stream), "seconds": round(encoded - started, 3),
                  "seconds_decode": round(time.perf_counter() - encoded, 3),
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""
ARRAYS = """
import sys
import numpy as np
from smask.checkpoints import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
tensors = {entry.name: checkpoint.read(entry.name) for entry in checkpoint.entries}
np.savez(sys.argv[2], **{name: t.float().numpy() for name, t in tensors.items() if t.is_floating_point()})
"""


def child(code: str, *arguments: object, python: str = sys.executable) -> str:
    command = [python, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that is there; without, one is made")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the one made (default %(default)s)")
    parser.add_argument("--tensor-weights", type=int, default=1 << 22, help="weights of a tensor (default %(default)s)")
    parser.add_argument("--density", type=float, default=1.0, help="weights that are not zero (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16", "float64"))
    parser.add_argument("--form", default="safetensors", choices=("safetensors", "pt"))
    parser.add_argument("--bits", type=float, default=0.0, help="lossy, to so many bits a weight (default: lossless)")
    parser.add_argument("--range-coding", action=argparse.BooleanOptionalAction, help="as of smask convert")
    parser.add_argument("--nncodec", metavar="PYTHON", help="interpreter of an environment with nncodec, for --bits")
    parser.add_argument("--qp", type=int, default=-20, help="its quantisation parameter (default %(default)s)")
    arguments = parser.parse_args()
    ranged = "" if arguments.range_coding is None else int(arguments.range_coding)
    width = {"float32": 4, "float64": 8}.get(arguments.dtype, 2)
    with tempfile.TemporaryDirectory() as folder:
        source, out = arguments.checkpoint, Path(folder) / "out.smask"
        if source is None:
            source = Path(folder) / f"made.{arguments.form}"
            n_tensors = max(1, arguments.megabytes * 10**6 // (arguments.tensor_weights * width))
            child(MAKE, source, n_tensors, arguments.tensor_weights, arguments.density, arguments.dtype)
        reports: dict[str, dict[str, Any]] = {
            what: json.loads(child(RUN, what, place, out, arguments.bits, ranged))
            for what, place in (("import", source), ("convert", source), ("decode", out), ("zstd", source))
        }
        if arguments.nncodec and arguments.bits:
            arrays = Path(folder) / "arrays.npz"
            child(ARRAYS, source, arrays)
            last = child(NNCODEC, arrays, arguments.qp, python=arguments.nncodec).strip().splitlines()[-1]
            reports["nncodec"] = json.loads(last)
    n_weights = reports["convert"]["n_weights"]
    for what in ("zstd", "nncodec"):
        if what in reports:
            reports[what]["mega_weights_per_s"] = round(n_weights / reports[what]["seconds"] / 1e6, 2)
            decode = reports[what]["seconds_decode"]
            reports[what]["mega_weights_per_s_decode"] = round(n_weights / max(decode, 1e-3) / 1e6, 2)
    for what in ("convert", "decode"):
        reports[what]["mega_weights_per_s"] = round(n_weights / reports[what]["seconds"] / 1e6, 2)
    reports["convert"]["over_raw"] = round(reports["convert"]["n_bytes"] / reports["convert"]["raw_bytes"], 4)
    reports["convert"]["over_zstd"] = round(reports["convert"]["n_bytes"] / reports["convert"]["zstd_bytes"], 4)
    made = {name: getattr(arguments, name) for name in ("megabytes", "tensor_weights", "density", "dtype", "form")}
    what_was = {"checkpoint": source.name} if arguments.checkpoint else {"made": made}
    print(json.dumps({"machine": facts(), **what_was, "bits": arguments.bits, **reports}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
