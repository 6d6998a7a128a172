"""Two processes that share a search, over gloo, all scenarios in one start of them; and what they have in common."""

import contextlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import smask
from conftest import convolutional
from smask import architectures, named_nets
from smask.cli.main import main
from smask.errors import ArgumentError, RankError, SmaskError
from smask.recipe import recipe_of
from smask.search.accuracy import score
from smask.search.data import Batches, Dataset, digits
from smask.search.progress import Progress
from smask.search.ranks import N_ALONE, Ranks, mixed, running_statistics
from smask.search.snapshots import Snapshot
from smask.training.sparse import Sparse, train_sparse

CPU = torch.device("cpu")
TRAIN = ["train", "--arch", "mlp:64-24-10", "--epochs", "16", "--lr", "1e-2", "--sparse", "gap", "--density", "0.4"]
CLI = ["encode", "--arch", "mlp:64-24-10", "--epochs", "3", "--target-size", "600", "--seed", "3"]
# A block on each process; what one process finds is the same to the bit.
DECOUPLED: dict[str, dict[str, Any]] = {
    "dni": {"decouple": "dni", "dni_labels": True, "patience": 1, "epochs": 6},
    "dni-cnn": {"decouple": "dni", "kind": "cnn", "validate": lambda model: score(model, data()).accuracy},
    "local": {"decouple": "local", "method": "bernoulli", "target": smask.TargetSize("700")},
}


def data() -> Dataset:
    return digits()


def net(kind: str) -> nn.Module:
    if kind == "cnn":
        return convolutional(data(), features=7, dropout=0.1)
    mean, std = data().statistics()
    torch.manual_seed(0)
    if kind == "deep":  # convolutions whose rows do not halve, and one of a single row
        layers = [
            {"op": "normalize", "mean": mean, "std": std},
            {"op": "conv2d", "inputs": 1, "outputs": 12, "kernel": 3}, "relu",
            {"op": "conv2d", "inputs": 12, "outputs": 7, "kernel": 3}, "relu",
            {"op": "conv2d", "inputs": 7, "outputs": 1, "kernel": 1}, "flatten",
            {"op": "linear", "inputs": 16, "outputs": 10},
        ]  # fmt: skip
        return architectures.build({"layers": layers})
    # 33 rows do not halve.
    return architectures.build(named_nets.architecture("mlp:64-33-10", input_shape=(1, 8, 8), mean=mean, std=std))


def search(kind: str, **options: Any) -> nn.Module:
    batches = Batches(data(), batch_size=128, seed=2, shift=1)
    return smask.find_masks(
        net(kind), batches, **{"density": 0.3, "epochs": 2, "seed": 1, "norm_statistics": True, **options}
    )


def encoded(model: nn.Module) -> bytes:
    return smask.encode(model.state_dict(), recipe_of(model))


class Held:
    """Keeps the snapshot of one step, and gives it to the next search."""

    place = None

    def __init__(self, step: int, held: Snapshot | None = None) -> None:
        self.step, self.held = step, held

    def last(self, settings: Mapping[str, Any]) -> Snapshot | None:
        return self.held

    def due(self) -> bool:
        return True

    def keep(self, snapshot: Snapshot) -> None:
        if snapshot.step == self.step:
            self.held = Snapshot(
                snapshot.step,
                json.loads(json.dumps(snapshot.numbers)),
                {n: t.clone() for n, t in snapshot.tensors.items()},
            )


