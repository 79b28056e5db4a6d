"""What starts runs when data arrives, and buries dead ones. Thin: see engine.arrivals.

Stopped by default. All state is on disk and in Dagster's runs: losing a cursor costs one look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import dropwhile

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher

from . import alerts, automation, checks
from .dead_runs import bury
from .engine import arrivals, stations
from .engine.arrivals import Look, Memory
from .engine.errors import SnipError
from .engine.layout import Layout
from .engine.shards import load
from .engine.storage.files import checksum, digest_of, manifest_path, read_manifest
from .engine.storage.remote_files import remote_state
from .engine.stretches import reach, stretches
from .partitions import announce
from .report import site
from .resources import DataSet, Watch
from .under_way import under_way

RUN_KEY = "dagster/run_key"
METADATA = dg.AssetKey("metadata")
ATTEMPTS = 3
# Whoever makes these makes what a sensor would ask for, or changes what it looks at.
_FOR_PAIRS = (*automation.INGEST, *automation.TRAIN, *automation.DEDUP)
_FOR_FEATURES: tuple[str, ...] = (*automation.INGEST, "snip_model", "snip_features")
_FOR_OUTPUT = (*automation.DEDUP, *automation.PUBLISH)


@dg.sensor(
    name="new_shards",
    job=automation.arrival,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Registers shards when both their files are complete, and runs them together from "
    "the features to the bitmap (`clean_output` publishes). What has changed, disappeared or is "
    "malformed is reported as the check `sources_in_order`.",
)
def new_shards(context: dg.SensorEvaluationContext, data: DataSet, watch: Watch) -> dg.SensorResult:
    """One look: register what is complete; one run for all that has no pairs yet."""
    memory = Memory.parse(context.cursor)
    try:
        new, seen = arrivals.look_and_admit(
            data.layout, data.source, memory, marker=watch.marker, most=watch.most
        )
        if data.layout.registry.exists():
            announce(context.instance, data.layout)
        requests, why = _runs(context.instance, data, seen, watch.patience)
    except SnipError as error:
        return _trouble(context.instance, memory, str(error))
    problems = seen.told()
    events = _report(context.instance, seen.memory, problems)
    say = f"{_counted(len(new), 'new shard')}; {why}" if new else why
    if problems:
        say += f"; {_counted(len(problems), 'problem')}: {' '.join(problems[:3])}"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else say[:2000],
        cursor=seen.memory.to_json(),
        asset_events=events,
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _named(keys: Collection[str]) -> str:
    """How many shards, and the first of their keys."""
    some = ", ".join(list(keys)[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{_counted(len(keys), 'shard')} ({some})"


def _trouble(instance: dg.DagsterInstance, memory: Memory, problem: str) -> dg.SensorResult:
    """The source or the registry cannot be read: report it, conclude nothing, keep the memory."""
    events = _report(instance, memory, [problem])
    return dg.SensorResult(skip_reason=problem, cursor=memory.to_json(), asset_events=events)


def _report(
    instance: dg.DagsterInstance, memory: Memory, problems: list[str]
) -> list[dg.AssetCheckEvaluation]:
    """The check's result when it differs from what was reported last; notes it in the memory.

    And once more after each run that materialised the metadata: from then on Dagster takes a check
    as not evaluated.
    """
    made = instance.get_latest_materialization_event(METADATA)
    said = digest_of(problems) if problems else "", made.timestamp if made else 0.0
    if said == (memory.reported, memory.reported_on):
        return []
    memory.reported, memory.reported_on = said
    return [
        dg.AssetCheckEvaluation(
            asset_key=METADATA,
            check_name="sources_in_order",
            passed=not problems,
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(problems[:5]) or None,
            metadata={"problems": len(problems), "all": dg.MetadataValue.json(problems[:1000])},
        )
    ]


def _runs(
    instance: dg.DagsterInstance, data: DataSet, seen: Look, patience: int
) -> tuple[list[dg.RunRequest], str]:
    """The runs to ask for, and why there are none."""
    layout = data.layout
    todo = _unfinished(data) if layout.registry.exists() else []
    if not todo:
        seen.memory.held, seen.memory.planned = 0, []
        left = [*seen.growing, *seen.complete]
        return [], f"{_named(left)} not complete yet" if left else "no new shard"
    jobs = (automation.ingest, automation.train, automation.dedup, automation.arrival)
    if other := under_way(instance, [job.name for job in jobs], _FOR_PAIRS):
        return [], f"{_named(todo)} to do after {other}"
    if following := _continued(instance, layout, seen.memory, todo):
        return [following], ""
    if (seen.growing or seen.complete) and seen.memory.held < patience:
        seen.memory.held += 1
        others = _named([*seen.growing, *seen.complete])
        return [], f"{_named(todo)} to do after {others}, still growing or next in turn"
    seen.memory.held = 0
    readable = {k for k in todo if read_manifest(layout.clip_features(k)) is not None}
    # A run needs the earlier shards too: what is put back may be tried with again.
    wrong = sorted(seen.problems.keys() & set(load(layout).keys))
    # Shards that were withdrawn and are there again have the files that they had.
    registered = layout.registry.stat().st_mtime_ns
    chosen = choose(
        todo,
        readable,
        lambda key: [*_files_of(data, seen, key), *wrong, registered],
        lambda key: _asked(instance, key),
        1 if wrong else ATTEMPTS,
    )
    if chosen is None and wrong:
        verb = "is" if len(wrong) == 1 else "are"
        return [], f"{_named(todo)} to do once {_named(wrong)} {verb} in order"
    if chosen is None:
        return [], (
            f"{_named(todo)} failed {ATTEMPTS} times: mend their files, or see the runs of "
            "`arrival`"
        )
    key, keys = chosen
    first, *after = _planned(layout, key, _with_later(data, keys))
    seen.memory.planned = [first, *after] if after else []
    return [_request(layout, *first)], ""


def _planned(layout: Layout, key: str, keys: list[str]) -> list[tuple[str, list[str], bool]]:
    """The runs for some shards, one for each stretch of neighbours; see `Memory.planned`.

    One after the other: pairs are with the codes of all earlier shards that were read, and the
    index is trained on the SNIP features of all of them.
    """
    parts = stretches(load(layout), keys)
    runs = [(part, False) for part in parts]
    if read_manifest(layout.trained_index) is None:
        runs = [*((part, True) for part in parts[1:]), *runs]
    return [(f"{key}-{n}" if n else key, *run) for n, run in enumerate(runs)]


def _continued(
    instance: dg.DagsterInstance, layout: Layout, memory: Memory, todo: list[str]
) -> dg.RunRequest | None:
    """The next of the planned runs; None after the last, and after one that has failed.

    None too when a shard of theirs was withdrawn.
    """
    wanted, known = {*todo}, {*load(layout).keys}
    if not all(known.issuperset(keys) for _, keys, _ in memory.planned):
        memory.planned = []

    def done(keys: list[str], compressed: bool) -> bool:
        if compressed:
            return all(read_manifest(layout.snip_features(key)) for key in keys)
        return not wanted & {*keys}

    memory.planned = [*dropwhile(lambda run: done(*run[1:]), memory.planned)]
    if memory.planned and not _asked(instance, memory.planned[0][0]):
        return _request(layout, *memory.planned[0])
    memory.planned = []
    return None


def _request(layout: Layout, key: str, keys: list[str], compressed: bool) -> dg.RunRequest:
    assets = _FOR_FEATURES if compressed else _FOR_PAIRS
    if not compressed and read_manifest(layout.trained_index) is not None:
        # Training again is a decision of the user, never of an arrival.
        assets = tuple(a for a in assets if a not in ("snip_model", "trained_index"))
    return dg.RunRequest(
        run_key=key,
        tags=automation.shard_range(layout, keys),
        asset_selection=[dg.AssetKey(a) for a in dict.fromkeys(assets)],
        asset_check_keys=checks.keys_of(assets),
    )


def _unfinished(data: DataSet) -> list[str]:
    """Shards without pairs, and those whose run ended between its pairs and the bitmap."""
    run = data.run()
    some = {*stations.unpaired(run), *stations.undecided(run)}
    return [key for key in run.registry.keys if key in some]


def _with_later(data: DataSet, keys: list[str]) -> list[str]:
    """Those shards, and later ones whose pairs will lack rows that this run encodes.

    Without them groups would be made, and judged, of pairs that are stale once it has encoded.
    """
    layout, every = data.layout, load(data.layout).keys
    fresh = {key for key in keys if read_manifest(layout.index_shards(key)) is None}
    wanted, after = set(keys), False
    for key in every:
        after = after or key in fresh
        if after and read_manifest(layout.duplicate_pairs(key)) is not None:
            wanted.add(key)
    return [key for key in every if key in wanted]


def choose(
    todo: list[str],
    readable: set[str],
    state: Callable[[str], object],
    asked: Callable[[str], bool],
    attempts: int = ATTEMPTS,
) -> tuple[str, list[str]] | None:
    """Which shards to run now, with a run key that no earlier request had.

    First all; when that failed and some could not be read, the readable ones by themselves; each
    set of shards a few times at the most, and again when one of their files has changed.

    Parameters
    ----------
    todo
        Shards that are not in the bitmap as they are.
    readable
        Those that passed the check of every row.
    state
        Sizes and times of the files of a shard, which others are not in order, and when shards
        were last registered or withdrawn.
    asked
        Whether a run was requested with a run key.
    attempts
        For one set of shards.
    """
    good = [key for key in todo if key in readable]

    def name_of(keys: list[str]) -> str:
        return f"{keys[0]}...{keys[-1]}-{digest_of([[key, state(key)] for key in keys])[:8]}"

    all_of_them, some = name_of(todo), name_of(good) if good else ""
    if not asked(f"{all_of_them}-1"):
        return f"{all_of_them}-1", todo
    whole = not good or len(good) == len(todo)
    name, keys = (all_of_them, todo) if whole else (some, good)
    for attempt in range(1, attempts + 1):
        if not asked(f"{name}-{attempt}"):
            return f"{name}-{attempt}", keys
    return None


def _files_of(data: DataSet, seen: Look, key: str) -> list[int]:
    """Sizes and times of a shard's files; a web server lists none of what is known already."""
    state = seen.now.state(key)
    if state is None or arrivals.UNSEEN[0] not in state:
        return list(state or ())
    shard = load(data.layout)[key]
    told = (remote_state(path) for path in (shard.features, shard.metadata))
    return [int(part) for text in told for part in text.split("-")]


