"""A real Chromium without a screen, driven through chromedriver's own HTTP interface (W3C WebDriver and DevTools)."""

import json
import re
import subprocess
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """One window."""

    def __init__(self, address: str, session: str) -> None:
        self._session = f"{address}/session/{session}"

    def open(self, page: Path) -> None:
        self.requests(), self.log("browser")  # of whatever was shown before
        post(f"{self._session}/url", {"url": page.as_uri()})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return post(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page's own policy does not apply to it."""
        answer = self.devtools("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, scheme: str, medium: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=medium, features=features)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last look: `browser` is the console, `performance` the network's events."""
        return post(f"{self._session}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last look at the network."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [each["params"] for each in events if each["method"] == "Network.requestWillBeSent"]
        # What Chromium's own first page asks for may come late, behind the page that was opened.
        return [each["request"]["url"] for each in asked if not each["documentURL"].startswith("chrome")]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))


def faint_text(window: Browser) -> list[str]:
    """Pairs of colours, text and what is behind it, that are nearer than 4.5 to 1, which WCAG 2 asks for."""
    pairs = window.ask("""[...new Set([...document.querySelectorAll(
        'p, dt, dd, td, th, span, b, small, text, label, summary, legend, pre')]
        .filter(e => e.textContent.trim() && e.getClientRects().length).map(e => {
            let behind = e;
            while (getComputedStyle(behind).backgroundColor == 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            const style = getComputedStyle(e);
            return (e.tagName == 'text' ? style.fill : style.color) + getComputedStyle(behind).backgroundColor;
        }))]""")
    assert len(pairs) > 3
    return [pair for pair in pairs if _contrast([int(number) for number in re.findall(r"\d+", pair)]) < 4.5]


def _contrast(numbers: list[int]) -> float:
    bright, dim = sorted((_luminance(numbers[:3]), _luminance(numbers[3:])), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: list[int]) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def post(url: str, body: dict[str, Any], method: str = "POST") -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A window that is closed, with its processes, at the end; `profile` is an empty folder."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        (port,) = next(found for line in driver.stdout if (found := re.findall(r"successfully on port (\d+)", line)))
        options = {"args": [*QUIET, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        address = f"http://127.0.0.1:{port}"
        session = post(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            post(f"{address}/session/{session}", {}, "DELETE")
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()
