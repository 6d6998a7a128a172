"""Masks of one trained net, or of one seed, for several tasks; keeps it in docs/tasks.json, tables in docs/tasks.md.

    python tools/tasks_table.py fashion --data ../shared/data      # a net of MNIST masked to Fashion-MNIST; ten minutes
    python tools/tasks_table.py permuted --data ../shared/data     # permuted MNIST, 20 tasks on one seed; half an hour
    python tools/tasks_table.py classes --cifar cifar10.npz        # ResNet-20, five classes to five others; needs a GPU
    python tools/tasks_table.py classes --cifar cifar10.npz --checkpoint resnet20-12fca82f.th --precision bf16 \\
        --images 1920 --epochs 3                                   # reduced, of a net that knows all ten: some minutes
    python tools/tasks_table.py --tables                           # only the tables

A section is measured by itself, the others stay. `--data` is a folder with `mnist` and `fashion_mnist` as idx files.
All rows of a section have the same batches and as many steps; accuracy is that of files read back.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import smask
from pages import DOCS, write_table
from smask import architectures, codec, named_nets
from smask.conversion.converter import convert_checkpoint
from smask.measurement import facts
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset, load_dataset
from smask.search.precision import Precision

OUT, PAGE = DOCS / "tasks.json", DOCS / "tasks.md"
SIZES = ("8kB", "16kB")
BATCH_SIZE = 128
MEAN_AND_STD_OF_CHECKPOINT = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def trained(net: nn.Module, batches: Batches, *, epochs: int, lr: float, precision: str = "fp32") -> nn.Module:
    """All weights trained by Adam, the rate falling along half a cosine."""
    model, passes = copy.deepcopy(net).train().to(batches.device), Precision(precision, batches.device)
    optimizer, n_steps, step = torch.optim.Adam(model.parameters(), lr=lr), epochs * len(batches), 0
    for _ in range(epochs):
        for x, y in batches:
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            optimizer.zero_grad(set_to_none=True)
            with passes.passes():
                loss = nn.functional.cross_entropy(passes.outputs(model(x)), y)
            passes.backward(loss)
            passes.step(optimizer)
            step += 1
    return model.cpu().eval()


class Rows:
    """Rows of a section, kept as they come."""

    def __init__(self, data: Dataset, base: dict[str, torch.Tensor]) -> None:
        self.data, self.base, self.rows = data, base, list[dict[str, Any]]()

    def add(self, name: str, size: str, file: bytes | int, model: nn.Module | None = None, **fields: Any) -> None:
        """A file, read back, or a model and its bytes."""
        if model is None:
            assert isinstance(file, bytes)
            model = codec.load(file, base=self.base)
        n_bytes = len(file) if isinstance(file, bytes) else file
        accuracy = score(model, self.data).accuracy
        row = {"name": name, "size": size, "n_bytes": n_bytes, "accuracy": accuracy, **fields}
        print(json.dumps(row), file=sys.stderr)
        self.rows.append(row)


def searched(net: nn.Module, batches: Batches, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """The file of a search, and what there is to say of it."""
    started = time.perf_counter()
    found = smask.find_masks(net, batches, device=batches.device, **options)
    seconds = time.perf_counter() - started
    data = codec.encode(found.state_dict(), recipe_of(found))
    report = smask.inspect(data)
    return data, {"kept": report.n_kept / max(1, report.n_weights), "seconds": round(seconds, 1)}


def converted(model: nn.Module, arch: dict[str, Any], size: str | None, base: dict[str, torch.Tensor] | None) -> bytes:
    """The file of a trained model, lossless or of a size, over the base or not."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tuned.smask"
        convert_checkpoint(model.state_dict(), file, target_size=size, base=base, arch=arch)
        return file.read_bytes()


