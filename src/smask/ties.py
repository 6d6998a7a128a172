"""Parameters that a module has under several names, which have to be the same bytes in a file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .contents import Contents
from .errors import ArchitectureError, FormatError
from .integrity import raw_bytes
from .reconstruction import reconstruct


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one object; assigned tensors would make them several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def check_ties(model: nn.Module, read: Contents, *, described: bool) -> None:
    """Refuses a file whose tensors differ where a module has one: it would be another model than the file verifies.

    Args:
        model: The module; its names are those of the file.
        read: The tensors, of which none was taken out yet.
        described: Whether the architecture is that of the file.

    Raises:
        FormatError: Two names differ, and the file says that they are tied.
        ArchitectureError: Two names differ, and the module of the caller has them as one.
    """
    for first, *others in tied_parameters(model):
        for name in others:
            holders = [read.same.get(one, one) for one in (first, name)]
            if holders[0] == holders[1] or torch.equal(*(raw_bytes(_tensor(read, holder)) for holder in holders)):
                continue
            if described:
                raise FormatError("A-07", f"tensor {name!r}", "bytes of its own", f"those of {first!r}, as it is tied")
            raise ArchitectureError((f"{first} and {name} are one in the model and differ in the file",))


def _tensor(read: Contents, name: str) -> Tensor:
    return read.plain[name] if name in read.plain else reconstruct(read.coded[name], read.seed)
