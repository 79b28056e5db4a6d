"""What a piece of work costs: its seconds, and the most resident memory of the process meanwhile.

The system's own high-water mark cannot be set back without spoiling it for whoever measures the
process from outside. So it is read before and after: if it rose, it is exact for this work; if
not, the highest of twenty looks a second is taken.
"""

from __future__ import annotations

import mmap
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05
_STATM = Path("/proc/self/statm")


@dataclass
class Measured:
    """What some work took, known once it is over. (`station_costs.Cost` is what is expected.)

    Attributes
    ----------
    seconds
        Of the clock.
    peak_memory
        Bytes of resident memory of this process at the most, with what it held before and with
        pages of files; None where the system does not say.
    """

    seconds: float = 0.0
    peak_memory: int | None = None

    @property
    def facts(self) -> dict[str, float | int]:
        """For a manifest."""
        known: dict[str, float | int] = {"seconds": round(self.seconds, 3)}
        return known | ({} if self.peak_memory is None else {"peak_memory": self.peak_memory})


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure the work inside; read the result afterwards."""
    cost, mark, started = Measured(), _highest(), time.perf_counter()
    seen, over = [_resident()], threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            seen[0] = max(seen[0], _resident())

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield cost
    finally:
        over.set()
        watcher.join()
        now = _highest()
        cost.seconds = time.perf_counter() - started
        cost.peak_memory = now if now > mark else max(seen[0], _resident()) or None


def _resident() -> int:
    """Bytes that are resident now; 0 where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _highest() -> int:
    """Bytes that were resident at the most since the process began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
