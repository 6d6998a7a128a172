"""Runs the reference decoder over the vectors of section 20: python tools/refvectors.py [FOLDER]"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bitarray import bitarray
from bitarray.util import zeros

from refbases import base_values, philox, words
from refbytes import KnownBytes
from refcontexts import Known
from refdecode import decode_file, decode_tasks, describe, digest, matches
from referrors import Refused
from refrange import RangeDecoder
from refsections import Planes, decode_section, trellis_magnitudes
from refvalues import join_byte_planes, narrow, reconstruct

VECTORS = Path(__file__).resolve().parents[1] / "spec/vectors"
REFUSALS = {
    "FormatError": "Refused",
    "IntegrityError": "Refused",
    "BaseError": "Refused",
}  # error in expected.json: class in referrors.py
REFUSALS |= {"UnsupportedError": "Unsupported", "LimitError": "OverLimit"}


def bits_of(text: str | None, n_bits: int) -> bitarray:
    return decode_section("raw", bytes.fromhex(text), n_bits) if text else zeros(n_bits, "little")


def numbers_of(planes: list[str], n_weights: int) -> list[int]:
    state = Planes((n_weights,))
    for plane in planes:
        state.add(bits_of(plane, n_weights))
    return state.magnitudes


def words_case(count: int, *arguments: int) -> list[int]:
    return list(islice(words(*arguments), count))


def bases_case(v: dict[str, Any]) -> str:
    values = base_values(v["base"], v["seed"], v["stream"], v["start"], len(v["float32_le"]) // 8)
    return b"".join(narrow(value, "F32") for value in values).hex()


def planes_case(v: dict[str, Any]) -> tuple[list[bitarray], bitarray, list[dict[str, Any]]]:
    """Planes, flips, and the sections that were asked for."""
    state, queue, asked = Planes((v["n_weights"],)), iter(v["sections"]), []

    def section(kind: str, n_bits: int, _: Known) -> bitarray:
        bits = next(queue)["bits"]
        asked.append({"plane": len(v["planes"]) - 1 - len(state.planes), "kind": kind, "n_bits": n_bits, "bits": bits})
        return bits_of(bits, n_bits)

    for _ in v["planes"]:
        state.read(v["flip"] is not None, section)
    return state.planes, state.flips, asked


def floats_case(v: dict[str, Any], ranged: list[str | None] | None = None) -> list[str]:
    """The arrays, from byte planes or, where there are any, from blobs coded `range`."""
    sizes = [(array["n_bytes"], len(array["bytes"]) // 2 // array["n_bytes"]) for array in v["values"]]
    queue = iter(zip(v["byte_planes"], ranged or [None] * len(v["byte_planes"]), strict=True))

    def section(_: str, n_bits: int, known: KnownBytes) -> bitarray:
        plane, blob = next(queue)
        return bits_of(plane, n_bits) if blob is None else decode_section("range", bytes.fromhex(blob), n_bits, known)

    return [array.hex() for array in join_byte_planes(sizes, len(v["byte_planes"]), section)]


def reconstruction_case(v: dict[str, Any]) -> str:
    n = math.prod(v["shape"])
    q, flips = numbers_of(v["planes"], n), bits_of(v["flip"], n)
    base = base_values(v["base"], v["seed"], v["stream"], 0, n)
    scale, offset = bytes.fromhex(v["scale"]), bytes.fromhex(v["offset"] or "00000000")
    return reconstruct(q, flips, base, scale, offset, v["dtype"]).hex()


def bitcoding_case(coding: str, blob: str, n_bits: int) -> str:
    return decode_section(coding, bytes.fromhex(blob), n_bits).tobytes().hex()


def rangecoding_case(v: dict[str, Any]) -> str:
    decoder = RangeDecoder(bytes.fromhex(v["blob"]))
    bits = bitarray(map(decoder.bit, v["chances"]), endian="little")
    decoder.finish()
    return bits.tobytes().hex()


def contexts_case(v: dict[str, Any]) -> tuple[int, str]:
    above = v["above"]  # flipped ones are negative
    weights = {
        "significance": lambda: bitarray([a == 0 for a in above], endian="little"),
        "flip": lambda: bits_of(v["new"], len(above)),
        "refinement": lambda: bitarray([a != 0 for a in above], endian="little"),
    }[v["kind"]]()
    flips = bitarray([a < 0 for a in above], endian="little")
    known = Known(v["kind"], tuple(v["shape"]), [*map(abs, above)], flips, weights)
    bits = decode_section("range", bytes.fromhex(v["blob"]), weights.count(), known)
    return len(bits), bits.tobytes().hex()


def trellis_case(v: dict[str, Any]) -> list[int]:
    return trellis_magnitudes(numbers_of(v["indices"], v["n_weights"]))


def base_of(folder: Path) -> dict[str, Any]:
    """The one base of all vectors; files that are over none do not look at it."""
    return decode_file((folder / "accept/base.smask").read_bytes())[1]


def accept_case(file: Path) -> tuple[bool, list[dict[str, Any]]]:
    m, tasks = decode_tasks(file.read_bytes(), base_of(file.parents[1]))
    named = [{"task": task.name} for task in m.tasks] or [{}]
    described = [name | one for name, tensors in zip(named, tasks, strict=True) for one in describe(tensors)]
    return matches(m, tasks), described


def progressive_case(folder: Path, v: dict[str, Any]) -> str:
    data = (folder / "accept" / f"{v['file']}.smask").read_bytes()[: v["n_bytes"]]
    m, tasks = decode_tasks(data, base_of(folder), prefix=True)
    names = [task.name for task in m.tasks] or [None]
    return digest(tasks[names.index(v.get("task"))])


def reject_case(file: Path) -> bool:
    return accept_case(file)[0]


def cases(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Kind, expected outcome, function and arguments."""

    def load(name: str) -> Any:
        return json.loads((folder / name).read_text())

    for kind, *line in map(str.split, (folder / "philox.txt").read_text().splitlines()):
        numbers = [int(x, 16) for x in line] if kind != "#" else []
        if kind == "kat":
            yield "philox.kat", numbers[6:], philox, numbers[:4], numbers[4:6]
        elif kind == "words":
            yield "philox.words", numbers[3:], words_case, len(line) - 3, *map(int, line[:3])
    yield from (("bases", v["float32_le"], bases_case, v) for v in load("bases.json"))
    for v in load("planes.json"):
        n = v["n_weights"]
        yield "planes", ([bits_of(p, n) for p in v["planes"]], bits_of(v["flip"], n), v["sections"]), planes_case, v
    for v in load("bitcoding.json")["accept"]:
        yield from (("bitcoding.accept", v["bits"], bitcoding_case, *blob, v["n_bits"]) for blob in v["blobs"].items())
    for v in load("bitcoding.json")["reject"]:
        yield "bitcoding.reject", ("Refused", v["clause"]), bitcoding_case, v["coding"], v["blob"], v["n_bits"]
    yield from (("rangecoding.accept", v["bits"], rangecoding_case, v) for v in load("rangecoding.json")["accept"])
    for v in load("rangecoding.json")["reject"]:
        yield "rangecoding.reject", ("Refused", v["clause"]), rangecoding_case, v
    yield from (("contexts", (v["n_bits"], v["bits"]), contexts_case, v) for v in load("contexts.json"))
    for v in load("trellis.json"):
        yield "trellis", numbers_of(v["magnitudes"], v["n_weights"]), trellis_case, v
    for v in load("floats.json"):
        arrays = [array["bytes"] for array in v["values"]]
        yield "floats", arrays, floats_case, v
        if "ranged" in v:
            yield "floats.ranged", arrays, floats_case, v, v["ranged"]
    yield from (("reconstruction", v["weights"], reconstruction_case, v) for v in load("reconstruction.json"))
    yield from (("progressive", v["digest"], progressive_case, folder, v) for v in load("progressive.json"))
    for name, tensors in load("accept/expected.json").items():
        yield "accept", (True, tensors), accept_case, folder / "accept" / f"{name}.smask"
    for name, v in load("reject/expected.json").items():
        file = folder / "reject" / f"{name}.smask"
        if v["by"] == "loader":  # a decoder does not read layers, and takes the rest
            yield "reject.loader", True, reject_case, file
        else:
            clause = "C-05" if v["error"] == "IntegrityError" else v["clause"]
            yield "reject.decoder", (REFUSALS[v["error"]], clause), reject_case, file


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or the kind and clause of the refusal. No error of another kind is ever expected."""
    try:
        return function(*arguments)
    except Refused as error:
        return type(error).__name__, error.clause if type(error) is Refused else None
    except Exception as error:
        return error


def check_vectors(folder: Path) -> dict[str, Any]:
    checked, failed = Counter(), []
    for kind, expected, *call in cases(folder):
        actual = outcome(*call)
        checked[kind] += 1
        if actual != expected:
            failed.append(f"{kind} {call[1:]}: {actual!r:.200}")
    return {"checked": checked, "failed": failed}


if __name__ == "__main__":
    summary = check_vectors(Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS)
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["failed"]))
