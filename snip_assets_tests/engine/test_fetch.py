"""Downloads against a mirror with faults: what arrives is right, or nothing arrives."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from snip_assets.engine import fetch as fetching
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.fetch import Wanted, fetch, fetch_all
from snip_assets.engine.storage.locations import drive_id, local_path, web_address
from snip_assets.engine.storage.remote import DownloadError, Policy, Session
from snip_assets_tests import mirror as faulty

QUICK = Policy(attempts=3, backoff=0.01, timeout=0.5, at_once=3)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "big.npy", rng.integers(0, 256, 3_000_000, np.uint8))
    np.save(folder / "small.npy", np.arange(10))
    with faulty.serving(folder) as server:
        yield server


def get(mirror, tmp_path: Path, name: str = "big.npy", **known):
    with Session(QUICK) as session:
        target = tmp_path / "got" / name
        return fetch(Wanted(f"{mirror.url}/{name}", target, "npy", **known), session)


def same(mirror, fetched) -> bool:
    return fetched.path.read_bytes() == (mirror.folder / fetched.path.name).read_bytes()


def left_over(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "got").iterdir())


def test_fetches_once_and_a_second_call_asks_nothing(mirror, tmp_path):
    first = get(mirror, tmp_path)
    assert same(mirror, first) and first.transferred == first.bytes
    second = get(mirror, tmp_path)
    assert second.transferred == 0 and len(mirror.requests) == 1
    assert left_over(tmp_path) == ["big.npy", "big.npy.manifest.json"]


def test_cut_connections_go_on_from_where_they_stopped(mirror, tmp_path):
    mirror.faults["/big.npy"] = [faulty.cut(1_200_000), faulty.cut(900_000)]
    fetched = get(mirror, tmp_path)
    assert same(mirror, fetched)
    first, second, third = mirror.asked("/big.npy")
    assert "Range" not in first
    assert second["If-Range"] == third["If-Range"]
    assert int(third["Range"][6:-1]) > int(second["Range"][6:-1]) > 0
    assert fetched.transferred == fetched.bytes  # not one byte twice


def test_goes_on_in_another_process_after_giving_up(mirror, tmp_path):
    mirror.faults["/big.npy"] = [faulty.cut(1_500_000), *[faulty.status(500)] * 3]
    with pytest.raises(DownloadError, match=r"500; gave up after 3 attempts.*run the same"):
        get(mirror, tmp_path)
    assert left_over(tmp_path) == [".big.npy.part", ".big.npy.part.json"]
    fetched = get(mirror, tmp_path)
    assert same(mirror, fetched) and 0 < fetched.transferred < fetched.bytes


def test_a_file_that_is_being_downloaded_is_let_alone(mirror, tmp_path):
    told = []

    def meanwhile(handler, body, first):
        try:
            get(mirror, tmp_path, "small.npy")
        except DownloadError as error:
            told.append(str(error))
        handler.head(body, first)
        handler.wfile.write(body[first:])

    mirror.faults["/small.npy"] = [meanwhile]
    assert same(mirror, get(mirror, tmp_path, "small.npy"))
    target = tmp_path / "got" / "small.npy"
    assert told == [f"{target}: another process is downloading it."]


def test_a_file_that_was_finished_just_now_is_not_written(mirror, tmp_path, monkeypatch):
    part, finished = tmp_path / "got" / ".small.npy.part", tmp_path / "got" / "finished"

    def late(*_):
        """Between opening and locking another process finishes it, and the next one begins."""
        monkeypatch.setattr(fcntl, "flock", flock)
        part.write_bytes(b"whole")
        part.replace(finished)
        part.touch()

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    assert same(mirror, get(mirror, tmp_path, "small.npy"))
    assert finished.read_bytes() == b"whole"


def test_a_changed_file_starts_over(mirror, tmp_path):
    mirror.faults["/big.npy"] = [faulty.cut(1_500_000), *[faulty.status(503)] * 3]
    with pytest.raises(DownloadError):
        get(mirror, tmp_path)
    np.save(mirror.folder / "big.npy", np.full(3_000_000, 7, np.uint8))  # same length, new ETag
    assert same(mirror, get(mirror, tmp_path))


def test_a_server_that_ignores_if_range_cannot_mix_two_files(mirror, tmp_path):
    def resumed_regardless(handler, body, first):
        first = int(handler.headers["Range"][6:-1])
        handler.head(body, first)
        handler.wfile.write(body[first:])

    def changed(handler, body, first):
        faulty.cut(1_000_000)(handler, body, first)
        np.save(mirror.folder / "big.npy", np.full(3_000_000, 7, np.uint8))

    mirror.faults["/big.npy"] = [changed, resumed_regardless]
    assert same(mirror, get(mirror, tmp_path))


def test_without_an_etag_it_starts_over_rather_than_guess(mirror, tmp_path):
    mirror.etag["/big.npy"] = 'W/"weak"'
    mirror.faults["/big.npy"] = [faulty.cut(1_500_000)]
    assert same(mirror, get(mirror, tmp_path))
    assert all("Range" not in headers for headers in mirror.asked("/big.npy"))


def test_headers_beyond_ascii_prove_nothing_and_ask_for_nothing(mirror, tmp_path):
    mirror.etag["/big.npy"] = '"\xe9"'
    mirror.faults["/big.npy"] = [faulty.status(503, Retry_After="\xb2"), faulty.cut(1_500_000)]
    assert same(mirror, get(mirror, tmp_path))
    assert all("Range" not in headers for headers in mirror.asked("/big.npy"))


def test_honours_retry_after(mirror, tmp_path, monkeypatch):
    mirror.faults["/small.npy"] = [faulty.status(429, Retry_After="7"), faulty.status(500)]
    wait, waits = Session._wait, []

    def at_once(*arguments):
        waits.append(wait(*arguments))
        return 0.0

    monkeypatch.setattr(Session, "_wait", at_once)
    assert same(mirror, get(mirror, tmp_path, "small.npy"))
    assert len(waits) == 2 and waits[0] >= 7 > waits[1]


def test_a_wait_too_long_is_said_not_slept(mirror, tmp_path):
    mirror.faults["/small.npy"] = [faulty.status(429, Retry_After="86400")]
    with pytest.raises(DownloadError, match="asks to wait 86400 s"):
        get(mirror, tmp_path, "small.npy")


def test_a_silent_server_is_asked_again(mirror, tmp_path):
    mirror.faults["/small.npy"] = [faulty.stall(0.8)]
    assert same(mirror, get(mirror, tmp_path, "small.npy"))


def test_an_error_page_never_becomes_data(mirror, tmp_path):
    mirror.faults["/big.npy"] = [faulty.page]
    with pytest.raises(BadInputError, match=r"web page came instead.*'Quota exceeded'"):
        get(mirror, tmp_path)
    assert not (tmp_path / "got" / "big.npy").exists()
    assert same(mirror, get(mirror, tmp_path))  # and the page is not resumed from


def test_a_file_shorter_than_its_header_says_is_refused(mirror, tmp_path):
    mirror.faults["/big.npy"] = [faulty.shorter(100)]
    with pytest.raises(BadInputError, match=r"damaged or truncated|its header says"):
        get(mirror, tmp_path)
    assert not (tmp_path / "got" / "big.npy").exists()


def test_a_server_that_never_sends_all_it_announced_is_given_up(mirror, tmp_path):
    mirror.ranges = False
    mirror.faults["/big.npy"] = [faulty.cut(500_000)] * 20
    with pytest.raises(DownloadError, match="cut at byte 500000; gave up"):
        get(mirror, tmp_path)
    assert len(mirror.requests) <= 5


def test_size_and_checksum(mirror, tmp_path):
    body = (mirror.folder / "big.npy").read_bytes()
    digest = hashlib.sha256(body).hexdigest()
    assert same(mirror, get(mirror, tmp_path, size=len(body), checksum=f"sha256:{digest}"))
    with pytest.raises(BadInputError, match="sha256 is"):
        get(mirror, tmp_path, checksum="sha256:" + "0" * 64)
    with pytest.raises(BadInputError, match="bytes on the server, not 5"):
        get(mirror, tmp_path, "small.npy", size=5)


def test_what_cannot_pass_is_not_asked_again(mirror, tmp_path):
    with pytest.raises(DownloadError, match="no such file there"):
        get(mirror, tmp_path, "missing.npy")
    mirror.faults["/small.npy"] = [faulty.status(403)]
    with pytest.raises(BadInputError, match=r"access denied.*HF_TOKEN"):
        get(mirror, tmp_path, "small.npy")
    assert len(mirror.requests) == 2


def test_many_at_once_in_order_with_a_limit(mirror, tmp_path):
    names = [f"{n}.npy" for n in range(12)]
    for n, name in enumerate(names):
        np.save(mirror.folder / name, np.full(1000, n))
        mirror.faults[f"/{name}"] = [faulty.status(503)] if n % 3 == 0 else []
    wanted = [Wanted(f"{mirror.url}/{name}", tmp_path / "got" / name, "npy") for name in names]
    fetched = list(fetch_all(wanted, QUICK))
    assert [f.path.name for f in fetched] == names and all(same(mirror, f) for f in fetched)


def test_stopping_early_does_not_wait_for_what_is_under_way(mirror, tmp_path):
    closed = threading.Event()

    def drip(handler, body, first):
        handler.head(body, first)
        # Whoever waits for the end waits for ever.
        with suppress(OSError):
            while not closed.wait(0.01):
                handler.wfile.write(body[first : first + 1])
        handler.close_connection = True

    mirror.faults["/big.npy"] = [drip] * 9
    names = ["small.npy", "big.npy"]
    wanted = [Wanted(f"{mirror.url}/{name}", tmp_path / "got" / name, "npy") for name in names]
    fetched = fetch_all(wanted, QUICK)
    next(fetched)
    fetched.close()
    closed.set()
    assert not (tmp_path / "got" / "big.npy").exists()


def test_a_folder_that_cannot_be_written(mirror, tmp_path):
    (tmp_path / "got").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(mirror, tmp_path, "small.npy")


def test_a_disk_too_small_is_said_before_the_download(mirror, tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(DownloadError, match="3,000,128 bytes, 1 are free"):
        get(mirror, tmp_path)


def test_the_token_goes_to_its_server_only_and_is_never_shown(
    mirror, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    get(mirror, tmp_path, "small.npy")
    assert "Authorization" not in mirror.requests[0][1]
    # Nor to its server in the clear.
    monkeypatch.setenv("HF_ENDPOINT", mirror.url.replace("http:", "https:"))
    get(mirror, tmp_path)
    assert "Authorization" not in mirror.requests[1][1]
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    assert (
        web_address("hf:datasets/o/n/a/b.npy") == f"{mirror.url}/datasets/o/n/resolve/main/a/b.npy"
    )
    target = mirror.folder / "datasets" / "o" / "n" / "resolve" / "main"
    target.mkdir(parents=True)
    np.save(target / "b.npy", np.arange(3))
    with Session(QUICK) as session:
        fetch(Wanted("hf:datasets/o/n/b.npy", tmp_path / "got" / "b.npy", "npy"), session)
        assert mirror.requests[-1][1]["Authorization"] == "Bearer hf_very_secret"
        with pytest.raises(DownloadError) as failed:
            fetch(Wanted(f"{mirror.url}/x.npy?signature=secret2", tmp_path / "x.npy"), session)
    written = "".join(p.read_text("latin1") for p in (tmp_path / "got").iterdir())
    assert "secret" not in str(failed.value) + caplog.text + written


def test_a_path_is_copied_and_checked(tmp_path):
    (tmp_path / "page.npy").write_bytes(faulty.PAGE)
    with pytest.raises(BadInputError, match="Quota exceeded"):
        fetch(Wanted(str(tmp_path / "page.npy"), tmp_path / "out.npy", "npy"))
    np.save(tmp_path / "good.npy", np.arange(4))
    got = fetch(Wanted((tmp_path / "good.npy").as_uri(), tmp_path / "out.npy", "npy"))
    assert np.load(got.path).tolist() == [0, 1, 2, 3]


def test_locations():
    identity = "1RYDylZKaPyaVs5YNwIrGqHU2BewdFwxY"
    for location in (
        f"gdrive:{identity}",
        identity,
        f"https://drive.google.com/file/d/{identity}/view?usp=sharing",
        f"https://drive.google.com/uc?id={identity}",
        f"https://drive.google.com/open?id={identity}",
    ):
        assert drive_id(location) == identity and local_path(location) is None
    assert local_path("some/is_dup.npy") == Path("some/is_dup.npy")
    with pytest.raises(BadInputError, match="expected a path, http"):
        web_address("s3:bucket/file")
    for reader in (local_path, web_address, drive_id):
        with pytest.raises(BadInputError, match="no address"):
            reader("file://[" if reader is local_path else "http://[")
    with pytest.raises(BadInputError, match="no such home"):
        local_path("~nobody-of-this-name/is_dup.npy")


def test_drive_goes_through_gdown_and_its_pages_are_refused(tmp_path, monkeypatch):
    gdown = pytest.importorskip("gdown")
    answers = [faulty.PAGE, gdown.exceptions.FileURLRetrievalError("quota"), None]

    def download(*, id, output, progress, **_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            with open(output, "wb") as handle:
                np.save(handle, np.arange(5))
        else:
            Path(output).write_bytes(answer)
        progress(10, None)

    monkeypatch.setattr(gdown, "download", download)
    wanted = Wanted("gdrive:" + "x" * 33, tmp_path / "got" / "is_dup.npy", "npy")
    with pytest.raises(BadInputError, match="Quota exceeded"):
        fetching.fetch(wanted)
    with pytest.raises(DownloadError, match="download it in a browser"):
        fetching.fetch(wanted)
    assert np.load(fetching.fetch(wanted).path).tolist() == list(range(5))
    assert fetching.fetch(wanted).transferred == 0


def test_what_gdown_left_of_another_file_is_not_taken_for_this_one(tmp_path, monkeypatch):
    gdown = pytest.importorskip("gdown")
    served = {"a" * 33: 1, "b" * 33: 2}

    def download(*, id, output, **_):
        """It skips what is there, and is cut just before its file gets its name."""
        if not Path(output).exists():
            with open(output, "wb") as handle:
                np.save(handle, np.full(5, served[id]))
            raise gdown.exceptions.DownloadError("cut")

    monkeypatch.setattr(gdown, "download", download)

    def got(identity: str, again: bool = False) -> int:
        wanted = Wanted(f"gdrive:{identity}", tmp_path / "got" / "is_dup.npy", "npy")
        with pytest.raises(DownloadError, match="cut"):
            fetch(wanted, again=again)
        return int(np.load(fetch(wanted).path)[0])

    with pytest.raises(DownloadError, match="cut"):
        fetch(Wanted(f"gdrive:{'a' * 33}", tmp_path / "got" / "is_dup.npy", "npy"))
    assert got("b" * 33) == 2
    # Of the first one all lies there, as it was.
    served["a" * 33] = 3
    assert got("a" * 33, again=True) == 3


@pytest.mark.parametrize("after", [None, 1_500_000])
def test_without_a_length_only_what_tells_its_own_end_is_taken(mirror, tmp_path, after):
    mirror.faults["/big.npy"] = [faulty.unmeasured(after)] * 2
    if after is None:
        assert same(mirror, get(mirror, tmp_path))
    else:
        with pytest.raises(BadInputError, match=r"its header says|truncated"):
            get(mirror, tmp_path)
    (mirror.folder / "x.index").write_bytes(b"IwFl\x80\0\0\0" + bytes(3_000_000))
    mirror.faults["/x.index"] = [faulty.unmeasured(after)]
    wanted = Wanted(f"{mirror.url}/x.index", tmp_path / "x.index", "faiss")
    with Session(QUICK) as session, pytest.raises(BadInputError, match="how long the file is"):
        fetch(wanted, session)
    assert not (tmp_path / "x.index").exists()
