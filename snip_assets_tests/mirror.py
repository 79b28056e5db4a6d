"""A mirror on loopback with ten metadata shards of unequal length, and every fault of a real one.

`python -m snip_assets_tests.mirror FOLDER --port 8123` makes and serves it for trying things out.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE = Path(__file__).parents[1] / "snip_assets" / "sample"
LENGTHS = [257, 100, 301, 0, 173, 219, 50, 400, 131, 369]
PAGE = b"<!doctype html><html><head><title>Quota exceeded</title></head><body>Sorry</body></html>"


@dataclass
class Mirror:
    """A served folder. `faults[path]` holds what the next answers for that path do."""

    folder: Path
    port: int = 0
    ranges: bool = True
    faults: dict[str, list[Callable]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    etag: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for name, headers in self.requests if name == path]


def status(code: int, **headers: str) -> Callable:
    """Answer with this status."""

    def fault(handler: BaseHTTPRequestHandler, body: bytes, first: int) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def cut(after: int) -> Callable:
    """Announce everything, send `after` bytes, close."""

    def fault(handler, body: bytes, first: int) -> None:
        handler.head(body, first)
        handler.wfile.write(body[first : first + after])
        handler.wfile.flush()
        handler.close_connection = True

    return fault


def page(handler, body: bytes, first: int) -> None:
    """An HTML page with status 200."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(PAGE)))
    handler.end_headers()
    handler.wfile.write(PAGE)


def stall(seconds: float) -> Callable:
    """Say nothing for a while, then close."""

    def fault(handler, body: bytes, first: int) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def shorter(by: int) -> Callable:
    """A whole answer, of a file that lacks its last bytes."""

    def fault(handler, body: bytes, first: int) -> None:
        handler.head(body[:-by], first)
        handler.wfile.write(body[:-by])

    return fault


def unmeasured(after: int | None = None) -> Callable:
    """No length: the answer ends where the connection does, perhaps before the file does."""

    def fault(handler, body: bytes, first: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body[:after])
        handler.close_connection = True

    return fault


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def tag(self, body: bytes) -> str:
            return mirror.etag.get(self.path, f'"{hashlib.md5(body).hexdigest()}"')

        def head(self, body: bytes, first: int, last: int | None = None) -> None:
            last = len(body) - 1 if last is None else last
            partial = first > 0 or last < len(body) - 1
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("ETag", self.tag(body))
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            self.end_headers()

        def do_GET(self) -> None:
            mirror.requests.append((self.path, dict(self.headers)))
            file = mirror.folder / self.path.lstrip("/").partition("?")[0]
            body = file.read_bytes() if file.is_file() else None
            first, last = self.span(body or b"")
            if mirror.faults[self.path]:
                mirror.faults[self.path].pop(0)(self, body or b"", first)
            elif body is None:
                status(404)(self, b"", 0)
            elif first >= len(body) > 0:
                status(416, Content_Range=f"bytes */{len(body)}")(self, body, 0)
            else:
                self.head(body, first, last)
                self.wfile.write(body[first : last + 1])

        def span(self, body: bytes) -> tuple[int, int]:
            whole = (0, len(body) - 1)
            asked = self.headers.get("Range", "")
            condition = self.headers.get("If-Range")
            if not asked or not mirror.ranges or condition not in (None, self.tag(body)):
                return whole
            low, _, high = asked.removeprefix("bytes=").partition("-")
            if not low:
                return max(0, len(body) - int(high)), len(body) - 1
            return int(low), min(int(high), len(body) - 1) if high else len(body) - 1

    return Handler


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Mirror]:
    """Serve a folder on loopback."""
    mirror = Mirror(folder)
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(mirror))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that hangs up is no news
    mirror.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sample_rows() -> tuple[pa.Table, np.ndarray]:
    """Metadata and features of the built-in sample, 2,000 rows."""
    files = sorted((SAMPLE / "metadata").glob("*.parquet"))
    features = sorted((SAMPLE / "img_emb").glob("*.npy"))
    return pa.concat_tables(map(pq.read_table, files)), np.concatenate([*map(np.load, features)])


def true_bitmap(features: np.ndarray, max_distance: float = 0.1) -> np.ndarray:
    """bool[N]: an earlier row lies within `max_distance`; exact, by brute force."""
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = 2 - 2 * (x @ x.T) <= max_distance
    return np.tril(near, -1).any(axis=1)


def make(folder: Path, bitmap: np.ndarray | None = None) -> np.ndarray:
    """Write metadata/, img_emb/, is_dup.npy and cum_sz.npy; the bitmap (default: the true one)."""
    table, features = sample_rows()
    bitmap = true_bitmap(features) if bitmap is None else bitmap
    offsets = np.cumsum([0, *LENGTHS])
    for name in ("metadata", "img_emb"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for shard, (start, rows) in enumerate(zip(offsets, LENGTHS, strict=False)):
        part = table.slice(start, rows)
        path = folder / "metadata" / f"metadata_{shard:04d}.parquet"
        pq.write_table(part, path, row_group_size=64, compression="gzip")
        np.save(folder / "img_emb" / f"img_emb_{shard:04d}.npy", features[start : start + rows])
    np.save(folder / "is_dup.npy", bitmap)
    np.save(folder / "cum_sz.npy", offsets)
    return bitmap


def add_index(folder: Path) -> None:
    """Write net.safetensors and snip.index: a SNIP net and a FAISS index of its features."""
    import faiss
    import torch

    from snip_assets.engine import model

    _, features = sample_rows()
    net = model.pca(features, 64)
    model.save_model(net, folder / "net", {})
    (folder / "net" / "model.safetensors").replace(folder / "net.safetensors")
    index = faiss.IndexFlatL2(64)
    index.add(net(torch.from_numpy(features.astype(np.float32))).numpy())
    faiss.write_index(index, str(folder / "snip.index"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8123)
    chosen = parser.parse_args()
    bitmap = make(chosen.folder)
    add_index(chosen.folder)
    with serving(chosen.folder, chosen.port) as mirror:
        print(f"{len(bitmap)} rows, {bitmap.sum()} marked, in {len(LENGTHS)} shards: {mirror.url}")
        threading.Event().wait()


if __name__ == "__main__":
    main()
