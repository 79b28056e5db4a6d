"""The whole graph with Dagster's storage in PostgreSQL: a server of its own on loopback.

    python -m snip_assets_tests.e2e.postgres        # or: make test-postgres

Needs the server's programs (`apt-get install postgresql`) and the extra `postgres`. Says so, and
exits with 3, where they are missing.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from snip_assets_tests.e2e.services import ROOT, free_port

ABSENT = 3
OUTPUTS = ("snip_features", "trained_index", "duplicate_pairs", "dup_bitmap", "deduped_metadata")


def programs() -> Path | None:
    """Folder of initdb and pg_ctl."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        folders.insert(0, Path(found).resolve().parent)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


@contextmanager
def server(programs: Path, folder: Path) -> Iterator[str]:
    """A server over an empty folder; yields its address.

    PostgreSQL refuses to run as root: then as the user `postgres`, or `nobody`.
    """
    user = None
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    run(str(programs / "initdb"), "-D", str(data), "-U", "snip", "--auth=trust", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = str(programs / "pg_ctl")
    run(control, "-D", str(data), "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql+psycopg2://snip@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", str(data), "-m", "immediate", "stop")


def _absent(what: str) -> int:
    line = "*" * 78
    print(f"{line}\nNOT TESTED: the PostgreSQL variant. {what}\n{line}", file=sys.stderr)
    return ABSENT


def main() -> int:
    """From ingest to publish twice; the second time nothing new is written."""
    found = programs()
    if found is None:
        return _absent("PostgreSQL is not installed: apt-get install postgresql")
    try:
        import psycopg2

        import_module("dagster_postgres")
    except ImportError:
        return _absent("pip install 'snip_assets[postgres]'")
    with tempfile.TemporaryDirectory(prefix="snip-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "server").mkdir()
        with server(found, folder / "server") as address:
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "SNIP"))}
            variables = {**clean, "SNIP_POSTGRES_URL": address, "DAGSTER_EVENT_BATCH_SIZE": "500"}
            out = folder / "out"
            written = []
            for _ in range(2):
                command = [sys.executable, "-m", "snip_assets.cli", "dedup", "--out", str(out)]
                subprocess.run(command, check=True, env=variables, cwd=ROOT)
                files = [file for name in OUTPUTS for file in (out / name).rglob("*.*")]
                written.append({file: file.stat().st_mtime_ns for file in files})
            assert written[0] and written[0] == written[1], "the second time something was written"
            listed = [sys.executable, "-m", "snip_assets.cli", "dagster", "--out", str(out)]
            subprocess.run([*listed, "run", "list"], check=True, env=variables, cwd=ROOT)
            with psycopg2.connect(address.replace("+psycopg2", "")) as connection:
                cursor = connection.cursor()
                cursor.execute("select status, count(*) from runs group by status")
                runs = dict(cursor.fetchall())
                cursor.execute("select count(*) from asset_keys")
                (assets,) = cursor.fetchone()
            print(f"PostgreSQL holds runs {runs} and {assets} assets")
            assert runs.keys() == {"SUCCESS"} and assets >= 13
            assert not list((out / ".dagster").rglob("*.db")), "something went to SQLite"
    print("ok: the PostgreSQL variant works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
