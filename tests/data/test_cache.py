"""Data sets over a local HTTP server: whole, truncated, wrong, absent."""

import gzip
import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ntkit.data import cache
from ntkit.data.cache import DataSet, load
from ntkit.errors import NtkitError

ARRAYS = {
    "x_test": np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4),
    "y_test": np.array([1, 0, 2], np.uint8),
}
SHA256 = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in ARRAYS.items()}


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.tobytes())


WHOLE = npz(ARRAYS)
PAGES = {
    "/whole.npz": WHOLE,
    "/wrong.npz": npz({**ARRAYS, "y_test": np.array([1, 0, 3], np.uint8)}),
    "/half.npz": WHOLE[: len(WHOLE) // 2],
    "/lacking.npz": npz({"x_test": ARRAYS["x_test"]}),
    "/page.html": b"<html>log in to this network</html>",
    "/x.gz": idx(ARRAYS["x_test"]),
    "/y.gz": idx(ARRAYS["y_test"]),
    "/torn.gz": idx(ARRAYS["x_test"])[:-9],
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/truncated.npz":
            self.send_response(200)
            self.send_header("Content-Length", str(len(WHOLE)))
            self.end_headers()
            self.wfile.write(WHOLE[:100])
            return
        content = PAGES.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def dataset(*mirrors):
    return DataSet("toy.npz", SHA256, mirrors)


def same(arrays):
    return arrays.keys() == ARRAYS.keys() and all(np.array_equal(arrays[k], ARRAYS[k]) for k in ARRAYS)


def test_a_whole_answer_is_kept_and_not_asked_for_again(server, folder):
    assert same(load(dataset(f"{server}/whole.npz")))
    assert [path.name for path in folder.iterdir()] == ["toy.npz"]
    assert same(load(dataset()))


def test_idx_files_are_read(server, folder):
    assert same(load(dataset({"x_test": f"{server}/x.gz", "y_test": f"{server}/y.gz"})))


BAD = ["truncated.npz", "half.npz", "wrong.npz", "lacking.npz", "page.html", "absent.npz"]


@pytest.mark.parametrize("page", BAD)
def test_a_bad_answer_is_refused_and_leaves_nothing(server, folder, page):
    with pytest.raises(NtkitError, match=rf"toy\.npz is not in .*{page} .*NTKIT_DATA_DIR"):
        load(dataset(f"{server}/{page}"))
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("page", BAD)
def test_the_next_mirror_is_tried(server, folder, page):
    assert same(load(dataset(f"{server}/{page}", f"{server}/whole.npz")))


def test_a_torn_idx_file_is_refused(server, folder):
    with pytest.raises(NtkitError, match="no mirror gave it"):
        load(dataset({"x_test": f"{server}/torn.gz", "y_test": f"{server}/y.gz"}))


def test_a_server_that_does_not_answer_is_named(folder):
    with pytest.raises(NtkitError, match=r"127\.0\.0\.1:9/"):
        load(dataset("http://127.0.0.1:9/toy.npz"))


@pytest.mark.parametrize("content", [PAGES["/wrong.npz"], PAGES["/half.npz"], b""])
def test_a_wrong_file_in_the_cache_is_refused_and_stays(folder, content):
    folder.mkdir()
    (folder / "toy.npz").write_bytes(content)
    with pytest.raises(NtkitError, match=r"toy\.npz is not the expected data set"):
        load(dataset())
    assert (folder / "toy.npz").read_bytes() == content


def test_a_pickle_in_the_cache_is_not_opened(folder):
    folder.mkdir()
    np.savez(folder / "toy.npz", x_test=np.array([{"a": 1}], dtype=object), y_test=ARRAYS["y_test"])
    with pytest.raises(NtkitError, match="not the expected data set"):
        load(dataset())


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "file" / "below"))
    assert same(load(dataset(f"{server}/whole.npz")))
