"""A headless Chromium, driven over its DevTools pipe: no other package is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DEADLINE_S = 120.0


def binary() -> str | None:
    """Where a Chromium is; `CHROMIUM` in the environment comes first."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page of a running browser.

    Attributes:
        errors: Uncaught exceptions, console errors and warnings of failed loads, in order.
        requests: Addresses that the page asked for, data and blobs left out.
    """

    def __init__(self, to: int, come: int) -> None:
        self._to, self._from, self._rest, self._id = to, come, b"", 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    _session: str | None = None

    def emulate(self, width: int, height: int, *, dark: bool = False, touch: bool = False) -> None:
        """A window of this size in CSS pixels, and the reader's colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch},
        )
        self._call("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, path: Path, ready: str = "true") -> None:
        """Load a file and wait until the expression `ready` is true."""
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        end = time.monotonic() + DEADLINE_S
        while not self.value(f"document.readyState === 'complete' && !!({ready})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{path} was not ready: {self.errors}")
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, as plain data."""
        found = self._call(
            "Runtime.evaluate",
            {"expression": expression, "returnByValue": True, "awaitPromise": True},
        )
        return found["result"].get("value")

    def screenshot(self, path: Path, clip: tuple[float, float, float, float] | None = None) -> Path:
        """A PNG of the window, or of a rectangle (x, y, width, height) of the page."""
        wanted: dict[str, Any] = {"format": "png", "captureBeyondViewport": clip is not None}
        if clip:
            names = ("x", "y", "width", "height")
            wanted["clip"] = dict(zip(names, clip, strict=True)) | {"scale": 1}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", wanted)["data"]))
        return path

    def press(self, key: str) -> None:
        """One key down and up."""
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                {"type": kind, "key": key, "code": key} | _CODES.get(key, {}),
            )

    def _call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params or {}}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._heard(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], DEADLINE_S)
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser does not answer")
            self._rest += data
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _heard(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(
                str([a.get("value") or a.get("description") for a in params["args"]])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:")):
                self.requests.append(url)


_CODES: dict[str, dict[str, Any]] = {
    "Tab": {"windowsVirtualKeyCode": 9},
    "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"},
}


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A page of a fresh browser, which is ended afterwards."""
    program = binary()
    assert program is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def fds() -> None:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (theirs_in, theirs_out)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"]
    flags += ["--no-first-run", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio"]
    flags += ["--disable-background-networking", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        [program, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=fds,
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Tab(ours_out, ours_in)
        finally:
            process.terminate()
            os.close(ours_out)
            os.close(ours_in)
