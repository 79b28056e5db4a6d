"""One list of settings for the command line and Dagster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from snip_assets.engine.errors import BadInputError
from snip_assets.engine.settings import Settings
from snip_assets.options import default_of, settings_options
from snip_assets.resources import DataSet


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


def test_the_sample_is_the_default() -> None:
    data = DataSet.from_environment({})
    assert data.settings == Settings()
    assert (data.source.features / "img_emb_0000.npy").is_file()


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(BadInputError, match="SNIP_MAX_DISTANCE=abc: not a number"):
        DataSet.from_environment({"SNIP_MAX_DISTANCE": "abc"})
    with pytest.raises(BadInputError, match=r"SNIP_WORKERS=2.5: not a whole number"):
        DataSet.from_environment({"SNIP_WORKERS": "2.5"})