def fashion(arguments: argparse.Namespace) -> dict[str, Any]:
    """A 300-100 perceptron of MNIST, masked to Fashion-MNIST, beside masks of a seed and fine-tuned weights."""
    first, second = (load_dataset(f"{arguments.data}/{name}") for name in ("mnist", "fashion_mnist"))
    mean, std = first.statistics()
    arch = named_nets.architecture("lenet-300-100", input_shape=first.input_shape, mean=mean, std=std)
    epochs, lr = arguments.epochs or 8, 3e-3
    torch.manual_seed(0)
    net = architectures.build(arch)
    trained_on = trained(net, Batches(first, batch_size=BATCH_SIZE, seed=0, shift=1), epochs=epochs, lr=1e-3)
    base, found = trained_on.state_dict(), Rows(second, trained_on.state_dict())
    origin = smask.open_base(base)

    def batches(seed: int = 0) -> Batches:
        return Batches(second, batch_size=BATCH_SIZE, seed=seed)

    tuned = trained(trained_on, batches(), epochs=epochs, lr=1e-3)
    found.add("fine-tuned, every bit", "", converted(tuned, arch, None, base))
    for size in SIZES:
        target = smask.TargetSize(size)
        for name, options in (
            ("mask of a seed", {}),
            ("mask of the net of MNIST", {"origin": origin}),
            ("the same, random first masks", {"origin": origin, "initial": "random"}),
            ("the same by `edge-popup`", {"origin": origin, "method": "edge-popup"}),
            ("mask and signs (`signed`)", {"origin": origin, "method": "signed"}),
        ):
            data, fields = searched(net, batches(), target=target, epochs=epochs, lr=lr, **options)
            found.add(name, size, data, **fields)
        found.add("fine-tuned, converted over the base", size, converted(tuned, arch, size, base))
        found.add("fine-tuned, converted", size, converted(tuned, arch, size, None))
    return {"base_accuracy": score(trained_on, first).accuracy, "epochs": epochs, "lr": lr, "rows": found.rows}


def half(data: Dataset, first: int, n_images: int, *, relabel: bool) -> Dataset:
    """Five classes of ten, as many images at most; labels from 0 or as they are."""
    train, test = data.y_train // 5 == first // 5, data.y_test // 5 == first // 5
    chosen = train.nonzero().flatten()[torch.randperm(int(train.sum()), generator=torch.Generator().manual_seed(0))]
    chosen, less = chosen[:n_images], first if relabel else 0
    return replace(
        data, x_train=data.x_train[chosen], y_train=data.y_train[chosen] - less, x_test=data.x_test[test],
        y_test=data.y_test[test] - less,
    )  # fmt: skip


def classes(arguments: argparse.Namespace) -> dict[str, Any]:
    """ResNet-20 of five classes of CIFAR-10, or a checkpoint of all ten, masked to five others."""
    data, given = load_dataset(arguments.cifar), arguments.checkpoint
    n_images, epochs = arguments.images or len(data.x_train) // 2, arguments.epochs or 60
    first, second = (half(data, start, n_images, relabel=not given) for start in (0, 5))
    mean, std = MEAN_AND_STD_OF_CHECKPOINT if given else first.statistics()
    arch = named_nets.architecture(
        "resnet20", input_shape=first.input_shape, n_classes=10 if given else 5, mean=mean, std=std
    )
    torch.manual_seed(0)
    net, device = architectures.build(arch), torch.device(arguments.device)

    def batches(data: Dataset) -> Batches:
        return Batches(data, batch_size=BATCH_SIZE, seed=0, shift=4, flip=True, device=device)

    options: dict[str, Any] = {"epochs": epochs, "precision": arguments.precision}
    if given:
        public, trained_on = smask.open_base(given), copy.deepcopy(net)
        own = {name: public.tensor(name) for name in net.state_dict() if public.entry(name)}
        trained_on.load_state_dict(own, strict=False)  # old norms have no counters
        trained_on.eval()
    else:
        trained_on = trained(net, batches(first), lr=3e-3, **options)
    base, found = trained_on.state_dict(), Rows(second, trained_on.state_dict())
    origin, accuracy = smask.open_base(base), score(trained_on, second if given else first).accuracy
    print(f"base: {accuracy:.2%}", file=sys.stderr)
    body = [name for name, parameter in net.named_parameters() if parameter.dim() > 1 and name != "linear.weight"]
    searches: dict[str, dict[str, Any]] = {"mask of the trained net": {"origin": origin}, "mask of a seed": {}}
    if not given:
        searches["mask of the trained net, its head trained"] = {"origin": origin, "only": body}
    size = ""
    for name, more in searches.items():
        file, fields = searched(net, batches(second), lr=3e-3, density=0.5, **options, **more)
        found.add(name, "", file, **fields)
        size = size or str(len(file))
    tuned = trained(trained_on, batches(second), lr=1e-3, **options)
    found.add("fine-tuned, every bit", "", converted(tuned, arch, None, base))
    found.add("fine-tuned, converted over the base", "", converted(tuned, arch, size, base))
    found.add("fine-tuned, converted", "", converted(tuned, arch, size, None))
    return {
        "base": Path(given).name if given else "trained on the first five classes", "base_accuracy": accuracy,
        "epochs": epochs, "images": n_images, "precision": arguments.precision, "rows": found.rows,
    }  # fmt: skip