def _asked(instance: dg.DagsterInstance, key: str) -> bool:
    return instance.get_runs_count(dg.RunsFilter(tags={RUN_KEY: key})) > 0


@dg.sensor(
    name="clean_output",
    job=automation.publish,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="When the bitmap has changed: one run that writes the cleaned metadata of the "
    "shards whose decision changed, and records that the others are up to date.",
)
def clean_output(
    context: dg.SensorEvaluationContext, data: DataSet
) -> dg.SensorResult | dg.SkipReason:
    """Publish each version of the bitmap once."""
    try:
        manifest = read_manifest(data.layout.dup_bitmap)
        if manifest is None:
            return dg.SkipReason(
                "There is no bitmap: `new_shards`, or a run of `arrival`, makes it."
            )
        # Of one that was made again, what it was made into before may be gone.
        made = checksum(manifest_path(data.layout.dup_bitmap))[:16]
        version = f"{manifest.version}-{made}"
        if version == context.cursor:
            return dg.SkipReason("The bitmap has not changed.")
        jobs = (automation.arrival, automation.dedup, automation.publish)
        if other := under_way(context.instance, [job.name for job in jobs], _FOR_OUTPUT):
            return dg.SkipReason(f"Waits for {other}, which may change the bitmap.")
        parts = _publishable(data)
    except SnipError as error:
        return dg.SkipReason(str(error))
    requests, given_up = [], 0
    for part in parts:
        name = f"{version}-{digest_of(part)[:8]}"
        key = _next_attempt(context.instance, name)
        given_up += key is None
        if key:
            tags = automation.shard_range(data.layout, part)
            requests.append(dg.RunRequest(run_key=key, tags=tags))
    if requests:
        return dg.SensorResult(run_requests=requests)
    if given_up:
        return dg.SkipReason(f"Publishing failed {ATTEMPTS} times; see the runs of `publish`.")
    return dg.SensorResult(skip_reason="Published.", cursor=version)


