"""A step of the graph: faults that may pass are tried again, and what a user must mend is not."""

import errno
import socket
from pathlib import Path

import dagster as dg
import pytest

from snip_assets.assets import station
from snip_assets.engine.errors import BadInputError, SnipError
from snip_assets.engine.storage.remote import DownloadError


def _tries(tmp_path: Path, raised: list[Exception]) -> tuple[int, str]:
    """How often a step was begun that fails so often, and what its last failure says."""
    left, begun = [*raised], []

    @dg.asset
    def flaky(context: dg.AssetExecutionContext) -> None:
        begun.append(context.retry_number)
        with station.station(context):
            if left:
                raise left.pop(0)

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = dg.materialize([flaky], instance=instance, raise_on_error=False)
    said = [str(e.event_specific_data) for e in result.all_events if e.is_step_failure]
    assert result.success == (not said)
    return len(begun), "".join(said)


def _of(error: SnipError, cause: Exception) -> SnipError:
    error.__cause__ = cause
    return error


def test_faults_that_may_pass_are_tried_twice_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "_WAIT", 0)
    late = OSError(errno.EIO, "Input/output error")
    network = _of(DownloadError("s3://b/x: cannot be read."), ConnectionResetError())
    read = _of(BadInputError("x.npy: cannot be read; fetch it again."), late)
    assert _tries(tmp_path, [late, network]) == (3, "")
    full = _of(DownloadError("s3://b/x: cannot be read."), OSError(errno.EBUSY, "Slow down"))
    name = _of(DownloadError("s3://b/x"), socket.gaierror(socket.EAI_AGAIN, "try again"))
    assert _tries(tmp_path, [full, name]) == (3, "")
    tries, said = _tries(tmp_path, [late, network, read])
    assert tries == 3 and "x.npy: cannot be read; fetch it again." in said
    assert _tries(tmp_path, [BadInputError("x.npy: empty.")])[0] == 1
