"""smask: neural networks stored as an architecture, a seed and compressed bitmasks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .container import Limits
from .errors import SmaskError

if TYPE_CHECKING:
    from .codec import decode, encode, load, save
    from .conversion.converter import convert_checkpoint
    from .inspection import inspect
    from .packs import pack
    from .replacement import materialize
    from .runs.folder import Checkpoints
    from .runs.rounds import Rounds
    from .runs.size import TargetSize
    from .search.loop import find_masks
    from .sources import open_base
    from .tasks import Tasks
    from .training.loop import train_weights
    from .training.sparse import train_sparse
    from .training.tickets import find_ticket
    from .verification import verify

__version__ = "0.1.0"
__all__ = [
    "Checkpoints", "Limits", "Rounds", "SmaskError", "TargetSize", "Tasks", "convert_checkpoint", "decode", "encode",
    "find_masks", "find_ticket", "inspect", "load", "materialize", "open_base", "pack", "save", "train_sparse",
    "train_weights", "verify",
]  # fmt: skip
# Imported on first use, so that an inspector starts without torch.
_HOMES = dict.fromkeys(("decode", "encode", "load", "save"), "codec")
_HOMES |= {"convert_checkpoint": "conversion.converter", "inspect": "inspection", "find_masks": "search.loop"}
_HOMES |= {"materialize": "replacement", "open_base": "sources", "verify": "verification"}
_HOMES |= {"train_weights": "training.loop", "find_ticket": "training.tickets", "train_sparse": "training.sparse"}
_HOMES |= {"Checkpoints": "runs.folder", "Rounds": "runs.rounds", "TargetSize": "runs.size"}
_HOMES |= {"Tasks": "tasks", "pack": "packs"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smask' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
