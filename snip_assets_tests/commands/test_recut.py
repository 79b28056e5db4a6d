"""The commands recut and apply, as typed."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from snip_assets.commands import recut
from snip_assets.engine import publish
from snip_assets.engine.layout import Layout
from snip_assets.engine.slices import Slices
from snip_assets.engine.storage.files import seal
from snip_assets_tests.engine.test_publish import run

__all__ = ["run"]


@pytest.fixture(scope="module")
def invoke(run):
    layout, registry, _, _ = run
    for key in registry.keys:
        seal(layout.duplicate_pairs(key), {}, max_distance=0.1)
    app = typer.Typer()
    recut.register(app)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_recut_prints_a_curve_or_writes_a_folder(run, invoke, tmp_path):
    root = run[0].root
    curve = json.loads(
        invoke("recut", root, "--max-distance", 0.01, "--max-distance", 0.1, "--json")
    )
    assert [row["max_distance"] for row in curve] == [0.01, 0.1]
    assert curve[1]["dropped"] == run[2]["dropped"]
    facts = json.loads(
        invoke("recut", root, "--out", tmp_path, "--max-distance", 0.01, "--json", "--keep",
               "smallest(original_size_bytes)", "--duplicate-count", "--keep-captions")
    )  # fmt: skip
    assert facts["dropped"] == curve[0]["dropped"] or facts["groups"] == curve[0]["groups"]
    assert "smallest" in invoke("recut", root, "--out", tmp_path, "--max-distance", 0.01,
                                "--keep", "smallest(original_size_bytes)")  # fmt: skip
    assert Layout(tmp_path).dup_bitmap.is_dir()
    # Another rule alone: at the threshold of the run.
    facts = json.loads(invoke("recut", root, "--out", tmp_path, "--keep", "first", "--json"))
    assert facts["max_distance"] == 0.1 and facts["rule"] == "first"
    assert facts["groups"] == curve[1]["groups"]


def test_apply_reports_each_file(run, invoke, tmp_path):
    layout, registry, facts, _ = run
    for shard in registry.shards:
        publish.drop_list(shard, Slices(layout.duplicate_groups), layout.drop_list(shard.key))
    output = invoke(
        "apply", "--drop-list", layout.drop_list("x").parent, "--metadata",
        registry.source.metadata, "--out", tmp_path, "--on", "key",
    )  # fmt: skip
    assert f"{facts['dropped']} dropped" in output and "metadata_0003.parquet" in output
    # As a process of its own: what libraries say when the interpreter ends is seen then alone.
    folders = "--drop-list", layout.drop_list("x").parent, "--metadata", registry.source.metadata
    command = [sys.executable, "-c", "from snip_assets.cli import main; main()", "apply"]
    command += [*map(str, folders), "--out", str(tmp_path / "again"), "--on", "key", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "leaked" not in done.stderr
