"""What is stored, for a person's eyes: milliseconds and bytes in, text out. Escaping is the page's affair."""

from __future__ import annotations

import json
from datetime import timedelta

from aevents import payload
from aevents.status import age
from aevents.tables import EPOCH

PRETTY_BYTES = 32 * 1024  # what is longer is shown as it is, and not all of it
SHOWN = 64 * 1024  # characters


def utc(ms: int) -> str:
    """Return a moment as it is written in logs."""
    return (EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M:%S UTC")


def utc_us(us: int) -> str:
    """Return a moment with its milliseconds."""
    return f"{(EPOCH + timedelta(microseconds=us)).isoformat(' ', 'milliseconds')[:23]} UTC"


def distance(ms: int, now_ms: int) -> str:
    """Return how far away a moment is."""
    seconds = (ms - now_ms) / 1000
    return f"in {age(seconds)}" if seconds > 0 else f"{age(-seconds)} ago"


def json_text(data: bytes) -> tuple[str, str]:
    """Return a payload for reading, and a note on it: indented where it is small, cut where it is large."""
    if len(data) <= PRETTY_BYTES:
        try:
            text = json.dumps(payload.decode(data), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
        else:
            if len(text) <= SHOWN:
                return visible(text), f"{len(data):,} bytes"
    shown = data[:PRETTY_BYTES]
    text = visible(shown.decode("utf-8", "backslashreplace"))[:SHOWN]
    if len(shown) < len(data):
        return text, f"the first {len(shown):,} of {len(data):,} bytes, as they are stored"
    return text, f"{len(data):,} bytes, as they are stored"


def visible(text: str) -> str:
    """Return the text with what cannot be seen, or turns around what follows, as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
