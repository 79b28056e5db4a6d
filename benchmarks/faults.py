"""Faults, many times each: survived / tried.

    python -m benchmarks.faults                       # all, with the numbers of the table
    python -m benchmarks.faults --only kill --kills 3

Everything runs on the built-in sample (2,000 rows), each station in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import common, fault_inputs
from benchmarks.fault_tools import (
    STATIONS,
    Child,
    contents,
    copy_base,
    leftovers,
    outputs,
    register,
    remove,
    station,
)
from snip_assets.engine import shards
from snip_assets.engine.layout import Layout
from snip_assets.engine.storage.files import manifest_path

# Station whose stored output is damaged -> the stations that read it.
READERS = {
    "clip_features": ("snip_features", "duplicate_pairs", "trained_index"),
    "snip_model": ("snip_features",),
    "snip_features": ("index_shards", "duplicate_pairs", "trained_index"),
    "trained_index": ("index_shards", "duplicate_pairs"),
    "index_shards": ("snip_index", "duplicate_pairs"),
    "snip_index": ("duplicate_pairs",),
    "duplicate_pairs": ("duplicate_groups",),
    "duplicate_groups": ("dup_bitmap", "deduped_metadata", "drop_list"),
    "dup_bitmap": ("deduped_metadata", "drop_list"),
}


class Table:
    """Counts by fault."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}

    def add(self, fault: str, held: bool, why: str = "") -> None:
        """Count one trial."""
        row = self.rows.setdefault(fault, {"fault": fault, "survived": 0, "tried": 0})
        row["tried"] += 1
        row["survived"] += bool(held)
        if not held:
            row.setdefault("failures", []).append(why[:600])
            print(f"NOT SURVIVED  {fault}: {why[:600]}", flush=True)

    def note(self, fault: str, **values: object) -> None:
        """Say more about a fault."""
        self.rows.setdefault(fault, {"fault": fault, "survived": 0, "tried": 0}).update(values)

    def show(self) -> None:
        """Print."""
        rows = [{k: v for k, v in r.items() if k != "failures"} for r in self.rows.values()]
        common.table("Faults", rows)


