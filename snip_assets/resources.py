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

from .engine import stations
from .engine.layout import Layout
from .engine.settings import Settings
from .engine.shards import Source
from .options import default_of, default_out, default_source, settings_options

_SettingsFields: Any = create_model(
    "_SettingsFields",
    __base__=dg.ConfigurableResource,
    **{
        option.name: (option.type, Field(option.default, description=option.description))
        for option in settings_options()
    },  # type: ignore[call-overload]
)


class DataSet(_SettingsFields):
    """A data set in the layout of clip-retrieval, its output folder, and the settings."""

    features: str = Field(description="Folder of img_emb_{key}.npy (SNIP_FEATURES).")
    metadata: str = Field(description="Folder of metadata_{key}.parquet (SNIP_METADATA).")
    out: str = Field(description="Output folder (SNIP_OUT).")

    @classmethod
    def of(cls, source: Source, out: Path, settings: Settings) -> DataSet:
        """From the engine's own objects."""
        return cls(
            features=str(source.features),
            metadata=str(source.metadata),
            out=str(out),
            **settings.__dict__,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DataSet:
        """Defaults from SNIP_* variables; without any, the built-in sample and ./out/demo."""
        values = {o.name: default_of(o, environment) for o in settings_options()}
        return cls.of(default_source(environment), default_out(environment), Settings(**values))

    @property
    def source(self) -> Source:
        """Where the shards lie."""
        return Source(Path(self.features), Path(self.metadata))

    @property
    def layout(self) -> Layout:
        """Where the outputs lie."""
        return Layout(Path(self.out))

    @property
    def settings(self) -> Settings:
        """Settings of the engine."""
        return Settings(**{o.name: getattr(self, o.name) for o in settings_options()})

    def run(self) -> stations.Run:
        """What every station of the engine takes."""
        return stations.Run(self.layout, self.settings)
