"""The named nets of the literature as architectures. No torch.

============= ===================================================================================
name          source
============= ===================================================================================
lenet-300-100 LeCun et al., "Gradient-based learning applied to document recognition", 1998
mlp:A-B-...   any widths, inputs first and classes last
mnist-cnn     the convolutional example of the PyTorch repository (examples/mnist)
conv2,4,6     Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, figure 2
conv8         Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", 2020, section 4
resnet20...56 He et al., "Deep Residual Learning", CVPR 2016, section 4.2, shortcut option A; parameter
              names as in the public checkpoints of akamaster/pytorch_resnet_cifar10
resnet18      He et al., section 4.1, for small images: no pooling and a 3 x 3 kernel at first, shortcut option B;
              parameter names as in kuangliu/pytorch-cifar; resnet18:WIDTH with that many channels at first, not 64
gpt:4x128x4   a language model of LAYERSxWIDTHxHEADS or LAYERSxWIDTHxHEADSxCONTEXT, -tied for a head that shares the
              embedding: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3
              (pre-norm blocks of causal attention and a GELU perceptron four times as wide, learned positions), without
              biases and dropout
============= ===================================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from .errors import ArchitectureError, ArgumentError, UnsupportedError

Layer: TypeAlias = str | dict[str, Any]
NAMES = (
    "lenet-300-100", "mlp:784-300-100-10", "mnist-cnn", "conv2", "conv4", "conv6", "conv8",
    "resnet18", "resnet20", "resnet32", "resnet44", "resnet56", "gpt:4x128x4",
)  # fmt: skip


def architecture(
    name: str,
    *,
    input_shape: Sequence[int] | None = None,
    n_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Architecture of a named net or of a JSON file.

    Args:
        name: One of :data:`NAMES` (``mlp:`` and ``resnet18:`` of any width, ``gpt:`` of any size), or the path of a
            ``.json`` file.
        input_shape: Shape of one input where it is not the one of the literature.
        n_classes: Outputs where there are not ten; of a ``gpt:`` the tokens that there are, 256 if not given.
        mean, std: Normalisation of the inputs, per channel or a single value; put first in the net.

    Returns:
        The ``arch`` object of a manifest.

    Raises:
        UnsupportedError: An unknown name.
        ArgumentError: A file that cannot be read or is no JSON object, or unusable widths.
        ArchitectureError: The net does not fit the input or the classes.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    family, _, widths = name.partition(":")
    if family == "lenet-300-100" and not widths:
        shape, layers = _mlp(_shape(input_shape, (1, 28, 28)), [300, 100], n_classes or 10)
    elif family == "mlp" and widths:
        shape, layers = _mlp_of_widths(widths, input_shape, n_classes)
    elif family == "gpt" and widths:
        return _gpt(widths, input_shape, n_classes or 256)
    elif family in _NETS and (not widths or family == "resnet18"):
        default, net = _NETS[family]
        if widths:
            net = _resnet18(_number(widths, name, "a number of channels below 32768, like resnet18:16", top=2**15))
        shape = _shape(input_shape, default)
        if len(shape) != 3:
            raise ArchitectureError((f"{name} takes images [channels, height, width], the data is {list(shape)}",))
        layers = net(shape, n_classes or 10)
    else:
        raise UnsupportedError("architecture", name, NAMES)
    if mean is not None and std is not None:
        named = any(isinstance(layer, dict) and "name" in layer for layer in layers)
        normalize: Layer = {"op": "normalize", "mean": list(mean), "std": list(std)}
        layers = [normalize | {"name": "normalize"} if named and isinstance(normalize, dict) else normalize, *layers]
    return {"input": list(shape), "layers": layers}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        arch = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError("arch", str(path), f"a readable JSON file ({error})") from None
    if not isinstance(arch, dict):
        raise ArgumentError("arch", str(path), "a JSON object with layers")
    return arch


def _shape(given: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return default if given is None else tuple(given)


def _number(text: str, name: str, wanted: str, *, top: int = 2**31) -> int:
    # Longer ones int() would refuse by itself, with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < top):
        raise ArgumentError("arch", name, wanted)
    return int(text)


def _mlp(shape: tuple[int, ...], hidden: Sequence[int], n_classes: int) -> tuple[tuple[int, ...], list[Layer]]:
    widths = [math.prod(shape), *hidden, n_classes]
    layers: list[Layer] = [] if len(shape) == 1 else ["flatten"]
    for inputs, outputs in pairwise(widths):
        layers += [{"op": "linear", "inputs": inputs, "outputs": outputs}, "relu"]
    return shape, layers[:-1]


def _mlp_of_widths(
    text: str, input_shape: Sequence[int] | None, n_classes: int | None
) -> tuple[tuple[int, ...], list[Layer]]:
    name, wanted = f"mlp:{text}", "widths like mlp:784-300-100-10"
    widths = [_number(part, name, wanted) for part in text.split("-")]
    if len(widths) < 2:
        raise ArgumentError("arch", name, wanted)
    shape = _shape(input_shape, (widths[0],))
    differences = []
    if math.prod(shape) != widths[0]:
        differences.append(f"mlp:{text} takes {widths[0]} inputs, the data has {math.prod(shape)}")
    if n_classes is not None and n_classes != widths[-1]:
        differences.append(f"mlp:{text} has {widths[-1]} outputs, the data has {n_classes} classes")
    if differences:
        raise ArchitectureError(tuple(differences))
    return _mlp(shape, widths[1:-1], widths[-1])


CONTEXT = 128
# Of eight layers each, so that what :mod:`smask.architectures` builds at most is not exceeded.
MAX_BLOCKS = 1_000


def _gpt(text: str, input_shape: Sequence[int] | None, n_tokens: int) -> dict[str, Any]:
    wanted = "LAYERSxWIDTHxHEADS or LAYERSxWIDTHxHEADSxCONTEXT like gpt:4x128x4x256, each below 32768"
    sizes = [_number(size, f"gpt:{text}", wanted, top=2**15) for size in text.removesuffix("-tied").split("x")]
    if len(sizes) not in (3, 4):
        raise ArgumentError("arch", f"gpt:{text}", wanted)
    n_layers, width, heads, context = (*sizes, CONTEXT)[:4]
    if width % heads:
        raise ArgumentError("arch", f"gpt:{text}", f"a width that {heads} heads can share evenly")
    if n_layers > MAX_BLOCKS:
        raise ArgumentError("arch", f"gpt:{text}", f"at most {MAX_BLOCKS:,} layers")
    if input_shape is not None and (len(input_shape) != 1 or input_shape[0] > context):
        raise ArchitectureError((f"gpt:{text} takes up to {context} tokens, the data is {list(input_shape)}",))
    norm: Layer = {"op": "layer-norm", "features": width}
    block: list[Layer] = [
        {"op": "attention", "features": width, "heads": heads, "causal": True, "bias": False},
        {"op": "linear", "inputs": width, "outputs": 4 * width, "bias": False},
        {"op": "linear", "inputs": 4 * width, "outputs": width, "bias": False},
    ]
    layers: list[Layer] = [
        {"op": "embedding", "entries": n_tokens, "features": width},
        {"op": "positions", "entries": context, "features": width},
    ]
    for _ in range(n_layers):
        layers.append({"op": "residual", "body": [norm, block[0]]})
        layers.append({"op": "residual", "body": [norm, block[1], "gelu", block[2]]})
    tied = {"tied": "0.weight"} if text.endswith("-tied") else {}
    head: Layer = {"op": "linear", "inputs": width, "outputs": n_tokens, "bias": False, **tied}
    return {"input": [context], "layers": [*layers, norm, head]}


def _conv(inputs: int, outputs: int, **options: Any) -> Layer:
    return {"op": "conv2d", "inputs": inputs, "outputs": outputs, "kernel": 3, **options}


def _mnist_cnn(shape: tuple[int, ...], n_classes: int) -> list[Layer]:
    side = _sides(shape, lambda size: (size - 4) // 2, "mnist-cnn")
    return [
        _conv(shape[0], 32), "relu", _conv(32, 64), "relu", {"op": "max-pool-2d", "kernel": 2},
        {"op": "dropout", "p": 0.25}, "flatten", {"op": "linear", "inputs": 64 * side, "outputs": 128}, "relu",
        {"op": "dropout", "p": 0.5}, {"op": "linear", "inputs": 128, "outputs": n_classes},
    ]  # fmt: skip


def _sides(shape: tuple[int, ...], shrink: Callable[[int], int], name: str) -> int:
    """Pixels left of an image after the convolutions and pools of a net."""
    sides = [shrink(size) for size in shape[1:]]
    if min(sides) < 1:
        raise ArchitectureError((f"{name} shrinks an image of {shape[1]} x {shape[2]} pixels to nothing",))
    return math.prod(sides)


def _conv_net(n_convolutions: int) -> Callable[[tuple[int, ...], int], list[Layer]]:
    def net(shape: tuple[int, ...], n_classes: int) -> list[Layer]:
        n_pools = n_convolutions // 2
        layers: list[Layer] = []
        channels = shape[0]
        for pool in range(n_pools):
            for _ in range(2):
                layers += [_conv(channels, 64 << pool, padding=1), "relu"]
                channels = 64 << pool
            layers.append({"op": "max-pool-2d", "kernel": 2})
        side = _sides(shape, lambda size: size >> n_pools, f"conv{n_convolutions}")
        _, classifier = _mlp((channels * side,), [256, 256], n_classes)
        return [*layers, "flatten", *classifier]

    return net


def _resnet(widths: Sequence[int], n_blocks: int, *, projected: bool) -> Callable[[tuple[int, ...], int], list[Layer]]:
    """Stages of equally many blocks, all but the first at half the size; shortcuts across are padded or projected."""

    def net(shape: tuple[int, ...], n_classes: int) -> list[Layer]:
        channels = widths[0]
        layers: list[Layer] = [
            _conv(shape[0], channels, padding=1, bias=False, name="conv1"),
            {"op": "batch-norm-2d", "features": channels, "name": "bn1"},
            "relu",
        ]
        for stage, outputs in enumerate(widths):
            blocks = []
            for block in range(n_blocks):
                blocks.append(_resnet_block(channels, outputs, 2 if stage and not block else 1, projected))
                channels = outputs
            layers.append({"op": "stack", "name": f"layer{stage + 1}", "layers": blocks})
        head = {"op": "linear", "inputs": channels, "outputs": n_classes, "name": "linear"}
        return [*layers, "global-average-pool", head]

    return net


def _resnet_block(inputs: int, outputs: int, stride: int, projected: bool) -> Layer:
    strided = {} if stride == 1 else {"stride": stride}
    block: dict[str, Any] = {
        "op": "residual",
        "relu": True,
        "body": [
            _conv(inputs, outputs, padding=1, bias=False, name="conv1", **strided),
            {"op": "batch-norm-2d", "features": outputs, "name": "bn1"},
            "relu",
            _conv(outputs, outputs, padding=1, bias=False, name="conv2"),
            {"op": "batch-norm-2d", "features": outputs, "name": "bn2"},
        ],
    }
    if inputs != outputs or stride != 1:
        block["shortcut"] = (
            [_conv(inputs, outputs, kernel=1, bias=False, **strided), {"op": "batch-norm-2d", "features": outputs}]
            if projected
            else [{"op": "pad-shortcut", "inputs": inputs, "outputs": outputs, **strided}]
        )
    return block


def _resnet18(width: int) -> Callable[[tuple[int, ...], int], list[Layer]]:
    return _resnet([width * 2**stage for stage in range(4)], 2, projected=True)


_NETS: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...], int], list[Layer]]]] = {
    "mnist-cnn": ((1, 28, 28), _mnist_cnn),
    **{f"conv{n}": ((3, 32, 32), _conv_net(n)) for n in (2, 4, 6, 8)},
    "resnet18": ((3, 32, 32), _resnet18(64)),
    **{f"resnet{6 * n + 2}": ((3, 32, 32), _resnet((16, 32, 64), n, projected=False)) for n in (3, 5, 7, 9)},
}
