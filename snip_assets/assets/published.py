"""What others have published: their files, and their bitmap applied to a downloaded data set.

Not here: how a file is fetched (`engine.fetch`), how a bitmap meets its rows
(`engine.published`), what is published where (`engine/catalogue.json`).
"""

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from snip_assets.engine import catalogue, published, row_offsets
from snip_assets.engine.fetch import fetch
from snip_assets.engine.storage.files import Manifest, digest_of, read_manifest, seal, write_npy
from snip_assets.options import variable
from snip_assets.report import metadata as show
from snip_assets.resources import DataSet
from snip_assets.versions import version_of

from .station import CODE_VERSION, backfill_policy, chosen, station

GROUP = "published"
KNOWN = catalogue.load()
LAION = KNOWN.data_set("laion2b-en-vit-h-14")
SHARDS = variable("SNIP_PUBLISHED_SHARDS", LAION.shards, int)
published_shards = dg.StaticPartitionsDefinition([f"{n:04d}" for n in range(SHARDS)])

WHOLE: dict[str, Any] = {
    "group_name": GROUP,
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "code_version": CODE_VERSION,
}


class Place(dg.Config):
    """Which publication, and where it is if not at its catalogued place."""

    name: str = Field("", description="Name in the catalogue; empty: the usual one.")
    location: str = Field("", description="Url, hf:, gdrive:ID or path; empty: the catalogue's.")


class OffsetsPlace(Place):
    """Row offsets may also be counted from the footers of the shards."""

    footers_of: str = Field(
        "", description="Template of metadata shards whose footers are read instead."
    )


class Shards(dg.Config):
    """Where the metadata shards are."""

    metadata: str = Field(
        LAION.metadata, description="Url or path with {shard:04d} or {key}, or a folder."
    )
    keep_originals: bool = Field(False, description="Keep the shards as downloaded.")


def _published(
    context: dg.AssetExecutionContext, data: DataSet, kind: str, place: Place
) -> dg.MaterializeResult:
    with station(context):
        wanted = KNOWN[place.name or kind].wanted(data.layout.published, place.location or None)
        # One name for each kind, so that what uses the file need not know which one it is.
        target = path_of(data, kind, wanted.target.suffix)
        fetched = fetch(replace(wanted, target=target))
    return _shown(context, fetched.path, came=fetched.transferred)


def _shown(context: dg.AssetExecutionContext, path: Path, **more: Any) -> dg.MaterializeResult:
    manifest = read_manifest(path)
    assert manifest is not None, path
    return show.of_whole(context, manifest, path=dg.MetadataValue.path(str(path.resolve())), **more)


def path_of(data: DataSet, kind: str, suffix: str = ".npy") -> Path:
    """Where a published file lies."""
    return data.layout.published / f"{kind}{suffix}"


@dg.asset(kinds={"numpy"}, **WHOLE)
def published_bitmap(
    context: dg.AssetExecutionContext, data: DataSet, config: Place
) -> dg.MaterializeResult:
    """A bitmap of duplicates that others have published: an entry a row, true = drop."""
    return _published(context, data, "bitmap", config)


@dg.asset(kinds={"pytorch"}, **WHOLE)
def published_model(
    context: dg.AssetExecutionContext, data: DataSet, config: Place
) -> dg.MaterializeResult:
    """A SNIP net that others have published; read for its weights alone."""
    return _published(context, data, "model", config)


@dg.asset(kinds={"faiss"}, **WHOLE)
def published_index(
    context: dg.AssetExecutionContext, data: DataSet, config: Place
) -> dg.MaterializeResult:
    """A FAISS index that others have published."""
    return _published(context, data, "index", config)


@dg.asset(kinds={"numpy"}, **WHOLE)
def published_row_offsets(
    context: dg.AssetExecutionContext, data: DataSet, config: OffsetsPlace
) -> dg.MaterializeResult:
    """Where each shard of a published data set starts: a file, or counted from Parquet footers."""
    if not config.footers_of:
        return _published(context, data, "offsets", config)
    with station(context):
        target = path_of(data, "offsets")
        write_npy(target, row_offsets.from_footers(config.footers_of, None))
        seal(target, {"footers_of": digest_of(config.footers_of)})
    return _shown(context, target)


@dg.asset(
    kinds={"parquet"},
    group_name=GROUP,
    deps=[published_bitmap, published_row_offsets],
    partitions_def=published_shards,
    backfill_policy=backfill_policy(),
    code_version=CODE_VERSION,
)
def published_deduped_metadata(
    context: dg.AssetExecutionContext, data: DataSet, config: Shards
) -> dg.MaterializeResult:
    """Metadata shards, downloaded, without the rows that the published bitmap marks."""
    keys = chosen(context)
    bitmap, offsets = path_of(data, "bitmap"), path_of(data, "offsets")
    with station(context):
        for start, end in _runs([int(key) for key in keys]):
            published.download(
                published.Request(
                    out=data.layout.published,
                    metadata=config.metadata,
                    bitmap=str(bitmap),
                    start=start,
                    end=end,
                    offsets=str(offsets),
                    keep_originals=config.keep_originals,
                )
            )
    targets = {key: published.target_of(data.layout.published, int(key)) for key in keys}
    manifests: dict[str, Manifest] = {
        key: manifest for key, path in targets.items() if (manifest := read_manifest(path))
    }
    versions = (version_of(bitmap), version_of(offsets))
    return show.of_shards(context, manifests, *versions, samples=targets)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as (first, one past the last)."""
    ordered = sorted(numbers)
    grouped = groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    spans = [[n for _, n in group] for _, group in grouped]
    return [(span[0], span[-1] + 1) for span in spans]
