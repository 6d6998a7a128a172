"""Convolutions of small images as products of matrices, where a library's are slow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Places of the output that one image may have, and channels that make products worth the copies around them. oneDNN's
# gradient of weights takes its time for every image, whatever its size; at 6 x 6 and above it is as fast as a product.
MOST_PLACES = 16
LEAST_CHANNELS = 128


class Unfolded(torch.autograd.Function):
    """A convolution whose inputs are laid out window by window, so that passes are products of matrices.

    As in Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", IWFHR 2006,
    section 2.2. Images and what is made of them lie pixel by pixel (``channels_last``).
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        (n_out, n_in, *kernel), (above, left) = weight.shape, padding
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, above, above))
        windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1]).permute(0, 1, 2, 4, 5, 3)
        n, height, width = windows.shape[:3]
        flat = windows.reshape(n * height * width, kernel[0] * kernel[1] * n_in)
        rows = weight.permute(0, 2, 3, 1).reshape(n_out, -1)
        ctx.save_for_backward(flat, rows)
        ctx.of = (tuple(padded.shape), tuple(kernel), stride, padding, bias is not None)
        y = flat @ rows.t() if bias is None else torch.addmm(bias, flat, rows.t())
        return y.view(n, height, width, n_out).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (flat, rows), (shape, kernel, stride, padding, has_bias) = ctx.saved_tensors, ctx.of
        n, height, width = len(gradient), *gradient.shape[2:]
        outputs = gradient.permute(0, 2, 3, 1).reshape(n * height * width, -1)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            windows = (outputs @ rows).view(n, height, width, *kernel, shape[3])
            whole = torch.zeros(shape, dtype=torch.float32, device=gradient.device)
            for row, column in itertools.product(*map(range, kernel)):
                ends = (row + (height - 1) * stride[0] + 1, column + (width - 1) * stride[1] + 1)
                seen = whole[:, row : ends[0] : stride[0], column : ends[1] : stride[1]]
                seen += windows[:, :, :, row, column]
            inner = whole[:, padding[0] : shape[1] - padding[0], padding[1] : shape[2] - padding[1]]
            of_x = inner.to(gradient.dtype).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_weight = (outputs.t() @ flat).view(-1, *kernel, shape[3]).permute(0, 3, 1, 2)
        of_bias = outputs.sum(0) if has_bias and ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None, None


def is_worthwhile(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> bool:  # fmt: skip
    """Whether a convolution in bfloat16, arguments as of :func:`torch.conv2d`, is faster as a product of matrices."""
    if x.device.type != "cpu" or x.dim() != 4 or groups != 1 or isinstance(padding, str) or _pair(dilation) != (1, 1):
        return False
    if min(weight.shape[:2]) < LEAST_CHANNELS or max(weight.shape[2:]) == 1 or not torch.is_grad_enabled():
        return False
    kernel, strides, around = weight.shape[2:], _pair(stride), _pair(padding)
    sides = [(x.shape[2 + i] + 2 * around[i] - kernel[i]) // strides[i] + 1 for i in (0, 1)]
    return min(sides) > 0 and sides[0] * sides[1] <= MOST_PLACES and len(x) > 0


class Unfolding(TorchFunctionMode):
    """Convolutions of the passes within go by :class:`Unfolded`, whoever calls them, where that is worthwhile."""

    @staticmethod
    def helps(device: torch.device, dtype: torch.dtype) -> bool:
        """Whether there is a processor on which convolutions of a type are slower than products."""
        return device.type == "cpu" and dtype == torch.bfloat16 and bool(torch.cpu._is_amx_tile_supported())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any function of torch."""
        if func is torch.conv2d and not kwargs and not torch.compiler.is_compiling() and is_worthwhile(*args):
            x, weight, bias, stride, padding = (*args, *(None, 1, 0)[len(args) - 2 :])[:5]
            return Unfolded.apply(x, weight, bias, _pair(stride), _pair(padding))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])
