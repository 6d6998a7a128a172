"""One sha256 over reconstructed tensors: what ``verify`` compares on any device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

NAME_OF_DTYPE = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
DTYPE_OF_NAME = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and little-endian row-major bytes of every tensor, in order.

    Args:
        tensors: State dict, on any device.

    Returns:
        64 lower-case hexadecimal digits.
    """
    running = Digest()
    for name, tensor in tensors.items():
        running.update(name, tensor)
    return running.hexdigest()


class Digest:
    """:func:`digest` of tensors that come one at a time."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, name: str, tensor: Tensor) -> None:
        """Takes the next tensor."""
        head = "\0".join((name, NAME_OF_DTYPE[tensor.dtype], ",".join(map(str, tensor.shape)), ""))
        self._sha256.update(head.encode())
        self._sha256.update(raw_bytes(tensor).numpy().data)

    def hexdigest(self) -> str:
        """Digest of the tensors so far."""
        return self._sha256.hexdigest()


def raw_bytes(tensor: Tensor) -> Tensor:
    """uint8 [n * itemsize] on the CPU: the memory of a tensor in row-major order."""
    packed = tensor.detach().cpu().contiguous()
    # A single number is contiguous whatever its strides are, and one of expand has the stride 0.
    return packed.as_strided((packed.numel(),), (1,)).view(torch.uint8)