def _next_attempt(instance: dg.DagsterInstance, name: str) -> str | None:
    """A run key not used yet; empty when a run has succeeded, None when all have failed."""
    for attempt in range(1, ATTEMPTS + 1):
        runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY: f"{name}-{attempt}"}), limit=1)
        if not runs:
            return f"{name}-{attempt}"
        if runs[0].status is dg.DagsterRunStatus.SUCCESS:
            return ""
    return None


def _publishable(data: DataSet) -> list[list[str]]:
    """The shards of each run: from the first to the last of which something was decided otherwise.

    One shard where nothing was, but the report shows what was before. Shards whose metadata is
    gone are left out: `new_shards` tells of them.
    """
    run, registry = data.run(), load(data.layout)
    missing = {*stations.unpaired(run), *stations.without_metadata(run, registry.keys)}
    paired = [key for key in registry.keys if key not in missing]
    changed = set(stations.unpublished(run, paired))
    parts = [reach(part, changed) for part in stretches(registry, paired) if changed & {*part}]
    if not parts and paired and site.outdated(run):
        return [paired[-1:]]
    return parts


@dg.sensor(
    name="dead_runs",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process is gone (killed, out of memory, a restart): "
    "Dagster itself does not notice for runs that are processes of this machine.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look for the process of each run that is said to be at work."""
    if not isinstance(context.instance.run_launcher, DefaultRunLauncher):
        return dg.SkipReason("Runs are not processes of this machine.")
    at_work, buried = bury(context.instance, launched=True)
    return dg.SkipReason(f"{_counted(at_work, 'run')} at work, {buried} dead.")


SENSORS = [new_shards, clean_output, dead_runs, alerts.alert, alerts.check_alert]
