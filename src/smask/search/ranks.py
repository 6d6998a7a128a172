"""Processes that share one search: each takes its rows of every batch, and what they find is summed.

All are given the same model, the same settings and the same batches, so that a batch stays what it is however many
processes there are. What travels in a step is the gradient of every masked weight, from which those of its scores and
scales follow, the gradients of other trained floats, and a few numbers. This is what DistributedDataParallel does (Li
et al., "PyTorch Distributed", VLDB 2020), without its demands: parameters may take no part in a pass, and shares of a
batch may be unequal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.rnn import PackedSequence

from ..errors import ArgumentError, RankError, SmaskError
from ..integrity import DTYPE_OF_NAME, NAME_OF_DTYPE, raw_bytes
from .nested import mapped, tensors_in
from .snapshots import Snapshot

# Tensors of at least so many elements travel alone, all others together.
N_ALONE = 1 << 18


class Ranks:
    """The processes of a group, or this one alone.

    Args:
        group: None for this process alone.
        device: Of the search; what is exchanged lies there.

    Attributes:
        group: As given.
        rank, size: This process, from 0, and how many there are.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self._device = group, device
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def share(self, batch: tuple[Any, Any]) -> tuple[Any, Any, int, int]:
        """This rank's rows of inputs and targets, their number, and that of the whole batch.

        Of fewer rows than ranks some get none; they still take part, with the first row, which does not count.

        Raises:
            ArgumentError: Tensors of other lengths than the first.
        """
        n = n_rows(batch)
        if self.size == 1:
            return *batch, n, n
        first, last = n * self.rank // self.size, n * (self.rank + 1) // self.size
        rows = slice(first, last) if last > first else slice(0, 1)
        return _rows(batch[0], rows, n), _rows(batch[1], rows, n), last - first, n

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces every tensor by its sum over the ranks.

        Raises:
            RankError: A rank ended or did not answer in time.
        """
        if self.size == 1:
            return
        small = [tensor for tensor in tensors if tensor.numel() < N_ALONE or not tensor.is_contiguous()]
        together = {id(tensor) for tensor in small}
        sent = [tensor for tensor in tensors if id(tensor) not in together]
        packed = torch.cat([tensor.flatten() for tensor in small]) if small else torch.empty(0)
        with self._answering():
            sent += [packed] if small else []
            for work in [dist.all_reduce(tensor, group=self.group, async_op=True) for tensor in sent]:
                work.wait()
        for tensor, part in zip(small, torch.split(packed, [tensor.numel() for tensor in small]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def check_same(self, **things: object) -> None:
        """Makes sure that all ranks have the same.

        Args:
            things: What prints alike where it is the same, by a name.

        Raises:
            RankError: One has another, or does not answer; it says what differs.
        """
        if self.size == 1:
            return
        digests = b"".join(hashlib.sha256(repr(thing).encode()).digest() for thing in things.values())
        own = torch.frombuffer(bytearray(digests), dtype=torch.uint8).to(self._device)
        got = [torch.empty_like(own) for _ in range(self.size)]
        with self._answering():
            dist.all_gather(got, own, group=self.group)
        for index, name in enumerate(things):
            parts = [theirs[32 * index : 32 * (index + 1)] for theirs in got]
            other = [str(rank) for rank, part in enumerate(parts) if not torch.equal(part, parts[0])]
            if other:
                reason = f"{name.replace('_', ' ')} of rank {', '.join(other)} not as of rank 0, all need the same"
                raise RankError(self.rank, self.size, reason)

    def value(self, value: float, source: int = 0) -> float:
        """What one rank has."""
        if self.size == 1:
            return value
        sent = torch.tensor([value], dtype=torch.float64).to(self._device)
        self._broadcast(sent, source)
        return float(sent)

    def snapshot(self, last: Callable[[], Snapshot | None]) -> Snapshot | None:
        """A snapshot that rank 0 has, on all of them; no pickle is made of it.

        Args:
            last: Called on rank 0 alone.

        Raises:
            RankError: On the others, where it raised on rank 0.
        """
        if self.size == 1:
            return last()
        snapshot: Snapshot | None = None
        refused: SmaskError | None = None
        text: dict[str, Any] = {}
        if self.rank == 0:
            try:
                snapshot = last()
            except SmaskError as error:
                refused, text = error, {"refused": str(error)}
        if snapshot:
            text = {"step": snapshot.step, "numbers": snapshot.numbers}
        text = json.loads(self._bytes(json.dumps(text).encode()))
        if refused:
            raise refused
        if "refused" in text:
            raise RankError(self.rank, self.size, f"rank 0 said: {text['refused']}")
        if not text:
            return None
        return Snapshot(text["step"], text["numbers"], self._tensors(snapshot.tensors if snapshot else {}, 0))

    def merged(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of all ranks, each of which has other names, on all of them.

        Raises:
            RankError: A rank ended or did not answer in time.
        """
        found = dict[str, Tensor]()
        for source in range(self.size):
            found |= self._tensors(tensors, source)
        return found

    def send(self, tensor: Tensor, to: int) -> Callable[[], None]:
        """Begins to send a tensor, which must stay as it is until the call of what is returned comes back.

        Raises:
            RankError: When waiting: the other ended or did not answer in time.
        """
        with self._answering():
            work = dist.isend(tensor, group=self.group, group_dst=to)
        assert work is not None
        return lambda: self._wait(work)

    def receive(self, into: Tensor, source: int) -> Callable[[], Tensor]:
        """Begins to receive a tensor into one of its shape and dtype; what is returned waits for it.

        Raises:
            RankError: When waiting: the source ended or did not answer in time.
        """
        with self._answering():
            work = dist.irecv(into, group=self.group, group_src=source)
        assert work is not None

        def wait() -> Tensor:
            self._wait(work)
            return into

        return wait

    def _wait(self, work: dist.Work) -> None:
        with self._answering():
            work.wait()

    def _tensors(self, tensors: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
        """What one rank has; on the others the argument is not looked at."""
        mine = self.rank == source
        text = {name: [NAME_OF_DTYPE[t.dtype], list(t.shape)] for name, t in tensors.items()} if mine else {}
        text = json.loads(self._bytes(json.dumps(text).encode(), source))
        found = {}
        for name, (dtype, shape) in text.items():
            sent = tensors[name] if mine else torch.empty(shape, dtype=DTYPE_OF_NAME[dtype])
            sent = sent.detach().to(self._device).contiguous()
            # As bytes: not every backend knows every dtype.
            self._broadcast(sent.reshape(-1).view(torch.uint8), source)
            found[name] = sent.cpu()
        return found

    @contextmanager
    def own_random(self, *place: int) -> Iterator[None]:
        """torch's generators begin at a point of this rank alone; afterwards they are as they were on all ranks.

        What a model draws, as in dropout, then differs between ranks, and what batches draw does not.
        """
        if self.size == 1:
            yield
            return
        with random_at(self._device, *place, self.rank):
            yield

    def _bytes(self, content: bytes, source: int = 0) -> bytes:
        length = int(self.value(len(content), source))
        own = torch.zeros(length, dtype=torch.uint8)
        if self.rank == source:
            own = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        own = own.to(self._device)
        self._broadcast(own, source)
        return bytes(own.cpu().numpy())

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        if tensor.numel():
            with self._answering():
                dist.broadcast(tensor, group=self.group, group_src=source)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # The backend puts lines of its source before what happened and guesses after it.
            happened = re.sub(r"^\[[^\]]*\]\s*", "", str(error).splitlines()[0]).partition(". ")[0]
            reason = f"another rank has ended or did not answer in time ({happened[:120]})"
            raise RankError(self.rank, self.size, reason) from None


@contextmanager
def random_at(device: torch.device, *place: int) -> Iterator[None]:
    """torch's generators begin at a point that these numbers decide; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(mixed(*place))
        yield


def running_statistics(model: nn.Module) -> list[Tensor]:
    """What the norms of a model remember of their inputs, in training."""
    norms: Iterable[nn.Module] = (m for m in model.modules() if isinstance(m, _NormBase) and m.training)
    found = [tensor for m in norms for tensor in (m.running_mean, m.running_var)]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def n_rows(batch: Any) -> int:
    """Length of the first tensor of a batch that has one.

    Raises:
        ArgumentError: There is none.
    """
    for tensor in tensors_in(batch):
        if tensor.dim():
            return len(tensor)
    raise ArgumentError("batches", type(batch).__name__, "tensors whose first dimension is that of the inputs")


def batch_digest(batch: Any) -> str:
    """sha256 over the tensors of a batch."""
    running = hashlib.sha256()
    for tensor in tensors_in(batch):
        running.update(repr((tensor.dtype, tensor.shape)).encode())
        running.update(raw_bytes(tensor).numpy().data)
    return running.hexdigest()


def mixed(*numbers: int) -> int:
    """A seed that all of these numbers decide, also in the 32 bits that a generator of a CPU looks at."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


def _rows(batch: Any, rows: slice, n: int) -> Any:
    def of(tensor: Tensor | PackedSequence) -> Tensor:
        if isinstance(tensor, PackedSequence):
            raise ArgumentError("batches", "packed sequences", "padded ones, where processes share a batch")
        if tensor.dim() and len(tensor) != n:
            got = f"tensors of {n} and of {len(tensor)} rows"
            raise ArgumentError("batches", got, "as many rows in all of a batch, where processes share it")
        return tensor[rows] if tensor.dim() else tensor

    return mapped(batch, of)
