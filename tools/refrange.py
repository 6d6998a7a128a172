"""Range coding (section 10.1)."""

import struct

from referrors import need


class RangeDecoder:
    """[E-02]: bits, one by one, each under its chance of 2**16 of a one."""

    def __init__(self, data: bytes) -> None:
        need(len(data) % 4 == 0, "E-01", f"{len(data)} bytes are no whole words")
        self.words = struct.unpack(f"<{len(data) // 4}I", data)
        self.n_words = self.n_bits = 0  # read so far
        self.range = 2**64 - 1
        self.point = self.word() << 32
        self.point += self.word()

    def word(self) -> int:
        self.n_words += 1
        return self.words[self.n_words - 1] if self.n_words <= len(self.words) else 0

    def bit(self, chance: int) -> int:
        self.n_bits += 1
        step = self.range >> 24
        split = ((2**16 - chance) * (2**24 - 2) >> 16) + 1
        place = self.point // step
        need(place < 2**24, "E-03", "a point beyond the range")
        if place < split:
            self.range = step * split
        else:
            self.point -= step * split
            self.range = step * (2**24 - split)
        if self.range < 2**32:
            self.range <<= 32
            self.point = (self.point << 32) + self.word()
        return int(place >= split)

    def finish(self) -> None:
        n_words = self.n_words if self.n_bits else 0
        need(len(self.words) <= n_words, "E-04", f"{len(self.words)} words, of which {n_words} are read")
        need(self.point < 2**33 - 1, "E-04", "a last word that is not needed")
