"""Any byte string yields a correct model or one of our errors: files damaged on purpose, sums recomputed."""

import functools
import gzip
import io
import json
import random
import struct
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import smask
from conftest import ROOT
from smask import container, manifest
from smask.checkpoints import open_checkpoint
from smask.frames import compress
from smask.integrity import raw_bytes
from smask.readers.arrays import IDX_FILES
from smask.readers.reading import Reading
from smask.search.data import load_dataset

N_MUTANTS = 250
BASE = smask.open_base(ROOT / "spec/vectors/accept/base.smask")
LIMITS = smask.Limits(max_weights=2**20)
ODD = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    255,
    2**31,
    2**62,
    2**64,
    0.5,
    1e300,
    "",
    "raw",
    "F16",
    "\0",
    "x" * 600,
    [],
    {},
    [[]],
    [1],
    {"a": 1},
]


def judged(data: bytes) -> None:
    over_base = functools.partial(smask.decode, base=BASE)
    prefix = functools.partial(smask.decode, base=BASE, partial=True)
    for read in (over_base, prefix, smask.load, smask.inspect):
        message = ""
        try:
            outcome = read(data, limits=LIMITS)
        except smask.SmaskError as error:
            message = str(error)
        else:
            if isinstance(outcome, dict):
                assert all(isinstance(tensor, torch.Tensor) for tensor in outcome.values())
        assert "\n" not in message


def mutated_fields(fields: object, chance: random.Random) -> object:
    """One value somewhere replaced, removed or repeated."""
    if isinstance(fields, dict) and fields and chance.random() < 0.8:
        key = chance.choice(sorted(fields))
        if chance.random() < 0.1:
            return {name: value for name, value in fields.items() if name != key}
        return fields | {key: mutated_fields(fields[key], chance)}
    if isinstance(fields, list) and fields and chance.random() < 0.8:
        index = chance.randrange(len(fields))
        if chance.random() < 0.1:
            return fields[:index] + fields[index:] * 2
        return [*fields[:index], mutated_fields(fields[index], chance), *fields[index + 1 :]]
    return chance.choice(ODD)


@pytest.fixture(params=["example", "mlp", "planes", "plain", "values", "over"])
def file(request: pytest.FixtureRequest, vectors: Path) -> bytes:
    return (vectors / f"accept/{request.param}.smask").read_bytes()


@pytest.mark.clause("L-01")
def test_mutated_manifests(file: bytes) -> None:
    chance = random.Random(len(file))
    opened = manifest.open_file(file, limits=LIMITS)
    fields = json.loads(container.unpack(file, limits=LIMITS).manifest_text)
    for _ in range(N_MUTANTS):
        changed = fields
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            changed = mutated_fields(changed, chance)
        judged(container.pack(manifest.canonical(changed), [bytes(blob) for blob in opened.blobs]))


