"""The host's real page in a real Chromium."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from likeness.devtools.browser import FLAGS, find_chromium
from likeness.devtools.checkpoint import reference_pictures
from likeness.devtools.demo import SUBJECT
from likeness.devtools.server import Server

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # or the first visit opens the template browser by itself
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Locale": "en",
}
WIDE = {"width": 1920, "height": 1080}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium: install one, or name it with LIKENESS_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Comfy:
    """The page, and what tests do on it. `page` is Playwright's."""

    page: Any
    server: Server

    def open(self, **settings: Any) -> Comfy:
        """Load the page with these settings of the frontend."""
        data = json.dumps({**SETTINGS, **{key.replace("_", "."): value for key, value in settings.items()}}).encode()
        head = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.server.address}/settings", data, head), timeout=30)
        self.page.goto(self.server.address, wait_until="domcontentloaded")
        self.page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        self.page.locator(".templates-tab-button").wait_for(timeout=60_000)
        return self

    def open_template(self, name: str) -> Comfy:
        """As a user does: Templates, Likeness, the card."""
        self.page.evaluate("app.graph.clear()")
        self.page.locator(".templates-tab-button").click()
        dialog = self.page.locator(".workflow-template-selector-dialog")
        dialog.get_by_text("Likeness", exact=True).first.click()
        dialog.get_by_test_id(f"template-workflow-{name}").click()
        self.page.wait_for_function("name => app.graph._nodes.some(n => n.type.startsWith('Likeness'))", arg=name)
        dialog.wait_for(state="hidden")
        return self

    def nodes(self) -> list[dict[str, Any]]:
        """Every node of the graph: id, type, title, whether the page knows it, how many pictures it shows."""
        return list(
            self.page.evaluate("""() => app.graph._nodes.map(n => ({
                id: String(n.id), type: n.type, title: n.title, folded: !!n.flags.collapsed,
                known: !!n.constructor.nodeData || n.isVirtualNode === true,
                pictures: (n.imgs ?? []).filter(i => i.complete && i.naturalWidth > 0).length,
                texts: (n.widgets ?? []).filter(w => w.name === 'likeness_text').map(w => w.value),
            }))""")
        )

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [node for node in self.nodes() if node["type"] == kind]

    def set_widgets(self, kind: str, **values: Any) -> None:
        """Change widgets of every node of a type."""
        self.page.evaluate(
            """([kind, values]) => { for (const n of app.graph._nodes.filter(n => n.type === kind))
                for (const [name, value] of Object.entries(values)) {
                    const widget = n.widgets.find(w => w.name === name)
                    if (!widget) throw new Error(`${kind} has no widget ${name}`)
                    widget.value = value
                } }""",
            [kind, values],
        )

    def run(self, timeout: float) -> None:
        """Click Run and wait for the end; fails with what the page says when it shows an error."""
        before = self._finished()
        self.page.get_by_test_id("queue-button").get_by_role("button").first.click()
        deadline, step = timeout, 0.5
        while self._finished() == before:
            self.page.wait_for_timeout(step * 1000)
            deadline -= step
            errors = self.page.evaluate("JSON.stringify(app.lastNodeErrors ?? {})")
            assert errors == "{}", errors
            assert deadline > 0, f"not finished within {timeout:.0f} s; the server says:\n{self.server.log_tail()}"
        status = list(self._history().values())[-1]["status"]
        assert status["status_str"] == "success", status
        self.page.wait_for_timeout(1500)  # the page fetches the pictures

    def picture(self, path: Path, scale: float = 0.75) -> None:
        """A picture of the whole graph, without the page around it."""
        self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        left, top, width, height = self.page.evaluate("""() => {
            const boxes = [...app.graph._groups.map(g => g._bounding), ...app.graph._nodes.map(n => n.getBounding())]
            const low = i => Math.min(...boxes.map(b => b[i])), high = i => Math.max(...boxes.map(b => b[i] + b[i + 2]))
            return [low(0), low(1), high(0) - low(0), high(1) - low(1)] }""")
        room, bars = 20, 120  # pixels around the graph; above and below it, the page's own bars
        size = {"width": round(width * scale) + 2 * room, "height": round(height * scale) + 2 * room}
        self.page.set_viewport_size({"width": size["width"], "height": size["height"] + 2 * bars})
        self.page.evaluate(
            """([scale, x, y]) => { const ds = app.canvas.ds
                ds.scale = scale; ds.offset[0] = x / scale; ds.offset[1] = y / scale
                app.canvas.deselectAll(); app.canvas.setDirty(true, true) }""",
            [scale, room - left * scale, bars + room - top * scale],
        )
        self.page.wait_for_timeout(2000)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, clip={"x": 0, "y": bars, **size})

    def _history(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.server.address}/history", timeout=30) as answer:
            return dict(json.loads(answer.read()))

    def _finished(self) -> int:
        return len(self._history())


@contextmanager
def visitor(chromium: Any, server: Server) -> Iterator[Comfy]:
    """Somebody who comes for the first time to a server that has the quickstart's pictures, as `./demo --serve` has."""
    reference_pictures(server.base, SUBJECT)
    context = chromium.new_context(viewport=WIDE)
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield Comfy(page, server)
    context.close()


@pytest.fixture()
def comfy_page(chromium: Any, server: Server) -> Iterator[Comfy]:
    """A fresh visitor for each test."""
    with visitor(chromium, server) as comfy:
        yield comfy


@pytest.fixture(scope="module")
def open_page(chromium: Any, server: Server) -> Iterator[Comfy]:
    """One visitor for a module's tests, whose page is open: loading it takes several seconds."""
    with visitor(chromium, server) as comfy:
        yield comfy.open()
