"""The specification, its clauses, its example and its second decoder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import smask
from conftest import ROOT
from smask import bases, container, records

SPEC = (ROOT / "spec/smask-1.md").read_text(encoding="utf-8")
DEFINED = re.compile(r"^- \*\*\[([A-Z]-\d\d)\]\*\*", re.MULTILINE)


def marked() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    return {clause for source in sources for clause in re.findall(r'mark\.clause\("([A-Z]-\d\d)"\)', source)}


def test_every_clause_has_a_test_and_every_mark_a_clause() -> None:
    clauses = DEFINED.findall(SPEC)
    assert len(clauses) == len(set(clauses)) > 50
    assert sorted(set(clauses) - marked()) == []
    assert sorted(marked() - set(clauses)) == []


def test_every_clause_that_the_code_names_is_defined() -> None:
    named = {
        clause
        for path in (*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").glob("*.py"))
        for clause in re.findall(r'"([A-Z]-\d\d)"', path.read_text(encoding="utf-8"))
    }
    assert named
    assert sorted(named - set(DEFINED.findall(SPEC))) == []


def test_hex_dump_is_the_example(vectors: Path) -> None:
    dump = SPEC.split("## 19.")[1].split("```text\n")[1].split("```")[0]
    data = bytes.fromhex("".join(line[6:53] for line in dump.splitlines()))
    assert data == (vectors / "accept/example.smask").read_bytes()
    assert len(data) < 400
    text = container.unpack(data, limits=smask.Limits()).manifest_text.decode()
    assert f"```json\n{text}\n```" in SPEC
    assert str(smask.decode(data)["0.weight"].tolist()) in SPEC


def test_tables_name_what_the_code_knows() -> None:
    from smask.architectures import KNOWN
    from smask.layers import RESERVED, TAKEN, WRAPPER

    layers = SPEC.split("## 13.")[1].split("## 14.")[0]
    for name in KNOWN:
        assert f"`{name}`" in layers or f'`"{name}"`' in layers, name
    names = layers.split("[A-03]")[1].split("- **[A-04]")[0]
    assert set(re.findall(r"`(\w+)`", names)) == {*TAKEN, *RESERVED, WRAPPER, "name", "shortcut"}
    for name in (*records.BASES, *records.CODINGS, *records.AXES):
        assert f"`{name}`" in SPEC, name
    fields = SPEC.split("| record field")[1].split("Dtypes are")[0]
    for field in records.Record.__struct_fields__:
        assert f"`{field}`" in fields
    for pinned in (container.DICTIONARY_SHA256, bases.NORMAL_SHA256):
        assert pinned in SPEC


@pytest.mark.clause("V-01")
def test_vectors_are_what_this_code_writes() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools/vectors.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_independent_decoder_reads_every_vector() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools/refvectors.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = json.loads(done.stdout)["checked"]
    assert checked["accept"] == len(list((ROOT / "spec/vectors/accept").glob("*.smask"))) > 0
    n_rejected = len(list((ROOT / "spec/vectors/reject").glob("*.smask")))
    assert checked["reject.decoder"] + checked["reject.loader"] == n_rejected > 0


def test_independent_decoder_is_independent() -> None:
    for path in (ROOT / "tools").glob("ref*.py"):
        imports = re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        allowed = (
            sys.stdlib_module_names | {"zstandard", "bitarray"} | {p.stem for p in (ROOT / "tools").glob("ref*.py")}
        )
        assert set(imports) <= allowed, path


def test_independent_decoder_agrees_on_a_searched_file(found, tmp_path: Path) -> None:
    smask.save(found, tmp_path / "a.smask")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/refdecode.py", tmp_path / "a.smask"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert smask.inspect(tmp_path / "a.smask").digest in done.stdout
