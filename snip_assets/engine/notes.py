"""What was measured last, and of what: asked about the same, nobody measures it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .storage.files import digest_of, with_digest, write_json


def note(path: Path, subject: str, found: Any) -> None:
    """Write down what was found (any JSON) of a subject, in place of the last note."""
    write_json(path, with_digest({"of": subject, "found": found}))


def noted(path: Path, subject: str) -> Any:
    """What was found of this subject; None where the last note is of another, or damaged."""
    try:
        value = json.loads(path.read_text())
        if value.pop("digest") == digest_of(value) and value["of"] == subject:
            return value["found"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
