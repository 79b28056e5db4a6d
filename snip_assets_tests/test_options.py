"""One list of settings for the command line and Dagster."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest
import typer
from typer.testing import CliRunner

from snip_assets import graph
from snip_assets.cli import app
from snip_assets.engine import stations
from snip_assets.engine.errors import BadInputError, BadSettingsError, StaleOutputError
from snip_assets.engine.layout import Layout
from snip_assets.engine.run import Run
from snip_assets.engine.settings import Settings
from snip_assets.engine.shards import Source, register
from snip_assets.noted_settings import note_settings, noting
from snip_assets.options import (
    DEFAULT_OUT,
    SAMPLE,
    Out,
    default_of,
    known_settings,
    settings_options,
    with_settings,
)
from snip_assets.resources import DataSet
from snip_assets_tests.engine.station_tools import until_pairs


def test_every_setting_is_an_option_with_a_description() -> None:
    options = {o.name: o for o in settings_options()}
    assert set(options) == {f.name for f in dataclasses.fields(Settings)}
    assert [name for name, option in options.items() if not option.description] == []


def test_environment_changes_defaults() -> None:
    environment = {
        "SNIP_OUT": "/data/out",
        "SNIP_FEATURES": "/data/f",
        "SNIP_METADATA": "/data/m",
        "SNIP_MAX_DISTANCE": "0.2",
        "SNIP_WORKERS": "3",
    }
    data = DataSet.from_environment(environment)
    assert data.settings == Settings(max_distance=0.2, workers=3)
    assert data.layout.root == Path("/data/out")
    assert data.source.features == Path("/data/f")
    assert default_of(settings_options()[0], {}) == Settings().max_distance


def test_a_run_with_one_setting_changed_has_the_others_as_they_are() -> None:
    environment = {"SNIP_OUT": "/data/out", "SNIP_MAX_DISTANCE": "0.2"}
    found: list[DataSet] = []

    @dg.op
    def look(data: DataSet) -> None:
        found.append(data)

    @dg.job(resource_defs={"data": DataSet.from_environment(environment)})
    def launched() -> None:
        look()

    launched.execute_in_process({"resources": {"data": {"config": {"keep": "first"}}}})
    assert found[0].settings == Settings(max_distance=0.2, keep="first")
    assert (found[0].source, found[0].out) == (SAMPLE, "/data/out")


def test_the_sample_is_the_default() -> None:
    data = DataSet.from_environment({})
    assert data.settings == Settings()
    assert (data.source.features / "img_emb_0000.npy").is_file()


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(BadInputError, match="SNIP_MAX_DISTANCE=abc: not a number"):
        DataSet.from_environment({"SNIP_MAX_DISTANCE": "abc"})
    with pytest.raises(BadInputError, match="SNIP_TARGET_RECALL=nan: not a number"):
        DataSet.from_environment({"SNIP_TARGET_RECALL": "nan"})
    with pytest.raises(BadInputError, match=r"SNIP_WORKERS=2.5: not a whole number"):
        DataSet.from_environment({"SNIP_WORKERS": "2.5"})


def settings_of(out: Path, *given: str, noted: bool = True) -> tuple[Settings, str]:
    """What a command gets that is called with some options, and what it says of them."""
    found: list[Settings] = []

    def command(settings: Settings, out: Out = DEFAULT_OUT) -> None:
        found.append(settings)

    alone = typer.Typer()
    alone.command()(with_settings(command, noted=noted))
    result = CliRunner().invoke(alone, ["--out", str(out), *given], catch_exceptions=False)
    assert result.exit_code == 0
    return found[0], result.stderr


def test_settings_of_an_output_folder_hold_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of(tmp_path) == (Settings(), "")
    note_settings(Layout(tmp_path), Settings(max_distance=0.2, keep="first", workers=1))
    # How many threads work says nothing of the outputs.
    known = Settings(max_distance=0.2, keep="first")
    assert DataSet.from_environment({"SNIP_OUT": str(tmp_path)}).settings == known
    found, said = settings_of(tmp_path)
    assert found == known
    assert said.endswith("settings of the last `snip dedup` here: max_distance 0.2, keep first\n")
    assert settings_of(tmp_path, noted=False) == (Settings(), "")

    found, said = settings_of(tmp_path, "--max-distance", "0.1")
    assert found == Settings(keep="first") and "max_distance" not in said
    monkeypatch.setenv("SNIP_KEEP", "neighbours")
    assert settings_of(tmp_path)[0] == Settings(max_distance=0.2)
    note_settings(Layout(tmp_path), Settings())
    assert settings_of(tmp_path) == (Settings(), "")

    # As a run leaves it that is killed while it notes them.
    (tmp_path / ".tmp-settings.json-0123456789ab").touch()
    note_settings(Layout(tmp_path), known)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_settings_that_nothing_can_be_made_with_are_not_noted(tmp_path: Path) -> None:
    settings = Settings(learning_rate=1e30, pca_below=1, steps=20)
    data = DataSet.of(SAMPLE, tmp_path / "out", settings)
    note_settings(data.layout, Settings(max_distance=0.05))
    before = data.layout.settings.read_bytes()
    with pytest.raises(BadInputError, match="no finite numbers"):
        graph.materialize(data)
    assert data.layout.settings.read_bytes() == before


def test_settings_stay_noted_unless_they_are_at_fault(tmp_path: Path) -> None:
    layout = Layout(tmp_path)

    def fail(error: Exception, settings: Settings, meanwhile: Settings | None = None) -> Settings:
        with suppress(BadInputError), noting(layout, settings):
            if meanwhile is not None:
                note_settings(layout, meanwhile)
            raise error
        return known_settings(layout, {})

    near, first = Settings(max_distance=0.05), Settings(keep="first")
    assert fail(BadSettingsError("no"), near) == Settings()
    assert not layout.settings.exists()
    # The data are mended, and the same command goes on without the option.
    assert fail(BadInputError("row 7 is all zeros"), near) == near
    assert fail(BadSettingsError("no"), first) == near
    # Another run noted its own since.
    assert fail(BadSettingsError("no"), Settings(dim=64), first) == first


def test_an_output_folder_is_of_its_own_sources(tmp_path: Path) -> None:
    """What a run's configuration names is what it works on, or it fails."""
    layout, source = Layout(tmp_path / "out"), Source(tmp_path / "a", tmp_path / "b")
    shutil.copytree(SAMPLE.features, source.features)
    shutil.copytree(SAMPLE.metadata, source.metadata)
    register(layout, source, ["0000"])
    data = DataSet.from_environment({"SNIP_OUT": str(layout.root)})
    assert data.source == source and data.run().registry.keys == ["0000"]
    other = data.model_copy(update={"features": str(tmp_path), "metadata": str(tmp_path)})
    with pytest.raises(
        StaleOutputError, match=f"another data set.*; {tmp_path} comes from the run"
    ):
        other.run()


