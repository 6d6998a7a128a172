"""Masked language models beside a trained one of the same net and steps; keeps it in docs/language.json.

    python tools/language_table.py --data ../shared/data/tinyshakespeare/input.txt   # about half an hour on one core
    python tools/language_table.py --data FILE --only trained                        # the other rows stay
    python tools/language_table.py --tables                                          # only the table of the page
    python tools/language_table.py --data book.txt --arch gpt:2x64x2x64 --epochs 1 --densities 0.3 --out report.json

`trained` is the net with all weights trained by AdamW on the same batches; its further rows are `smask convert` of it,
at 8, 4, 3 and 2 bits a weight, and to the bytes of each masked file, without data and with 500 windows of it
(`--calibrate`); with `--nncodec PYTHON`, an environment as for tools/accuracy_curve.py, also the files of the rival.
`binary` trains a sign for every weight, from that of the seed (the method `signed` at density 1). All rows are scored
on the last tenth of the text, files read back.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import smask
from accuracy_curve import RIVAL
from pages import DOCS, write_table
from smask import architectures, named_nets
from smask.measurement import facts
from smask.readers.reading import Reading
from smask.search.loop import find_masks
from smask.search.tasks import Language, context_of
from smask.search.text import load_text

OUT = DOCS / "language.json"
WARM_UP = 100
BITS = (8.0, 4.0, 3.0, 2.0)
QPS = (-28, -24, -20, -16, -12)


def trained(net: nn.Module, task: Language, *, epochs: int, batch_size: int, lr: float) -> nn.Module:
    """All weights trained; warm-up and half a cosine, as small language models commonly are."""
    model, batches, loss = copy.deepcopy(net).train(), task.batches(batch_size, seed=0, device="cpu"), task.loss(0.0)
    # As nanoGPT begins and decays: normal weights of 0.02, decay of matrices alone.
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() > 1 else others).append(parameter)
        if parameter.dim() > 1 and "norm" not in name:
            nn.init.normal_(parameter, std=0.02)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    n_steps, step = epochs * len(batches), 0
    for _ in range(epochs):
        for x, y in batches:
            rate = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
            optimizer.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 500 == 0:
                print(f"  trained {step}/{n_steps}", file=sys.stderr)
    return model.eval()


def rival(plain: nn.Module, qp: int, interpreter: str, folder: Path) -> tuple[nn.Module, int]:
    """What NNCodec gives back at a quantisation parameter, and its bytes."""
    state = plain.state_dict()
    source, out = folder / "in.npz", folder / "out.npz"
    np.savez(source, **{name: tensor.numpy() for name, tensor in state.items()})
    command = [interpreter, "-c", RIVAL, str(source), str(qp), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    model = copy.deepcopy(plain)
    with np.load(out) as file:
        model.load_state_dict({name: torch.from_numpy(file[name]).reshape(state[name].shape) for name in state})
    return model, int(json.loads(done.stdout.strip().splitlines()[-1])["n_bytes"])


def row(name: str, model: nn.Module, n_bytes: int, task: Language, seconds: float | None = None) -> dict[str, Any]:
    scored = task.score(model, device="cpu")
    found = {
        "name": name, "n_bytes": n_bytes, "bits_per_byte": round(scored.bits_per_byte, 4),
        "nats_per_token": round(scored.loss, 4), "seconds": seconds and round(seconds, 1),
    }  # fmt: skip
    print(json.dumps(found), file=sys.stderr)
    return found


def table(report: dict[str, Any]) -> list[str]:
    """Lines for the page, smallest file first."""
    lines = ["| | bytes | bits per byte | nats a token |", "|---|---|---|---|"]
    for one in sorted(report["rows"], key=lambda one: one["n_bytes"]):
        lines.append(
            f"| {one['name']} | {one['n_bytes']:,} | {one['bits_per_byte']:.3f} | {one['nats_per_token']:.3f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", metavar="FILE.txt")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--tokens", default="characters")
    parser.add_argument("--arch", default="gpt:4x128x4x64")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mask-lr", type=float, default=1e-3)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--only", choices=("mask", "binary", "trained"), help="measure these; the other rows stay")
    parser.add_argument("--nncodec", metavar="PYTHON", help="interpreter of an environment with nncodec")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.tables:
        write_table("language", table(json.loads(arguments.out.read_text())), page=DOCS / "searches.md")
        return 0
    if not arguments.data:
        parser.error("--data is needed to measure")
    text = load_text(arguments.data, Reading(tokens=arguments.tokens))
    arch = named_nets.architecture(arguments.arch, n_classes=text.n_classes)
    task = Language(text, context_of(arch))
    torch.manual_seed(0)
    net = architectures.build(arch)
    options = {"epochs": arguments.epochs, "batch_size": arguments.batch_size}
    n_steps = arguments.epochs * len(task.batches(arguments.batch_size, seed=0, device="cpu"))
    report: dict[str, Any] = {
        "machine": facts(), "arch": arguments.arch, "tokens": arguments.tokens, "n_steps": n_steps, **options,
        "lr": arguments.lr, "mask_lr": arguments.mask_lr, "n_weights": sum(p.numel() for p in net.parameters()),
        "rows": [],
    }  # fmt: skip
    if arguments.only:
        kept = json.loads(arguments.out.read_text())
        differences = [key for key in report if key not in ("rows", "machine", "lr") and report[key] != kept.get(key)]
        if differences:
            parser.error(f"{arguments.out} was measured with another {', '.join(differences)}")
        report["rows"] = [one for one in kept["rows"] if not one["name"].startswith(arguments.only)]
    rows = report["rows"]

    def done(*found: Any) -> None:
        rows.append(row(*found[:3], task, *found[3:]))
        arguments.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.smask"
        searches = [(f"mask, density {density:g}", "auto", density) for density in arguments.densities]
        for name, method, density in [*searches, ("binary", "signed", 1.0)]:
            if arguments.only and not name.startswith(arguments.only):
                continue
            started = time.perf_counter()
            found = find_masks(
                net, task.batches(arguments.batch_size, seed=0, device="cpu"), loss=task.loss(0.0), method=method,
                density=density, epochs=arguments.epochs, lr=arguments.mask_lr, meta=dict(task.meta),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            n_bytes = smask.save(found, out)
            done(name, smask.load(out), n_bytes, seconds)
        if arguments.only in ("mask", "binary"):
            return 0
        started = time.perf_counter()
        plain = trained(net, task, epochs=arguments.epochs, batch_size=arguments.batch_size, lr=arguments.lr)
        seconds = time.perf_counter() - started
        done("trained, float32", plain, sum(4 * p.numel() for p in plain.parameters()), seconds)
        for bits in BITS:
            made = smask.convert_checkpoint(plain, out, arch=arch, overwrite=True, bits=bits)
            done(f"trained, {bits:g} bits a weight", smask.load(out), made.n_bytes)
        for qp in QPS if arguments.nncodec else ():
            done("trained, NNCodec 2", *rival(plain, qp, arguments.nncodec, Path(folder)))
        windows = text.windows(500, task.context)
        for size in sorted(one["n_bytes"] for one in rows if one["name"].startswith(("mask", "binary"))):
            for name, calibrate in (("trained, converted", None), ("trained, calibrated", windows)):
                made = smask.convert_checkpoint(
                    plain, out, arch=arch, overwrite=True, target_size=size, calibrate=calibrate
                )
                done(name, smask.load(out), made.n_bytes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