class Tied(nn.Module):
    """Blocks in a list, a weight that two of them share, a parameter of its own, one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)])
        self.blocks[1].weight = self.blocks[0].weight
        self.shift, self.unused = nn.Parameter(torch.zeros(10)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks[:3]:
            x = block(x).relu()
        return self.blocks[3](x) + self.shift


def tied(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return smask.find_masks(Tied(), Batches(data(), batch_size=128, seed=2), density=0.3, epochs=2, **options)


def sparse(**options: Any) -> Sparse:
    """Of three masked layers the first and the second grow on one rank each, the third with the second."""
    batches = Batches(data(), batch_size=128, seed=2)
    model = architectures.build(named_nets.architecture("mlp:64-40-30-10", input_shape=(1, 8, 8)))
    torch.manual_seed(0)
    return train_sparse(model, batches, **{"method": "gap", "density": 0.1, "epochs": 6, "lr": 5e-3, **options})


def refusal(call: Any) -> str:
    with pytest.raises(SmaskError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def work(rank: int, folder: Path, ports: tuple[int, ...]) -> None:
    """What each of two processes does; its results go to a folder."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    texts: dict[str, Any] = {}
    for name, port, command in (
        ("encode", ports[0], CLI),
        ("train", ports[1], [*TRAIN, "--checkpoint", str(folder / "kept"), "--checkpoint-every", "0"]),
    ):
        os.environ["MASTER_PORT"] = str(port)
        said, told = io.StringIO(), io.StringIO()
        options = ["-o", str(folder / f"{name}.smask"), "--log", str(folder / f"{name}.jsonl"), "--rank-timeout", "60"]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = main([*command, *options, "--device", "cpu"])
        texts[name] = {"code": code, "stdout": said.getvalue(), "stderr": told.getvalue()}

    os.environ["MASTER_PORT"] = str(ports[2])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as refused:
        options = ["-o", str(folder / "cli-dni.smask"), "--rank-timeout", "60", "--device", "cpu"]
        texts["dni code"] = main([*CLI, "--decouple", "dni", *options])
        os.environ["MASTER_PORT"] = str(ports[3])
        texts["blocks code"] = main([*CLI, "--decouple", "dni", "--blocks", "3", "--force", *options])
    texts["blocks"] = refused.getvalue()
    dist.destroy_process_group()  # an error leaves it

    os.environ["MASTER_PORT"] = str(ports[4])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    seen: list[Progress] = []
    models = {
        "mlp": search("mlp", group=group, progress=seen.append),
        "mlp-shard": search("mlp", group=group, shard=True),
        "bernoulli": search("mlp", group=group, method="bernoulli"),
        "rigl-shard": search("mlp", group=group, method="rigl-mask", shard=True),
        "biprop-shard": search("mlp", group=group, method="biprop", shard=True),
        "tensor-shard": search("mlp", group=group, scale="tensor", base="normal", shard=True),
        "over-shard": search("mlp", group=group, shard=True, origin=smask.open_base(net("mlp"))),
        "start-shard": search("mlp", group=group, shard=True, start=smask.open_base(net("mlp"))),
        "tied": tied(group=group),
        "tied-shard": tied(group=group, shard=True),
        "accumulated": smask.find_masks(
            net("mlp"), Batches(data(), batch_size=64, seed=2, shift=1), density=0.3, epochs=2, seed=1, accumulate=2,
            group=group, precision="bf16",
        ),
    }  # fmt: skip
    models["deep"] = search("deep", group=group, method="signs")
    held = Held(20)
    models["deep-shard"] = search("deep", group=group, method="signs", shard=True, checkpoints=held)
    models["deep-shard-resumed"] = search(
        "deep", group=group, method="signs", shard=True, checkpoints=Held(0, held.held)
    )
    texts["accuracy"] = [at.accuracy for at in seen]
    for name, shard in (("cnn", False), ("cnn-shard", True)):
        step = 40  # a step at which sharded searches look at the clock, with masks fixed
        held = Held(step)
        models[name] = search("cnn", group=group, shard=shard, epochs=4, checkpoints=held)
        torch.manual_seed(rank)
        models[f"{name}-resumed"] = search("cnn", group=group, shard=shard, epochs=4, checkpoints=Held(0, held.held))
    models |= {name: search(group=group, **{"kind": "mlp", **way}) for name, way in DECOUPLED.items()}
    held = Held(40)
    search("mlp", group=group, epochs=4, decouple="dni", checkpoints=held)
    models["dni-resumed"] = search("mlp", group=group, epochs=4, decouple="dni", checkpoints=Held(0, held.held))
    found, held = sparse(group=group), Held(25)  # after the first of two phases of 24 steps
    sparse(group=group, checkpoints=held)
    models |= {"gap": found.model, "gap-resumed": sparse(group=group, checkpoints=Held(0, held.held)).model}
    texts["gap"] = [found.explored, held.held.step if held.held else None]
    texts["rigl"] = refusal(lambda: sparse(group=group, method="rigl"))
    for name, model in models.items():
        (folder / f"{name}-{rank}").write_bytes(encoded(model))

    texts["settings"] = refusal(lambda: search("mlp", group=group, lr=1e-3 * (1 + rank)))
    other = [(torch.rand(4, 64), torch.zeros(4, dtype=torch.long) + rank)] * 3
    texts["batches"] = refusal(lambda: smask.find_masks(nn.Linear(64, 2), other, density=0.5, epochs=1, group=group))

    def refuse() -> Snapshot:
        raise ArgumentError("checkpoint", "x", "y")

    texts["snapshot"] = refusal(lambda: Ranks(group, CPU).snapshot(refuse))
    tensors = [torch.full((2,), 1.0 + rank), torch.full((N_ALONE,), 3.0 * rank), torch.full((600, 600), 2.0).t()]
    for part in (tensors, tensors[1:2]):
        Ranks(group, CPU).sum(part)
    texts["sums"] = [[float(t.min()), float(t.max())] for t in tensors]
    # A rank that does not answer, then one that is gone.
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    if rank == 0:
        texts["unsent"] = refusal(Ranks(impatient, CPU).receive(torch.empty(3), 1))
        for name in ("silent", "gone"):
            started = time.monotonic()
            if name == "gone":
                (folder / "leave").touch()
            texts[name] = refusal(lambda: search("mlp", group=impatient if name == "silent" else group))  # noqa: B023
            texts[f"{name} after"] = time.monotonic() - started
    (folder / f"texts-{rank}.json").write_text(json.dumps(texts))
    if rank == 1:
        while not (folder / "leave").exists():
            time.sleep(0.05)
    os._exit(0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    listening = [socket.socket() for _ in range(5)]
    for one in listening:
        one.bind(("127.0.0.1", 0))
    ports = tuple(one.getsockname()[1] for one in listening)
    for one in listening:
        one.close()
    mp.spawn(work, (folder, ports), nprocs=2)
    return folder


def texts_of(results: Path, rank: int) -> dict[str, Any]:
    return json.loads((results / f"texts-{rank}.json").read_text())


def test_both_ranks_have_the_same(results: Path) -> None:
    names = sorted(path.name[:-2] for path in results.glob("*-0") if path.suffix != ".json")
    assert len(names) == 24
    for name in names:
        assert (results / f"{name}-0").read_bytes() == (results / f"{name}-1").read_bytes(), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}), ("mlp-shard", {}), ("rigl-shard", {"method": "rigl-mask"}), ("bernoulli", {"method": "bernoulli"}), ("biprop-shard", {"method": "biprop"}),
        ("tensor-shard", {"scale": "tensor", "base": "normal"}), ("accumulated", {"precision": "bf16"}),
    ],
)  # fmt: skip
def test_two_ranks_find_what_one_finds(results: Path, name: str, options: dict[str, Any]) -> None:
    alone, shared = search("mlp", **options), smask.load((results / f"{name}-0").read_bytes())
    for layer in recipe_of(alone).coded:
        one, other = alone.state_dict()[layer], shared.state_dict()[layer]
        assert ((one != 0) == (other != 0)).float().mean() > 0.98, layer
    assert score(shared, data()).accuracy == pytest.approx(score(alone, data()).accuracy, abs=0.05)


