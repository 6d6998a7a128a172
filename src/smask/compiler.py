"""Functions of tensors compiled once for each layout of their arguments, and found again without guards.

``torch.compile`` checks its guards at every call, which costs more than a small tile takes. Here the key is explicit:
the function and the shape, strides, dtype and device of every argument. What Inductor makes of it is kept for the
process, and by Inductor's own cache on disk for the next one.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Work: TypeAlias = Callable[..., Any]
Listener: TypeAlias = Callable[[str, float | None], None]

_LOCK = threading.RLock()
_MADE: dict[tuple[Any, ...], Work] = {}
_FAILED: dict[str, str] = {}
_LISTENERS: list[Listener] = []


def compiled(function: Work, *arguments: Tensor, contract: bool = False, one_loop: bool = False) -> Work:
    """The function compiled for arguments like these, or the function itself where nothing can be compiled.

    The first call for a layout compiles, which takes seconds; later ones are a lookup.

    Args:
        function: Takes tensors, returns a tensor or a tuple of tensors; may write into its arguments. It is named
            in the key, so that it must be a function of a module and depend on nothing but its arguments.
        arguments: What it will be called with.
        contract: Whether a multiplication and an addition may become one instruction, with one rounding.
        one_loop: Whether nothing between arguments and results is ever written to memory, however long the sums are.
    """
    if torch._C._are_functorch_transforms_active():  # of tensors that only stand for memory
        return function
    key = (function, contract, one_loop, torch.get_num_threads(), *[_layout(argument) for argument in arguments])
    made = _MADE.get(key)
    if made is None:
        with _LOCK:
            made = _MADE.get(key)
            if made is None:
                made = _compile(function, arguments, contract, one_loop)
                if made is not function:
                    _MADE[key] = made
    return made


def available(device: torch.device | str = "cpu") -> bool:
    """Whether functions can be compiled for a kind of device; tried once, with a small function."""
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    if kind not in _FAILED and (_increment, kind) not in _MADE:
        with _LOCK:
            probe = torch.zeros(64, dtype=torch.int32, device=device)
            made = compiled(_increment, probe)
            if made is not _increment:
                _MADE[_increment, kind] = made
    return kind not in _FAILED and (_increment, kind) in _MADE


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells when something is compiled: called with a description and None before, and with the seconds after."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def _increment(x: Tensor) -> Tensor:
    return x + 1


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _compile(function: Work, arguments: tuple[Tensor, ...], contract: bool, one_loop: bool) -> Work:
    kind = arguments[0].device.type
    if kind in _FAILED:
        return function
    name = f"{function.__name__} {' '.join('x'.join(map(str, a.shape)) for a in arguments)}"
    for listener in _LISTENERS:
        listener(name, None)
    start = time.perf_counter()
    try:
        made = _inductor(function, arguments, _options(contract, one_loop))
    except Exception as error:  # whatever a missing or broken compiler raises, the plain function is right
        if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
            return function  # a mode may be the reason, and the compiler sound
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _FAILED[kind] = reason
        warnings.warn(
            f"smask runs without compiled kernels on {kind}, several times slower: {reason}", RuntimeWarning, 2
        )
        return function
    for listener in _LISTENERS:
        listener(name, time.perf_counter() - start)
    return made


def _options(contract: bool, one_loop: bool) -> dict[str, Any]:
    """What Inductor is told beside its own settings."""
    from torch._inductor import config

    # ``freezing`` would fold the unpacking of constant weights into dense ones.
    options: dict[str, Any] = {"freezing": False}
    if contract and getattr(config.cpp, "enable_floating_point_contract_flag", None) == "off":
        options["cpp.enable_floating_point_contract_flag"] = "fast"
    if one_loop:
        thresholds = ("realize_opcount_threshold", "realize_reads_threshold", "realize_acc_reads_threshold")
        options |= {name: 1 << 30 for name in thresholds if hasattr(config, name)}
    # A float seen as an integer is copied number by number, which compilers turn into nothing if they use whole
    # vectors. Tuned for processors of Intel they prefer half ones, and a product of one row took ten times as long.
    if sys.platform == "linux" and platform.machine() == "x86_64" and getattr(config.cpp, "march", "") is None:
        options["cpp.march"] = "native -mprefer-vector-width=512"
    return options


def _inductor(function: Work, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> Work:
    from torch import _inductor

    # What torch warns of inside its own compiler is no concern of our callers.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Tracing runs the function, so not on what the caller holds; nor on tensors of an inference mode.
        examples = [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device) for a in arguments]
        graph = make_fx(function)(*examples)
        made = _inductor.compile(graph, list(examples), options=options)
    return made  # type: ignore[no-any-return]
