"""What a module needs to be written again: seed, architecture and coded tensors, carried by the module itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .coded import CodedTensor
from .errors import ArgumentError

ATTRIBUTE = "smask_recipe"
EXTERNAL: Mapping[str, Any] = {"kind": "external"}


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything of a file that is not a plain tensor.

    Attributes:
        seed: Seed of the generator.
        coded: Coded tensors by state-dict name.
        arch: Architecture as the manifest holds it.
        meta: Free text by the author.
        base_digest: sha256 of the checkpoint that coded tensors or ``origins`` are of; None for none.
        origins: By state-dict name of tensors that are not coded: name and tensor of the base that they are over.
    """

    seed: int
    coded: Mapping[str, CodedTensor]
    arch: Mapping[str, Any] = field(default_factory=lambda: dict(EXTERNAL))
    meta: Mapping[str, str] = field(default_factory=dict)
    base_digest: str | None = None
    origins: Mapping[str, tuple[str, Tensor]] = field(default_factory=dict)


def texts_of(meta: Mapping[str, str] | None) -> dict[str, str]:
    """Free text as a file can hold it.

    Raises:
        ArgumentError: A name or a value that is no string, or not one of UTF-8.
    """
    for text in (text for member in (meta or {}).items() for text in member):
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError):
            raise ArgumentError("meta", text, "strings under names that are strings, in UTF-8") from None
    return dict(meta or {})


def attach(model: nn.Module, recipe: Recipe) -> None:
    """Makes a module carry its recipe; copies and pickles of the module carry it too."""
    setattr(model, ATTRIBUTE, recipe)


def recipe_of(model: nn.Module) -> Recipe:
    """The recipe that a module carries.

    Raises:
        ArgumentError: It carries none.
    """
    recipe = getattr(model, ATTRIBUTE, None)
    if not isinstance(recipe, Recipe):
        raise ArgumentError("model", type(model).__name__, "a model from smask.find_masks or smask.load")
    return recipe
