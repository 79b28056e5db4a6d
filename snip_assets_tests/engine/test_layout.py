"""Paths of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings


@pytest.mark.parametrize(
    "root", [Path("s3://me:pa55@bucket/out"), Path("file:///tmp/out"), UPath("memory://out")]
)
def test_a_url_is_no_output_folder(root: Path) -> None:
    with pytest.raises(BadInputError, match=r"^\w+://[^:@]+: a url, where a local or mounted"):
        Layout(root)


def test_a_url_is_no_cache(tmp_path: Path) -> None:
    for name in ("c:", "a:b/c", "1://x"):
        assert Layout(Path(name)).root == Path(name)
    with pytest.raises(BadInputError, match="a url, where a local or mounted"):
        Run(Layout(tmp_path), Settings(cache="gs://bucket/cache"))
