"""Text for a search: windows of tokens as training batches, and how well a model predicts a text, in bits per byte."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArchitectureError, ArgumentError, DataError
from ..readers.reading import ALPHABET, TOKENS_KEY, Reading, split_facts
from ..readers.text import read_text

# Tokens that a model is shown at once when it is scored.
N_SCORED = 8192


@dataclass(frozen=True, eq=False)
class Text:
    """A text in tokens, its last part held out.

    Attributes:
        name: Where it came from.
        train, test: uint8 or int32 [N] on the CPU.
        alphabet: Characters in order of token; None where tokens are bytes.
        facts: What a file has to say, beside that, for the same part to be held out again.
    """

    name: str
    train: Tensor
    test: Tensor
    alphabet: str | None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Tokens that there are."""
        return 256 if self.alphabet is None else len(self.alphabet)

    @property
    def meta(self) -> Mapping[str, str]:
        """What a file has to say for its model to be used on other text."""
        if self.alphabet is None:
            return {TOKENS_KEY: "bytes", **self.facts}
        return {TOKENS_KEY: "characters", ALPHABET: self.alphabet, **self.facts}

    def n_bytes(self, tokens: Tensor) -> int:
        """Bytes of tokens in UTF-8."""
        if self.alphabet is None:
            return len(tokens)
        sizes = torch.tensor([len(character.encode("utf-8")) for character in self.alphabet])
        return int(sizes[tokens.long()].sum())

    def validation(self, part: float, *, seed: int) -> tuple[Text, Text]:
        """Splits the training text: one without its last part, and one that has that as its test part.

        Args:
            part: Of the training text that is set aside, in (0, 1).
            seed: Not used: a text has an order, and what comes last is set aside.

        Raises:
            ArgumentError: A part out of range, or one that leaves nothing on a side.
        """
        n = round(part * len(self.train)) if 0 < part < 1 else 0
        if not 1 < n < len(self.train) - 1:
            raise ArgumentError("validation", part, "a part of the training text, above 0 and below 1")
        rest = self.train[:-n]
        return replace(self, train=rest), replace(self, train=rest, test=self.train[-n:])

    def windows(self, n_windows: int, context: int) -> Tensor:
        """So many windows of the training text, int64 [N, context], or fewer if it is short; always the same ones."""
        starts = torch.randperm(max(1, len(self.train) - context), generator=torch.Generator().manual_seed(0))
        return self.train[starts[:n_windows, None] + torch.arange(min(context, len(self.train)))].long()


def load_text(source: str, reading: Reading) -> Text:
    """Text of a file, its last ``reading.test_part`` held out.

    Raises:
        DataError: Unreadable, too short to be split, not UTF-8, or a character that a given alphabet does not have.
    """
    path = Path(source)
    if not path.is_file():
        raise DataError(source, "is a folder, want a text file" if path.is_dir() else "not found; give a text file")
    tokens = read_text(path, reading)
    # Tensors want memory of their own, that of a file's bytes is read-only.
    ids = torch.from_numpy(np.array(tokens.ids))
    n_test = round(len(ids) * reading.test_part)
    if n_test < 2 or (len(ids) - n_test < 2 and reading.test_part < 1):
        raise DataError(source, f"{len(ids)} tokens are too few to hold out {reading.test_part:g} of them")
    train = ids if reading.test_part == 1 else ids[:-n_test]
    return Text(source, train, ids[-n_test:], tokens.alphabet, split_facts(replace(reading, split_seed=0)))


