from dataclasses import replace
from pathlib import Path

import pytest
import torch

import smask


def test_figures_add_up(found: torch.nn.Module, tmp_path: Path) -> None:
    n_bytes = smask.save(found, tmp_path / "a.smask")
    report = smask.inspect(tmp_path / "a.smask")
    assert report.n_bytes == n_bytes == report.n_plane_bytes + report.n_float_bytes + report.n_overhead_bytes
    state = found.state_dict()
    assert [tensor.name for tensor in report.tensors] == list(state)
    for tensor in report.tensors:
        assert tensor.shape == tuple(state[tensor.name].shape)
        if tensor.n_planes:
            assert tensor.n_kept == int((state[tensor.name] != 0).sum())
            assert tensor.entropy_bytes > 0
    assert report.fp32_bytes == sum(4 * tensor.numel() for tensor in state.values())
    assert (report.seed, report.meta) == (5, {"task": "digits"})


def test_planes_and_flips_are_counted(vectors: Path) -> None:
    data = (vectors / "accept/planes.smask").read_bytes()
    weights = smask.decode(data)
    for tensor in smask.inspect(data).tensors:
        # A level of zero does not occur in these vectors, so that kept is the same as not zero.
        if tensor.name != "t5":  # scales of -1 and 0
            assert tensor.n_kept == int((weights[tensor.name] != 0).sum())
        assert len(tensor.codings) >= tensor.n_planes


def test_flipped_weights_are_counted(found: torch.nn.Module) -> None:
    """Two turned by hand, and one that is not kept, which is none; without flips nothing is said."""
    state, recipe = {name: tensor.clone() for name, tensor in found.state_dict().items()}, found.smask_recipe
    name, *others = recipe.coded
    coded = recipe.coded[name]
    weights = state[name].flatten()
    kept, (empty, *_) = weights.nonzero().flatten()[[3, 40]].tolist(), (weights == 0).nonzero().flatten().tolist()
    flip = torch.zeros_like(coded.planes[0])
    for place in (*kept, empty):
        flip[place >> 3] |= 1 << (place & 7)
    weights[kept] *= -1
    turned = replace(recipe, coded={**recipe.coded, name: replace(coded, flip=flip)})
    reports = {tensor.name: tensor for tensor in smask.inspect(smask.encode(state, turned)).tensors}
    assert (reports[name].n_kept, reports[name].n_flipped) == (int((weights != 0).sum()), 2)
    assert others
    assert all(reports[other].n_flipped is None for other in others)


def test_channels_are_counted(found: torch.nn.Module) -> None:
    state = found.state_dict()
    for tensor in smask.inspect(smask.encode(state, found.smask_recipe)).tensors:
        if tensor.n_planes:
            of_channels = (state[tensor.name] != 0).flatten(1).sum(1)
            assert tensor.n_kept_of_channels == (int(of_channels.min()), int(of_channels.max()))
            assert tensor.n_empty_channels == int((of_channels == 0).sum())
        else:
            assert (tensor.n_kept_of_channels, tensor.n_empty_channels) == (None, 0)


def test_as_dict_is_plain(found: torch.nn.Module) -> None:
    import json

    report = smask.inspect(smask.encode(found.state_dict(), found.smask_recipe))
    assert json.loads(json.dumps(report.as_dict()))["tensors"][0]["name"] == report.tensors[0].name


def test_damage_is_found(vectors: Path) -> None:
    with pytest.raises(smask.SmaskError):
        smask.inspect(vectors / "reject/bit-flipped.smask")
