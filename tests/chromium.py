"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["PATH", "Page", "open_browser"]

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = (
    "--headless",
    "--no-sandbox",  # root may not run it otherwise
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One tab.

    Attributes:
        complaints: what its console was told, and errors that nobody caught.
        requested: the URLs that it asked for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._loop = loop
        self._socket = socket
        self._numbers = itertools.count()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def go(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # so that another hash is another page too
        self.complaints.clear()
        self.requested.clear()
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Returns as soon as a JavaScript expression is true."""
        end = time.monotonic() + 60
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"not so: {script}; the page says {self.text('body')!r}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        text: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def fill(self, selector: str, value: str) -> None:
        """Types into a field, as far as its page can tell."""
        self.run(
            f"(field => {{ field.value = {json.dumps(value)};"
            "field.dispatchEvent(new Event('input', {bubbles: true})) })"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def call(self, method: str, **parameters: Any) -> Any:
        """What a method of the protocol answers."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, parameters), 60))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))
            elif message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """Starts it with an empty profile in `folder`, and gives its tab."""
    assert PATH is not None
    profile, port_file = folder / "profile", folder / "profile" / "DevToolsActivePort"
    command = [PATH, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    environment = {**os.environ, "HOME": str(folder)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        end = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, f"{PATH} ended with {process.returncode}"
            assert time.monotonic() < end, f"{PATH} did not start within 60 seconds"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        session, socket = loop.run_until_complete(_connect(f"http://127.0.0.1:{port}/json/list"))
        try:
            yield Page(loop, socket)
        finally:
            loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(30)
        loop.close()


async def _connect(url: str) -> tuple[aiohttp.ClientSession, Any]:
    session = aiohttp.ClientSession()
    async with session.get(url) as answer:
        tabs = await answer.json()
    (tab,) = (each for each in tabs if each["type"] == "page")
    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
