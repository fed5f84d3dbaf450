"""A range coder: intervals of [0, 2^30) to bytes and back (Martin, 1979).

The state is an interval [low, low + range) of 64-bit fractions. Coding (start, width) narrows it
to that part; whenever its leading byte is settled the byte is written and the rest is scaled up.
With a range of at least 2^56 the rounding costs below 1e-7 bit per symbol, and the end costs at
most a byte more than the information that is left.
"""

from __future__ import annotations

TOTAL_BITS = 30
_FULL = 1 << 64
_LEAST = 1 << 56
_MASK = _FULL - 1


class RangeEncoder:
    """Codes intervals of [0, 2^30) one after another; `finish` returns the bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = _FULL
        self._bytes = bytearray()

    def encode(self, start: int, width: int) -> None:
        """Code the interval [start, start + width), 0 < width, within [0, 2^30)."""
        unit = self._range >> TOTAL_BITS
        self._low += unit * start
        self._range = unit * width
        if self._low >= _FULL:
            self._carry()
        while self._range < _LEAST:
            self._bytes.append(self._low >> 56)
            self._low = self._low << 8 & _MASK
            self._range <<= 8

    def finish(self) -> bytes:
        """Return everything; the shortest end that lies in the interval, zeros left out."""
        for n_bytes in range(9):
            shift = 64 - 8 * n_bytes
            end = -(-self._low >> shift) << shift
            if end < self._low + self._range:
                break
        self._low = end
        if end >= _FULL:
            self._carry()
        tail = (self._low >> shift).to_bytes(n_bytes) if n_bytes else b""
        return bytes(self._bytes + tail).rstrip(b"\0")

    def _carry(self) -> None:
        """Add one to the bytes written so far: the interval crossed a border."""
        self._low -= _FULL
        at = len(self._bytes) - 1
        while self._bytes[at] == 0xFF:
            self._bytes[at] = 0
            at -= 1
        self._bytes[at] += 1


class RangeDecoder:
    """Reads back what `RangeEncoder` coded: `target`, then `accept` the interval it lies in.

    Any bytes decode to something; whether it is what was coded, a checksum must say.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 8
        self._code = int.from_bytes(data[:8].ljust(8, b"\0"))  # relative to the encoder's low
        self._range = _FULL

    def target(self) -> int:
        """Return a number in [0, 2^30) that lies in the next interval."""
        return min(self._code // (self._range >> TOTAL_BITS), (1 << TOTAL_BITS) - 1)

    def accept(self, start: int, width: int) -> None:
        """Go on behind the interval that contained the target."""
        unit = self._range >> TOTAL_BITS
        self._code -= unit * start
        self._range = unit * width
        while self._range < _LEAST:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._code = self._code << 8 | byte
            self._range <<= 8
            self._at += 1