def permuted_to(data: Dataset, task: int) -> Dataset:
    """Pixels in an order of the task's own; the first has that of the data."""
    n = math.prod(data.input_shape)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(task)) if task else torch.arange(n)
    x_train, x_test = (x.flatten(1)[:, order].view(x.shape) for x in (data.x_train, data.x_test))
    return replace(data, x_train=x_train, x_test=x_test)


def permuted(arguments: argparse.Namespace) -> dict[str, Any]:
    """Permuted MNIST on one seed: bytes a task beside 16-bit indices of the same masks, as SupSup stores them."""
    data = load_dataset(f"{arguments.data}/mnist")
    mean, std = data.statistics()
    arch = named_nets.architecture("lenet-300-100", input_shape=data.input_shape, mean=mean, std=std)
    epochs, rows = arguments.epochs or 3, []
    torch.manual_seed(0)
    net = architectures.build(arch)
    plain = {"method": "edge-popup", "learn_scale": False, "learn_bias": False, "scale": "tensor"}
    for name, options in (
        ("`auto`, scales and biases trained, density 0.05", {"density": 0.05}),
        ("`auto`, scales and biases trained, density 0.1", {"density": 0.1}),
        ("`edge-popup`, masks alone, density 0.5", {"density": 0.5, "density_rule": "uniform", **plain}),
    ):
        files, started = {}, time.perf_counter()
        for task in range(arguments.tasks):
            batches = Batches(permuted_to(data, task), batch_size=BATCH_SIZE, seed=0)
            files[f"p{task}"], _ = searched(net, batches, epochs=epochs, lr=3e-3, **options)
            print(f"{name}: {task + 1} of {arguments.tasks}", file=sys.stderr)
        seconds = (time.perf_counter() - started) / arguments.tasks
        rows.append({"name": name, "seconds_a_task": round(seconds, 1), **packed(files, data)})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {"tasks": arguments.tasks, "epochs": epochs, "rows": rows}


