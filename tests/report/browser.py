"""A headless Chromium, driven by chromedriver over plain HTTP (the W3C's WebDriver protocol)."""

import base64
import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no name is looked up, whatever a page asks for
)


class Browser:
    """One session. `folder`: where its profile lies."""

    def __init__(self, folder: Path) -> None:
        log = folder / "chromedriver.log"
        self._process = subprocess.Popen(
            [shutil.which("chromedriver") or "chromedriver", "--port=0"],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._root = f"http://127.0.0.1:{_port(log)}"
            wishes = {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "goog:chromeOptions": {
                    "binary": shutil.which("chromium"),
                    "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"],
                },
            }
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wishes}})
            self._root += f"/session/{made['sessionId']}"
        except BaseException:
            self.close()
            raise

    def open(self, url: str) -> None:
        """Wait until the page and its pictures are there."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def look_like(self, width: int, height: int, dark: bool) -> None:
        """The size of the window in CSS pixels, and what the reader prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", {"features": scheme})

    def console(self) -> list[str]:
        """What the console has said since the last call."""
        return [str(entry["message"]) for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The URLs that have been asked for since the last call, blocked ones too."""
        events = [
            json.loads(entry["message"])["message"] for entry in self._ask("POST", "/se/log", {"type": "performance"})
        ]
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]

    def screenshot(self, to: Path, whole: bool = True) -> None:
        """A PNG of the page, of all of it or of what the window shows."""
        found = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": whole})
        to.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the session and every process of it."""
        try:
            if "/session/" in getattr(self, "_root", ""):
                self._ask("DELETE", "", None)
        finally:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._root}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:1000]}") from error


def _port(log: Path) -> int:
    """The port that chromedriver has chosen, once it says so."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        for line in log.read_text().splitlines():
            if "started successfully on port" in line:
                return int(line.rstrip(". \n").rpartition(" ")[2])
        time.sleep(0.05)
    raise AssertionError(f"chromedriver does not start: {log.read_text()[-1000:]}")
