"""Several tasks in one file: packed and taken out by bytes, switched in place, and what is refused."""

import copy
import functools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, codec, container, groups, manifest, named_nets, packs
from smask.cli import screen
from smask.cli.main import main
from smask.coded import CodedTensor
from smask.errors import (
    ArchitectureError,
    ArgumentError,
    BaseError,
    FormatError,
    IntegrityError,
    LimitError,
    UnsupportedError,
)
from smask.integrity import raw_bytes
from smask.recipe import EXTERNAL, Recipe, recipe_of
from smask.reconstruction import reconstruct
from smask.records import Record, Task
from smask.search.data import Batches, Dataset
from test_hostile import mutated_fields
from test_pretrained import half, net_of

LIMITS = smask.Limits()
SEED = 3


def masked(number: int, *, seed: int = SEED, density: float = 0.1, meta: dict[str, str] | None = None) -> bytes:
    """A 784-300-100-10 perceptron as a search leaves it: no training is needed for its bytes."""
    arch = named_nets.architecture("lenet-300-100", mean=[0.5], std=[0.25])
    chance, coded, state = torch.Generator().manual_seed(number), {}, dict[str, Tensor]()
    for stream, (name, tensor) in enumerate(architectures.build(arch).state_dict().items()):
        if tensor.dim() == 2:
            bits = torch.rand(tensor.numel(), generator=chance) < density
            plane = torch.from_numpy(packed(bits))
            scale = torch.rand(len(tensor), generator=chance).bfloat16().float()
            coded[name] = CodedTensor(tuple(tensor.shape), stream, (plane,), scale)
            state[name] = reconstruct(coded[name], seed)
        else:
            state[name] = torch.randn(tensor.shape, generator=chance).bfloat16().float()
    return codec.encode(state, Recipe(seed, coded, arch, meta or {}))


def packed(bits: Tensor):
    import numpy as np

    return np.packbits(bits.numpy(), bitorder="little")


@pytest.fixture(scope="module")
def three() -> dict[str, bytes]:
    return {
        name: masked(number, meta={"data": name, "author": "us"}) for number, name in enumerate(("night", "day", "ü b"))
    }


@pytest.fixture(scope="module")
def many(three: dict[str, bytes]) -> bytes:
    return smask.pack(three)


def manifest_of(data: bytes) -> manifest.Manifest:
    return manifest.open_file(data, limits=LIMITS).manifest


def exactly(state: dict[str, Tensor], again: dict[str, Tensor]) -> bool:
    return list(state) == list(again) and all(torch.equal(raw_bytes(again[n]), raw_bytes(t)) for n, t in state.items())


@pytest.mark.clause("T-01")
@pytest.mark.parametrize("n_tasks", [2, 3])
def test_packed_and_taken_out(three: dict[str, bytes], n_tasks: int) -> None:
    files = dict([*three.items()][:n_tasks])
    data = smask.pack(files)
    tasks = smask.Tasks(data)
    assert tasks.names == (*files,)
    for name, file in files.items():
        assert tasks.extract(name) == file
        assert exactly(smask.decode(file), smask.decode(data, task=name))
        assert exactly(tasks.load(name).state_dict(), smask.load(file).state_dict())
        assert recipe_of(tasks.load(name)).meta == {"data": name, "author": "us"}
    assert manifest_of(data).meta == {"author": "us"}
    assert smask.pack(files) == data


def test_a_further_task_costs_little_beside_its_planes_and_floats(three: dict[str, bytes], many: bytes) -> None:
    names, own = list(three), {}
    for name, file in three.items():
        report = smask.inspect(file)
        own[name] = report.n_plane_bytes + report.n_float_bytes
    sizes = [len(three[names[0]]), *(len(smask.pack({n: three[n] for n in names[:count]})) for count in (2, 3))]
    for name, before, after in zip(names[1:], sizes, sizes[1:], strict=False):
        assert after - before - own[name] <= 40
    # What the manifest says more, digest and text of the task among it.
    heads = [
        manifest.open_file(smask.pack({n: three[n] for n in names[:k]}), limits=LIMITS).n_head_bytes for k in (2, 3)
    ]
    assert heads[1] - heads[0] <= 40
    # The first gets a name and a digest of its own, too.
    assert smask.inspect(many).n_overhead_bytes <= smask.inspect(three["night"]).n_overhead_bytes + 3 * 40


