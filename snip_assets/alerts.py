"""What tells people: failed runs and failed checks, a line of JSON each to a webhook."""

from __future__ import annotations

import json
import os

import dagster as dg
import httpx
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from .engine.errors import without_secrets
from .engine.storage.files import digest_of
from .engine.storage.remote import Policy, Session

WEBHOOK = os.environ.get("SNIP_WEBHOOK", "")
_STATUS = dg.DefaultSensorStatus.RUNNING if WEBHOOK else dg.DefaultSensorStatus.STOPPED
MOST_TEXT = 500
# Seconds.
TIMEOUT = 10.0


@dg.run_failure_sensor(
    name="alert",
    minimum_interval_seconds=30,
    default_status=_STATUS,
    description="Posts a line of JSON to SNIP_WEBHOOK when a run fails; off while that is unset.",
)
def alert(context: dg.RunFailureSensorContext) -> None:
    """Tell the webhook about a failed run."""
    address = os.environ.get("SNIP_WEBHOOK", "")
    if not address:
        context.log.info("SNIP_WEBHOOK is not set: nothing is sent.")
        return
    run = context.dagster_run
    text = failure_text(run.job_name, run.run_id, _reason(context))
    try:
        post(address, {"text": text, "job": run.job_name, "run_id": run.run_id})
    except (OSError, ValueError) as error:
        context.log.error(f"The webhook could not be reached: {error}")


@dg.sensor(
    name="check_alert",
    minimum_interval_seconds=30,
    default_status=_STATUS,
    description="Posts a line of JSON to SNIP_WEBHOOK when an asset check has failed, also one "
    "that stops no run; warnings too with SNIP_WEBHOOK_WARNINGS=1. What has been told is told "
    "again only after it has passed or says something else. Off while SNIP_WEBHOOK is unset.",
)
def check_alert(context: dg.SensorEvaluationContext) -> dg.SkipReason | dg.SensorResult:
    """Tell the webhook about checks whose last result is a failure that it does not know yet."""
    address = os.environ.get("SNIP_WEBHOOK", "")
    definition = context.repository_def
    if not address or definition is None:
        return dg.SkipReason("SNIP_WEBHOOK is not set: nothing is sent.")
    keys = sorted(definition.asset_graph.asset_check_keys)
    latest = context.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    warnings = os.environ.get("SNIP_WEBHOOK_WARNINGS", "").lower() in ("1", "true", "yes")
    before: dict[str, str] = json.loads(context.cursor or "{}")
    told, sent = {}, 0
    for record in latest.values():
        name = record.key.to_user_string()
        failed = _failure(record, warnings)
        if failed is None:
            # Still at work: what was told about the result before it stays told.
            if record.status is AssetCheckExecutionRecordStatus.PLANNED and name in before:
                told[name] = before[name]
            continue
        digest = digest_of([failed["severity"], failed["text"]])
        if before.get(name) != digest:
            try:
                post(address, failed)
            except (OSError, ValueError) as error:
                context.log.error(f"The webhook could not be reached: {error}")
                continue
            sent += 1
        told[name] = digest
    say = f"{len(told)} checks are red, {sent} of them told now."
    return dg.SensorResult(skip_reason=say, cursor=json.dumps(told, sort_keys=True))


def _failure(record: AssetCheckExecutionRecord, warnings: bool) -> dict[str, str] | None:
    """What to send about the last result of a check; None when there is nothing to tell."""
    event = record.event
    if event is None or record.status is not AssetCheckExecutionRecordStatus.FAILED:
        return None
    found = event.asset_check_evaluation
    if found is None or (found.severity is dg.AssetCheckSeverity.WARN and not warnings):
        return None
    asset = found.asset_key.to_user_string()
    severity = found.severity.value
    return {
        "text": check_text(asset, found.check_name, severity, found.description or ""),
        "asset": asset,
        "check": found.check_name,
        "severity": severity,
    }


def _reason(context: dg.RunFailureSensorContext) -> str:
    """What the first step that failed said, or the run where none did."""
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return f"{event.step_key}: {data.user_failure_data.description}"
        if (error := data.error) is not None:
            while error.cause is not None:
                error = error.cause
            return f"{event.step_key}: {error.message}"
    return context.failure_event.message or ""


def failure_text(job: str, run_id: str, message: str) -> str:
    """One line for a chat."""
    return f"snip: run {run_id[:8]} of {job} failed. {_line(message)}"


def check_text(asset: str, check: str, severity: str, description: str) -> str:
    """One line for a chat."""
    level = "warning" if severity == "WARN" else "error"
    return f"snip: {level} of the check {check} on {asset}. {_line(description)}"


def _line(text: str) -> str:
    return " ".join(without_secrets(text).split())[:MOST_TEXT]


def post(address: str, value: dict[str, str]) -> None:
    """POST JSON to an http(s) address.

    Raises
    ------
    ValueError
        The address is of another kind.
    OSError
        It cannot be reached, or says no.
    """
    if not address.startswith(("http://", "https://")):
        # The address is a secret.
        raise ValueError("SNIP_WEBHOOK is not an http(s) address")
    # Not `json=`, which refuses what no text may hold, such as half of a surrogate pair.
    body, headers = json.dumps(value), {"Content-Type": "application/json"}
    try:
        # A session keeps addresses out of the logs.
        with Session(Policy(timeout=TIMEOUT)) as session:
            session.client.post(address, content=body, headers=headers).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise OSError(f"SNIP_WEBHOOK answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
        # Its text may hold the address. (A proxy in the environment may ask for a package.)
        raise OSError(f"SNIP_WEBHOOK: {type(error).__name__}") from None