class TextBatches:
    """Windows of a text as training batches, shuffled; inputs and the tokens after them, int64 [B, context] each.

    Every pass cuts the text at other places: windows begin at a random token, one after the other.

    Args:
        text: Whose training part to draw from.
        context: Tokens a window.
        batch_size: Windows a batch; the last, incomplete one is left out unless it is the only one.
        seed: Of the order and the cuts.
        device: Where batches are wanted.

    Raises:
        DataError: Less text than one window.
    """

    def __init__(
        self, text: Text, *, context: int, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.text, self.context, self.seed = text, context, seed
        self.n_windows = max(1, (len(text.train) - context) // context)
        if len(text.train) <= context:
            reason = f"{len(text.train):,} training tokens, one window takes {context + 1:,}"
            raise DataError(text.name, reason)
        self.batch_size = min(batch_size, self.n_windows)
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        self.tokens = text.train.to(device)

    def __len__(self) -> int:
        return self.n_windows // self.batch_size

    def fingerprint(self) -> str:
        """sha256 over the training text and all that decides batches: a search goes on only with the same."""
        running = hashlib.sha256(repr((self.batch_size, self.seed, self.context, self.text.alphabet)).encode())
        running.update(self.text.train.contiguous().numpy().data)
        return running.hexdigest()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        spare = len(self.tokens) - 1 - self.n_windows * self.context
        first = int(torch.randint(min(spare, self.context - 1) + 1, (), generator=self.generator))
        order = torch.randperm(self.n_windows, generator=self.generator)
        places = torch.arange(self.context + 1)
        for batch in range(len(self)):
            starts = first + order[batch * self.batch_size : (batch + 1) * self.batch_size] * self.context
            chosen = self.tokens[(starts[:, None] + places).to(self.tokens.device)].long()
            yield chosen[:, :-1], chosen[:, 1:]


def token_loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of all tokens: outputs [N, T, tokens], targets int64 [N, T]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing=label_smoothing)


@dataclass(frozen=True)
class TextScore:
    """Result of :func:`score_text`.

    Attributes:
        bits_per_byte: Cross-entropy of the text over its bytes in UTF-8.
        loss: The same in nats a token.
        n_inputs: Tokens predicted.
        n_text_bytes: Bytes of these.
    """

    bits_per_byte: float
    loss: float
    n_inputs: int
    n_text_bytes: int


@torch.no_grad()
def score_text(model: nn.Module, text: Text, *, context: int, device: torch.device | str = "cpu") -> TextScore:
    """How well a model predicts the test part, every token but the first once.

    The text is cut into windows without overlap, so that a token has from 1 to ``context`` tokens before it to be
    predicted from, as in training.

    Raises:
        ArchitectureError: The model does not take these tokens, or its outputs are not a score for each of them.
    """
    check_text_fit(model, text, context=context, device=device)
    model.eval()
    tokens = text.test.to(device)
    n = len(tokens) - 1
    whole = n // context
    n_rows, nats = max(1, N_SCORED // context), 0.0
    places = torch.arange(context + 1, device=tokens.device)
    starts = torch.arange(0, whole * context, context, device=tokens.device)
    pieces = [tokens[starts[row : row + n_rows, None] + places] for row in range(0, whole, n_rows)]
    if n % context:
        pieces.append(tokens[None, whole * context :])
    for piece in pieces:
        piece = piece.long()
        outputs = model(piece[:, :-1])
        nats += float(F.cross_entropy(outputs.flatten(0, -2).double(), piece[:, 1:].flatten(), reduction="sum"))
    n_bytes = text.n_bytes(text.test[1:])
    return TextScore(nats / math.log(2) / n_bytes, nats / n, n, n_bytes)


@torch.no_grad()
def check_text_fit(model: nn.Module, text: Text, *, context: int, device: torch.device | str = "cpu") -> None:
    """Puts one window through a model.

    Raises:
        ArchitectureError: It does not go through, or the outputs are not one score for each token at each place.
    """
    training = model.training
    model.eval()
    # The highest token is the one that an embedding may lack.
    window = torch.full((1, context), text.n_classes - 1, device=torch.device(device))
    try:
        outputs: Tensor = model(window)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchitectureError((f"{context} tokens below {text.n_classes} do not go through: {reason}",)) from None
    finally:
        model.train(training)
    if outputs.dim() != 3 or outputs.shape[:2] != window.shape or outputs.shape[2] < text.n_classes:
        raise ArchitectureError(
            (f"the model gives {list(outputs.shape)} for {context} tokens, the text has {text.n_classes} tokens",)
        )
