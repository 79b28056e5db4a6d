"""The commands of docs/published.md, each line as it stands, against the mirror."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from snip_assets import cli
from snip_assets_tests import mirror as faulty

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
OFFSETS = np.cumsum([0, *faulty.LENGTHS])


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    faulty.make(folder)
    faulty.add_index(folder)
    with faulty.serving(folder) as server:
        yield server


@pytest.fixture
def snip(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        return CliRunner().invoke(cli.app, list(arguments))

    return run


def lines_of_the_page() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("snip ")]


def right(folder: Path, served: Path, shards) -> bool:
    bitmap = np.load(served / "is_dup.npy")
    for n in shards:
        name = f"metadata_{n:04d}.parquet"
        kept = pa.array(~bitmap[OFFSETS[n] : OFFSETS[n + 1]])
        source = pq.read_table(served / "metadata" / name)
        if not pq.read_table(folder / name).equals(source.filter(kept)):
            return False
    return sorted(p.name for p in folder.glob("*.parquet")) == [
        f"metadata_{n:04d}.parquet" for n in shards
    ]


def test_every_line_of_the_page(mirror, snip, tmp_path):
    lines = lines_of_the_page()
    assert len(lines) > 10
    for line in lines:
        text = line.replace("$MIRROR", mirror.url).replace("/tmp/mirror", str(mirror.folder))
        result = snip(*shlex.split(text)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}{result.exception}"
    for place, shards in (
        ("downloaded/metadata", range(10)),
        ("part/metadata", range(4, 10)),
        ("deduped", range(10)),
    ):
        assert right(tmp_path / "data" / place, mirror.folder, shards), place
    pairs = pq.read_table(tmp_path / "data" / "verified" / "pairs.parquet")
    assert len(pairs) == 200 and pairs["duplicate"].to_pylist().count(True) >= 198
    assert len(pq.read_table(tmp_path / "data" / "hits.parquet")) == 5


def test_the_authors_spelling(mirror, snip, tmp_path):
    places = ("--metadata-url", f"{mirror.url}/metadata", "--bitmap", f"{mirror.url}/is_dup.npy")
    out = ("--start", "0", "--end", "2", "--outfolder", str(tmp_path / "o"), *places)
    missing = snip("download", "--dl_dedup_set", "False", *out)
    assert missing.exit_code and "no bitmap from a former call" in str(missing.exception)
    assert snip("download", "--dl_dedup_set=True", *out).exit_code == 0
    asked = len(mirror.asked("/is_dup.npy"))
    assert snip("download", "--dl_dedup_set", "False", *out).exit_code == 0
    assert len(mirror.asked("/is_dup.npy")) == asked
    assert snip("download", "--dl_dedup_set", "perhaps", *out).exit_code == 2


def test_json_is_all_there_is_on_stdout(mirror, snip, tmp_path):
    result = snip(
        "download", str(tmp_path / "o"), "--json", "--end", "1",
        "--metadata-url", f"{mirror.url}/metadata", "--bitmap", f"{mirror.url}/is_dup.npy",
    )  # fmt: skip
    values = json.loads(result.stdout)
    assert values["files"] == 1 and values["kept"] + values["dropped"] == faulty.LENGTHS[0]


def test_captions_are_shown_not_obeyed(snip, tmp_path):
    _, features = faulty.sample_rows()
    odd = ["[/red] [bold]x", "=cmd"] * 5
    (tmp_path / "m").mkdir()
    pq.write_table(pa.table({"URL": odd, "TEXT": odd}), tmp_path / "m" / "0.parquet")
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "0.npy", features[:10])
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    x = features[:10].astype(np.float32)
    index.add(x / np.linalg.norm(x, axis=1, keepdims=True))
    faiss.write_index(index, str(tmp_path / "i.index"))
    places = ("--index", "i.index", "--metadata", "m", "--features", "f")
    result = snip("search", "--row", "1", "-k", "2", *places)
    assert result.exit_code == 0, result.exception
    found = json.loads(snip("search", "--row", "1", "-k", "9", "--json", *places).stdout)
    assert {hit["caption"] for hit in found} == {"[/red] [bold]x", "=cmd"}
    assert [hit["distance"] for hit in found] == sorted(hit["distance"] for hit in found)


@pytest.mark.parametrize(
    "command", ["search --row 1 --depth 9999999999", "verify --bitmap is_dup.npy -k 9999999999999"]
)
def test_more_hits_than_memory_has_room_for_are_refused(snip, command):
    result = snip(*command.split())
    assert result.exit_code == 2 and "Invalid value" in result.output
