"""Any byte string yields a correct model or one of our errors: files damaged on purpose, sums recomputed."""

import functools
import json
import random
from pathlib import Path

import pytest
import torch

import smask
from conftest import ROOT
from smask import container, manifest
from smask.frames import compress
from smask.integrity import raw_bytes

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
