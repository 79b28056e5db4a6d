"""From arrival to clean output without a hand, with real daemon and webserver.

    python -m snip_assets_tests.e2e.arrivals [--kill]

Shards of the built-in sample are dropped into an empty folder one by one and in a burst, partly
written, beside temporaries and a malformed one; nothing else is touched. `--kill` also kills the
daemon with its code server and runs in the middle of the burst, and starts it again. At the end
the result is compared with brute force.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from snip_assets import home
from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage.files import read_manifest
from snip_assets.options import default_source
from snip_assets_tests.e2e.services import Services, wait

ROWS = 250
MOST = 1500.0
STALE = """query($k:[AssetKeyInput!]!,$p:String){assetNodes(assetKeys:$k){
id staleStatus(partition:$p)}}"""


class Arrivals:
    """A source folder that fills, and services that watch it."""

    def __init__(self, folder: Path) -> None:
        self.source = Source(folder / "img_emb", folder / "metadata")
        for path in (self.source.features, self.source.metadata):
            path.mkdir(parents=True)
        self.layout = Layout(folder / "out")
        sample = default_source({})
        keys = shards.discover(sample)
        self.raw = np.concatenate([np.load(sample.features / f"img_emb_{k}.npy") for k in keys])
        tables = [pq.read_table(sample.metadata / f"metadata_{k}.parquet") for k in keys]
        self.described = pa.concat_tables(tables)
        self.keys = [f"{n:04d}" for n in range(len(self.raw) // ROWS)]
        variables = home.environment(self.layout, self.source)
        self.services = Services(variables, folder)

    def rows(self, key: str) -> slice:
        return slice(int(key) * ROWS, (int(key) + 1) * ROWS)

    def put(self, key: str, *, slowly: bool = False) -> None:
        """Write the two files of a shard, as a careless writer does."""
        metadata = self.source.metadata / f"metadata_{key}.parquet"
        pq.write_table(self.described[self.rows(key)], metadata)
        features = self.source.features / f"img_emb_{key}.npy"
        temporary = features.with_name(features.name + ".part")
        with open(temporary, "wb") as file:
            np.save(file, self.raw[self.rows(key)])
        data = temporary.read_bytes()
        with open(features, "wb") as file:
            file.write(data[: len(data) // 2])
            if slowly:
                file.flush()
                time.sleep(40)
            file.write(data[len(data) // 2 :])
        temporary.unlink()

    def published(self) -> set[str]:
        return {k for k in self.keys if read_manifest(self.layout.deduped_metadata(k)) is not None}

    def done(self, keys: list[str]) -> bool:
        """All cleaned, for the present bitmap, and nothing under way."""
        if not set(keys) <= self.published():
            return False
        if any(r["status"] in ("QUEUED", "STARTING", "STARTED") for r in self.services.runs()):
            return False
        bitmap = self.layout.dup_bitmap / "dup_bitmap.npy"
        if len(np.load(bitmap)) != shards.load(self.layout).rows:
            return False
        report = self.runs("publish", "SUCCESS")
        version = getattr(read_manifest(self.layout.dup_bitmap), "version", "")
        return any(t["value"].startswith(version) for r in report for t in r["tags"])

    def runs(self, job: str, status: str | None = None) -> list[dict]:
        found = [r for r in self.services.runs() if r["jobName"] == job]
        return [r for r in found if status in (None, r["status"])]

    def times(self, keys: list[str]) -> dict[str, int]:
        """When the features, codes and pairs of shards were written."""
        layout = self.layout
        return {
            str(path): path.stat().st_mtime_ns
            for key in keys
            for path in (
                layout.clip_features(key),
                layout.snip_features(key),
                layout.index_shards(key) / "codes.npy",
                layout.duplicate_pairs(key),
            )
        }

    def stale(self, keys: list[str]) -> list[str]:
        """Shards' assets that Dagster thinks stale."""
        found = []
        for asset in ("clip_features", "snip_features", "index_shards", "duplicate_pairs"):
            for key in keys:
                (node,) = self.services.query(STALE, k=[{"path": [asset]}], p=key)["assetNodes"]
                if node["staleStatus"] != "FRESH":
                    found.append(f"{asset} {key}: {node['staleStatus']}")
        return found


