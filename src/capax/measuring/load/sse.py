"""Server-sent events, read from bytes however the network has cut them.

Lines end with LF, CR or CRLF; an empty line ends an event; comment lines and fields other than
`data` are skipped. Several `data` lines of one event are joined by LF.
"""

from __future__ import annotations

from capax.errors import EndpointError

MAX_EVENT_NBYTES = 4 << 20


class EventParser:
    """Feed it bytes; it returns the data of the events they complete."""

    def __init__(self) -> None:
        self._line = bytearray()  # not ended yet
        self._data: list[bytes] = []
        self._nbytes = 0  # of the event so far
        self._skips_lf = False  # the last byte was a CR: an LF belongs to it
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of every event that ends within the chunk.

        Raises EndpointError for an event larger than MAX_EVENT_NBYTES.
        """
        if self._skips_lf and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._skips_lf = False
        if chunk:
            self._skips_lf = chunk.endswith(b"\r")
        events: list[bytes] = []
        pieces = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for i, piece in enumerate(pieces):
            self._line += piece
            self._nbytes += len(piece)
            if self._nbytes > MAX_EVENT_NBYTES:
                raise EndpointError(
                    f"the server sends an event of more than {MAX_EVENT_NBYTES:,} bytes"
                )
            if i < len(pieces) - 1:
                self._end_line(events)
        return events

    @property
    def is_at_end(self) -> bool:
        """Whether no event is half read."""
        return not self._line and not self._data

    def _end_line(self, events: list[bytes]) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._is_first_line:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first_line = False
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
            self._data = []
            self._nbytes = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
