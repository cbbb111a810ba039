"""What the page does with uploads, thresholds and addresses, without a browser."""

import os
import signal
import socket
import subprocess
import sys
import threading
import types
import urllib.request
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.__main__ import main
from detr_jax.data.categories import coco_panoptic
from detr_jax.errors import UserError

pytest.importorskip("gradio")
from detr_jax.demo import page

NOTHING = (None, page.EMPTY, [], None)


@pytest.fixture(scope="module")
def predictor(tiny_model, tiny_params):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), tiny_config())


@pytest.fixture
def segmented(monkeypatch):
    """Arguments of the segmentations that the page asks for, of which none is computed."""
    calls = []

    class Uploaded(page.UploadedImage):
        def __init__(self, predictor, path):
            self.path = path

        def segment(self, threshold, overlap):
            calls.append((self.path, threshold, overlap))
            shown = object.__new__(page.ShownImage)
            object.__setattr__(shown, "image", self)
            return shown

    monkeypatch.setattr(page, "UploadedImage", Uploaded)
    monkeypatch.setattr(page, "_changes", lambda shown: (shown,))
    return calls


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_in_place_of_an_upload_is_not_downloaded(scheme, predictor, monkeypatch):
    monkeypatch.setattr("detr_jax.data.inputs.download", lambda address: pytest.fail(address))
    path = page._path_of(types.SimpleNamespace(path=f"{scheme}://127.0.0.1:1/secret.png"))
    with pytest.warns(UserWarning, match=r"no such image: secret\.png"):
        assert page._on_upload(predictor)(path, 0.5, 1.0)[:4] == NOTHING


def test_a_refused_image_clears_the_page_with_a_message_that_is_no_markup(predictor, tmp_path, monkeypatch):
    def refuse(predictor, path):
        raise UserError(f"{path} cannot be read: <img src=x>")

    monkeypatch.setattr(page, "UploadedImage", refuse)
    with pytest.warns(UserWarning, match=r"^a\.png cannot be read: &lt;img src=x&gt;$"):
        assert page._on_upload(predictor)(tmp_path / "a.png", 0.5, 1.0)[:4] == NOTHING


def test_thresholds_apply_to_the_segmentation_or_else_to_the_upload(predictor, segmented):
    show, path = page._on_thresholds(predictor), Path("a.png")
    (shown,) = show(None, path, 0.4, 1.0)
    assert show(shown, path, 0.3, 0.9)[0].image is shown.image
    assert segmented == [(path, 0.4, 1.0), (path, 0.3, 0.9)]
    assert show(None, None, 0.4, 1.0) == (None,)


def test_events_that_change_the_segmentation_run_in_order(predictor):
    built = page.build_page(predictor, "tiny")
    groups = {
        one.concurrency_id
        for one in built.fns.values()
        if any(event in ("change", "select") for _, event in one.targets)
    }
    assert groups == {"model"}


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70_000, "there is no port 70000"),
        ("192.0.2.1", 7990, "cannot listen on 192.0.2.1, port 7990: .*by --host"),
        ("a..b", None, r"cannot listen on a\.\.b, port any"),
    ],
)
def test_addresses_that_cannot_be_served(host, port, message):
    with pytest.raises(UserError, match=message):
        page.serve(None, host, port, 1)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: Address already in use"):
            page.serve(None, "127.0.0.1", port, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_is_served_to_this_computer_whatever_the_proxy(host, predictor, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    built = page.build_page(predictor, "tiny")
    try:
        address = page.serve(built, host, None, 1)
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"tiny - detr_jax" in directly.open(address).read()
    finally:
        built.close(verbose=False)
    assert os.environ["no_proxy"].startswith("example.org,")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_uploads_are_deleted_when_the_command_stops(number, tmp_path):
    def receive() -> None:  # a shell starts commands in the background with SIGINT ignored
        signal.signal(number, signal.SIG_DFL)

    command = [sys.executable, "-m", "detr_jax", "demo"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, env=environment, preexec_fn=receive) as server:
        timer = threading.Timer(240, server.kill)
        timer.start()
        address = server.stdout.readline().split()[0]
        field = b'Content-Disposition: form-data; name="files"; filename="a.png"'
        body = b"--x\r\n" + field + b"\r\n\r\nprivate\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        urllib.request.urlopen(
            urllib.request.Request(f"{address}gradio_api/upload", body, kind), timeout=60
        ).read()
        assert [path.read_bytes() for path in tmp_path.rglob("a.png")] == [b"private"]
        server.send_signal(number)
        assert server.wait(60) == 128 + number
        timer.cancel()
    assert not list(tmp_path.rglob("*.png"))


def test_a_detector_has_no_page():
    with pytest.raises(SystemExit, match="shapes-boxes has no mask head, which the page needs"):
        main(["demo", "--weights=shapes-boxes"])