def test_a_net_is_noted_for_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    found, _ = settings_of(tmp_path / "out", "--model", "net.safetensors")
    note_settings(Layout(tmp_path / "out"), found)
    monkeypatch.chdir("/")
    known = DataSet.from_environment({"SNIP_OUT": str(tmp_path / "out")}).settings
    assert known == found == Settings(model=str(tmp_path / "net.safetensors"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").touch()
    # A word is no file, and what is not there is named as it was given.
    assert settings_of(tmp_path, "--model", "train")[0] == Settings()
    assert settings_of(tmp_path, "--model", "none.pt")[0].model == "none.pt"


def test_a_subcommand_is_not_about_the_output_folder_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `snip index` has this folder where none is named, `snip index export` another.
    monkeypatch.chdir(tmp_path)
    DEFAULT_OUT.mkdir(parents=True)
    (DEFAULT_OUT / "settings.json").write_text("{")
    monkeypatch.setattr("snip_assets.engine.index.export", lambda layout, to: to.touch())
    result = CliRunner().invoke(app, ["index", "export", "--out", "mine", "plain.index"])
    assert (result.exit_code, result.stderr) == (0, "")


def test_settings_of_outputs_without_a_note_are_theirs(tmp_path: Path) -> None:
    layout, chosen = Layout(tmp_path), Settings(max_distance=0.2, keep="first")
    register(layout, SAMPLE, ["0000"])
    run = Run(layout, chosen)
    until_pairs(run)
    # Which of both thresholds is wanted nobody can tell before something was decided.
    assert settings_of(tmp_path) == (Settings(), "")
    stations.duplicate_groups(run)
    assert settings_of(tmp_path)[0] == chosen
    assert DataSet.from_environment({"SNIP_OUT": str(tmp_path)}).settings == chosen

    # Once a run has noted that it had no settings, that holds.
    note_settings(layout, Settings())
    assert settings_of(tmp_path) == (Settings(), "")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"max_distance": "x"}',
        '{"max_distance": -1}',
        '{"keep": null}',
        '{"lists": 3.9}',
    ],
)
def test_damaged_settings_of_an_output_folder_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BadInputError, match=r"settings\.json: damaged .*Delete it"):
        DataSet.from_environment({"SNIP_OUT": str(tmp_path)})
