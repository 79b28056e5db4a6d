"""Where data comes from, where it goes, and the settings of the engine.

One resource; every value shows in Dagster's launchpad with its default and description.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from .engine import choices, shards, stations
from .engine.layout import Layout
from .engine.remote_outputs import address
from .engine.settings import Settings
from .engine.shards import Source
from .engine.storage.remote_files import as_path
from .options import (
    default_out,
    default_source,
    known_settings,
    out_folder,
    settings_options,
    variable,
)


def _bound(name: str, default: float, description: str) -> Any:
    """A bound of the audit, from its environment variable where that is set."""
    name = f"SNIP_{name.upper()}"
    return Field(default=variable(name, default, float), description=f"{description} ({name})")


_fields: dict[str, Any] = {
    option.name: (option.type, Field(option.default, description=option.description))
    for option in settings_options()
}
_SettingsFields: Any = create_model("_SettingsFields", __base__=dg.ConfigurableResource, **_fields)


class DataSet(_SettingsFields):
    """A data set in the layout of clip-retrieval, its output folder, and the settings."""

    features: str = Field(description="Folder or url of img_emb_{key}.npy (SNIP_FEATURES).")
    metadata: str = Field(description="Folder or url of metadata_{key}.parquet (SNIP_METADATA).")
    out: str = Field(description="Output folder or url (SNIP_OUT).")

    @classmethod
    def of(cls, source: Source, out: Path, settings: Settings) -> DataSet:
        """From the engine's own objects."""
        return cls(
            features=str(source.features),
            metadata=str(source.metadata),
            out=address(out),
            **settings.__dict__,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DataSet:
        """From SNIP_* variables; without any, the built-in sample and ./out/demo.

        Settings without a variable are those of the last `snip dedup` into the output folder.
        """
        out = default_out(environment)
        layout = Layout(out)
        source = default_source(environment, layout)
        return cls.of(source, out, known_settings(layout, environment))._by_default()

    def _by_default(self) -> DataSet:
        """The same, where each value is the default of its own field.

        A run's configuration replaces a resource's values as a whole: what it does not name would
        be the default of the class, or be asked for.
        """
        fields: dict[str, Any] = {
            name: (field.annotation, Field(getattr(self, name), description=field.description))
            for name, field in DataSet.model_fields.items()
        }
        own: Any = create_model(DataSet.__name__, __base__=DataSet, **fields)
        own.__doc__ = DataSet.__doc__
        made: DataSet = own()
        return made

    @property
    def source(self) -> Source:
        """Where the shards lie."""
        return Source(as_path(self.features), as_path(self.metadata))

    @property
    def layout(self) -> Layout:
        """Where the outputs lie; of a url, in its working copy."""
        return Layout(out_folder(self.out))

    @property
    def settings(self) -> Settings:
        """Settings of the engine."""
        return Settings(**{o.name: getattr(self, o.name) for o in settings_options()})

    def run(self) -> stations.Run:
        """What every station of the engine takes.

        Raises
        ------
        StaleOutputError
            The output folder belongs to other source folders than these.
        """
        layout = self.layout
        shards.require_source(
            layout,
            self.source,
            f"{self.features} comes from the run's configuration, or from SNIP_FEATURES and "
            "SNIP_METADATA as they were when Dagster was started: change it there.",
        )
        return stations.Run(layout, self.settings)


class Watch(dg.ConfigurableResource):
    """How the source folders are watched for new shards."""

    marker: str = Field(
        default=os.environ.get("SNIP_MARKER", ""),
        description="Name of a file that says that a shard ({key} in the name) or the folder is "
        "complete; empty: a shard is, when two looks see the same sizes and times (SNIP_MARKER).",
    )
    most: int = Field(default=500, description="Shards to register in one look.")
    patience: int = Field(
        default=10,
        description="Looks for which complete shards wait for others that are still growing, so "
        "that a burst becomes one run.",
    )


class Audit(dg.ConfigurableResource):
    """How the result is verified: sizes of samples, and bounds."""

    seed: int = Field(default=0, description="Of the samples; the nightly check takes the date.")
    pairs: int = Field(default=choices.AUDITED_PAIRS, description="Pairs to measure again.")
    dropped: int = Field(default=2_000, description="Dropped rows to look at.")
    queries: int = Field(
        default=choices.AUDITED_ROWS,
        description="Rows whose true pairs with all later rows are searched for exactly; of many "
        "rows, as many pairs are looked at in random shards.",
    )
    precision_warn: float = _bound("precision_warn", 1.0, "Warn when precision is surely below.")
    precision_fail: float = _bound("precision_fail", 1.0, "Fail when precision is surely below.")
    recall_warn: float = _bound(
        "recall_warn", 0.0, "Warn when recall is surely below; 0: target_recall."
    )
    recall_fail: float = _bound("recall_fail", 0.9, "Fail when recall is surely below.")
    growth_warn: float = _bound(
        "growth_warn",
        4.0,
        "Warn when there are this many times the rows that the index was trained on: at 4 it has "
        "half of the inverted lists that it should have.",
    )
    code_error_warn: float = _bound(
        "code_error_warn",
        2.0,
        "Warn when rows that came after training have this many times the quantisation error.",
    )
    orphans_warn: float = _bound("orphans_warn", 0.0, "Warn when more are surely orphans.")
    orphans_fail: float = _bound("orphans_fail", 0.0, "Fail when more are surely orphans.")