def compare(arrivals: Arrivals, keys: list[str]) -> dict[str, float]:
    """The result against brute force over the rows of these shards."""
    layout, registry = arrivals.layout, shards.load(arrivals.layout)
    raw = np.concatenate([arrivals.raw[arrivals.rows(k)] for k in registry.keys])
    unit = raw.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = 2 - 2 * unit @ unit.T
    _, first, where = np.unique(raw, axis=0, return_index=True, return_inverse=True)
    first = first[where.ravel()]
    is_first = first == np.arange(len(raw))
    row, earlier = np.nonzero(np.tril(distance <= Settings().max_distance, -1))
    between = is_first[row] & is_first[earlier]
    true = set(zip(row[between].tolist(), earlier[between].tolist(), strict=True))
    true |= {(int(a), int(first[a])) for a in np.flatnonzero(~is_first)}
    tables = [pq.read_table(layout.duplicate_pairs(k)) for k in registry.keys]
    found = {
        (int(a), int(b))
        for t in tables
        for a, b in zip(t["row"].to_pylist(), t["earlier_row"].to_pylist(), strict=True)
    }
    drop = np.load(layout.dup_bitmap / "dup_bitmap.npy")
    assert all(distance[p] <= Settings().max_distance + 1e-5 for p in found)
    assert distance[drop][:, ~drop].min(1).max() <= Settings().max_distance + 1e-5
    for shard in registry.only(keys):
        cleaned = pq.read_table(layout.deduped_metadata(shard.key))
        source = pq.read_table(shard.metadata)
        assert cleaned.equals(source.filter(~drop[shard.start : shard.stop])), shard.key
    return {
        "rows": len(raw),
        "dropped": int(drop.sum()),
        "true_pairs": len(true),
        "recall": len(true & found) / len(true),
    }


def play(folder: Path, *, kill: bool) -> dict:
    """The whole story; returns what was measured."""
    arrivals = Arrivals(folder)
    services, keys = arrivals.services, arrivals.keys
    told: dict = {}
    services.start("webserver")
    try:
        services.wait_ready()
        # Not at once: both would make the tables of a new SQLite database.
        services.start("daemon")
        for name in ("new_shards", "clean_output"):
            services.start_sensor(name)
        arrivals.put(keys[0])
        arrivals.put(keys[1], slowly=True)
        told["first two"] = wait(lambda: arrivals.done(keys[:2]), "the first two shards", MOST)
        arrivals.put(keys[2])
        told["one more"] = wait(lambda: arrivals.done(keys[:3]), "one shard more", MOST)
        before, runs = arrivals.times(keys[:3]), len(arrivals.runs("arrival"))
        for key in keys[3:]:
            arrivals.put(key)
        (arrivals.source.features / "img_emb_bad.npy").write_bytes(b"<html>404</html>")
        pq.write_table(arrivals.described[:9], arrivals.source.metadata / "metadata_bad.parquet")
        if kill:
            wait(lambda: len(arrivals.runs("arrival", "STARTED")) > 0, "the run of the burst", MOST)
            time.sleep(8)
            told["processes killed"] = services.kill("daemon")
            services.start("daemon")
        told["burst"] = wait(lambda: arrivals.done(keys), "the burst", MOST)
        told["runs for the burst"] = len(arrivals.runs("arrival")) - runs
        told["older shards redone"] = sum(
            before[path] != now for path, now in arrivals.times(keys[:3]).items()
        )
        told["older shards stale"] = arrivals.stale(keys[:3])
        told["published runs"] = len(arrivals.runs("publish", "SUCCESS"))
        told["the malformed shard is reported"] = _reported(services)
        told["registered"] = shards.load(arrivals.layout).keys
        told |= compare(arrivals, keys)
    finally:
        services.stop()
    return told


def _reported(services: Services) -> str:
    found = services.query(
        'query($k:AssetKeyInput!){assetCheckExecutions(assetKey:$k,checkName:"sources_in_order",'
        "limit:1){status evaluation{success description}}}",
        k={"path": ["metadata"]},
    )["assetCheckExecutions"]
    return str(found[0]["evaluation"]) if found else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", action="store_true", help="kill the daemon in mid-burst")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="snip-e2e-"))
    print(f"in {folder}", flush=True)
    told = play(folder, kill=options.kill)
    print(json.dumps(told, indent=1))
    assert told["runs for the burst"] == 1 or options.kill
    assert told["older shards redone"] == 0
    assert told["recall"] >= 0.95
    assert "bad" not in told["registered"]
    assert "img_emb_bad.npy" in told["the malformed shard is reported"]
    if not options.keep:
        shutil.rmtree(folder)
    print("ok")


if __name__ == "__main__":
    main()
