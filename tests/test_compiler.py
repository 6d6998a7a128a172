from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smask import compiler


def double(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 2)


def plus(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def broken(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("cannot be traced\nat all")


def test_a_layout_is_compiled_once_and_announced() -> None:
    said: list[tuple[str, float | None]] = []
    x, out = torch.arange(48.0), torch.empty(48)
    with compiler.listening(lambda name, seconds: said.append((name, seconds))):
        made = compiler.compiled(double, x, out)
        assert compiler.compiled(double, x + 1, torch.empty(48)) is made
    made(x, out)
    assert torch.equal(out, 2 * x)
    assert [name for name, _ in said] == ["double 48 48"] * 2
    assert said[0][1] is None
    assert said[1][1] is not None
    with compiler.listening(lambda name, seconds: said.append((name, seconds))):
        other = compiler.compiled(double, x[::2], out[:24])
    assert other is not made
    assert len(said) == 4


def test_compiling_in_inference_mode_serves_both_modes_and_touches_nothing() -> None:
    with torch.inference_mode():
        x, out = torch.arange(40.0), torch.full((40,), 7.0)
        made = compiler.compiled(double, x, out)
        assert made is not double
        assert torch.equal(out, torch.full((40,), 7.0))
        made(x, out)
        assert torch.equal(out, 2 * x)
    x, out = torch.arange(40.0), torch.empty(40)
    assert compiler.compiled(double, x, out) is made
    made(x, out)
    assert torch.equal(out, 2 * x)


def test_whatever_breaks_leaves_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_FAILED", {})
    monkeypatch.setattr(compiler, "_MADE", {})
    with pytest.warns(RuntimeWarning, match="without compiled kernels on cpu, several times slower: cannot be traced"):
        assert compiler.compiled(broken, torch.ones(3)) is broken
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiler.compiled(double, torch.ones(3), torch.ones(3)) is double
    assert not compiler.available()


def test_what_breaks_in_a_mode_of_torch_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.empty_strided.default:
                raise NotImplementedError("this mode knows only the layers of its net")
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(compiler, "_FAILED", {})
    monkeypatch.setattr(compiler, "_MADE", {})
    x, out = torch.arange(48.0), torch.empty(48)
    with Narrow():
        assert compiler.compiled(double, x, out) is double
        assert not compiler.available()
    batch = torch.ones(2, 48)
    assert torch.equal(torch.func.vmap(lambda row: compiler.compiled(plus, row)(row))(batch), batch + 1)
    assert not compiler._FAILED
    assert compiler.compiled(double, x, out) is not double
    assert compiler.compiled(plus, x) is not plus
    assert torch.equal(torch.func.vmap(lambda row: compiler.compiled(plus, row)(row))(batch), batch + 1)
    assert compiler.available()


def test_a_torch_without_its_compiler_leaves_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_FAILED", {})
    monkeypatch.setattr(compiler, "_MADE", {})
    monkeypatch.setitem(sys.modules, "torch._inductor", None)  # importing it, or from it, fails
    with pytest.warns(RuntimeWarning, match="without compiled kernels on cpu"):
        assert compiler.compiled(double, torch.ones(3), torch.ones(3)) is double


def test_available_here() -> None:
    assert compiler.available() == compiler.available("cpu")


def test_whole_vectors_are_asked_for_where_the_processor_may_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    assert compiler._options(False, False)["freezing"] is False
    if not hasattr(config.cpp, "march"):
        pytest.skip("this torch cannot be told")
    monkeypatch.setattr(compiler.sys, "platform", "linux")
    for machine, given, asked in (("x86_64", None, True), ("aarch64", None, False), ("x86_64", "x86-64-v3", False)):
        monkeypatch.setattr(compiler.platform, "machine", lambda machine=machine: machine)
        with config.patch({"cpp.march": given}):  # somebody's choice is left alone
            assert ("cpp.march" in compiler._options(True, False)) is asked