@pytest.mark.parametrize("name", ["deep", "deep-shard"])
def test_orthogonal_steps_on_two_ranks(results: Path, name: str) -> None:
    """A matrix whose rows lie on two ranks takes the steps of the whole matrix; 0.98 of the second if it did not."""
    alone, shared = search("deep", method="signs"), smask.load((results / f"{name}-0").read_bytes())
    for layer in recipe_of(alone).coded:
        one, other = alone.state_dict()[layer], shared.state_dict()[layer]
        assert ((one != 0) == (other != 0)).float().mean() > 0.99, layer


@pytest.mark.parametrize(("way", "base"), [("over", "file"), ("start", "signed")])
def test_rows_of_a_trained_net(results: Path, way: str, base: str) -> None:
    """Its weights are masked, or a search of the seed begins as it."""
    trained, data_of = net("mlp"), (results / f"{way}-shard-0").read_bytes()
    option = {"over": "origin", "start": "start"}[way]
    alone, shared = search("mlp", **{option: smask.open_base(trained)}), smask.load(data_of, base=trained)
    assert [coded.base for coded in recipe_of(shared).coded.values()] == [base, base]
    for layer in recipe_of(alone).coded:
        one, other = alone.state_dict()[layer], shared.state_dict()[layer]
        assert ((one != 0) == (other != 0)).float().mean() > 0.98, layer


