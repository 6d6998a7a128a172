"""Whether a module has the tensors of a file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from . import replacement
from .errors import ArchitectureError
from .integrity import NAME_OF_DTYPE
from .records import Record


def check_fit(model: nn.Module, records: Sequence[Record]) -> None:
    """Refuses a module that a file, or a task of one, does not fit; packed layers have the weights that they stand for.

    Raises:
        ArchitectureError: All differences between the module and the records at once.
    """
    want = {record.name: (tuple(record.shape), record.dtype) for record in records}
    state, got = model.state_dict(), dict[str, tuple[tuple[int, ...], str]]()
    for name, layer in replacement.packed_layers(model).items():
        got[name] = (layer.form.shape, NAME_OF_DTYPE.get(layer.dtype, "?"))
        for buffer, _ in layer.named_buffers():
            state.pop(name.removesuffix("weight") + buffer)
    got |= {name: (tuple(tensor.shape), NAME_OF_DTYPE.get(tensor.dtype, "?")) for name, tensor in state.items()}
    differences = [f"{name} is in the file but not in the model" for name in want if name not in got]
    differences += [f"{name} is in the model but not in the file" for name in got if name not in want]
    differences += [
        f"{name} is {got[name][1]} {list(got[name][0])} in the model, {want[name][1]} {list(want[name][0])} in the file"
        for name in want
        if name in got and got[name] != want[name]
    ]
    if differences:
        raise ArchitectureError(tuple(differences))
