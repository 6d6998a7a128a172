"""WAV files of a folder as pictures of sound: log-mel spectrograms of one length.

Frames of 25 ms every 10 ms under a Hann window, powers of their spectrum in 40 triangular bands evenly spaced in mel
(O'Shaughnessy, "Speech Communication", 1987: 2595 log10(1 + f / 700)), decibels over one ten-thousand-millionth.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .examples import Examples, Part, check_size, numbered
from .folders import listing
from .reading import RATE, SECONDS, Reading

SUFFIXES = (".wav", ".wave")
N_BANDS = 40
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.01
FLOOR = 1e-10
PCM, EXTENSIBLE = 1, 0xFFFE
MAX_RATE = 768_000


def read_sounds(root: Path, reading: Reading) -> Examples:
    """Sounds by class, float32 [N, 1, 40, frames].

    Raises:
        DataError: No sounds, one that is broken, not PCM, or of another sample rate than the first.
    """
    found = listing(root, SUFFIXES)
    files = [*found.train, *found.test]
    y, classes = numbered(str(root), [name for _, name in files], reading.classes)
    rate, features = reading.sample_rate, None
    for index, (path, _) in enumerate(files):
        its_rate, sound = read_wav(path, seconds=reading.seconds)
        if rate is None:
            rate = its_rate
        if its_rate != rate:
            raise DataError(str(path), f"{its_rate:,} samples a second, want {rate:,} as the others; resample it first")
        bands = spectrogram(sound, rate)
        if features is None:
            check_size(str(root), 4 * len(files) * bands.numel())
            features = torch.empty(len(files), 1, *bands.shape)
        features[index, 0] = bands
    assert features is not None
    x, n = features.numpy(), len(found.train)
    facts = {RATE: json.dumps(rate), SECONDS: json.dumps(reading.seconds)}
    test = Part(x[n:], y[n:]) if found.test else None
    return Examples(Part(x[:n], y[:n]), test, classes, facts, pictures=False)


def spectrogram(sound: Tensor, rate: int) -> Tensor:
    """Log-mel spectrogram in decibels, float32 [40, frames].

    Args:
        sound: float32 [samples] in [-1, 1].
        rate: Samples a second.
    """
    n_window = max(2, round(WINDOW_SECONDS * rate))
    n_fft = 1 << (n_window - 1).bit_length()
    spectrum = torch.stft(
        sound, n_fft, hop_length=max(1, round(HOP_SECONDS * rate)), win_length=n_window,
        window=torch.hann_window(n_window), center=True, pad_mode="constant", return_complex=True,
    )  # fmt: skip
    power = spectrum.abs().square() / n_window
    return 10 * torch.log10(mel_bands(rate, n_fft) @ power + FLOOR)


def mel_bands(rate: int, n_fft: int) -> Tensor:
    """Weights of the frequencies in every band, float32 [40, n_fft // 2 + 1]: triangles that overlap by half."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, N_BANDS + 2) / 2595) - 1)
    frequencies = np.arange(n_fft // 2 + 1) * rate / n_fft
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def read_wav(path: Path, *, seconds: float) -> tuple[int, Tensor]:
    """Sample rate, and the channels' mean cut at the middle or padded on both sides to a length, float32 [samples].

    The chunks are read here: the module ``wave`` of Python 3.11 refuses the extensible header, which 24-bit files have,
    and SciPy allocates what a header claims.

    Raises:
        DataError: Not a WAV file of 8, 16, 24 or 32-bit PCM, or a broken one.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"unreadable: {error.strerror or error}") from None
    chunks = dict(_chunks(raw))
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE" or len(chunks.get(b"fmt ", b"")) < 16:
        raise DataError(str(path), "not a WAV file")
    form, n_channels, rate, _, n_block, n_bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if form == EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        form = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]
    n_bytes = n_bits // 8
    if form != PCM or n_bits not in (8, 16, 24, 32):
        raise DataError(str(path), f"format {form} of {n_bits} bits, want PCM of 8, 16, 24 or 32 bits")
    if not n_channels or not 0 < rate <= MAX_RATE or n_block != n_channels * n_bytes:
        raise DataError(str(path), f"{n_channels} channels in blocks of {n_block} bytes at {rate:,} Hz")
    samples = chunks.get(b"data", b"")
    n_frames = len(samples) // n_block
    if not n_frames:
        raise DataError(str(path), "no samples")
    n = max(1, round(seconds * rate))
    first = max(0, (n_frames - n) // 2)
    cut = samples[first * n_block : min(first + n, n_frames) * n_block]
    mono = _numbers(cut, n_bytes).reshape(-1, n_channels).mean(1, dtype=np.float32)
    before = (n - len(mono)) // 2
    return rate, torch.from_numpy(np.pad(mono, (before, n - len(mono) - before)))


def _numbers(raw: bytes, n_bytes: int) -> np.ndarray:
    """Samples in [-1, 1), float32."""
    if n_bytes == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if n_bytes == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, n_bytes = wide.tobytes(), 4
    return (np.frombuffer(raw, f"<i{n_bytes}") / 2.0 ** (8 * n_bytes - 1)).astype(np.float32)


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of a RIFF file; the last may be shorter than it says, as in a recording that was broken off."""
    at = 12
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at + 4 : at + 8], "little")
        yield raw[at : at + 4], raw[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