@pytest.mark.clause("Z-01")
def test_mutated_blobs(file: bytes) -> None:
    """Blobs with flipped bytes, cut, or replaced by frames of other content; sizes and sums are put right."""
    chance = random.Random(len(file))
    opened = manifest.open_file(file, limits=LIMITS)
    fields = json.loads(container.unpack(file, limits=LIMITS).manifest_text)
    for _ in range(N_MUTANTS):
        blobs = [bytearray(blob) for blob in opened.blobs]
        index = chance.randrange(len(blobs))
        kind = chance.randrange(3)
        if kind == 0 and blobs[index]:
            blobs[index][chance.randrange(len(blobs[index]))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            blobs[index] = blobs[index][: chance.randrange(len(blobs[index]) + 1)]
        else:
            blobs[index] = bytearray(compress(chance.randbytes(chance.randrange(60)), level=19))
            fields["blobs"][index][0] = chance.choice(("zstd", "gap-zstd", "raw"))
        fields["blobs"] = [[coding, len(blob)] for (coding, _), blob in zip(fields["blobs"], blobs, strict=True)]
        judged(container.pack(manifest.canonical(fields), [bytes(blob) for blob in blobs]))


@pytest.mark.clause("C-05")
def test_mutated_files(file: bytes) -> None:
    chance = random.Random(len(file))
    for _ in range(N_MUTANTS):
        data = bytearray(file)
        for _ in range(chance.choice((1, 2, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        judged(bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data))


@pytest.mark.clause("M-03")
def test_both_decoders_judge_alike(vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors, or the same kind of refusal under the same clause, for each mutant of a manifest."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import refdecode
    from referrors import OverLimit, Refused, Unsupported

    kinds = {Refused: "FormatError", Unsupported: "UnsupportedError", OverLimit: "LimitError"}

    def ours(data: bytes) -> object:
        try:
            tensors = smask.decode(data)
        except smask.SmaskError as error:
            return type(error).__name__, getattr(error, "clause", None)
        return {name: raw_bytes(tensor).numpy().tobytes() for name, tensor in tensors.items()}

    def theirs(data: bytes) -> object:
        try:
            return {name: content for name, (_, _, content) in refdecode.decode(data).items()}
        except Refused as error:
            return kinds[type(error)], error.clause if type(error) is Refused else None

    chance = random.Random(7)
    file = (vectors / "accept/values.smask").read_bytes()
    opened = manifest.open_file(file, limits=LIMITS)
    fields = json.loads(container.unpack(file, limits=LIMITS).manifest_text)
    for _ in range(2 * N_MUTANTS):
        changed = mutated_fields(fields, chance)
        data = container.pack(manifest.canonical(changed), [bytes(blob) for blob in opened.blobs])
        assert ours(data) == theirs(data), changed


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    image = pytest.importorskip("PIL.Image")
    one = image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    return {
        f"{kind}/{suffix}.{suffix}": in_memory(lambda out, suffix=suffix: one.save(out, suffix.upper()))
        for kind in "ab"
        for suffix in ("png", "tiff")
    }


def sounds() -> dict[str, bytes]:
    def sound(out: io.BytesIO) -> None:
        with wave.open(out, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.arange(800, dtype="<i2").tobytes())

    return {f"{kind}/{number}.wav": in_memory(sound) for kind in "ab" for number in range(2)}


def columns() -> dict[str, bytes]:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"x": np.arange(10.0), "n": np.arange(10), "label": ["a", "b"] * 5})
    return {"t.parquet": in_memory(lambda out: pytest.importorskip("pyarrow.parquet").write_table(table, out))}


STATE = {
    "a.weight": torch.arange(12.0).view(4, 3),
    "b": torch.arange(5),
    "c": torch.zeros(0, 3),
    "d": torch.ones(3).half(),
}
ARRAYS = {
    "x_train": np.arange(80, dtype=np.uint8).reshape(4, 4, 5), "y_train": np.arange(4, dtype=np.uint8) % 2,
    "x_test": np.zeros((2, 4, 5), np.uint8), "y_test": np.array([0, 1], np.uint8),
}  # fmt: skip
IDX = {
    stem: struct.pack(f">BBBB{ARRAYS[name].ndim}I", 0, 0, 8, ARRAYS[name].ndim, *ARRAYS[name].shape)
    + ARRAYS[name].tobytes()
    for name, stem in IDX_FILES.items()
}
NESTED = {"state_dict": {**STATE, "e": torch.ones(1).expand(4)}, "epoch": 3, "best": np.float64(0.3)}
# Files of each kind by name, of which the first is damaged, and a whole folder is read where there are several.
CHECKPOINTS: Mapping[str, Callable[[], dict[str, bytes]]] = {
    "pickle": lambda: {"m.pt": in_memory(lambda out: torch.save(NESTED, out))},
    "old pickle": lambda: {"m.pt": in_memory(lambda out: torch.save(NESTED, out, _use_new_zipfile_serialization=False))},
    "safetensors": lambda: {"m.safetensors": save(STATE, {"format": "pt"})},
    "shards": lambda: {
        "m.safetensors.index.json": b'{"metadata":{},"weight_map":{"b":"x.safetensors"}}', "x.safetensors": save(STATE),
    },
}  # fmt: skip
DATA: Mapping[str, Callable[[], dict[str, bytes]]] = {
    "npz": lambda: {"a.npz": in_memory(lambda out: np.savez(out, **ARRAYS))},
    "deflated npz": lambda: {"a.npz": in_memory(lambda out: np.savez_compressed(out, **ARRAYS))},
    "idx": lambda: IDX,
    "gzip": lambda: {f"{stem}.gz": gzip.compress(raw) for stem, raw in IDX.items()},
    "csv": lambda: {"t.csv": b"x,n,label\n" + b"".join(b"%d,%d.5,%d\n" % (i, i, i % 2) for i in range(10))},
    "parquet": columns, "pictures": pictures, "sounds": sounds,
}  # fmt: skip


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Cut, with other bytes or bits, with an odd number, or with a part once more."""
    data, kind = bytearray(whole), chance.randrange(5)
    at, until = sorted(chance.randrange(len(data)) for _ in range(2))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for _ in range(chance.choice((1, 2, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 3:
        n = chance.choice((1, 2, 4, 8))
        number = chance.choice((0, 1, 2 ** (8 * n) - 1, 2 ** (8 * n - 1) - 1, 2 ** (8 * n - 1)))
        data[at : at + n] = number.to_bytes(n, chance.choice(("little", "big")))
    else:
        data[at:at] = data[at:until][:500]
    return bytes(data)


@pytest.mark.parametrize("kind", [*CHECKPOINTS, *DATA])
def test_mutated_checkpoints_and_data(tmp_path: Path, kind: str) -> None:
    """What others wrote is read, or refused by an error of ours on one line."""
    files = (CHECKPOINTS | DATA)[kind]()
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first = next(iter(files))
    source = tmp_path if len(files) > 1 else tmp_path / first

    def read() -> None:
        if kind in DATA:
            load_dataset(str(source), Reading(seconds=0.1))
        else:
            assert len(smask.open_base(source).digest) == 64
            checkpoint = open_checkpoint(source)
            assert all(checkpoint.read(entry.name).shape == entry.shape for entry in checkpoint.entries)

    read()
    chance = random.Random(len(kind))
    n_refused = 0
    for _ in range(N_MUTANTS):
        (tmp_path / first).write_bytes(damaged(files[first], chance))
        message = ""
        try:
            read()
        except smask.SmaskError as error:
            n_refused, message = n_refused + 1, str(error)
        assert "\n" not in message
    assert n_refused