def test_switched_in_place(three: dict[str, bytes], many: bytes) -> None:
    tasks = smask.Tasks(many)
    model = tasks.load("night")
    memory = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    for name in ("day", "ü b", "night", "day"):
        tasks.switch(model, name)
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == memory
        assert exactly(model.state_dict(), tasks.load(name).state_dict())
        assert codec.encode(model.state_dict(), recipe_of(model)) == three[name]
    assert not model.training
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(x), smask.load(three["day"])(x))
    model.half()
    with pytest.raises(ArchitectureError):
        tasks.switch(model, "night")


@pytest.mark.parametrize("regenerate_signs", [False, True])
def test_packed_models_are_switched_in_place(
    three: dict[str, bytes], many: bytes, regenerate_signs: bool
) -> None:  # fmt: skip
    tasks, x = smask.Tasks(many), torch.rand(2, 1, 28, 28)
    model = tasks.load("night", packed=True, regenerate_signs=regenerate_signs)
    memory = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        model(x)  # whatever is kept of a layer between calls is of its memory, not of what is in it
    for name in ("day", "ü b", "night", "day"):
        tasks.switch(model, name)
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == memory
        other = tasks.load(name, packed=True, regenerate_signs=regenerate_signs)
        assert exactly(model.state_dict(), other.state_dict())
        with torch.inference_mode():
            assert torch.equal(model(x), other(x))
    dense = smask.materialize(model)
    assert exactly(dense.state_dict(), smask.decode(many, task="day"))
    assert codec.encode(dense.state_dict(), recipe_of(dense)) == three["day"]


@pytest.mark.parametrize("packed", [False, True])
def test_models_of_an_inference_mode_are_switched_outside_and_others_inside(many: bytes, packed: bool) -> None:
    tasks, x = smask.Tasks(many), torch.rand(2, 1, 28, 28)
    with torch.inference_mode():
        model = tasks.load("night", packed=packed)
    tasks.switch(model, "day")
    want = tasks.load("day", packed=packed)
    assert exactly(model.state_dict(), want.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), want(x))
    with torch.inference_mode():
        tasks.switch(want, "night")
        tasks.switch(model, "night")
        assert torch.equal(model(x), want(x))
    assert not any(tensor.is_inference() for tensor in want.state_dict().values())
    want(x).sum().backward()  # can be trained still


def test_packed_layers_take_other_forms() -> None:
    """Other numbers of planes, scales, offsets, flips; tasks with weights that no packed layer holds change nothing."""
    chance = torch.Generator().manual_seed(1)

    def file(n_planes: int, n_scales: int = 1, **fields: Any) -> bytes:
        planes = [torch.randint(0, 256, (64,), generator=chance, dtype=torch.uint8) for _ in range(n_planes)]
        if fields.pop("flip", False):
            fields["flip"] = planes[0] & torch.randint(0, 256, (64,), generator=chance, dtype=torch.uint8)
        coded = CodedTensor((16, 32), 0, tuple(planes), torch.rand(n_scales, generator=chance), **fields)
        layers = [{"op": "linear", "inputs": 32, "outputs": 16, "bias": False}]
        return smask.encode({"0.weight": reconstruct(coded, 4)}, Recipe(4, {"0.weight": coded}, {"layers": layers}))

    files = {
        "one": file(1), "two": file(2, 16), "offset": file(2, 16, offset=torch.rand(1, generator=chance)),
        "flips": file(1, 1, flip=True), "uniform": file(1, base="uniform"),
        "values": smask.encode({"0.weight": torch.rand(16, 32)}, Recipe(0, {}, _layers_of(file(1)))),
    }  # fmt: skip
    tasks, x = smask.Tasks(smask.pack(files)), torch.rand(3, 32)
    for regenerate_signs in (False, True):
        model = tasks.load("one", packed=True, regenerate_signs=regenerate_signs)
        for name in ("two", "flips", "offset", "one", "two"):
            tasks.switch(model, name)
            other = tasks.load(name, packed=True)
            with torch.inference_mode():
                torch.testing.assert_close(model(x), other(x))
            assert exactly(smask.materialize(other).state_dict(), smask.decode(files[name]))
            weight = model[0].weight()
            assert torch.equal(raw_bytes(weight), raw_bytes(smask.decode(files[name])["0.weight"]))
        for name in ("uniform", "values"):
            before = model[0].planes.clone()
            with pytest.raises(UnsupportedError):
                tasks.switch(model, name)
            assert torch.equal(model[0].planes, before)
        model.half()
        with pytest.raises(ArchitectureError) as narrow:
            tasks.switch(model, "two")
        assert narrow.value.differences == ("0.weight is F16 [16, 32] in the model, F32 [16, 32] in the file",)


