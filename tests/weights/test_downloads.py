"""Downloads from a server on loopback. The files are small, and their names carry their own hash."""

import hashlib
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from detr_jax.errors import MissingFileError, UserError
from detr_jax.weights import downloads, tensor_files
from detr_jax.weights.published import PublishedBackbone

CONTENT = bytes(range(256)) * 2048
NAME = f"tiny-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, as the server's attributes say."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and server.ranges else 0
        if asked and server.ranges and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        stop = start + server.cuts.pop(0) if server.cuts else len(server.content)
        self.wfile.write(server.content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.status, server.ranges = CONTENT, 200, True
        server.requests, server.cuts = [], []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("DETR_JAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("DETR_JAX_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/detr/")
        monkeypatch.delenv("DETR_JAX_OFFLINE", raising=False)
        monkeypatch.setattr(downloads, "_WAITS", (0.01, 0.01))
        yield server
        server.shutdown()
        thread.join()


def fetch():
    return downloads.fetch(f"https://example.org/{NAME}")


def assert_one_line(caught):
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def assert_no_chain(caught):
    """Python prints this exception alone."""
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_downloads_once(server, tmp_path, capsys):
    file = fetch()
    assert file == tmp_path / "cache" / NAME
    assert file.read_bytes() == CONTENT
    assert server.requests == [(f"/detr/{NAME}", None)]
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1  # no progress bar, as this is no terminal
    assert fetch() == file
    assert len(server.requests) == 1
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert not list(file.parent.glob("*.partial"))


def test_the_cache_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.delenv("DETR_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / "detr_jax" / "weights"


def test_resumes_cut_connections(server):
    server.cuts = [1000, 200_000, 300, 10]
    assert fetch().read_bytes() == CONTENT
    asked = [entry for _, entry in server.requests]
    assert asked == [None, "bytes=1000-", "bytes=201000-", "bytes=201300-", "bytes=201310-"]


def test_starts_again_where_a_server_cannot_resume(server):
    server.ranges, server.cuts = False, [1000, 200_000, 300]
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_resumes_an_earlier_run(server, tmp_path):
    partial = tmp_path / "cache" / f"{NAME}.partial"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:777])
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [(f"/detr/{NAME}", "bytes=777-")]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_nothing_is_left_to_receive(length, server, tmp_path):
    partial = tmp_path / "cache" / f"{NAME}.partial"
    partial.parent.mkdir()
    partial.write_bytes((CONTENT + bytes(5))[:length])
    assert fetch().read_bytes() == CONTENT


def test_gives_up_when_nothing_more_arrives(server, tmp_path):
    server.cuts = [1000, *[0] * 9]
    message = r"was cut after 1000 of \d+ bytes; try again later, which resumes, .*give its path"
    with pytest.raises(MissingFileError, match=message) as c:
        fetch()
    assert_one_line(c)
    assert (tmp_path / "cache" / f"{NAME}.partial").stat().st_size == 1000
    server.cuts = []
    assert fetch().read_bytes() == CONTENT


def test_a_wrong_file_is_deleted(server, tmp_path):
    server.content = b"<html>Sign in to this network</html>"
    with pytest.raises(UserError, match=f"not the file that was published.*expected {NAME[5:13]}") as caught:
        fetch()
    assert_one_line(caught)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    server.content = CONTENT
    assert fetch().read_bytes() == CONTENT


def test_offline(server, monkeypatch):
    monkeypatch.setenv("DETR_JAX_OFFLINE", "1")
    with pytest.raises(MissingFileError, match=f"{NAME} is not in .*DETR_JAX_OFFLINE forbids") as caught:
        fetch()
    assert_one_line(caught)
    monkeypatch.setenv("DETR_JAX_OFFLINE", "0")
    file = fetch()
    monkeypatch.setenv("DETR_JAX_OFFLINE", "1")
    assert fetch() == file
    assert len(server.requests) == 1


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT[:-1] + b"?"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(damaged, server, monkeypatch, capsys):
    file = fetch()
    file.write_bytes(damaged)
    os.utime(file, (1, 1))  # within the resolution of the clock, a file of the same size looks the same
    monkeypatch.setenv("DETR_JAX_OFFLINE", "1")
    with pytest.raises(UserError, match=f"{file} is damaged, and DETR_JAX_OFFLINE forbids") as caught:
        fetch()
    assert_one_line(caught)
    assert file.read_bytes() == damaged
    monkeypatch.delenv("DETR_JAX_OFFLINE")
    server.status = 503
    with pytest.raises(MissingFileError, match="answers 503"):
        fetch()
    assert file.read_bytes() == damaged  # until there is another
    server.status = 200
    assert fetch().read_bytes() == CONTENT
    assert f"{file} is damaged: downloading it again" in capsys.readouterr().err


def test_a_file_that_was_put_into_the_cache_is_checked_once(server, tmp_path, monkeypatch):
    file = tmp_path / "cache" / NAME
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    assert fetch() == file
    monkeypatch.setattr(downloads.hashlib, "file_digest", None)
    assert fetch() == file
    assert server.requests == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_refusals_of_the_server(status, requests, server):
    server.status = status
    with pytest.raises(MissingFileError, match=f"/detr/{NAME}: the server answers {status}") as caught:
        fetch()
    assert_one_line(caught)
    assert_no_chain(caught)
    assert "which resumes" not in str(caught.value)
    assert len(server.requests) == requests


def test_a_server_that_is_down_or_silent(server, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for listening, message in ((False, "refused"), (True, "no answer for")):
            if listening:
                silent.listen()
            monkeypatch.setenv("DETR_JAX_WEIGHTS_URL", address)
            with pytest.raises(MissingFileError, match=f"cannot download {address}/{NAME}: .*{message}") as c:
                fetch()
            assert_one_line(c)
            assert_no_chain(c)
            assert "which resumes" not in str(c.value)
    monkeypatch.setenv("DETR_JAX_WEIGHTS_URL", "file:///etc")
    with pytest.raises(UserError, match="must start with https"):
        fetch()


@pytest.mark.parametrize("received", [0, 777])
def test_no_connection_names_the_host_and_what_needs_none(received, server, tmp_path, monkeypatch):
    partial = tmp_path / "cache" / f"{NAME}.partial"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:received])
    with socket.socket() as closed:  # bound, so that nobody else listens there
        closed.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{closed.getsockname()[1]}"
        for host, reason in ((here, "Connection refused"), ("no.invalid", "")):
            monkeypatch.setenv("DETR_JAX_WEIGHTS_URL", f"http://{host}")
            with pytest.raises(MissingFileError) as caught:
                fetch()
            resumes = ", which resumes" if received else ""
            assert re.fullmatch(
                rf"cannot download http://{host}/{NAME}: no connection to {host.partition(':')[0]} "
                rf"\({reason}.*\); try again later{resumes}, set DETR_JAX_WEIGHTS_URL to .*give its path .*; "
                r"the packaged models \(shapes-boxes, shapes-panoptic\) need no download",
                str(caught.value),
            )
            assert_no_chain(caught)


