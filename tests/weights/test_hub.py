"""A fake hub on loopback, and its cache. `huggingface_hub` reads its environment once, hence processes."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from detr_jax.weights import hub

COMMITS = {"main": "a" * 40, "refs/pr/5": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}
REPOSITORIES = {
    "owner/both": {"main": ("model.safetensors", "pytorch_model.bin", "config.json")},
    "owner/bin": {"main": ("pytorch_model.bin",), "refs/pr/5": ("model.safetensors", "config.json")},
    "owner/neither": {"main": ("config.json", "flax_model.msgpack")},
}


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        self.server.asked.append(self.path)
        owner, name, _, rest = self.path.strip("/").split("/", 3)
        revision, _, file = rest.replace("%2F", "/").rpartition("/")
        revisions = REPOSITORIES.get(f"{owner}/{name}")
        if name == "slow":
            self.server.stopped.wait(30)
        code = None
        if revisions is None:
            code = "RepoNotFound"
        elif revision not in revisions and revision not in COMMITS.values():
            code = "RevisionNotFound"
        elif not any(
            file in files for other, files in revisions.items() if COMMITS[other] == COMMITS[revision]
        ):
            code = "EntryNotFound"
        content = f"{name} {COMMITS.get(revision)} {file}".encode()
        self.send_response(404 if code else 200)
        if code:
            content = b""
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMITS.get(revision, ""))
        self.send_header("ETag", f'"{hash(content) % 2**64:016x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.stopped = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


_FETCH = """
import json, sys, traceback
from detr_jax.errors import MissingFileError
from detr_jax.weights import hub
for name in sys.argv[1:]:
    try:
        file = hub.fetch(name)
        result = {"content": file.read_text(), "beside": sorted(x.name for x in file.parent.iterdir())}
    except MissingFileError as error:
        result = {"error": str(error)}
        assert "".join(traceback.format_exception(error)).count("Traceback") == 1
    print(json.dumps(result))
"""


def fetch(names, folder, endpoint, **environment):
    """What `hub.fetch` finds in a process of its own, and what that process prints as errors."""
    settings = {
        "HF_HOME": str(folder),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_ETAG_TIMEOUT": "1",
        "PYTHONWARNINGS": "ignore",
    }
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DETR_JAX_OFFLINE"))
    }
    run = subprocess.run(
        [sys.executable, "-c", _FETCH, *names],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


def test_downloads_what_a_repository_has(server, tmp_path):
    endpoint = f"http://127.0.0.1:{server.server_port}"
    names = ["owner/both", "owner/bin", "owner/bin@refs/pr/5", "owner/neither", "owner/bin@v9", "owner/none"]
    found, _ = fetch(names, tmp_path, endpoint)
    assert found[0] == {
        "content": f"both {'a' * 40} model.safetensors",
        "beside": ["config.json", "model.safetensors"],
    }
    assert found[1] == {"content": f"bin {'a' * 40} pytorch_model.bin", "beside": ["pytorch_model.bin"]}
    assert found[2]["content"] == f"bin {'b' * 40} model.safetensors"
    for result, message in zip(
        found[3:],
        (
            "has neither model.safetensors nor pytorch_model.bin",
            "has no revision v9",
            "has no repository owner/none",
        ),
        strict=True,
    ):
        assert message in result["error"]
        assert "\n" not in result["error"]

    # The cache serves without the hub.
    server.asked.clear()
    for variable in ("HF_HUB_OFFLINE", "DETR_JAX_OFFLINE"):
        offline, _ = fetch([*names[:3], "owner/none"], tmp_path, endpoint, **{variable: "1"})
        assert offline[:3] == found[:3]
        assert f"{tmp_path / 'hub'}, lacks it" in offline[3]["error"]
        assert "\n" not in offline[3]["error"]
    assert server.asked == []


def test_a_hub_that_does_not_answer_is_one_line_after_seconds(server, tmp_path):
    down = "http://127.0.0.1:9"
    for endpoint, name in ((f"http://127.0.0.1:{server.server_port}", "owner/slow"), (down, "owner/both")):
        start = time.monotonic()
        (found,), said = fetch([name], tmp_path, endpoint)
        assert f"{endpoint} cannot be reached" in found["error"]
        assert "\n" not in found["error"]
        assert "Retry" not in said
        assert time.monotonic() - start < 20
    # What is in the cache is used.
    fetch(["owner/both"], tmp_path, f"http://127.0.0.1:{server.server_port}")
    (found,), _ = fetch(["owner/both"], tmp_path, down)
    assert found["content"].startswith("both")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/detr-resnet-50", True),
        ("facebook/detr-resnet-50@refs/pr/5", True),
        ("runs/model.pth", False),
        ("../model", False),
        ("a/b/c", False),
        ("detr-r50", False),
        ("a\0b/c", False),
    ],
)
def test_names_of_repositories(name, expected):
    assert hub.is_repository(name) == expected
