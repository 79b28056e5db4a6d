"""Pages from templates: one environment, everything escaped, script and style by their digest."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from snip_assets import __version__
from snip_assets.engine.storage.files import digest_of

TEMPLATES = Path(__file__).parent / "templates"
PAGES = {
    "index.html": "Summary",
    "curves.html": "Curves",
    "copied.html": "Most copied",
    "pairs.html": "Random pairs",
    "borderline.html": "Borderline pairs",
    "doubtful.html": "Doubtful groups",
}


def number(value: Any) -> str:
    """A value as people read it: thousands apart, four digits after small numbers, a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f}%"


def distance(value: float | None) -> str:
    """A distance; the dash where it is not known."""
    return "–" if value is None else f"{value:.4f}"


def size(value: float | None) -> str:
    """Bytes with a unit."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        # 999.6 would be 1e+03.
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def cut(text: str, most: int) -> str:
    """Text shortened with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def environment() -> jinja2.Environment:
    """Templates with autoescape for all files; a name that is missing is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters |= {f.__name__: f for f in (number, percent, distance, size, cut)}
    return made


def templates_version() -> str:
    """Changes when a template, style or script does."""
    return digest_of(
        {p.name: p.read_text(encoding="utf-8") for p in sorted(TEMPLATES.iterdir()) if p.is_file()}
    )


def render(template: str, **values: Any) -> str:
    """A page. Style and script stand in it and are allowed by their SHA-256, no others are."""
    parts: dict[str, Any] = {}
    for name, file in (("style", "style.css"), ("script", "script.js")):
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        parts |= {name: Markup(text), f"{name}_hash": f"sha256-{digest}"}
    defaults = {"pages": PAGES, "version_of_code": __version__, "data_id": "", "pictures": "all"}
    return environment().get_template(template).render(**{**defaults, **parts, **values})
