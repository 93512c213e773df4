"""A person at the explorer: a headless Chromium that cannot reach any other address than the server's."""

import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import ConsoleMessage, Page, Route, WebSocket, async_playwright, expect

from ekoyka import explorer

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What is looked for comes sooner or later: a busy machine takes its time over megabytes of scripts.
expect.set_options(timeout=30_000)
# GraphiQL reads what was typed after a moment, and keeps it here when it has.
_TAKEN_IN = """(typed) => (sessionStorage.getItem("graphiql:query") ?? "").replace(/\\s/g, "") === typed"""
_RESULT = """() => globalThis.__MONACO?.editor.getModels()
    .find((model) => model.uri.path.endsWith("response.json"))?.getValue() ?? ''"""


def needed_chromium() -> str:
    """The Chromium to use; the test is skipped where there is none, or nothing built to look at."""
    # The README asks for Python and make alone; `.ci/run` installs both, and skips nothing.
    found = os.environ.get("EKOYKA_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("No Chromium was found: install it, or name one in EKOYKA_CHROMIUM.")
    if not explorer.assets_present():
        pytest.skip("The explorer is not built: run `make assets` with Node.js 20.11 or newer.")
    return found


@dataclass
class Explorer:
    """The open explorer. ``outside`` are addresses of other origins that were asked for, all of them refused
    or recorded; ``complaints`` are errors and warnings of the page, breaches of its policy included."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def shown(self) -> None:
        """The explorer is there and can be typed into."""
        await expect(self.page.locator(".graphiql-query-editor .view-line").first).to_be_visible()
        await expect(self.page.locator(".graphiql-response .monaco-editor").first).to_be_visible()

    async def write(self, document: str) -> None:
        """The query editor holds the document instead of what was there, and GraphiQL has taken it in."""
        await self._type("operation.graphql", document)
        await self.page.wait_for_function(_TAKEN_IN, arg="".join(document.split()))

    async def set_headers(self, headers: Mapping[str, str]) -> None:
        """The Headers tab holds the headers."""
        await self.page.get_by_role("button", name="Headers", exact=True).click()
        await self._type("request-headers.json", json.dumps(headers))

    async def _type(self, editor: str, text: str) -> None:
        await self.page.locator(f'.monaco-editor[data-uri$="{editor}"]').click()
        await self.page.keyboard.press("Control+A")
        await self.page.keyboard.press("Delete")  # a bracket typed over a selection would surround it
        await self.page.keyboard.insert_text(text)

    async def run(self, operation: str | None = None) -> None:
        """The operation was started: the one named, where the document holds several."""
        await self.page.locator(".graphiql-execute-button").click()
        if operation is not None:
            await self.page.get_by_role("menuitem", name=operation, exact=True).click()

    async def result(self, *, containing: str = "{") -> dict[str, Any]:
        """What the result pane shows, as soon as it shows this text."""
        await self.page.wait_for_function(f"(text) => ({_RESULT})().includes(text)", arg=containing)
        shown: dict[str, Any] = json.loads(await self.page.evaluate(_RESULT))
        return shown

    async def screenshot(self, path: Path) -> Path:
        """A picture of the page, in the folder EKOYKA_SCREENSHOTS instead where that is set."""
        folder = os.environ.get("EKOYKA_SCREENSHOTS")
        target = Path(folder) / path.name if folder else path
        await self.page.screenshot(path=target)
        return target


@asynccontextmanager
async def visiting(url: str, *, also: tuple[str, ...] = ()) -> AsyncIterator[Explorer]:
    """A page of a browser that reaches the server at this origin, ``also`` these, and nothing else."""
    executable = needed_chromium()
    hosts = {urlsplit(address).netloc for address in (url, *also)}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            context = await browser.new_context(
                viewport={"width": 1400, "height": 850}, ignore_https_errors=True
            )
            page = await context.new_page()
            seen = Explorer(page)

            async def guard(route: Route) -> None:
                if urlsplit(route.request.url).netloc in hosts:
                    await route.continue_()
                else:
                    seen.outside.append(route.request.url)
                    await route.abort()

            def note(socket: WebSocket) -> None:
                if urlsplit(socket.url).netloc not in hosts:
                    seen.outside.append(socket.url)

            def listen(message: ConsoleMessage) -> None:
                if message.type in ("error", "warning"):
                    seen.complaints.append(message.text)

            await page.context.route("**/*", guard)
            page.on("websocket", note)
            page.on("console", listen)
            page.on("pageerror", lambda error: seen.complaints.append(str(error)))
            yield seen
        finally:
            await browser.close()


@asynccontextmanager
async def opened(url: str, *, path: str = "/graphql") -> AsyncIterator[Explorer]:
    """The explorer of the server at this origin, ready to be typed into."""
    async with visiting(url) as seen:
        await seen.page.goto(url + path)
        await seen.shown()
        yield seen