@pytest.mark.parametrize("name", ["tied", "tied-shard"])
def test_shared_and_unused_weights(results: Path, name: str) -> None:
    alone, shared = tied(), smask.load((results / f"{name}-0").read_bytes(), model=Tied())
    assert recipe_of(alone).coded.keys() == recipe_of(shared).coded.keys()
    for layer in ("blocks.0.weight", "blocks.3.weight", "unused.weight"):
        one, other = alone.state_dict()[layer] != 0, shared.state_dict()[layer] != 0
        assert (one == other).float().mean() > 0.98, layer
    assert torch.allclose(alone.state_dict()["shift"], shared.state_dict()["shift"], atol=0.01)


@pytest.mark.parametrize("name", ["cnn", "cnn-shard"])
def test_norms_and_dropout(results: Path, name: str) -> None:
    alone, shared = search("cnn", epochs=4), smask.load((results / f"{name}-0").read_bytes())
    assert score(shared, data()).accuracy == pytest.approx(score(alone, data()).accuracy, abs=0.12)
    assert int(shared.state_dict()["2.num_batches_tracked"]) == 44
    for statistic in ("2.running_mean", "2.running_var"):
        one, other = alone.state_dict()[statistic], shared.state_dict()[statistic]
        assert float((one - other).norm() / one.norm()) < 0.3


@pytest.mark.parametrize("name", ["cnn", "cnn-shard", "deep-shard"])
def test_resumed_ranks_end_in_the_same_bytes(results: Path, name: str) -> None:
    assert (results / f"{name}-0").read_bytes() == (results / f"{name}-resumed-0").read_bytes()


def test_partitions_that_grow_at_the_same_time(results: Path) -> None:
    assert (results / "gap-0").read_bytes() == (results / "gap-resumed-0").read_bytes()
    assert texts_of(results, 0)["gap"] == [1, 25]  # every weight was in a mask on one of the ranks
    assert texts_of(results, 1)["gap"] == [1, None]
    shared, still, alone = smask.load((results / "gap-0").read_bytes()), sparse(method="static"), sparse()
    counts = [int(mask.sum()) for mask in still.masks.values()]
    assert counts == [int((shared.state_dict()[name] != 0).sum()) for name in still.masks]
    reached = {"shared": shared, "still": still.model, "alone": alone.model}
    reached = {name: score(model, data()).accuracy for name, model in reached.items()}
    assert reached["shared"] > reached["still"]
    assert reached["shared"] == pytest.approx(reached["alone"], abs=0.15)
    for rank in (0, 1):
        assert texts_of(results, rank)["rigl"].startswith(
            "UnsupportedError: unknown sparse method of several processes"
        )


@pytest.mark.parametrize("command", ["encode", "train"])
def test_command_line(results: Path, command: str) -> None:
    first, second = (texts_of(results, rank)[command] for rank in (0, 1))
    assert (first["code"], second["code"]) == (0, 0)
    assert (second["stdout"], second["stderr"]) == ("", "")
    assert "accuracy" in first["stdout"]
    events = [json.loads(line)["event"] for line in (results / f"{command}.jsonl").read_text().splitlines()]
    assert (events[0], events[-1], events.count("result")) == ("begin", "result", 1)


