"""What the webhook gets, with a real server on loopback."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import traceback
from collections.abc import Iterator

import dagster as dg
import pytest

from snip_assets import alerts
from snip_assets.definitions import build_defs

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


class Hook:
    """A webhook that keeps what it gets, and answers with `status`."""

    def __init__(self) -> None:
        self.got: list[dict[str, str]] = []
        self.status = 204
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.status == 204:
                    hook.got.append(value)
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    found = Hook()
    monkeypatch.setenv("SNIP_WEBHOOK", found.address)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_the_webhook_gets_one_line_of_json_and_nothing_else_is_called(hook: Hook) -> None:
    text = alerts.failure_text("arrival", "0123456789", "a\n  b")
    alerts.post(hook.address, {"text": text})
    assert hook.got == [{"text": "snip: run 01234567 of arrival failed. a b"}]
    with pytest.raises(ValueError, match="http"):
        alerts.post("file:///etc/passwd", {})
    with pytest.raises(OSError, match="InvalidURL") as told:
        alerts.post(f"{hook.address}a\nSECRET", {})
    assert "SECRET" not in str(told.value)
    assert "pw" not in alerts.failure_text("arrival", "0123456789", "https://me:pw@host/a.npy")


def test_the_address_is_in_no_message_and_no_log(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # Half of a surrogate pair: of a file name that is no text.
    alerts.post(f"{hook.address}SECRET", {"text": "\udc80"})
    assert hook.got == [{"text": "\udc80"}]
    hook.status = 500
    with pytest.raises(OSError, match="answered 500") as refused:
        alerts.post(f"{hook.address}SECRET", {})
    with pytest.raises(OSError, match="ConnectError") as nobody:
        alerts.post("http://127.0.0.1:1/SECRET", {})
    raised = [*traceback.format_exception(refused.value), *traceback.format_exception(nobody.value)]
    said = [line for line in raised if "alerts.post(" not in line]
    assert "SECRET" not in caplog.text + "".join(said)


@pytest.mark.parametrize("error", [dg.Failure("shard 7: put it back"), ValueError("shard 7: no")])
def test_a_failed_run_is_told_with_what_its_step_said(hook: Hook, error: Exception) -> None:
    @dg.op
    def read() -> None:
        raise error

    @dg.job
    def arrival() -> None:
        read()

    with dg.DagsterInstance.ephemeral() as instance:
        result = arrival.execute_in_process(instance=instance, raise_on_error=False)
        (failed,) = [e for e in result.all_events if e.event_type_value == "PIPELINE_FAILURE"]
        context = dg.build_run_status_sensor_context(
            "alert", failed, instance, result.dagster_run
        ).for_run_failure()
        alerts.alert(context)
    (told,) = hook.got
    assert "of arrival failed. read: " in told["text"] and "shard 7: " in told["text"]


class Watched:
    """An instance whose checks give results, and ticks of the sensor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None
        self.defs = build_defs()

    def result(
        self, name: str, asset: str, passed: bool, severity: dg.AssetCheckSeverity, said: str = ""
    ) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset),
                check_name=name,
                passed=passed,
                severity=severity,
                description=said,
            )
        )

    def begin(self) -> None:
        """A run of all checks that has told no result yet."""
        self.instance.create_run_for_job(self.defs.resolve_job_def("verify"))

    def tick(self) -> str:
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, definitions=self.defs)
        result = alerts.check_alert(context)
        self.cursor = getattr(result, "cursor", self.cursor)
        skip = result if isinstance(result, dg.SkipReason) else result.skip_reason
        return str(getattr(skip, "skip_message", skip))


def test_a_failed_check_is_told_once_until_it_has_passed(hook: Hook) -> None:
    with dg.DagsterInstance.local_temp() as instance:
        watched = Watched(instance)
        watched.result("sources_in_order", "metadata", False, ERROR, "0001: has\nchanged")
        watched.result("no_orphans", "dup_bitmap", True, ERROR)
        watched.result("drift", "duplicate_pairs", False, WARN, "train again")
        hook.status = 500
        assert watched.tick() == "0 checks are red, 0 of them told now."
        hook.status = 204
        watched.tick()
        watched.tick()
        assert hook.got == [
            {
                "text": "snip: error of the check sources_in_order on metadata. 0001: has changed",
                "asset": "metadata",
                "check": "sources_in_order",
                "severity": "ERROR",
            }
        ]
        watched.result("sources_in_order", "metadata", False, ERROR, "0001: has\nchanged")
        watched.tick()
        assert len(hook.got) == 1
        watched.result("sources_in_order", "metadata", True, ERROR)
        watched.tick()
        watched.result("sources_in_order", "metadata", False, ERROR, "0001: has\nchanged")
        watched.tick()
        assert len(hook.got) == 2


def test_what_was_told_stays_told_while_the_check_runs_again(hook: Hook) -> None:
    with dg.DagsterInstance.local_temp() as instance:
        watched = Watched(instance)
        watched.result("no_orphans", "dup_bitmap", False, ERROR, "1 of 9")
        assert watched.tick() == "1 checks are red, 1 of them told now."
        watched.begin()
        assert watched.tick() == "1 checks are red, 0 of them told now."
        watched.result("no_orphans", "dup_bitmap", False, ERROR, "1 of 9")
        assert watched.tick() == "1 checks are red, 0 of them told now."
        watched.result("no_orphans", "dup_bitmap", False, ERROR, "2 of 9")
        assert watched.tick() == "1 checks are red, 1 of them told now."
        assert len(hook.got) == 2


def test_warnings_are_told_when_asked_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.local_temp() as instance:
        watched = Watched(instance)
        watched.result("drift", "duplicate_pairs", False, WARN, "train again")
        watched.tick()
        assert hook.got == []
        monkeypatch.setenv("SNIP_WEBHOOK_WARNINGS", "1")
        watched.tick()
        watched.tick()
        (told,) = hook.got
        assert told["severity"] == "WARN" and "warning of the check drift" in told["text"]
        monkeypatch.delenv("SNIP_WEBHOOK")
        assert "not set" in watched.tick()


def test_nothing_is_sent_unless_an_address_is_set() -> None:
    assert alerts.check_alert.default_status is dg.DefaultSensorStatus.STOPPED
    assert alerts.alert.default_status is dg.DefaultSensorStatus.STOPPED