def _layers_of(data: bytes) -> dict[str, Any]:
    return dict(manifest_of(data).arch)


def test_switched_back_after_a_change(many: bytes) -> None:
    """Whatever was in the model, the task is what it is."""
    tasks = smask.Tasks(many)
    model = tasks.load("night")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    turned = model[2].weight.t().contiguous().t()
    model[2].weight = nn.Parameter(turned)
    assert not model[2].weight.is_contiguous()
    tasks.switch(model, "night")
    assert exactly(model.state_dict(), smask.decode(many, task="night"))


def test_trainable_models_are_switched_with_their_masks(three: dict[str, bytes], many: bytes) -> None:
    """Also copies, which hold masks of their own; a pass of before the switch may still be taken back."""
    tasks, x = smask.Tasks(many), torch.rand(8, 1, 28, 28)
    first = smask.load(many, task="night", trainable=True)
    model = copy.deepcopy(first)
    model(x).sum().backward()
    tasks.switch(model, "day")
    want = smask.decode(many, task="day")
    assert exactly(model.state_dict(), want)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=0.1)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    for name in ("2.weight", "4.weight", "6.weight"):
        weights = model.get_parameter(name)
        assert not weights[want[name] == 0].any()
        assert (weights != want[name])[want[name] != 0].any()
    assert recipe_of(model).meta["data"] == "day"
    assert not recipe_of(model).coded  # its weights are saved as they are
    assert exactly(smask.decode(codec.encode(model.state_dict(), recipe_of(model))), model.state_dict())
    assert exactly(first.state_dict(), smask.decode(many, task="night"))


def test_a_trainable_model_takes_only_tickets(three: dict[str, bytes]) -> None:
    recipe, state = recipe_of(smask.load(three["day"])), smask.decode(three["day"])
    values = smask.encode({name: tensor + 1 for name, tensor in state.items()}, Recipe(SEED, {}, recipe.arch))
    data = smask.pack({"night": three["night"], "values": values})
    model = smask.load(data, task="night", trainable=True)
    with pytest.raises(ArgumentError) as caught:
        smask.Tasks(data).switch(model, "values")
    assert (caught.value.name, caught.value.got) == ("file", "no mask")
    assert exactly(model.state_dict(), smask.decode(data, task="night"))


def test_a_damaged_task_changes_nothing(many: bytes) -> None:
    opened = manifest.open_file(many, limits=LIMITS)
    *blobs, last = (bytes(blob) for blob in opened.blobs)
    fields = json.loads(container.unpack(many, limits=LIMITS).manifest_text)
    fields["blobs"][-1] = ["raw", len(last) + 1]
    tasks = smask.Tasks(container.pack(manifest.canonical(fields), [*blobs, last + b"\0"]))
    model = tasks.load("night")
    with pytest.raises(FormatError) as caught:
        tasks.switch(model, "ü b")
    assert caught.value.clause == "B-02"
    assert exactly(model.state_dict(), smask.decode(many, task="night"))


@pytest.mark.clause("T-03")
def test_every_task_is_verified(many: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smask.verify(many).same
    assert smask.verify(many, task="day").same
    assert smask.verify(many, task="day").expected == manifest_of(many).tasks[1].digest
    fields = json.loads(container.unpack(many, limits=LIMITS).manifest_text)
    fields["tasks"][1]["digest"] = "0" * 16
    blobs = [bytes(blob) for blob in manifest.open_file(many, limits=LIMITS).blobs]
    wrong = container.pack(manifest.canonical(fields), blobs)
    outcome = smask.verify(wrong)
    assert (outcome.same, outcome.differing, outcome.digest) == (False, ("day",), outcome.expected)
    assert smask.verify(wrong, task="night").same
    assert not smask.verify(wrong, task="day").same
    with pytest.raises(IntegrityError) as caught:
        smask.Tasks(wrong).extract("day")
    assert caught.value.want == "0" * 16
    (tmp_path / "wrong.smask").write_bytes(wrong)
    assert main(["verify", str(tmp_path / "wrong.smask")]) == 1
    assert "day" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "wrong.smask"), "--task", "night"]) == 0
    fields["tasks"][1]["digest"], fields["digest"] = manifest_of(many).tasks[1].digest, "0" * 64
    of_all = smask.verify(container.pack(manifest.canonical(fields), blobs))
    assert (of_all.same, of_all.differing) == (False, ())


