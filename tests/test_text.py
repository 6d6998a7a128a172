"""Language modelling: tokens, windows, bits per byte, and the whole way on the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import smask
from smask import architectures, named_nets
from smask.cli.main import main
from smask.errors import ArchitectureError, ArgumentError, DataError
from smask.readers.reading import Reading, remembered
from smask.recipe import recipe_of
from smask.search.tasks import Language, context_of
from smask.search.text import Text, TextBatches, load_text, score_text

WORDS = "the quick brown fox jumps over a lazy dog; zażółć gęślą jaźń\n"


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def book(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    words = WORDS.split(" ")
    return written(tmp_path / "book.txt", " ".join(words[i] for i in random.integers(0, len(words), 4000)))


def test_bytes_and_characters(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", WORDS * 4)
    raw = Path(path).read_bytes()
    by_byte, by_character = load_text(path, Reading()), load_text(path, Reading(tokens="characters"))
    assert bytes(torch.cat([by_byte.train, by_byte.test]).tolist()) == raw
    assert len(by_byte.test) == round(len(raw) / 10)
    alphabet = by_character.alphabet
    assert alphabet == "".join(sorted(set(WORDS)))
    ids = torch.cat([by_character.train, by_character.test])
    assert "".join(alphabet[i] for i in ids) == WORDS * 4
    assert by_character.n_bytes(ids) == len(raw) == by_byte.n_bytes(ids) + len(raw) - len(ids)
    again = load_text(path, Reading(**remembered(by_character.meta, None)))
    assert torch.equal(again.train, by_character.train)
    fewer = {"data.tokens": "characters", "data.alphabet": alphabet.replace("ż", "")}
    with pytest.raises(DataError) as caught:
        load_text(path, Reading(**remembered(fewer, None)))
    assert f"'ż' at {WORDS.index('ż')}" in caught.value.reason


def test_all_of_a_text_can_be_scored(tmp_path: Path) -> None:
    text = load_text(written(tmp_path / "a.txt", WORDS), Reading(test_part=1))
    assert len(text.test) == len(WORDS.encode())
    part = load_text(written(tmp_path / "a.txt", WORDS), Reading(test_part=0.25))
    assert part.meta == {"data.tokens": "bytes", "data.test_part": "0.25"}
    assert remembered(part.meta, None)["test_part"] == 0.25


@pytest.mark.parametrize(
    ("content", "tokens", "word"),
    [
        (b"", "bytes", "empty"), (b"abc", "bytes", "too few"), (b"ab\xff" * 20, "characters", "byte 2 is not UTF-8"),
    ],
)  # fmt: skip
def test_unusable_texts(tmp_path: Path, content: bytes, tokens: str, word: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    for path in ("a.txt", "none.txt", "."):
        with pytest.raises(DataError) as caught:
            load_text(str(tmp_path / path), Reading(tokens=tokens))
        assert path != "a.txt" or word in caught.value.reason


@pytest.mark.parametrize(
    "meta", [{"data.tokens": "words"}, {"data.classes": "{}"}, {"data.classes": "[1]"}, {"data.classes": "["}, {"data.sample_rate": "-1"}, {"data.split_seed": "-1"}, {"data.test_part": "NaN"}, {"data.seconds": "[" * 10**5}]
)  # fmt: skip
def test_a_meta_of_others_is_refused(meta: dict[str, str]) -> None:
    with pytest.raises(DataError) as caught:
        remembered(meta, None)
    assert caught.value.source == f"of the file: meta {next(iter(meta))}"


def test_a_given_alphabet_may_be_broken() -> None:
    fields = remembered({"data.tokens": "characters"}, (1, 2, 3))
    assert fields == {"tokens": "characters", "alphabet": None, "channels": 1, "image_size": (2, 3)}


def text_of(n: int) -> Text:
    return Text("numbers", torch.arange(n, dtype=torch.int32), torch.arange(7), "".join(map(chr, range(32, 32 + n))))


def test_windows_cover_a_text_and_are_seeded() -> None:
    def epoch(batches: TextBatches) -> list[tuple[Tensor, Tensor]]:
        return list(batches)

    first, again, other = (TextBatches(text_of(100), context=8, batch_size=5, seed=s) for s in (1, 1, 2))
    one, two = epoch(first), epoch(first)
    assert len(first) == len(one) == 2
    assert all(torch.equal(a, b) for pair in zip(one, epoch(again), strict=True) for a, b in zip(*pair, strict=True))
    for batches in (one, two, epoch(other)):
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        assert x.shape == y.shape == (10, 8)
        assert torch.equal(y, x + 1)
        assert len(x.unique()) == 80  # no token twice
    assert not torch.equal(one[0][0], two[0][0])
    short = TextBatches(text_of(9), context=8, batch_size=5, seed=0)
    assert [(x.tolist(), y.tolist()) for x, y in short] == [([list(range(8))], [list(range(1, 9))])]
    with pytest.raises(DataError):
        TextBatches(text_of(8), context=8, batch_size=5, seed=0)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_validation_sets_the_end_aside() -> None:
    rest, judge = text_of(100).validation(0.2, seed=3)
    assert (rest.train.tolist(), judge.test.tolist()) == (list(range(80)), list(range(80, 100)))
    assert torch.equal(rest.test, text_of(100).test)
    for part in (0, 1, 0.001, float("nan")):
        with pytest.raises(ArgumentError):
            text_of(100).validation(part, seed=0)


class Bigram(nn.Module):
    """The next token from the last one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n, n)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


