"""WAV files: every width of PCM, lengths, rates, and the spectrogram against its definition."""

import json
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from smask.cli.main import main
from smask.errors import DataError
from smask.readers.reading import Reading
from smask.readers.sounds import N_BANDS, mel_bands, read_wav, spectrogram
from smask.search.data import load_dataset


def wav(path: Path, samples: np.ndarray, *, rate: int = 8000, n_bytes: int = 2) -> Path:
    """By the module of the standard library: samples in [-1, 1), [N] or [N, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(samples * 2.0 ** (8 * n_bytes - 1)).astype(np.int64)
    raw = (whole + 128 if n_bytes == 1 else whole).astype("<i8").reshape(-1, 1).view(np.uint8)[:, :n_bytes]
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], n_bytes, rate, 0, "NONE", ""))
        file.writeframes(raw.tobytes())
    return path


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 4])
def test_every_width_and_the_mean_of_channels(tmp_path: Path, n_bytes: int) -> None:
    samples = np.random.default_rng(0).integers(-128, 128, (80, 2)) / 128
    rate, found = read_wav(wav(tmp_path / "a.wav", samples, n_bytes=n_bytes), seconds=0.01)
    assert rate == 8000
    assert torch.equal(found, torch.from_numpy(samples.mean(1)).float())


def test_cut_at_the_middle_and_padded(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", np.arange(1, 9) / 16)
    assert (read_wav(path, seconds=4 / 8000)[1] * 16).tolist() == [3, 4, 5, 6]
    assert (read_wav(path, seconds=13 / 8000)[1] * 16).tolist() == [0, 0, *range(1, 9), 0, 0, 0]


def test_the_extensible_header_of_24_bits(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", np.array([0.5, -0.25]), n_bytes=3)
    raw = path.read_bytes()
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    head = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24000, 3, 24, 22, 24, 4) + guid
    path.write_bytes(
        raw[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(head)) + head + raw[36:]
    )
    assert read_wav(path, seconds=2 / 8000)[1].tolist() == [0.5, -0.25]


def test_a_tone_is_in_its_band() -> None:
    rate = 16_000
    bands = mel_bands(rate, 512)
    assert bands.shape == (N_BANDS, 257)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    for hertz in (300.0, 1000.0, 3000.0):
        tone = 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(rate) / rate)
        picture = spectrogram(tone, rate)
        assert picture.shape == (N_BANDS, 101)
        band = 2595 * np.log10(1 + hertz / 700) / top * (N_BANDS + 1) - 1
        assert abs(int(picture[:, 50].argmax()) - band) <= 1
    # One frame by its definition: 400 samples under a Hann window in the middle of 512, 25 ms around sample 8,000.
    frame = np.zeros(512)
    frame[56:456] = tone[8000 - 200 : 8000 + 200].double().numpy() * (
        0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    )
    power = np.abs(np.fft.rfft(frame)) ** 2 / 400
    expected = 10 * np.log10(bands.double().numpy() @ power + 1e-10)
    assert np.abs(picture[:, 50].numpy() - expected).max() < 0.05
    assert torch.equal(spectrogram(torch.zeros(800), rate), torch.full((N_BANDS, 6), -100.0))


def sounds(root: Path) -> Path:
    random = np.random.default_rng(0)
    for index in range(60):
        name, low = (("hum", 200), ("whistle", 2000))[index % 2]
        time = np.arange(random.integers(600, 2400)) / 8000
        tone = 0.4 * np.sin(2 * np.pi * low * (1 + random.random() / 2) * time) + random.normal(0, 0.05, len(time))
        wav(root / name / f"{index}.wav", tone.clip(-1, 0.99))
    return root


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file knows rate, length and names."""
    monkeypatch.chdir(tmp_path)
    sounds(tmp_path / "set")
    data = load_dataset("set", Reading(seconds=0.2))
    assert (data.input_shape, data.classes, data.augmented) == ((1, 40, 21), ("hum", "whistle"), False)
    assert data.facts == {"data.sample_rate": "8000", "data.seconds": "0.2"}
    search = ["encode", "--data", "set", "--seconds", "0.2", "--arch", "mlp:840-16-2", "--density", "0.1", "--epochs", "15"]  # fmt: skip
    assert main([*search, "--batch-size", "18", "--lr", "0.003", "-q", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] >= 0.8
    assert main(["eval", "set.smask", "--data", "set", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["accuracy"]
    wav(tmp_path / "set/hum/0.wav", np.zeros(9), rate=16_000)
    assert main(["eval", "set.smask", "--data", "set"]) == 3
    assert "16,000 samples a second, want 8,000" in capsys.readouterr().err
    assert main([*search, "--flip", "-q", "-o", "b.smask"]) == 3  # the rate comes first


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: b"", "not a WAV file"), (lambda raw: raw[:30], "not a WAV file"), (lambda raw: b"RIFX" + raw[4:], "not a WAV file"),
        (lambda raw: raw[:20] + b"\x03\0" + raw[22:], "format 3 of 16 bits"), (lambda raw: raw[:34] + b"\x0c\0" + raw[36:], "of 12 bits"),
        (lambda raw: raw[:22] + b"\0\0" + raw[24:], "0 channels"), (lambda raw: raw[:24] + b"\0\0\0\0" + raw[28:], "0 Hz"),
        (lambda raw: raw[:24] + b"\xff\xff\xff\xff" + raw[28:], "Hz"), (lambda raw: raw[:32] + b"\x09\0" + raw[34:], "blocks of 9"),
        (lambda raw: raw[:44], "no samples"), (lambda raw: raw[:36], "no samples"),
    ],
)  # fmt: skip
def test_files_that_are_no_sounds(tmp_path: Path, change: object, word: str) -> None:
    for name in ("a", "b"):
        for index in range(2):
            path = wav(tmp_path / name / f"{index}.wav", np.zeros(40))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path))
    assert caught.value.source == str(path)
    assert word in caught.value.reason


def test_a_size_that_lies_costs_nothing(tmp_path: Path) -> None:
    """A recording that was broken off: what is there counts."""
    path = wav(tmp_path / "a.wav", np.array([0.5, 0.25, 0.75]))
    raw = path.read_bytes()
    path.write_bytes(raw[:40] + b"\xff\xff\xff\x7f" + raw[44:-1])
    assert read_wav(path, seconds=2 / 8000)[1].tolist() == [0.5, 0.25]
