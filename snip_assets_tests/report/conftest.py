"""A finished run over part of the sample, with captions and urls that mean harm."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snip_assets.engine import shards, stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings
from snip_assets.options import SAMPLE_FEATURES, SAMPLE_METADATA
from snip_assets_tests.engine.station_tools import until_pairs

ROWS = 250
SCRIPT = '<script>document.title = "taken"</script><img src=x onerror="document.title=\'taken\'">'
HARM = [
    ("javascript:document.title='taken'", SCRIPT),
    ("JaVaScRiPt:alert(1)", '" onmouseover="alert(1)'),
    ("data:text/html,<script>alert(1)</script>", "=HYPERLINK(1)"),
    ("file:///etc/passwd", "{{ 7 * 7 }}"),
    ("../../../../etc/passwd", "\x1b[31mred\x07"),
    ("https://example.org/a.jpg?<script>", "plain"),
    ("images/gone.jpg", None),
    ("http://127.0.0.1:9/gone.png", "gone"),
]


@dataclass
class Finished:
    """A run."""

    run: Run

    @property
    def layout(self) -> Layout:
        return self.run.layout


@cache
def make() -> Finished:
    """Three shards; the second is the first again with noise, so that every row has a pair."""
    root = Path(tempfile.mkdtemp(prefix="snip-report-"))
    for name in ("img_emb", "metadata"):
        (root / name).mkdir()
    shutil.copytree(SAMPLE_METADATA.parent / "images", root / "images")
    rng = np.random.default_rng(1)
    for target, source in (("0000", "0000"), ("0001", "0000"), ("0002", "0001")):
        x = np.load(SAMPLE_FEATURES / f"img_emb_{source}.npy")[:ROWS].astype(np.float32)
        table = pq.read_table(SAMPLE_METADATA / f"metadata_{source}.parquet").slice(0, ROWS)
        if target == "0001":
            noise = rng.normal(size=x.shape).astype(np.float32)
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            x += noise * rng.uniform(0, 0.33, (ROWS, 1)).astype(np.float32)
            table = _with_harm(table)
        np.save(root / "img_emb" / f"img_emb_{target}.npy", x.astype(np.float16))
        pq.write_table(table, root / "metadata" / f"metadata_{target}.parquet")
    layout = Layout(root / "out")
    shards.register(layout, shards.Source(root / "img_emb", root / "metadata"))
    run = Run(layout, Settings(workers=2))
    materialise(run, run.registry.keys)
    return Finished(run)


def _with_harm(table: pa.Table) -> pa.Table:
    for place, name in enumerate(("url", "caption")):
        texts = [pair[place] for pair in HARM] + table[name].to_pylist()[len(HARM) :]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts))
    return table


def materialise(run: Run, keys: list[str]) -> None:
    """What the report needs, of some shards."""
    stations.metadata(run, keys)
    until_pairs(run, keys=keys)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)


@pytest.fixture(scope="session")
def finished() -> Iterator[Finished]:
    """Made once for all modules; the folder goes at the end."""
    made = make()
    yield made
    shutil.rmtree(made.layout.root.parent, ignore_errors=True)
    make.cache_clear()