@pytest.mark.parametrize("context", [1, 4, 7, 100])
def test_every_token_is_predicted_once(context: int) -> None:
    torch.manual_seed(0)
    model, alphabet = Bigram(6), "aéł𝄞zy"
    text = Text("t", torch.arange(6), torch.randint(0, 6, (23,)), alphabet)
    scored = score_text(model, text, context=context)
    rows = model.table.weight.detach().double().log_softmax(1)
    nats = -sum(float(rows[a, b]) for a, b in zip(text.test[:-1], text.test[1:], strict=True))
    n_bytes = len("".join(alphabet[i] for i in text.test[1:]).encode())
    assert (scored.n_inputs, scored.n_text_bytes) == (22, n_bytes)
    assert scored.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-9)
    assert scored.loss == pytest.approx(nats / 22, rel=1e-9)


def test_models_that_do_not_fit() -> None:
    text = text_of(10)
    for model in (Bigram(9), nn.Linear(4, 4), nn.Sequential(Bigram(10), nn.Flatten()), nn.Embedding(10, 9)):
        with pytest.raises(ArchitectureError):
            Language(text, 4).check_fit(model)
    Language(text, 4).check_fit(Bigram(10))
    for arch in ({}, {"input": []}, {"input": [1, 8, 8]}, {"kind": "external"}, {"input": [0]}):
        with pytest.raises(ArchitectureError):
            context_of(arch)


@pytest.mark.parametrize("tied", ["", "-tied"])
def test_a_masked_gpt_learns(book: str, tied: str) -> None:
    """Better than any count of letters, and the file runs by itself."""
    text = load_text(book, Reading(tokens="characters"))
    arch = named_nets.architecture(f"gpt:1x32x2x16{tied}", n_classes=text.n_classes)
    task = Language(text, context_of(arch))
    torch.manual_seed(0)
    net = architectures.build(arch)
    found = smask.find_masks(
        net, task.batches(16, seed=0, device="cpu"), loss=task.loss(0.0), density=0.4, epochs=2, lr=1e-2
    )
    data = smask.encode(found.state_dict(), recipe_of(found))
    model = smask.load(data)
    scored = task.score(model, device="cpu")
    counts = np.unique(text.train.numpy(), return_counts=True)[1] / len(text.train)
    assert scored.loss < 0.75 * -float((counts * np.log(counts)).sum())
    assert task.judged(model, device="cpu") == -scored.bits_per_byte
    if tied:
        assert model.get_parameter("5.weight") is model.get_parameter("0.weight")
    assert smask.verify(data).same