class Faults:
    """An undisturbed run, and a folder in which to disturb copies of it."""

    def __init__(self, folder: Path, table: Table, seed: int) -> None:
        self.folder, self.table = folder, table
        self.random = random.Random(seed)
        self.base = folder / "base"
        self.seconds: dict[str, float] = {}
        # The second run has compiled functions in the cache: its times are those of the table.
        for _ in range(2):
            shutil.rmtree(self.base, ignore_errors=True)
            self._must(lambda: register(self.base))
            for name in STATIONS:
                self.seconds[name] = self._must(lambda name=name: station(self.base, name))
        self.truth = {name: contents(self.base, name) for name in STATIONS}

    @staticmethod
    def _must(work: Callable[[], None]) -> float:
        end = Child(work).end()
        if end.code:
            raise RuntimeError(end.message)
        return end.seconds

    def trial(self) -> Path:
        """A place for a copy."""
        return self.folder / "trial"

    def equal(self, root: Path, name: str) -> str:
        """Empty when a station's outputs are byte for byte those of the undisturbed run."""
        try:
            found = contents(root, name)
        except OSError as error:
            return f"{name}: {error}"
        wrong = [k for k in {*found, *self.truth[name]} if found.get(k) != self.truth[name].get(k)]
        return f"{name}: differs: {wrong[:3]}" if wrong else ""

    def again(self, root: Path, name: str) -> str:
        """Run a station once more; empty when it succeeds and its outputs are right."""
        end = Child(lambda: station(root, name)).end()
        if end.code:
            return f"{name}: {end.message}"
        left = [p for p in leftovers(root) if ".tmp" in p]
        return self.equal(root, name) or (f"left: {left[:3]}" if left else "")

    def kills(self, times: int) -> None:
        """SIGKILL at a random moment, every other time as soon as a temporary file appears."""
        for name in STATIONS:
            for number in range(times):
                root = copy_base(self.base, self.trial(), name)
                child = Child(lambda name=name, root=root: station(root, name))
                if number % 2:
                    self._until_temporary(root, child)
                    time.sleep(self.random.uniform(0, 0.02))
                else:
                    time.sleep(self.random.uniform(0, self.seconds[name]))
                child.kill()
                killed = child.end().code == -9
                why = self.again(root, name)
                if number == times - 1:
                    print(f"kills in {name} done", flush=True)
                self.table.add(f"SIGKILL in {name}", not why, why)
                row = self.table.rows[f"SIGKILL in {name}"]
                row["killed before the end"] = row.get("killed before the end", 0) + killed

    @staticmethod
    def _until_temporary(root: Path, child: Child) -> None:
        while child.alive() and not any(".tmp" in p for p in leftovers(root)):
            time.sleep(0.001)

    def races(self, times: int) -> None:
        """Two runs of the same station and shards at once."""
        for number in range(times):
            name = STATIONS[number % len(STATIONS)]
            root = copy_base(self.base, self.trial(), name)
            two = [Child(lambda name=name, root=root: station(root, name)) for _ in range(2)]
            ends = [child.end() for child in two]
            why = "; ".join(e.message for e in ends if e.code) or self.equal(root, name)
            self.table.add("two runs at once", not why, f"{name}: {why}")

    def flips(self, times: int) -> None:
        """A byte of a stored file flipped: the next station that reads it must say so."""
        places = [(n, f) for n in READERS for f in self._files(n)]
        for _ in range(times):
            name = self.random.choice(list(READERS))
            file = self.random.choice([f for n, f in places if n == name])
            reader = self.random.choice(READERS[name])
            root = copy_base(self.base, self.trial())
            remove(root, reader)
            flip(root / file, self.random)
            end = Child(lambda root=root, reader=reader: station(root, reader)).end()
            named = end.code == 1 and name in end.message
            why = f"{file} read by {reader}: {end.code} {end.message}"
            self.table.add(f"flipped byte in {name}", named, why)

    def _files(self, name: str) -> Iterator[Path]:
        for output in outputs(self.base, name):
            files = sorted(output.rglob("*")) if output.is_dir() else [output]
            yield from (
                f.relative_to(self.base)
                for f in files
                if f.is_file() and f.stat().st_size and not f.name.endswith(".manifest.json")
            )

    def manifest_flips(self, times: int) -> None:
        """A byte of a manifest or of the registry flipped: told, or made again as it was."""
        for _ in range(times):
            name = self.random.choice(list(READERS))
            reader = self.random.choice(READERS[name])
            root = copy_base(self.base, self.trial())
            remove(root, reader)
            file = manifest_path(self.random.choice(outputs(root, name)))
            file = self.random.choice([file, file, Layout(root).registry])
            flip(file, self.random)
            end = Child(lambda root=root, reader=reader: station(root, reader)).end()
            held = end.code == 1 or (end.code == 0 and self._same_files(root, reader))
            why = f"{file.name}, {reader}: {end.code} {end.message}"
            self.table.add("flipped byte in a manifest or the registry", held, why)

    def _same_files(self, root: Path, name: str) -> bool:
        def plain(found: dict[str, bytes]) -> dict[str, bytes]:
            return {k: v for k, v in found.items() if "manifest" not in k}

        return plain(contents(root, name)) == plain(self.truth[name])

    def full_disks(self) -> None:
        """No room for a station's largest file: a clear error, and the old output untouched."""
        for name in STATIONS:
            root = copy_base(self.base, self.trial())
            sizes = [(root / f).stat().st_size for f in self._files_of(name)]
            remove(root, name, manifest_only=True)
            before = self._plain(root, name)
            limit = max(max(sizes) // 2, 16)
            end = Child(lambda name=name, root=root: station(root, name), limit).end()
            clear = end.code == 1 and "no space left" in end.message
            kept = self._plain(root, name) == before
            why = "" if clear and kept else f"{end.code} {end.message} kept: {kept}"
            why = why or self.again(root, name)
            self.table.add("disk full", not why, f"{name}: {why}")

    def _files_of(self, name: str) -> list[Path]:
        return list(self._files(name))

    def _plain(self, root: Path, name: str) -> dict[str, bytes]:
        return {str(f): (root / f).read_bytes() for f in self._files(name) if (root / f).exists()}

    def groupings(self) -> None:
        """Workers, shards a run, and the grouping of arrivals change nothing."""
        keys = shards.load(Layout(self.base)).keys
        one = [[k] for k in keys]
        other = [keys[:1], keys[1:3], keys[3:]]
        tries = {
            "workers 1": ([keys], {"workers": 1}),
            "workers 2": ([keys], {"workers": 2}),
            "workers 4": ([keys], {"workers": 4}),
            "a shard a run": (one, {}),
            "arrival in another grouping": (other, {}),
        }
        for label, (parts, settings) in tries.items():
            root = copy_base(self.base, self.trial(), "clip_features")
            for name in ("snip_model", "trained_index") if len(parts) > 1 else ():
                for output in outputs(self.base, name):
                    shutil.copytree(output, root / output.relative_to(self.base))
                    shutil.copy(manifest_path(output), root)
            ends = []
            for part in parts:
                for name in STATIONS[1:]:
                    ends.append(Child(partial(station, root, name, part, **settings)).end())
            for name in ("deduped_metadata", "drop_list"):
                ends.append(Child(lambda n=name, r=root: station(r, n)).end())
            why = "; ".join(e.message for e in ends if e.code)
            for name in ("duplicate_pairs", "duplicate_groups", "dup_bitmap", "deduped_metadata"):
                why = why or ("" if self._same_files(root, name) else f"{name} differs")
            self.table.add("results over workers and groupings", not why, f"{label}: {why}")


def flip(file: Path, draw: random.Random) -> None:
    """Flip one random bit of a file in its place, its time kept."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(data))


def save(table: Table, counts: dict) -> None:
    """Into benchmarks/results/faults.json; faults that were not tried now keep their rows."""
    path = common.RESULTS / "faults.json"
    before = json.loads(path.read_text())["faults"] if path.exists() else {}
    kept = {k: v for k, v in counts.items() if k != "only"}
    rows = {**before, **table.rows}
    common.write("faults", {"machine": common.cores(), "counts": kept, "faults": rows})


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("kill", "race", "flip", "disk", "grouping", "input", "fuzz")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--kills", type=int, default=10, help="in each station")
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/faults.json")
    options = parser.parse_args()
    np.random.seed(options.seed)
    table = Table()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="snip-faults-") as folder:
        faults = Faults(Path(folder), table, options.seed)
        steps = {
            "grouping": faults.groupings,
            "disk": faults.full_disks,
            "input": lambda: fault_inputs.malformed(table, Path(folder)),
            "fuzz": lambda: fault_inputs.fuzz(table, Path(folder), options.fuzz, options.seed),
            "flip": lambda: (
                faults.flips(options.flips),
                faults.manifest_flips(options.flips // 4),
            ),
            "race": lambda: faults.races(options.races),
            "kill": lambda: faults.kills(options.kills),
        }
        for name, step in steps.items():
            if name in options.only:
                step()
                if options.write:
                    save(table, vars(options))
                print(f"{name}: {time.monotonic() - started:.0f} s so far", flush=True)
    table.show()


if __name__ == "__main__":
    main()
