"""The engine's settings as options: one list of names, types, defaults and descriptions.

The command line and the Dagster resource are both built from it, so neither can differ from
`engine.settings.Settings`, nor from each other.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .engine.errors import BadInputError
from .engine.layout import Layout
from .engine.settings import Settings
from .engine.shards import Source, load
from .engine.storage.remote_files import as_path, home_expanded, is_remote
from .noted_settings import noted_settings

_SAMPLE = Path(__file__).parent / "sample"
SAMPLE_FEATURES, SAMPLE_METADATA = _SAMPLE / "img_emb", _SAMPLE / "metadata"
SAMPLE = Source(SAMPLE_FEATURES, SAMPLE_METADATA)
DEFAULT_OUT = Path("out") / "demo"
PREFIX = "SNIP_"


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: its name, type, default and what it does."""

    name: str
    type: type
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that changes its default."""
        return PREFIX + self.name.upper()


def settings_options() -> list[Option]:
    """All settings of the engine, in their order, described by the docstring of `Settings`."""
    described = _attributes(inspect.getdoc(Settings) or "")
    types = get_type_hints(Settings)
    return [
        Option(f.name, types[f.name], f.default, described.get(f.name, ""))
        for f in dataclasses.fields(Settings)
    ]


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in docstring.split("Attributes\n----------\n")[-1].splitlines():
        if re.fullmatch(r"[a-z_]+(, [a-z_]+)*", line):
            names = line.split(", ")
            found |= {name: [] for name in names}
        elif line.startswith("    "):
            for name in names:
                found[name].append(line.strip())
        else:
            names = []
    return {name: " ".join(lines).replace("`", "") for name, lines in found.items()}


def default_of(option: Option, environment: Mapping[str, str] = os.environ) -> Any:
    """The default of a setting, read from its environment variable where that is set."""
    return variable(option.variable, option.default, option.type, environment)


def known_settings(layout: Layout, environment: Mapping[str, str] = os.environ) -> Settings:
    """What runs in an output folder have where nobody says otherwise: as `note_settings` noted.

    An environment variable that is set says otherwise.
    """
    noted = noted_settings(layout)
    options = [dataclasses.replace(o, default=noted[o.name]) for o in settings_options()]
    return _settings({o.name: default_of(o, environment) for o in options})


def _settings(values: Mapping[str, Any]) -> Settings:
    """Settings that mean the same in any working folder: the file of a net by its whole path."""
    found = Settings(**values)
    if found.model in ("train", "published") or not Path(found.model).is_file():
        return found
    return dataclasses.replace(found, model=str(Path(found.model).absolute()))


def variable(
    name: str, default: Any, kind: type, environment: Mapping[str, str] = os.environ
) -> Any:
    """What an environment variable says, or the default where it is not set.

    Raises
    ------
    BadInputError
        It is not of that kind.
    """
    text = environment.get(name)
    try:
        value = kind(text) if text else default
        if kind is float and not math.isfinite(value):
            raise ValueError(text)
        return value
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise BadInputError(f"{name}={text}: not {what}; change it or unset it.") from error


def use_noted(out: Path | None) -> Settings:
    """Use the cache of remote files that was noted in an output folder, and return what was noted.

    For commands that take no settings. Without a folder: the defaults, and no cache.
    """
    from .engine.run import use_cache

    if out is None:
        return Settings()
    known = known_settings(Layout(out))
    use_cache(Layout(out), known.cache, known.cache_gb)
    return known


def default_source(
    environment: Mapping[str, str] = os.environ, layout: Layout | None = None
) -> Source:
    """SNIP_FEATURES and SNIP_METADATA; else what is registered, or the built-in sample.

    Raises
    ------
    BadInputError
        One of them is set without the other.
    """
    named = [environment.get(name) for name in ("SNIP_FEATURES", "SNIP_METADATA")]
    features, metadata = (as_path(name) if name else None for name in named)
    if layout is not None and not any(named) and layout.registry.exists():
        return load(layout).source
    return _both(features, metadata) or SAMPLE


def _both(features: Path | None, metadata: Path | None) -> Source | None:
    """The source of both folders; None if none is named."""
    if features is not None and metadata is not None:
        return Source(features, metadata)
    if features is metadata is None:
        return None
    given, absent = ("features", "metadata") if metadata is None else ("metadata", "features")
    raise BadInputError(
        f"--{given} {features or metadata} without --{absent}: rows would be taken for those of "
        f"other files; give --{absent} (or SNIP_{absent.upper()}) too."
    )


def chosen_source(features: Path | None, metadata: Path | None, out: Path) -> Source:
    """The folders that were named; else those that the output folder is of, or the sample."""
    layout = Layout(out)
    if layout.registry.exists():
        known = load(layout).source
        return Source(features or known.features, metadata or known.metadata)
    return _both(features, metadata) or SAMPLE


def default_out(environment: Mapping[str, str] = os.environ) -> Path:
    """SNIP_OUT (of a url: its working copy), or ./out/demo."""
    return out_folder(environment.get("SNIP_OUT") or str(DEFAULT_OUT))


def out_folder(text: str | Path) -> Path:
    """An output folder; of a url its working copy."""
    if (here := _here(text)) is not None:
        return here
    # Not needed for --help.
    from .engine.remote_outputs import folder

    return folder(text)


def _here(text: str | Path) -> Path | None:
    """A folder here, None for a url."""
    given = str(text)
    if not given:
        raise typer.BadParameter("it is empty; name a folder (`.` for this one).")
    if "://" in given:
        return None
    if given.startswith(("hf:", "gdrive:")):
        raise typer.BadParameter(f"{given}: nothing is written there; give a folder or a url.")
    return home_expanded(given)


def named(out: Path) -> str:
    """An output folder as the user names it: of a working copy the url."""
    from .engine import remote_outputs

    return remote_outputs.named(out)


def written_folder(text: str | Path) -> Path:
    """A folder for what a command writes once; at a url once the command has ended."""
    if (here := _here(text)) is not None:
        return here
    from .engine.remote_outputs import outbox

    return outbox(text)


def written_file(text: str | Path) -> Path:
    """A file that a command writes once; at a url once the command has ended."""
    if (here := _here(text)) is not None:
        return here
    folder, _, name = str(text).rpartition("/")
    if "://" not in folder or not name:
        raise typer.BadParameter(f"{text}: names no file in a bucket or folder.")
    return written_folder(folder) / name


def read_here(*locations: Path | None, written_to: Path | None = None) -> list[Path | None]:
    """Local paths of what a command reads; of urls, what was fetched from there.

    Parameters
    ----------
    written_to
        Where the command writes: none of them.
    """
    from .engine.remote_inputs import local_copy, same_place
    from .engine.remote_outputs import box_of

    written = None if written_to is None else box_of(written_to)
    for location in filter(is_remote, [place for place in locations if place is not None]):
        # Its folder too: files keep their names.
        if written is not None and same_place(written, location, location.parent):
            raise BadInputError(f"{location}: would be written over; choose another folder.")
    return [None if location is None else local_copy(location) for location in locations]


Input: dict[str, Any] = {"parser": as_path, "metavar": "PATH|URL"}
OutputFolder: dict[str, Any] = {"parser": written_folder, "metavar": "PATH|URL"}
OutputFile: dict[str, Any] = {"parser": written_file, "metavar": "PATH|URL"}

Out = Annotated[
    Path,
    typer.Option(
        parser=out_folder,
        metavar="PATH|URL",
        help="Output folder; of a url, a working copy is kept here (SNIP_WORK says where).",
        envvar="SNIP_OUT",
        rich_help_panel="Data",
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        parser=as_path,
        metavar="PATH|URL",
        help="Folder or url of img_emb_{key}.npy: rows x dimension, float16, float32 or float64. "
        "Not given: the data set that --out holds already, else the sample.",
        envvar="SNIP_FEATURES",
        rich_help_panel="Data",
    ),
]
Metadata = Annotated[
    Path | None,
    typer.Option(
        parser=as_path,
        metavar="PATH|URL",
        help="Folder or url of metadata_{key}.parquet: row i belongs to row i of the features. Not "
        "given: as for --features.",
        envvar="SNIP_METADATA",
        rich_help_panel="Data",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def with_settings(command: Callable[..., None], *, noted: bool = True) -> Callable[..., None]:
    """Give a command, whose first parameter is `settings`, an option for each setting.

    Those that are not given are, with `noted`, what was noted in the output folder; this is told.
    """
    own = inspect.signature(command, eval_str=True).parameters

    def call(**values: Any) -> None:
        context = values["context"] if "context" in own else values.pop("context")
        chosen = {o.name: values.pop(o.name) for o in settings_options()}
        # A subcommand takes none, and has an output folder of its own.
        if noted and context.invoked_subcommand is None:
            chosen |= _not_given(context, chosen, values["out"])
        command(settings=_settings(chosen), **values)

    only_named = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", only_named, annotation=typer.Context)]
    known = ("settings", "context")
    parameters += [p.replace(kind=only_named) for p in own.values() if p.name not in known]
    for option in settings_options():
        shown = typer.Option(
            help=option.description, envvar=option.variable, rich_help_panel="Settings"
        )
        kind: Any = option.type
        annotation = Annotated[kind, shown]
        parameters.append(
            inspect.Parameter(
                option.name, only_named, default=option.default, annotation=annotation
            )
        )
    made: Any = call
    made.__signature__ = inspect.Signature(parameters)
    made.__annotations__ = {p.name: p.annotation for p in parameters}
    made.__doc__, made.__name__ = command.__doc__, command.__name__
    return made


def _not_given(context: typer.Context, chosen: dict[str, Any], out: Path) -> dict[str, Any]:
    """What was noted in the output folder of settings that were not given."""
    found = {
        name: value
        for name, value in noted_settings(Layout(out)).items()
        if value != chosen[name] and _by_default(context, name)
    }
    if found:
        said = ", ".join(f"{name} {value}" for name, value in found.items())
        whose = "of the last `snip dedup` here"
        if not Layout(out).settings.exists():
            whose = "that the outputs here were made with"
        typer.echo(f"{named(out)}: settings {whose}: {said}", err=True)
    return found


def _by_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"