@pytest.mark.clause("M-14")
def test_equal_tensors_are_stored_once(many: bytes) -> None:
    one = masked(0)
    again = smask.pack({"a": one, "b": one})
    same = {record.name: record.same for record in manifest_of(again).tensors[6:]}
    assert same == {
        "2.weight": "2.weight", "2.bias": "2.bias", "4.weight": "4.weight", "4.bias": "4.bias", "6.weight": "6.weight",
        "6.bias": None,  # shorter than to say so
    }  # fmt: skip
    assert len(again) <= len(one) + 100
    tasks = smask.Tasks(again)
    assert tasks.extract("a") == tasks.extract("b") == one
    model = tasks.load("a")
    tasks.switch(model, "b")
    assert codec.encode(model.state_dict(), recipe_of(model)) == one


@pytest.mark.clause("M-14")
def test_the_same_as_one_of_the_first_task_under_another_name(vectors: Path) -> None:
    """Two tensors of a later task are one of the first: a foreign writer may say so, we read it and write our form."""
    weights = {name: torch.arange(2000.0) for name in ("u", "v")}
    one = smask.encode({**weights, "w": torch.arange(2000.0).flip(0)}, Recipe(0, {}))
    data = smask.pack({"a": one, "b": one})
    fields = json.loads(container.unpack(data, limits=LIMITS).manifest_text)
    first, second = fields["tensors"][:3], fields["tensors"][3:]
    assert [record.get("same") for record in (*first, *second)] == [None, "u", None, "u", "u", "w"]
    for record in second:
        record["same"] = "w"
    blobs = [bytes(blob) for blob in manifest.open_file(data, limits=LIMITS).blobs]
    fields["digest"], fields["tasks"][1]["digest"] = "0" * 64, "0" * 16
    foreign = container.pack(manifest.canonical(fields), blobs)
    found = smask.decode(foreign, task="b")
    assert all(torch.equal(tensor, torch.arange(2000.0).flip(0)) for tensor in found.values())
    assert [part.name for part in found.coverage.tensors] == ["u"]
    alone = packs.single(manifest.open_file(foreign, limits=LIMITS), "b", smask.verify(foreign, task="b").digest)
    assert alone == smask.encode(dict(found), Recipe(0, {}))
    fields["tensors"][4]["same"] = "v"  # of the first task, but that has no bytes of its own
    with pytest.raises(FormatError) as caught:
        smask.decode(container.pack(manifest.canonical(fields), blobs), task="b")
    assert caught.value.clause == "M-14"


@pytest.mark.clause("T-02")
def test_a_prefix_is_a_prefix_of_every_task(three: dict[str, bytes], many: bytes) -> None:
    opened = manifest.open_file(many, limits=LIMITS)
    sizes = [blob.n_bytes for blob in opened.manifest.blobs]
    cut = opened.n_head_bytes + sum(sizes[: 2 + 3])  # two byte planes, the planes of the first task
    first = smask.decode(many, task="night", max_bytes=cut)
    assert first.coverage.complete
    assert exactly(dict(first), dict(smask.decode(three["night"])))
    last = smask.decode(many, task="ü b", max_bytes=cut)
    assert not last.coverage.complete
    assert [(part.name, part.n_present, part.n_total) for part in last.coverage.tensors] == [
        (f"{layer}.weight", 0, 1) for layer in (2, 4, 6)
    ]
    assert not last["2.weight"].any()
    assert torch.equal(last["2.bias"], smask.decode(three["ü b"])["2.bias"])
    model = smask.load(many, task="day", max_bytes=cut + sizes[5])
    assert [part.n_present for part in getattr(model, codec.COVERAGE).tensors] == [1, 0, 0]


def test_tasks_are_named(three: dict[str, bytes], many: bytes) -> None:
    for read in (smask.decode, smask.load):
        for task in (None, "noon", ""):
            with pytest.raises(ArgumentError) as caught:
                read(many, task=task)
            assert (caught.value.name, caught.value.got) == ("task", task)
            assert "'night', 'day', 'ü b'" in caught.value.want
        with pytest.raises(ArgumentError) as single:
            read(three["day"], task="day")
        assert single.value.want == "none: the file holds one model"
    for call in (smask.Tasks(many).load, smask.Tasks(many).extract, functools.partial(smask.verify, many)):
        with pytest.raises(ArgumentError):
            call(task="noon")
    with pytest.raises(ArgumentError):
        smask.inspect(many, task="noon")
    with pytest.raises(ArgumentError) as one:
        smask.Tasks(three["day"])
    assert one.value.name == "source"
    with pytest.raises(ArgumentError) as base:
        smask.open_base(many)
    assert base.value.name == "base"


