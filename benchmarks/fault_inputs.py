"""Malformed inputs and fuzzed headers, for `faults.py`."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fault_tools import Child, End, station
from snip_assets.engine import arrivals, shards, stations
from snip_assets.engine.errors import SnipError
from snip_assets.engine.layout import Layout
from snip_assets.engine.model import load_model
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source
from snip_assets.engine.storage.files import read_manifest
from snip_assets.options import default_source
from snip_assets.report import site
from snip_assets.report.metadata import sample_rows

if TYPE_CHECKING:
    from benchmarks.faults import Table

NOBODY = 65534
SECONDS = 20.0
BATCH = 50
NASTY = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\x00b",
    "😀🏴‍☠️ ‮ reversed",
    "x" * 1_000_000,
    "[link](javascript:alert(1)) | ` ```",
    "",
]
ODD_KEYS = [
    *("../../etc/passwd", "..", ".", "a/b", "a\\b", "a" * 5000, "a\x00b", "-rf", "~", "$(id)"),
    *(
        "%2e%2e%2f",
        "con",
        "é",
        "😀",
        "a b",
        "a\nb",
        "<script>",
        "'; drop table",
        "",
        " ",
        "a" * 101,
    ),
]


def _array(source: Source, key: str) -> tuple[Path, np.ndarray]:
    path = source.features / f"img_emb_{key}.npy"
    return path, np.load(path)


def _edit(change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Source, str], str]:
    def spoil(source: Source, key: str) -> str:
        path, array = _array(source, key)
        changed = change(array)
        np.save(path, array if changed is None else changed)
        return path.name

    return spoil


def _bytes(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[Source, str], str]:
    def spoil(source: Source, key: str) -> str:
        folder = source.features if pattern.startswith("img") else source.metadata
        path = folder / pattern.format(key=key)
        path.write_bytes(change(path.read_bytes()))
        return path.name

    return spoil


def _put(row: int, value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[row] = value

    return change


def _fewer_rows(source: Source, key: str) -> str:
    path = source.metadata / f"metadata_{key}.parquet"
    pq.write_table(pq.read_table(path)[:-1], path)
    return path.name


NPY, PARQUET = "img_emb_{key}.npy", "metadata_{key}.parquet"
FAULTS: dict[str, Callable[[Source, str], str]] = {
    "truncated features": _bytes(NPY, lambda b: b[: len(b) // 2]),
    "truncated metadata": _bytes(PARQUET, lambda b: b[: len(b) // 2]),
    "NaN": _edit(_put(77, np.nan)),
    "infinite": _edit(_put(77, np.inf)),
    "zero row": _edit(_put(77, 0)),
    "wrong dimension": _edit(lambda a: a[:, :100].copy()),
    "one axis": _edit(lambda a: a.ravel()),
    "wrong dtype": _edit(lambda a: (a * 100).astype(np.int32)),
    "rows differ": _fewer_rows,
    "bad parquet": _bytes(PARQUET, lambda b: os.urandom(len(b))),
    "HTML as npy": _bytes(NPY, lambda b: b"<!doctype html><title>404</title>"),
    "HTML as parquet": _bytes(PARQUET, lambda b: b"<!doctype html><title>404</title>"),
    "empty features": _bytes(NPY, lambda b: b""),
    "empty metadata": _bytes(PARQUET, lambda b: b""),
    "pickled objects as npy": _bytes(NPY, lambda b: _pickled_npy()),
}
IN_ROWS = {"NaN", "infinite", "zero row"}


def _pickled_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    return buffer.getvalue()


def _copy_source(folder: Path) -> Source:
    sample, source = default_source({}), Source(folder / "img_emb", folder / "metadata")
    for old, new in ((sample.features, source.features), (sample.metadata, source.metadata)):
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(old, new)
    return source


def malformed(table: Table, folder: Path) -> None:
    """Each fault at the first and at a late shard."""
    for key in ("0000", "0003"):
        for name, spoil in FAULTS.items():
            source, root = _copy_source(folder / "source"), _fresh(folder / "out")
            file = spoil(source, key)
            end = Child(lambda s=source, r=root: _ingest(r, s)).end()
            others = {"0000", "0001", "0002", "0003"} - {key}
            why = _judge(end, file, "77" if name in IN_ROWS else "", root, others)
            table.add("malformed input", not why, f"{name} at {key}: {why}")
        _vanished(table, folder, key)
        _denied(table, folder, key)
    _pickled_weights(table, folder)


def _fresh(root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    return root


def _ingest(root: Path, source: Source) -> None:
    """As the sensor and the first two stations do."""
    layout = Layout(root)
    now = arrivals.listing(source)
    seen = arrivals.look(now, {}, arrivals.Memory(), marker="{key}")
    keys = sorted(now.features.keys() | now.metadata.keys())
    _, refused = arrivals.admit(layout, source, keys, now)
    run = stations.Run(layout, Settings())
    problems = [why for _, why in refused.values()] + list(seen.problems.values())
    for work in (stations.metadata, stations.clip_features):
        try:
            work(run, run.registry.keys)
        except SnipError as error:
            problems.append(str(error))
    if problems:
        raise SnipError(" ".join(problems))


def _judge(end: End, file: str, row: str, root: Path, others: set[str]) -> str:
    """Empty when the error is clear and the other shards were read."""
    if end.code != 1:
        return f"ended {end.code}: {end.message}"
    if file not in end.message or (row and f"row {row}" not in end.message):
        return f"names neither {file} nor its row: {end.message}"
    if not {";", ":"} & set(end.message) or end.seconds > SECONDS:
        return f"no cure, or after {end.seconds:.0f} s: {end.message}"
    done = {k for k in others if read_manifest(Layout(root).clip_features(k)) is not None}
    return "" if done == others else f"other shards not done: {sorted(others - done)}"


def _vanished(table: Table, folder: Path, key: str) -> None:
    """A file that is gone between registration and each station that reads it."""
    readers = {"features": ("clip_features", "snip_features"), "metadata": ("metadata",)}
    for part, names in readers.items():
        for name in names:
            source, root = _copy_source(folder / "source"), _fresh(folder / "out")
            shards.register(Layout(root), source)
            if name == "snip_features":
                before = ("metadata", "clip_features", "snip_model")
                for stage in before:
                    Child(lambda s=stage, r=root: station(r, s)).end()
            pattern = NPY if part == "features" else PARQUET
            file = getattr(source, part) / pattern.format(key=key)
            file.unlink()
            end = Child(lambda n=name, r=root: station(r, n)).end()
            held = end.code == 1 and file.name in end.message
            table.add("input vanished in mid-run", held, f"{name}: {end.code} {end.message}")


def _denied(table: Table, folder: Path, key: str) -> None:
    """Files that may not be read; as another user, since root reads all."""
    folder.chmod(0o755)
    for pattern in (NPY, PARQUET):
        source = _copy_source(folder / "source")
        part = source.features if pattern == NPY else source.metadata
        file = part / pattern.format(key=key)
        file.chmod(0)

        def work(source: Source = source) -> None:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            shards.inspect(source, key)

        end = Child(work).end()
        held = end.code == 1 and file.name in end.message and "permission" in end.message
        table.add("permission denied", held, f"{end.code} {end.message}")


class _Bomb:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/snip-faults-bomb",)


def _pickled_weights(table: Table, folder: Path) -> None:
    model = _fresh(folder / "model")
    shutil.copytree(folder / "base" / "snip_model", model)
    (model / "model.safetensors").write_bytes(pickle.dumps({"w": _Bomb()}))
    end = Child(lambda: load_model(model) and None).end()
    held = end.code == 1 and "model" in end.message and not Path("/tmp/snip-faults-bomb").exists()
    table.add("pickle as weights", held, f"{end.code} {end.message}")


def fuzz(table: Table, folder: Path, times: int, seed: int) -> None:
    """Mutated headers in batches of 50 a process; odd keys; hostile texts."""
    for start in range(0, times, BATCH):
        end = Child(lambda s=start: _fuzz_batch(folder, seed + s, min(BATCH, times - s))).end()
        for number in range(min(BATCH, times - start)):
            table.add("fuzzed npy and parquet headers", end.code == 0, f"{number}: {end.message}")
    for key in ODD_KEYS:
        why = _odd_key(key, folder)
        table.add("odd shard keys", not why, why)
    for text in NASTY:
        end = Child(lambda t=text: _hostile(folder, t)).end()
        table.add("hostile texts in metadata", end.code == 0, f"{text[:20]!r}: {end.message}")


def _fuzz_batch(folder: Path, seed: int, times: int) -> None:
    draw = random.Random(seed)
    source = Source(folder / "fuzz" / "img_emb", folder / "fuzz" / "metadata")
    for path in (source.features, source.metadata):
        path.mkdir(parents=True, exist_ok=True)
    npy, parquet = io.BytesIO(), io.BytesIO()
    np.save(npy, np.ones((9, 8), np.float16))
    pq.write_table(pa.table({"url": ["u"] * 9, "caption": ["c"] * 9}), parquet)
    for _ in range(times):
        first = draw.random() < 0.5
        good = bytearray((npy if first else parquet).getvalue())
        low, high = (0, 128) if first else draw.choice([(0, 8), (len(good) // 2, len(good))])
        for _ in range(draw.choice([1, 1, 2, 8, 40])):
            good[draw.randrange(low, high)] = draw.randrange(256)
        features, metadata = (
            source.features / "img_emb_k.npy",
            source.metadata / "metadata_k.parquet",
        )
        features.write_bytes(good if first else npy.getvalue())
        metadata.write_bytes(parquet.getvalue() if first else good)
        try:
            shards.inspect(source, "k")
            shards.discover(source)
        except SnipError as error:
            assert "img_emb_k" in str(error) or "metadata_k" in str(error), str(error)


def _odd_key(key: str, folder: Path) -> str:
    """Empty when a key is refused, or every path made of it stays in its folder."""
    now = arrivals.Listing({key: (1, 1)}, {key: (1, 1)})
    memory = arrivals.Memory({key: [1, 1, 1, 1, 1]}, {})
    if key not in arrivals.look(now, {}, memory).complete:
        return ""
    layout = Layout(folder / "odd")
    for place in (layout.clip_features, layout.index_shards, layout.deduped_metadata):
        if layout.root.resolve() not in place(key).resolve().parents:
            return f"{key!r} leads to {place(key)}"
    return ""


def _hostile(folder: Path, text: str) -> None:
    """Texts go through the outputs unchanged, and into pages without markup."""
    source, root = _copy_source(folder / "source"), _fresh(folder / "hostile")
    shutil.copytree(folder / "base", root)
    path = source.metadata / "metadata_0001.parquet"
    described = pq.read_table(path)
    columns = {name: [text] * len(described) for name in ("url", "caption")}
    for name, column in columns.items():
        described = described.set_column(described.column_names.index(name), name, pa.array(column))
    pq.write_table(described, path)
    layout = Layout(root)
    layout.registry.unlink()
    shards.register(layout, source)
    for name in ("metadata", "clip_features", "duplicate_groups", "dup_bitmap"):
        station(root, name)
    for name in ("deduped_metadata", "drop_list"):
        station(root, name)
    cleaned = pq.read_table(layout.deduped_metadata("0001"))
    assert set(cleaned["caption"].to_pylist()) == {text}
    shown = str(sample_rows(layout.deduped_metadata("0001")).value)
    assert "<script" not in shown.replace("`<script", "") and len(shown) < 20_000
    site.dedup_report(stations.Run(layout, Settings()))
    for page in layout.dedup_report.rglob("*.html"):
        written = page.read_text()
        assert "<script>alert" not in written and "<img src=x" not in written, page
        assert "javascript:alert" not in written.replace("](javascript:alert", ""), page