def packed(files: dict[str, bytes], data: Dataset) -> dict[str, Any]:
    """What a file of all tasks takes, and its accuracy, one model moved from task to task."""
    packed_bytes = smask.pack(files)
    tasks, accuracies, seconds = smask.Tasks(packed_bytes), [], []
    model = tasks.load(tasks.names[0])
    for number, name in enumerate(tasks.names):
        started = time.perf_counter()
        tasks.switch(model, name)
        seconds.append(time.perf_counter() - started)
        accuracies.append(score(model, permuted_to(data, number)).accuracy)
    report, n = smask.inspect(packed_bytes), len(files)
    planes, kept = report.n_plane_bytes / n, report.n_kept / n
    return {
        "accuracy": sum(accuracies) / n, "worst": min(accuracies), "n_bytes": len(packed_bytes),
        "n_bytes_apart": sum(map(len, files.values())), "bytes_a_task": len(packed_bytes) / n,
        "planes_a_task": planes, "floats_a_task": report.n_float_bytes / n,
        "overhead_a_task": report.n_overhead_bytes / n, "kept_a_task": kept, "index_bytes_a_task": 2 * kept,
        "ratio_of_masks": 2 * kept / planes, "ratio_of_files": 2 * kept * n / len(packed_bytes),
        "ms_switch": round(1e3 * sorted(seconds)[n // 2], 2),
    }  # fmt: skip


def rows_of_files(report: dict[str, Any]) -> list[str]:
    """Lines of a table of accuracies at bytes."""
    lines = ["| | bytes | accuracy | kept |", "|---|---|---|---|"]
    for row in report["rows"]:
        kept = f"{row['kept']:.1%}" if "kept" in row else ""
        lines.append(f"| {row['name']} | {row['n_bytes']:,} | {row['accuracy']:.2%} | {kept} |")
    return lines


def rows_of_tasks(report: dict[str, Any]) -> list[str]:
    """Lines of the table of permuted MNIST."""
    lines = [
        "| masks | accuracy, worst | bytes a task | planes + floats + rest | 16-bit indices | × planes | × all |",
        "|---" * 7 + "|",
    ]
    for row in report["rows"]:
        parts = " + ".join(f"{row[f'{part}_a_task']:,.0f}" for part in ("planes", "floats", "overhead"))
        lines.append(
            f"| {row['name']} | {row['accuracy']:.2%}, {row['worst']:.2%} | {row['bytes_a_task']:,.0f} | {parts} | "
            f"{row['index_bytes_a_task']:,.0f} | {row['ratio_of_masks']:.2f} | {row['ratio_of_files']:.2f} |"
        )
    return lines


def summary(report: dict[str, Any]) -> list[str]:
    """Lines for the page of searches."""
    lines = [
        "| permuted MNIST, 300-100 | bytes a task | beside masks and floats | mean accuracy |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {report['tasks']} tasks, {row['name']} | {row['bytes_a_task']:,.0f} | {row['overhead_a_task']:.0f} | "
            f"{row['accuracy']:.2%} |"
        )
    return lines


Section = tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], list[str]]]
SECTIONS: dict[str, Section] = {
    "fashion": (fashion, rows_of_files), "classes": (classes, rows_of_files), "permuted": (permuted, rows_of_tasks),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=tuple(SECTIONS))
    parser.add_argument("--data", default="../shared/data", metavar="DIR")
    parser.add_argument("--cifar", default="cifar10.npz", metavar="FILE.npz")
    parser.add_argument("--checkpoint", metavar="FILE", help="a ResNet-20 of all ten classes, instead of training one")
    parser.add_argument("--epochs", type=int, metavar="N", help="of every training and search")
    parser.add_argument("--images", type=int, metavar="N", help="training images of each five classes")
    parser.add_argument("--tasks", type=int, default=20, metavar="N", help="of permuted MNIST")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    arguments = parser.parse_args()
    report = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not arguments.tables:
        if arguments.section is None:
            parser.error(f"a section is needed: {', '.join(SECTIONS)}")
        measured = SECTIONS[arguments.section][0](arguments)
        command = " ".join(["python tools/tasks_table.py", *(Path(word).name for word in sys.argv[1:])])
        report[arguments.section] = {"machine": facts(), "command": command, **measured}
        OUT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    for name, (_, rows) in SECTIONS.items():
        if name in report:
            write_table(name, rows(report[name]), page=PAGE)
    if "permuted" in report:
        write_table("tasks", summary(report["permuted"]), page=DOCS / "searches.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