def test_what_cannot_be_packed(three: dict[str, bytes], many: bytes) -> None:
    night, day = three["night"], three["day"]
    for files, name in (
        ({"a": night}, "files"), ({}, "files"), ({"a": night, "": day}, "task"), ({"a": night, "b\n": day}, "task"),
        ({"a": night, "\udcff": day}, "task"), ({"a": night, "b": many}, "file"),
        ({"a": night, "b": masked(1, seed=4)}, "seed of 'b'"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            smask.pack(files)
        assert caught.value.name == name


def test_a_pack_over_the_limits_of_readers(
    three: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, day = tmp_path / "night.smask", tmp_path / "day.smask"
    for path in (night, day):
        path.write_bytes(three[path.stem])
    n_tensors = len(manifest_of(three["night"]).tensors)
    n_bytes = len(container.unpack(three["night"], limits=smask.Limits()).manifest_text)
    for limits in (smask.Limits(max_tensors=n_tensors), smask.Limits(max_manifest_bytes=n_bytes + 9)):
        with pytest.raises(LimitError):
            smask.pack({"night": night, "day": day}, limits=limits)
        monkeypatch.setattr(screen, "limits_of", lambda arguments, limits=limits: limits)
        assert main(["pack", str(night), str(day), "-o", str(tmp_path / "many.smask")]) == 5
        assert not (tmp_path / "many.smask").exists()
    n_weights = sum(record.n_weights for record in manifest_of(three["night"]).tensors)
    assert smask.pack({"night": night, "day": day}, limits=smask.Limits(max_weights=n_weights))


@pytest.mark.clause("T-01")
def test_tasks_with_tensors_and_layers_of_their_own(three: dict[str, bytes]) -> None:
    def plain(tensors: dict[str, Tensor], *layers: object) -> bytes:
        return smask.encode(tensors, Recipe(0, {}, {"layers": [*layers]} if layers else EXTERNAL))

    ordered = {"v": torch.ones(3), "w": torch.ones(3)}
    norms = [{"op": "layer-norm", "features": n, "name": "n"} for n in (2, 3)]
    normed = {"n.weight": torch.ones(2), "n.bias": torch.ones(2)}
    for files, said in (
        ({"a": three["night"], "b": plain({"w": torch.ones(3)})}, [(True, 1)]),
        ({"a": plain({"w": torch.ones(3)}), "b": three["night"], "c": three["day"]}, [(True, 6), (True, 6)]),
        ({"a": plain({"w": torch.ones(3)}), "b": plain({"w": torch.ones(4)})}, [(False, 1)]),
        ({"a": plain({"w": torch.ones(3)}), "b": plain({"w": torch.ones(3).double()})}, [(False, 1)]),
        ({"a": plain({"w": torch.ones(3)}), "b": plain({}), "c": plain({"w": torch.ones(3)})},
         [(False, 0), (False, None)]),
        ({"a": plain({}), "b": plain(ordered)}, [(False, 2)]),
        ({"a": plain(ordered), "b": plain({name: ordered[name] for name in "wv"})}, [(False, 2)]),
        ({"a": plain(normed, norms[0]), "b": plain(normed, norms[1])}, [(True, None)]),
        # Numbers that are equal to Python, and other texts.
        ({"a": plain({}, {"op": "dropout", "p": 1}), "b": plain({}, {"op": "dropout", "p": 1.0})}, [(True, None)]),
    ):  # fmt: skip
        data = smask.pack(files)
        tasks = smask.Tasks(data)
        assert {name: tasks.extract(name) for name in files} == files
        assert [(task.arch is not None, task.records) for task in manifest_of(data).tasks[1:]] == said
        assert smask.verify(data).same
        for name, file in files.items():
            assert exactly(smask.decode(file), smask.decode(data, task=name))
            assert [tensor.name for tensor in smask.inspect(data, task=name).tensors] == [*smask.decode(file)]


def test_heads_of_other_sizes_on_one_body(digits_data: Dataset, tmp_path: Path) -> None:
    """End to end: a trained net of five digits, masks of it for these, for the others, and for all ten."""
    data = {"lower": half(digits_data, 0), "upper": half(digits_data, 5), "all": digits_data}
    origin = smask.open_base({name: tensor.clone() for name, tensor in net_of(data["lower"]).state_dict().items()})
    files = {}
    for name, own in data.items():
        net = net_of(data["lower"], 10 if name == "all" else 5)
        smask.save(
            smask.find_masks(net, Batches(own, batch_size=64, seed=0), origin=origin, density=0.4, epochs=2),
            tmp_path / f"{name}.smask",
        )
        files[name] = (tmp_path / f"{name}.smask").read_bytes()
    packed_data = smask.pack(files)
    assert [task.records for task in manifest_of(packed_data).tasks] == [None, None, 6]
    tasks = smask.Tasks(packed_data, base=origin)
    x = digits_data.inputs(digits_data.x_test[:7])
    for name, file in files.items():
        assert tasks.extract(name) == file
        model = tasks.load(name)
        assert torch.equal(model(x), smask.load(file, base=origin)(x))
        assert model(x).shape == (7, 10 if name == "all" else 5)
        smask.save(model, tmp_path / "again.smask", overwrite=True)
        assert (tmp_path / "again.smask").read_bytes() == file
    tasks.switch(model := tasks.load("lower"), "upper")
    assert torch.equal(model(x), tasks.load("upper")(x))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArchitectureError) as caught:
        tasks.switch(model, "all")
    assert any("[5, 48]" in text and "[10, 48]" in text for text in caught.value.differences)
    assert exactly(model.state_dict(), before)


@pytest.mark.clause("T-01")
def test_a_body_of_many_heads_is_stored_once(vectors: Path) -> None:
    described = manifest_of((vectors / "accept/tasks-apart.smask").read_bytes())
    assert [(task.name, task.records, task.arch is None) for task in described.tasks] == [
        ("three", None, True), ("five", 3, False), ("like three", None, True), ("bent", None, False),
        ("alone", 2, False),
    ]  # fmt: skip
    assert [len(group) for group in described.groups] == [3, 3, 3, 3, 2]
    same = [described.tensors[group[0]].same for group in described.groups]
    assert same == [None, "0.weight", "0.weight", "0.weight", None]


def test_files_without_a_seed_join_those_with_one() -> None:
    """A task may have nothing that a seed gives."""
    mask = CodedTensor((4, 8), 0, (torch.full((4,), 255, dtype=torch.uint8),), torch.ones(1))
    seeded = smask.encode({"w": reconstruct(mask, 5)}, Recipe(5, {"w": mask}, dict(EXTERNAL)))
    plain = smask.encode({"w": torch.rand(4, 8)}, Recipe(0, {}))
    for files in ({"a": seeded, "b": plain}, {"b": plain, "a": seeded}):
        data = smask.pack(files)
        assert manifest_of(data).seed == 5
        assert {name: smask.Tasks(data).extract(name) for name in files} == files


def test_masks_of_one_base(digits_data: Dataset) -> None:
    """End to end: a net of five digits, a mask of it for the other five, one for its own, in one file."""
    base = {name: tensor.clone() for name, tensor in net_of(digits_data).state_dict().items()}
    origin = smask.open_base(base)
    found = [
        smask.find_masks(
            net_of(digits_data), Batches(half(digits_data, first), batch_size=64, seed=0), origin=origin, density=0.3,
            epochs=3, learn_bias=bool(first),
        )
        for first in (0, 5)
    ]  # fmt: skip
    files = {name: codec.encode(one.state_dict(), recipe_of(one)) for name, one in zip("ab", found, strict=True)}
    data = smask.pack(files)
    tasks = smask.Tasks(data, base=base)
    model = tasks.load("a")
    for name in "bab":
        tasks.switch(model, name)
        assert codec.encode(model.state_dict(), recipe_of(model)) == files[name] == tasks.extract(name)
    other = {**base, "6.bias": base["6.bias"] + 1}
    for read in (smask.decode, smask.load):
        with pytest.raises(BaseError) as caught:
            read(data, task="a", base=other)
        assert caught.value.want == origin.digest
    with pytest.raises(BaseError):
        smask.Tasks(data, base=other).switch(model, "a")
    with pytest.raises(BaseError):
        smask.Tasks(data).load("a")
    elsewhere = smask.find_masks(
        net_of(digits_data), Batches(digits_data, batch_size=64, seed=0), origin=smask.open_base(other), epochs=1,
        loss=lambda outputs, _: outputs.square().mean(),
    )  # fmt: skip
    with pytest.raises(ArgumentError) as unlike:
        smask.pack({"a": files["a"], "b": codec.encode(elsewhere.state_dict(), recipe_of(elsewhere))})
    assert unlike.value.name == "base of 'b'"


def test_inspected(many: bytes) -> None:
    report = smask.inspect(many)
    assert [task.name for task in report.tasks] == ["night", "day", "ü b"]
    assert sum(task.n_plane_bytes for task in report.tasks) == report.n_plane_bytes
    assert [task.n_weights for task in report.tasks] == [266_200] * 3
    assert [tensor.task for tensor in report.tensors][::6] == ["night", "day", "ü b"]
    assert {tensor.task for tensor in smask.inspect(many, task="day").tensors} == {"day"}


@pytest.mark.clause("M-10")
def test_an_older_reader_refuses(many: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """To one that does not know the field it is an unknown one."""
    known = tuple(field for field in manifest.Manifest.__struct_fields__ if field != "tasks")

    class Older:
        __struct_fields__ = known

    fields = json.loads(container.unpack(many, limits=LIMITS).manifest_text)
    with pytest.raises(UnsupportedError) as caught:
        manifest._take_extensions(fields, Older, "manifest")
    assert caught.value.got == "tasks"


def test_command_line(three: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, file in three.items():
        (tmp_path / f"{name}.smask").write_bytes(file)
    night, day, out = str(tmp_path / "night.smask"), str(tmp_path / "day.smask"), str(tmp_path / "many.smask")
    assert main(["pack", night, day, "-o", out, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["tasks"] == ["night", "day"]
    assert Path(out).stat().st_size == fields["n_bytes"] < fields["n_bytes_apart"]
    assert main(["pack", night, day, "-o", out]) == 2
    assert "--force" in capsys.readouterr().err
    again = str(tmp_path / "again.smask")
    assert main(["unpack", out, "--task", "day", "-o", again, "--json"]) == 0
    assert Path(again).read_bytes() == three["day"]
    assert main(["decode", out, "--task", "day", "-o", str(tmp_path / "day.safetensors"), "--json"]) == 0
    assert main(["inspect", out, "--task", "day"]) == 0
    shown = capsys.readouterr().out
    assert "task day" in shown
    assert "task night" not in shown
    assert main(["verify", out, "--task", "day"]) == 0
    for wrong, code, said in (
        (["decode", out, "-o", str(tmp_path / "x")], 2, "'night', 'day'"),
        (["decode", out, "--task", "noon", "-o", str(tmp_path / "x")], 2, "noon"),
        (["decode", night, "--task", "night", "-o", str(tmp_path / "x")], 2, "one model"),
        (["eval", night, "--task", "night"], 2, "one model"),
        (["eval", out], 2, "'night', 'day'"),
        (["pack", night, "-o", out, "--force"], 2, "two or more"),
        (["pack", night, night, "-o", out, "--force"], 2, "--names"),
        (["pack", night, day, "--names", "a", "-o", out, "--force"], 2, "2 names"),
        (["pack", night, out, "-o", again, "--force"], 2, "one model"),
        (["unpack", night, "--task", "a", "-o", again, "--force"], 2, "one model"),
    ):
        assert main(wrong) == code
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert Path(again).read_bytes() == three["day"]


def test_scored_by_task(
    found: nn.Module, digits_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smask.save(found, tmp_path / "a.smask")
    worse = smask.load(tmp_path / "a.smask")
    with torch.no_grad():
        worse[-1].bias.copy_(torch.arange(10.0) * 100)
    smask.save(worse, tmp_path / "b.smask")
    out = str(tmp_path / "many.smask")
    assert main(["pack", str(tmp_path / "a.smask"), str(tmp_path / "b.smask"), "-o", out]) == 0
    accuracy = {}
    for task in "ab":
        capsys.readouterr()
        assert main(["eval", out, "--task", task, "--data", "digits", "--json"]) == 0
        accuracy[task] = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["a"] > 0.9 > 0.2 > accuracy["b"]


def judged(data: bytes) -> None:
    def switched(data: bytes, *, limits: smask.Limits) -> None:
        tasks = smask.Tasks(data, base=BASE, limits=limits)
        tasks.extract(tasks.names[-1])

    reads = (
        *(functools.partial(smask.decode, base=BASE, task=task, partial=task == "b") for task in (None, "a", "b", "two")),
        functools.partial(smask.load, task="b"), smask.inspect, switched,
    )  # fmt: skip
    for read in reads:
        message = ""
        try:
            read(data, limits=smask.Limits(max_weights=2**20))
        except smask.SmaskError as error:
            message = str(error)
        assert "\n" not in message


BASE = smask.open_base(Path(__file__).parents[1] / "spec/vectors/accept/base.smask")


@pytest.mark.parametrize("name", ["tasks", "tasks-apart", "tasks-over"])
def test_damaged_on_purpose(vectors: Path, name: str) -> None:
    """Manifests with one value changed, blobs with bits flipped or cut, sums put right: our errors only."""
    file = (vectors / f"accept/{name}.smask").read_bytes()
    chance = random.Random(name)
    opened = manifest.open_file(file, limits=LIMITS)
    fields, blobs = json.loads(container.unpack(file, limits=LIMITS).manifest_text), [*map(bytes, opened.blobs)]
    for _ in range(120):
        judged(container.pack(manifest.canonical(mutated_fields(fields, chance)), blobs))
    for _ in range(60):
        index = chance.randrange(len(blobs))
        damaged = bytearray(blobs[index])
        if damaged:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        changed = [*blobs[:index], bytes(damaged), *blobs[index + 1 :]]
        judged(container.pack(manifest.canonical(fields), changed))
        judged(file[: chance.randrange(len(file))])


@pytest.mark.clause("T-01")
@pytest.mark.parametrize("name", ["tasks", "tasks-apart"])
def test_both_decoders_judge_alike(vectors: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    import refdecode
    from referrors import OverLimit, Refused, Unsupported

    kinds = {Refused: "FormatError", Unsupported: "UnsupportedError", OverLimit: "LimitError"}

    def ours(data: bytes) -> object:
        try:
            names = [task.name for task in manifest_of(data).tasks] or [None]
            models = [smask.decode(data, task=name) for name in names]
        except smask.SmaskError as error:
            return type(error).__name__, getattr(error, "clause", None)
        return [{name: raw_bytes(tensor).numpy().tobytes() for name, tensor in model.items()} for model in models]

    def theirs(data: bytes) -> object:
        try:
            return [{name: content for name, (_, _, content) in m.items()} for m in refdecode.decode_tasks(data)[1]]
        except Refused as error:
            return kinds[type(error)], error.clause if type(error) is Refused else None

    chance = random.Random(11)
    file = (vectors / f"accept/{name}.smask").read_bytes()
    fields = json.loads(container.unpack(file, limits=LIMITS).manifest_text)
    blobs = [*map(bytes, manifest.open_file(file, limits=LIMITS).blobs)]
    for _ in range(200):
        changed = mutated_fields(fields, chance)
        data = container.pack(manifest.canonical(changed), blobs)
        assert ours(data) == theirs(data), changed


def test_groups_of_nothing() -> None:
    empty = smask.encode({}, Recipe(0, {}))
    data = smask.pack({"a": empty, "b": empty})
    assert smask.decode(data, task="b") == {}
    assert manifest_of(data).groups == (range(0), range(0))
    assert smask.Tasks(data).extract("b") == empty


@pytest.mark.clause("M-14")
def test_first_task_of_nothing() -> None:
    """What it lacks is not looked for in the second."""
    one = smask.encode({"x": torch.ones(3)}, Recipe(0, {}))
    data = smask.pack({"a": smask.encode({}, Recipe(0, {})), "b": one, "c": one})
    assert smask.verify(data).same
    assert smask.Tasks(data).extract("c") == one
    assert [record.same for record in manifest_of(data).tensors] == [None, None]


def test_many_tasks_take_time_in_proportion() -> None:
    """Each of ten thousand tasks is found without a look at all others."""
    n = 10_000
    fields = {
        "arch": {"kind": "external"}, "blobs": [["raw", n]], "digest": "0" * 64,
        "tasks": [{"digest": "0" * 16, "name": str(number)} for number in range(n)],
        "tensors": [{"dtype": "I64", "name": "t", "shape": [1], "stored": "U8"}] * n,
    }  # fmt: skip
    for own in ({}, {"arch": {"layers": []}}, {"records": 1}):
        for number in range(1, n):
            fields["tasks"][number] = {"digest": "0" * 16, "name": str(number), **own}
            fields["tensors"][number] = fields["tensors"][0] | {"name": "u" if "records" in own else "t"}
        data = container.pack(manifest.canonical(fields), [bytes(n)])
        assert len(smask.inspect(data).tasks) == n
        assert len(smask.verify(data).differing) == n


def test_tasks_of_nothing_beside_many_records() -> None:
    """What the first task has is gathered once, not for each of the others."""
    first = tuple(Record(f"{number:x}", (0,), stored="F32") for number in range(30_000))
    tasks = (Task("a", "0" * 16), *(Task(f"t{number:x}", "0" * 16, records=0) for number in range(3_000)))
    described = manifest.Manifest(first, (), "0" * 64, dict(EXTERNAL), tasks=tasks)
    start = time.process_time()
    assert [len(groups.holders(described, number)) for number in range(3)] == [30_000, 0, 0]
    assert not any(groups.holders(described, number) for number in range(1, 3_001))
    assert time.process_time() - start < 2