def test_what_two_processes_write(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "shared by 2 processes" in texts_of(results, 0)["encode"]["stderr"]
    assert main([*CLI, "--device", "cpu", "-q", "-o", str(tmp_path / "alone.smask")]) == 0
    shared, alone = smask.load(results / "encode.smask"), smask.load(tmp_path / "alone.smask")
    assert (results / "encode.smask").stat().st_size <= 600
    for name, weight in alone.state_dict().items():
        assert ((weight != 0) == (shared.state_dict()[name] != 0)).float().mean() > 0.98
    trained = smask.load(results / "train.smask")
    assert score(trained, data()).accuracy > 0.5
    assert sorted(path.name for path in (results / "kept").iterdir()) == [
        "step-00000133.safetensors",
        "step-00000176.safetensors",
    ]
    capsys.readouterr()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as each of the processes has: sums of floats depend on it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", DECOUPLED)
def test_blocks_on_two_ranks_find_what_one_finds(results: Path, name: str) -> None:
    alone = search(**{"kind": "mlp", **DECOUPLED[name]})
    assert (results / f"{name}-0").read_bytes() == encoded(alone)


@pytest.mark.usefixtures("one_thread")
def test_blocks_resumed_on_two_ranks(results: Path) -> None:
    whole = search("mlp", epochs=4, decouple="dni")
    assert (results / "dni-resumed-0").read_bytes() == encoded(whole)


@pytest.mark.usefixtures("one_thread")
def test_blocks_on_the_command_line(results: Path, tmp_path: Path) -> None:
    texts = [texts_of(results, rank) for rank in (0, 1)]
    assert [text["dni code"] for text in texts] == [0, 0]
    assert main([*CLI, "--decouple", "dni", "--device", "cpu", "-q", "-o", str(tmp_path / "alone.smask")]) == 0
    assert (results / "cli-dni.smask").read_bytes() == (tmp_path / "alone.smask").read_bytes()
    for text in texts:
        assert text["blocks code"] == 2
        assert "blocks: got 3, want 2, a block for each of 2 processes" in text["blocks"]


def test_large_and_small_sums(results: Path) -> None:
    assert texts_of(results, 0)["sums"] == texts_of(results, 1)["sums"] == [[3, 3], [6, 6], [4, 4]]


def test_progress_counts_the_inputs_of_all(results: Path) -> None:
    seen: list[Progress] = []
    search("mlp", progress=seen.append)
    assert texts_of(results, 0)["accuracy"] == texts_of(results, 1)["accuracy"]
    assert texts_of(results, 0)["accuracy"] == pytest.approx([at.accuracy for at in seen], abs=0.01)


def test_ranks_that_differ_are_told(results: Path) -> None:
    for rank in (0, 1):
        texts = texts_of(results, rank)
        for name, what in (("settings", "lr"), ("batches", "batches")):
            assert f"RankError: rank {rank} of 2: {what} of rank 1 not as of rank 0" in texts[name]
    assert texts_of(results, 0)["snapshot"].startswith("ArgumentError: checkpoint")
    assert "rank 0 said: checkpoint" in texts_of(results, 1)["snapshot"]


def test_a_dead_or_silent_rank_is_an_error_in_time(results: Path) -> None:
    texts = texts_of(results, 0)
    assert "RankError: rank 0 of 2: another rank has ended or did not answer in time" in texts["unsent"]
    for name in ("silent", "gone"):
        assert "RankError: rank 0 of 2: another rank has ended or did not answer in time" in texts[name]
        assert texts[f"{name} after"] < 15


def test_rows_of_a_batch() -> None:
    class Pair(Ranks):
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = rank, size

    x, y = {"a": torch.arange(10).view(5, 2), "scale": torch.tensor(3.0)}, [torch.arange(5)]
    parts = [Pair(rank, 3).share((x, y)) for rank in range(3)]
    assert [n for *_, n, _ in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part[0]["a"] for part in parts]), x["a"])
    assert torch.equal(torch.cat([part[1][0] for part in parts]), y[0])
    assert all(float(part[0]["scale"]) == 3 for part in parts)
    few = [Pair(rank, 8).share((torch.rand(3, 2), None)) for rank in range(8)]
    assert sum(n for *_, n, _ in few) == 3
    assert {len(part[0]) for part in few} == {1}
    with pytest.raises(ArgumentError) as caught:
        Pair(1, 2).share((torch.rand(4, 2), torch.rand(3)))
    assert caught.value.name == "batches"


def test_seeds_differ_in_the_bits_that_generators_look_at() -> None:
    seeds = {mixed(seed, stream, step) % 2**32 for seed in range(4) for stream in range(8) for step in range(64)}
    assert len(seeds) == 4 * 8 * 64
    assert all(0 <= mixed(seed) < 2**63 for seed in range(100))


def test_running_statistics_are_those_of_norms_in_training() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3).eval())
    assert [id(t) for t in running_statistics(model)] == [id(model[0].running_mean), id(model[0].running_var)]


def test_shards_need_ranks() -> None:
    with pytest.raises(ArgumentError) as caught:
        search("mlp", shard=True)
    assert caught.value.name == "shard"


def test_shards_have_no_scaled_losses() -> None:
    with pytest.raises(ArgumentError) as caught:
        search("mlp", shard=True, precision="fp16")
    assert caught.value.name == "precision"


def test_an_error_of_a_rank_says_who() -> None:
    error = RankError(1, 4, "x")
    assert (error.rank, error.size, error.reason, error.exit_code) == (1, 4, "x", 6)
    assert "rank 1 of 4" in str(error)
