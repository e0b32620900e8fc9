"""Messages of Redis's protocol (RESP2), cut out of a stream of bytes whole, so that each can be held or dropped."""

from __future__ import annotations

from typing import Any, final

import hiredis


@final
class Splitter:
    """Collects bytes; gives the messages that are complete, as they came."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete."""
        self._rest += data
        messages, start = [], 0
        while (end := _end(self._rest, start)) is not None:
            messages.append(self._rest[start:end])
            start = end
        self._rest = self._rest[start:]
        return messages

    def rest(self) -> bytes:
        """What has no end yet; forgotten here."""
        rest, self._rest = self._rest, b""
        return rest


def _end(data: bytes, start: int) -> int | None:
    """Behind the message that begins there; None if it is not complete."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return None
    end, kind, text = line + 2, data[start : start + 1], data[start + 1 : line]
    if kind == b"$" and text.isdigit():
        end += int(text) + 2
    elif kind == b"*" and text.isdigit():
        for _ in range(int(text)):
            found = _end(data, end)
            if found is None:
                return None
            end = found
    return end if end <= len(data) else None


def parse(message: bytes) -> Any:
    """What a whole message says: str, int, list, None, or an exception for a refusal."""
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    reader.feed(message)
    return reader.gets()
