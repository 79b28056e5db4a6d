"""Texts from the web, fit to be shown."""

from __future__ import annotations

LONGEST = 300
# Of the characters that cannot be seen, those that belong to words and pictures: joiners and
# non-joiners of letters and emoji, soft hyphens, tags of flags.
_OF_TEXT = frozenset("\u00ad\u200c\u200d") | {chr(code) for code in range(0xE0020, 0xE0080)}


def harmless(text: str) -> str:
    """A text with blanks for what steers a terminal, breaks a line or turns its direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _OF_TEXT else " " for c in text)


def shorten(text: str | None) -> str:
    """The same, cut where it is long."""
    clean = harmless((text or "")[: LONGEST + 1])
    return clean[:LONGEST] + "…" if len(clean) > LONGEST else clean
