"""Images of a folder as an array: decoded by Pillow, cut to a common shape and size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, SmaskError
from .examples import Examples, Part, check_size, numbered
from .folders import listing
from .reading import Reading

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Only these decoders of Pillow are used: some others start programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 1 << 26


def read_images(root: Path, reading: Reading) -> Examples:
    """Images by class, uint8 [N, channels, height, width]; of an animation the first picture, without transparency.

    Raises:
        DataError: No images, one that is broken or huge, different sizes without ``reading.image_size``, Pillow not
            there.
    """
    found = listing(root, SUFFIXES)
    y, classes = numbered(str(root), [name for _, name in (*found.train, *found.test)], reading.classes)
    files = [path for path, _ in (*found.train, *found.test)]
    x = stacked(str(root), [(str(path), path) for path in files], reading)
    n = len(found.train)
    return Examples(Part(x[:n], y[:n]), Part(x[n:], y[n:]) if found.test else None, classes)


def stacked(source: str, images: Sequence[tuple[str, Path | bytes]], reading: Reading) -> np.ndarray:
    """Images, (name, file or its bytes) each, as one array, uint8 [N, channels, height, width].

    Colours are kept if any image has them and ``reading.channels`` does not say otherwise.

    Raises:
        DataError: As :func:`read_images`.
    """
    channels, size = reading.channels, reading.image_size
    if channels is None or size is None:
        # Headers alone, which say what the array will be.
        facts = [(name, *_facts(name, data)) for name, data in images]
        if channels is None:
            channels = 3 if any(colour for _, colour, _ in facts) else 1
        if size is None:
            first = facts[0]
            for name, _, other in facts:
                if other != first[2]:
                    (h, w), (h0, w0) = other, first[2]
                    reason = f"{w} x {h} pixels, {first[0]} has {w0} x {h0}; give one size (--image-size 32)"
                    raise DataError(name, reason)
            size = first[2]
    if channels not in (1, 3):
        raise DataError(source, f"images have 1 or 3 channels, the net takes {channels}")
    check_size(source, len(images) * channels * size[0] * size[1])
    out = np.empty((len(images), channels, *size), np.uint8)
    for index, (name, data) in enumerate(images):
        with opened(name, data) as image:
            pixels = np.asarray(_fitted(name, image, channels, size))
            out[index] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return out


@contextmanager
def opened(name: str, data: Path | bytes) -> Iterator[Image]:
    """An image whose defects are errors of ours.

    Raises:
        DataError: Not an image of a known format, broken, or of too many pixels.
    """
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(name, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
                yield image
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise DataError(name, f"too many pixels: {error}") from None
    except pillow.UnidentifiedImageError:
        raise DataError(name, f"not an image of a known format ({', '.join(FORMATS)})") from None
    except SmaskError:
        raise
    except Exception as error:  # decoders raise almost anything for broken files
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise DataError(name, f"unreadable image: {reason}") from None


def _facts(name: str, data: Path | bytes) -> tuple[bool, tuple[int, int]]:
    """Whether an image has colours, and its height and width as it is to be looked at."""
    with opened(name, data) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = (image.width, image.height) if turned else (image.height, image.width)
        return image.mode not in ("1", "L", "LA", "La", "I", "F") and not image.mode.startswith("I;"), size


def _fitted(name: str, image: Image, channels: int, size: tuple[int, int]) -> Any:
    """Upright, of eight bits a channel, cut at the middle to the proportions asked for, and scaled."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise DataError(name, "pixels are floating-point numbers; want 8 or 16 bits, or an .npz")
    if upright.mode.startswith("I"):
        wide = np.asarray(upright).astype(np.int64)
        upright = _pillow().fromarray((wide.clip(0, 65535) >> 8 if wide.max() > 255 else wide.clip(0)).astype(np.uint8))
    plain = upright.convert("L" if channels == 1 else "RGB")
    height, width = size
    if plain.size == (width, height):
        return plain
    return ImageOps.fit(plain, (width, height), method=_pillow().Resampling.LANCZOS)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError("images", "reading them needs Pillow: pip install 'smask[images]'") from None
    return Image