_FETCH = f"""
import resource, sys
from detr_jax.errors import UserError
from detr_jax.weights import downloads
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
try:
    print(downloads.fetch("https://example.org/{NAME}"))
except UserError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_is_one_line_and_resumes(server):
    """A limit on the size of files stands for the disk."""
    full = subprocess.run([sys.executable, "-c", _FETCH, "300000"], capture_output=True, text=True)
    assert full.returncode == 1
    said = full.stderr.splitlines()
    assert re.match(rf"cannot write {NAME} to .*: File too large; make room .*DETR_JAX_CACHE", said[-1])
    assert len(said) == 2  # and that it downloads
    assert fetch().read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


def test_a_folder_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DETR_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write.*make the folder writable") as caught:
        fetch()
    assert_one_line(caught)


def test_two_processes_download_once(server):
    two = [subprocess.Popen([sys.executable, "-c", _FETCH], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    files = {process.communicate()[0].strip() for process in two}
    assert [process.returncode for process in two] == [0, 0]
    assert files == {str(fetch())}
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_published_names_are_located(server, tmp_path, monkeypatch):
    server.content = b"not published"
    for name in ("detr-r50-panoptic", "resnet101"):
        with pytest.raises(UserError, match=f"/detr/{name}-.*not the file that was published"):
            tensor_files.locate(name)
    cached = tmp_path / "cache" / NAME
    cached.write_bytes(CONTENT)
    tiny = PublishedBackbone("tiny", NAME, 50)
    monkeypatch.setattr(tensor_files, "BACKBONES", {"tiny": tiny})
    assert tensor_files.locate("tiny") == cached
