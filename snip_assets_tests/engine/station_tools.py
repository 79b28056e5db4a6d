"""Runs of the stations on the sample, for tests."""

from dataclasses import replace
from pathlib import Path

from snip_assets.engine import shards, stations
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.storage.files import checksum
from snip_assets.options import SAMPLE

MADE = ("duplicate_pairs", "duplicate_groups", "dup_bitmap", "deduped_metadata", "drop_list")


def start(root: Path, keys: list[str] | None = None, **changes: object) -> stations.Run:
    layout = Layout(root)
    shards.register(layout, SAMPLE, keys)
    return stations.Run(layout, replace(Settings(), **changes))


def until_pairs(
    run: stations.Run, groups: list[list[str]] | None = None, keys: list[str] | None = None
) -> None:
    keys = keys or run.registry.keys
    stations.clip_features(run, keys)
    stations.snip_model(run)
    stations.snip_features(run, keys)
    stations.trained_index(run)
    stations.index_shards(run, keys)
    stations.snip_index(run)
    for group in groups or [keys]:
        stations.duplicate_pairs(run, group)


def until_published(run: stations.Run) -> None:
    until_pairs(run)
    stations.duplicate_groups(run)
    stations.dup_bitmap(run)
    stations.deduped_metadata(run, run.registry.keys)
    stations.drop_list(run, run.registry.keys)


def contents(root: Path) -> dict[Path, str]:
    """Checksum of each file that pairs lead to."""
    files = [p for name in MADE for p in (root / name).rglob("*") if p.suffix != ".json"]
    return {p.relative_to(root): checksum(p) for p in files if p.is_file()}