def test_on_the_command_line(
    book: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--task", "lm", "--data", book, "--arch", "gpt:1x16x2x8", "--epochs", "1", "-q"]
    assert main(["encode", *options, "--tokens", "characters", "--target-size", "2500", "--json", "-o", "a.smask"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_bytes"] <= 2500
    assert "accuracy" not in report
    assert main(["eval", "a.smask", "--data", book, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for key in ("bits_per_byte", "loss", "n_text_bytes"):
        assert again[key] == report[key]
    assert main(["eval", "a.smask", "--data", book, "--test-part", "1"]) == 0
    assert "bits per byte of" in capsys.readouterr().out
    other = written(tmp_path / "other.txt", "QQ" * 40)
    assert main(["eval", "a.smask", "--data", other]) == 3
    assert "character 'Q' at 0" in capsys.readouterr().err
    assert main(["encode", *options, "--accuracy", "0.9"]) == 2
    assert main(["encode", "--task", "lm", "-q"]) == 2
    assert main(["encode", *options, "--meta", "data.tokens=x", "-o", "b.smask"]) == 2
    assert main(["encode", *options[:4], "--arch", "lenet-300-100", "-q", "-o", "b.smask"]) == 6
    assert not (tmp_path / "b.smask").exists()


def test_smallest_file_of_so_many_bits_per_byte(
    book: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "encode",
        "--task",
        "lm",
        "--data",
        book,
        "--arch",
        "gpt:1x16x2x8",
        "--epochs",
        "2",
        "-q",
        "-o",
        "a.smask",
    ]
    options += ["--lr", "0.01", "--device", "cpu"]
    for goal, word in (("0", "at most 8"), ("9", "at most 8"), ("nan", "at most 8"), ("0.01", "the best is")):
        assert main([*options, "--bits-per-byte", goal, "--density", "0.5"]) == 2
        assert word in capsys.readouterr().err
    assert main([*options, "--bits-per-byte", "3", "--target-size", "9kB"]) == 2
    assert main(["encode", "--bits-per-byte", "3", "-q"]) == 2
    assert "--accuracy" in capsys.readouterr().err
    assert main([*options, "--accuracy", "0.9"]) == 2
    assert "--bits-per-byte" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [Path(book)]
    kept = [*options, "--bits-per-byte", "0.01", "--density", "0.5", "--keep-best", "--json"]
    assert main(kept) == 0
    best = json.loads(capsys.readouterr().out)
    (trial,) = best["trials"]
    assert (best["goal"], best["validation"], trial["density"]) == (0.01, trial["validation"], 0.5)
    goal = str(trial["validation"] + 0.2)
    assert main([*options, "--bits-per-byte", goal, "--density", "0.5", "--json", "--force"]) == 0
    report = json.loads(capsys.readouterr().out)
    good = [trial for trial in report["trials"] if trial["validation"] <= float(goal)]
    assert report["n_bytes"] == min(trial["n_bytes"] for trial in good) == (tmp_path / "a.smask").stat().st_size
    assert report["n_bytes"] < best["n_bytes"]
    assert any(trial["validation"] > float(goal) for trial in report["trials"])  # it went as far as that
    assert report["bits_per_byte"] == pytest.approx(report["validation"], abs=0.5)


def test_a_trained_gpt_is_calibrated_on_text(book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(architectures.build(named_nets.architecture("gpt:1x16x2x8")).state_dict(), "gpt.pt")
    convert = ["convert", "gpt.pt", "--target-size", "8kB", "--arch", "gpt:1x16x2x8", "-q"]
    assert main([*convert, "-o", "blind.smask"]) == 0
    assert main([*convert, "--calibrate", book, "--tokens", "bytes", "--samples", "200", "-o", "seen.smask"]) == 0
    plain = architectures.build(named_nets.architecture("gpt:1x16x2x8"))
    plain.load_state_dict(torch.load("gpt.pt", weights_only=True))
    x = load_text(book, Reading()).windows(100, 8)
    with torch.no_grad():
        blind, seen = (float((smask.load(f"{name}.smask")(x) - plain(x)).square().mean()) for name in ("blind", "seen"))
    assert seen < blind


def test_tinyshakespeare_as_it_is_split(real_data: Path) -> None:
    text = load_text(str(real_data / "tinyshakespeare/input.txt"), Reading(tokens="characters"))
    assert (len(text.alphabet or ""), len(text.train), len(text.test)) == (65, 1_003_855, 111_539)
