"""The page as visitors use it: a real server and headless Chromium."""

import asyncio
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import CHROMIUM, chromium, open_tab
from PIL import Image

from detr_jax.data.shapes import Shapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("demo"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist: apt-get install chromium"),
]

SEGMENTS = "document.querySelectorAll('#segments .segments > g').length"


@pytest.fixture(scope="module")
def address():
    """The address of a page that the command serves."""
    command = [sys.executable, "-m", "detr_jax", "demo", "--max_pixels=40000"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        line = server.stdout.readline()
        yield re.match(r"(http://127\.0\.0\.1:\d+/) - stop with Ctrl-C", line)[1]
        server.terminate()


@pytest.fixture
def files(tmp_path):
    """Two pictures, one that is too large, and a file that is no image."""
    source = Shapes("validation", 8)
    for index in (5, 7):
        Image.fromarray(source[index].image).save(tmp_path / f"{index}.png")
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


async def wait_for(tab, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not await tab.evaluate(condition):
        assert time.monotonic() < deadline, f"{condition} did not become true in {seconds} s"
        await asyncio.sleep(0.2)


async def visit(port, address):
    tab = await open_tab(port)
    await tab.show(address, 1200, dark=False)
    await tab.call("DOM.enable")
    await wait_for(tab, "!!document.querySelector('#upload input[type=file]')")
    return tab


async def upload(tab, path):
    root = (await tab.call("DOM.getDocument"))["root"]["nodeId"]
    found = await tab.call("DOM.querySelector", nodeId=root, selector="#upload input[type=file]")
    await tab.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found["nodeId"])


async def set_threshold(tab, value):
    await tab.evaluate(
        "(() => { const input = document.querySelector('#threshold input[type=number]');"
        f" input.value = {value}; input.dispatchEvent(new Event('input', {{bubbles: true}}));"
        " input.dispatchEvent(new Event('change', {bubbles: true})); input.blur(); })()"
    )


async def arrives(path, seconds=30):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, f"{path.name} was not downloaded in {seconds} s"
        await asyncio.sleep(0.2)


async def two_visitors(port, address, files):
    one, other = await visit(port, address), await visit(port, address)
    await upload(one, files / "5.png")
    await upload(other, files / "7.png")
    counts = []
    for tab in (one, other):
        await wait_for(tab, f"{SEGMENTS} > 0")
        counts.append(await tab.evaluate(SEGMENTS))
    assert counts[0] != counts[1]

    over = "dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    await one.evaluate(f"document.querySelector('#segments .legend button').{over}")
    assert await one.evaluate("document.querySelectorAll('#segments .segments > g.on').length") == 1
    await one.evaluate("document.querySelector('#segments .legend button').click()")
    await wait_for(one, "!!document.querySelector('#attention img')")

    await set_threshold(one, 0.97)
    await wait_for(one, f"{SEGMENTS} < {counts[0]}", 20)
    assert await other.evaluate(SEGMENTS) == counts[1]
    await one.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(files))
    for kind in ("png", "json", "svg"):
        button = (
            f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === '{kind.upper()}')"
        )
        await wait_for(one, f"!{button}.disabled", 30)
        await one.evaluate(f"{button}.click()")
        await arrives(files / f"segments.{kind}")
    return one, other


async def refusals(port, address, files):
    tab = await visit(port, address)
    sentences = {"text.png": "text.png cannot be read", "large.png": "limit of 40000 pixels"}
    for name, words in sentences.items():
        await upload(tab, files / name)
        await wait_for(tab, f"document.body.innerText.includes({words!r})")
        await tab.show(address, 1200, dark=False)
        await wait_for(tab, "!!document.querySelector('#upload input[type=file]')")
    return (tab,)


@pytest.mark.parametrize("story", [two_visitors, refusals], ids=lambda story: story.__name__)
def test_page_in_the_browser(story, address, files, tmp_path):
    with chromium(tmp_path / "profile") as port:
        tabs = asyncio.run(story(port, address, files))
    for tab in tabs:
        elsewhere = [url for url in tab.requests() if not url.startswith((address, "blob:"))]
        assert not elsewhere
        assert not [event for event in tab.problems() if "exceptionDetails" in event["params"]]
