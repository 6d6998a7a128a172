"""zstd frames whose size is known before a byte is allocated.

python-zstandard ignores ``max_output_size`` when the frame declares its content size, so the declared size is
checked here against what the caller expects; a frame that declares none is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import zstandard

from .errors import FormatError

CLAUSE = "Z-01"
MAGIC = bytes.fromhex("28b52ffd")
# Every decoder of zstd reads windows up to here without being asked; no level of ours has larger ones.
LARGEST_WINDOW = 1 << 27


def compress(data: bytes | memoryview, *, level: int | None, dictionary: bytes | None = None) -> bytes:
    """One frame with content size and checksum, one thread.

    Args:
        data: Any bytes.
        level: zstd level, 1 to 22; None for entropy coding nearly alone. On bits and gaps without structure every
            match that zstd finds costs more than it saves (measured by ``tools/codings_table.py``): a tiny hash and
            the longest minimal match leave only the Huffman coder, which is also the fastest.
        dictionary: Raw content that both sides know.

    Returns:
        The frame; its bytes depend on the zstd release but not on threads or environment.
    """
    tuning = {"min_match": 7, "hash_log": 6} if level is None else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1 if level is None else level, source_size=len(data), write_checksum=True, write_content_size=True, **tuning
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_raw(dictionary)).compress(data)


def expand(
    frame: bytes | memoryview, *, where: str, check: Callable[[int], None], dictionary: bytes | None = None
) -> bytes:
    """Decompresses exactly one frame.

    Args:
        frame: The frame and nothing after it.
        where: Name used in errors.
        check: Called with the declared content size before anything is allocated; refuses by raising.
        dictionary: Raw content that the frame may refer to.

    Raises:
        FormatError: No data frame, no declared size, no checksum, a dictionary id, too large a window, damage, or bytes
            after the frame.
    """
    data = bytes(frame)
    try:
        parameters = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise FormatError(CLAUSE, where, str(error), "a zstd frame") from None
    # Skippable frames parse as frames but do not start with the magic of a data frame.
    if data[:4] != MAGIC:
        raise FormatError(CLAUSE, where, f"magic {data[:4].hex()}", f"a zstd data frame ({MAGIC.hex()})")
    declared = parameters.content_size
    if declared == zstandard.CONTENTSIZE_UNKNOWN:
        raise FormatError(CLAUSE, where, "no content size in the frame header", "a declared content size")
    if not parameters.has_checksum:
        raise FormatError(CLAUSE, where, "no frame checksum", "a frame with checksum")
    if data[4] & 3:  # RFC 8878, section 3.1.1.1.1.6
        raise FormatError(CLAUSE, where, "a dictionary id", "a frame without dictionary id")
    if not data[4] & 32 and parameters.window_size > LARGEST_WINDOW:
        raise FormatError(CLAUSE, where, f"a window of {parameters.window_size} bytes", f"at most {LARGEST_WINDOW}")
    check(declared)
    decompressor = zstandard.ZstdDecompressor(dict_data=_raw(dictionary))
    try:
        if declared:
            content = decompressor.decompress(data, allow_extra_data=False)
        else:
            # decompress() returns at once where the declared size is 0 and looks at nothing behind the header.
            stream = decompressor.decompressobj()
            content = stream.decompress(data)
            if not stream.eof or stream.unused_data:
                raise zstandard.ZstdError("empty frame is cut or followed by other bytes")
    except zstandard.ZstdError as error:
        raise FormatError(CLAUSE, where, str(error), "an intact zstd frame and nothing after it") from None
    if len(content) != declared:
        raise FormatError(CLAUSE, where, f"{len(content)} bytes of content", f"{declared} bytes of content")
    return content


def _raw(dictionary: bytes | None) -> zstandard.ZstdCompressionDict | None:
    if dictionary is None:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
