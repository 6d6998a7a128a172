"""Coded bytes of a running search, estimated: entropy of its planes and floats; no section is coded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from .. import bitcoding

# A file without any tensor: head, sha256, and a manifest whose words the dictionary knows; then for each coded tensor.
N_BYTES_EMPTY, N_BYTES_TENSOR = 90, 20


def estimated_bytes(planes: Mapping[str, tuple[float, int, int]], floats: Iterable[Tensor]) -> int:
    """Bytes of the file that the search would give now.

    Args:
        planes: Density, number of weights and of values of kept ones, levels and signs, of each masked layer; bits are
            taken as independent, values as equally many.
        floats: Scales, biases and norms as they will be stored.
    """
    n_plane_bytes = sum(
        bitcoding.entropy_bytes(round(density * n), n) + density * n * math.log2(n_values) / 8
        for density, n, n_values in planes.values()
    )
    stored = torch.cat([torch.empty(0).bfloat16(), *(tensor.detach().flatten().cpu().bfloat16() for tensor in floats)])
    bytes_of_values = stored.view(torch.uint8).numpy().reshape(-1, 2)
    n_float_bytes = sum(bitcoding.entropy_of_bytes(np.ascontiguousarray(bytes_of_values[:, i])) for i in (0, 1))
    return round(n_plane_bytes + n_float_bytes) + N_BYTES_EMPTY + N_BYTES_TENSOR * len(planes)
