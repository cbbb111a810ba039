"""A browser shows a report at every width, light and dark, without error or request, and by keyboard."""

import asyncio
import functools
import http.server
import threading

import numpy as np
import pytest
from browser import CHROMIUM, chromium, open_tab
from PIL import Image
from reports import full_report


class Server(http.server.SimpleHTTPRequestHandler):
    requests: list = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path):
    """The report, served on this machine; `Server.requests` lists what was asked for."""
    Server.requests = []
    full_report(tmp_path / "report.html")
    handler = functools.partial(Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/report.html"
        server.shutdown()


CONTRAST = """[...document.querySelectorAll('main *, header *, nav *, footer *')].filter(one =>
  [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && one.checkVisibility()
  && !one.closest('svg, .sr')).map(one => {
    const channels = color => color.startsWith('color(')
      ? color.match(/[\\d.e-]+/g).map(Number) : color.match(/[\\d.]+/g).map((v, i) => i < 3 ? v / 255 : +v);
    let parts = [], at = one;
    for (; at; at = at.parentElement) parts.push(channels(getComputedStyle(at).backgroundColor));
    let back = [1, 1, 1];
    for (const [r, g, b, a = 1] of parts.reverse()) back = [r, g, b].map((v, i) => a * v + (1 - a) * back[i]);
    const light = color => color.slice(0, 3).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const [x, y] = [light(channels(getComputedStyle(one).color)), light(back)];
    return [(Math.max(x, y) + .05) / (Math.min(x, y) + .05), one.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => ratio < 4.5)"""


async def look(port, address, width, dark, folder):
    """Opens the report, and returns what is wrong with it."""
    tab = await open_tab(port)
    await tab.show(address, width, dark)
    await tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = await tab.evaluate("document.documentElement.scrollWidth")
    broken = await tab.evaluate("[...document.images].filter(one => !one.naturalWidth).length")
    pale = await tab.evaluate(CONTRAST)
    background = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 19, 27)") == dark
    if (width, dark) == (900, False):
        await tab.screenshot(folder / "900_light.png")
    found = {"wider than the window": wide > width, "broken images": broken, "low contrast": pale}
    found |= {"logged": tab.problems(), "requested": set(tab.requests()) - {address}}
    return {name: value for name, value in found.items() if value}


async def sort_by_keyboard(port, address):
    """Opens the table of classes and sorts it by PQ, with keys alone; returns the order of PQ."""
    tab = await open_tab(port)
    await tab.show(address, 900, False)
    await tab.call("Page.bringToFront")
    focused = "document.activeElement.textContent"
    orders = []
    for _ in range(60):
        await tab.press("Tab", 9)
        name = await tab.evaluate(focused)
        if name == "All numbers by class":
            await tab.press("Enter", 13, "\r")
        if name == "PQ":
            for _ in range(2):
                await tab.press("Enter", 13, "\r")
                orders.append(
                    await tab.evaluate(
                        "[...document.activeElement.closest('table').tBodies[0].rows]"
                        ".map(row => +row.cells[2].dataset.value)"
                    )
                )
            break
    return orders


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_a_browser_shows_it_without_error_or_request(address, tmp_path):
    async def opened(port):
        for width in (360, 900, 1600):
            for dark in (False, True):
                found = await look(port, address, width, dark, tmp_path)
                assert not found, (width, dark, found)
        falling, rising = await sort_by_keyboard(port, address)
        assert falling == sorted(falling, reverse=True) and rising == sorted(rising)

    with chromium(tmp_path / "profile") as port:
        asyncio.run(opened(port))
    assert set(Server.requests) == {"/report.html"}
    colors = np.asarray(Image.open(tmp_path / "900_light.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > 200  # a picture, not an empty page
