import contextlib
import http.server
import threading
import traceback

import make
import numpy as np
import pytest
from PIL import Image

from detr_jax.data import image_downloads
from detr_jax.data.image_downloads import download
from detr_jax.data.inputs import read_input
from detr_jax.errors import UserError

PIXELS = make.image(20, 30, 1)


class Server(http.server.SimpleHTTPRequestHandler):
    """A folder, and addresses that misbehave."""

    def do_GET(self):
        redirects = {"/local": "file:///etc/passwd", "/ftp": "ftp://host/a.png", "/moved": "/image.png"}
        if self.path == "/loop":
            self.answer(302, Location="/loop")
        elif self.path in redirects:
            self.answer(302, Location=redirects[self.path])
        elif self.path in ("/endless", "/slow"):
            self.answer(200)
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 16 if self.path == "/endless" else 1))
                    self.server.silent.wait(0.02 if self.path == "/slow" else 0)
        elif self.path == "/cut":
            self.answer(200, **{"Content-Length": "100"})
            self.wfile.write(b"begin")
        elif self.path == "/silent":
            self.server.silent.wait(10)
        else:
            super().do_GET()

    def answer(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    Image.fromarray(PIXELS).save(folder / "image.png")
    Image.fromarray(PIXELS).save(folder / "ein Bild ä.png")

    def handler(*arguments):
        return Server(*arguments, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.silent = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.silent.set()
        server.shutdown()
        thread.join()


def message_of(address):
    with pytest.raises(UserError) as raised:
        download(address)
    assert "\n" not in str(raised.value)
    assert "".join(traceback.format_exception(raised.value)).count("Traceback") == 1
    return str(raised.value)


@pytest.mark.parametrize("path", ["image.png", "image.png?size=large", "moved", "ein Bild ä.png"])
def test_reads_an_image_by_its_address(address, path):
    np.testing.assert_array_equal(read_input(f"{address}/{path}"), PIXELS)


def test_names_what_the_server_answers(address):
    assert "cannot be downloaded: the server answers 404" in message_of(f"{address}/missing.png")
    assert "the server answers 302" in message_of(f"{address}/loop")


def test_follows_no_redirect_to_a_file_or_another_scheme(address):
    assert "file:///etc/passwd' is not allowed" in message_of(f"{address}/local")
    assert "redirects to an address that starts with ftp:, which is not followed" in message_of(
        f"{address}/ftp"
    )


def test_refuses_other_schemes_and_addresses_without_a_host():
    assert message_of("ftp://host/a.png").startswith("ftp://host/a.png is not read: the address of an image")
    assert "http://" in message_of("http://")
    assert "cannot be downloaded" in message_of("http://127.0.0.1:1/a.png")
    assert "http://host:port/" in message_of("http://host:port/")


def test_bounds_the_size(address, monkeypatch):
    monkeypatch.setattr(image_downloads, "MAX_BYTES", 1_000_000)
    assert "/endless is larger than 1 MB" in message_of(f"{address}/endless")
    monkeypatch.setattr(image_downloads, "MAX_BYTES", 100)
    assert "/image.png is larger than" in message_of(f"{address}/image.png")


def test_bounds_the_time(address, monkeypatch):
    monkeypatch.setattr(image_downloads, "TOTAL_SECONDS", 0.2)
    assert "takes longer than 0.2 seconds" in message_of(f"{address}/slow")
    monkeypatch.setattr(image_downloads, "WAIT_SECONDS", 0.2)
    assert "/silent cannot be downloaded: timed out" in message_of(f"{address}/silent")


def test_names_a_connection_that_ends_early(address):
    assert "the connection ended after 5 of 100 bytes" in message_of(f"{address}/cut")


def test_messages_show_no_password_and_no_query():
    shown = message_of("http://user:secret@127.0.0.1:1/a.png?token=secret")
    assert "secret" not in shown and "http://127.0.0.1:1/a.png" in shown
