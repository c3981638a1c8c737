"""The page in a real headless Chromium, served by a real process. Needs the extra ``annotate``, selenium, Chromium and
its driver (Debian: ``apt install chromium chromium-driver``); skipped where one is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.annotate.items import Item
from lab.annotate.journal import read_journal

pytest.importorskip("nicegui")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]

EVIL = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
ROWS = [
    ("Why is the sky blue?", "Because of scattering.", "Because."),
    (EVIL, f"{EVIL} **bold** # no heading\n- no list [x](javascript:alert(1)) {{{{ 1+1 }}}}", "`${1+1}` </script> `"),
    ("left\u202eright", "abc \u202egnp.exe\u202c \x00 \ud800", ""),
    ("P " * 8000, "word " * 20_000, "x" * 50_000),
    ("👩‍👩‍👧‍👦", "🏳️‍🌈 é שלום", "🎉" * 2000),
    *((f"Question {n}?", f"Good {n}", f"Bad {n}") for n in range(20)),
]
ITEMS = [Item(n, *row) for n, row in enumerate(ROWS, 1)]


class Server:
    """The page's process on a free port, as a person starts it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "lab.annotate", "items.jsonl", "--annotator", "anna", "--out", "anna.jsonl"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        for name in [name for name in environment if name.startswith(("PYTEST", "NICEGUI"))]:
            del environment[name]  # else NiceGUI takes the process for a test of its own
        self.process = subprocess.Popen(
            [*command, *(arguments or ("--port", "0"))], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if found := re.match(r"open (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], found[2]
                return
        raise AssertionError(f"the page did not start: {self.said}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=20)


class Window:
    """What an annotator sees and does."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait(self.connected)

    def connected(self) -> bool:
        return bool(self.driver.execute_script("return window.did_handshake === true"))

    def wait(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not self.now(true):
            assert time.monotonic() < end, self.text(".annotate")
            time.sleep(0.02)

    def now(self, true: Callable[[], bool]) -> bool:
        """Whether it holds; between two documents, while the page loads itself anew, nothing does."""
        try:
            return true()
        except (JavascriptException, StaleElementReferenceException):
            return False

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", css))

    def key(self, key: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def style(self, css: str, name: str) -> Any:
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return self.driver.execute_script(script, css, name)

    def shows(self, answered: int, total: int = len(ITEMS)) -> None:
        self.wait(lambda: self.text(".count") == f"{answered} / {total}")

    def advance(self, to: int) -> None:
        """Answer by key until so many are answered."""
        while (at := int(self.text(".count").split()[0])) < to:
            time.sleep(0.32)  # the guard against two answers within a blink
            self.key("1")
            self.shows(at + 1)
        time.sleep(0.32)


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def window(driver: webdriver.Chrome) -> Window:
    metrics = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get_log("browser")  # what earlier tests left there
    return Window(driver)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ({"prompt": item.prompt, "completion_a": item.first, "completion_b": item.second} for item in ITEMS)
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    started = Server(folder)
    yield started
    started.kill()


def answers(folder: Path) -> list[str]:
    return [row.answer or row.kind for row in read_journal(folder / "anna.jsonl")]


def test_keys_mouse_undo_and_reload(folder: Path, server: Server, window: Window) -> None:
    window.open(server.url)
    window.shows(0)
    assert not window.one("[data-act=undo]").is_enabled()
    done: list[str] = []
    for press, name in (("1", "left"), (Keys.ARROW_RIGHT, "right"), ("3", "tie"), ("4", "both_bad"), ("2", "right"),
                        (Keys.ARROW_LEFT, "left")):  # fmt: skip
        time.sleep(0.32)
        window.key(press)
        done.append(name)
        window.shows(len(done))
        assert answers(folder) == done  # on the disk when the page has moved on
    for name in ("left", "right", "tie", "both_bad"):
        time.sleep(0.32)
        window.one(f"[data-act={name}]").click()
        done.append(name)
        window.shows(len(done))
    assert answers(folder) == done

    item = ITEMS[10]
    assert window.text(".prompt .text") == item.prompt
    assert tuple(panel.text for panel in window.driver.find_elements(By.CSS_SELECTOR, ".side .text")) == item.sides(
        "anna"
    )
    window.key("u")
    window.shows(9)
    assert window.text("[role=status]") == f"Taken back: Both bad (9 of {len(ITEMS)})"
    window.one("[data-act=undo]").click()
    window.shows(8)
    assert window.text(".prompt .text") == ITEMS[8].prompt
    assert answers(folder) == [*done, "undo", "undo"]

    window.open(server.url)  # a reload
    window.shows(8)
    assert window.text(".prompt .text") == ITEMS[8].prompt
    time.sleep(0.32)
    window.key("3")
    window.shows(9)
    assert answers(folder) == [*done, "undo", "undo", "tie"]
    assert window.driver.get_log("browser") == []


def test_kill_9_and_start_again(folder: Path, window: Window) -> None:
    first = Server(folder)
    window.open(first.url)
    window.advance(3)
    window.key("u")
    window.shows(2)
    before = (folder / "anna.jsonl").read_bytes()
    first.kill()
    # The server is gone: the page says so, and a press is not taken for an answer.
    window.wait(lambda: window.one("#popup").get_attribute("aria-hidden") == "false")
    window.key("1")
    window.driver.execute_script("window.beforeTheKill = true")
    assert (folder / "anna.jsonl").read_bytes() == before
    with open(folder / "anna.jsonl", "ab") as file:  # as if it had been killed while writing
        file.write(b'{"kind": "answer", "item": "ab')

    second = Server(folder, "--port", first.port)
    try:
        assert f"{len(ITEMS)} pairs, 2 of them answered by anna" in second.said
        assert "cut off in the middle of writing; it is kept in anna.jsonl.torn-" in second.said
        assert (folder / "anna.jsonl").read_bytes() == before
        # It comes back by itself, as a new document.
        window.wait(lambda: not window.driver.execute_script("return window.beforeTheKill === true"))
        window.wait(window.connected)
        window.wait(lambda: window.one("#popup").get_attribute("aria-hidden") == "true")
        window.shows(2)
        assert window.text(".prompt .text") == ITEMS[2].prompt
        time.sleep(0.5)
        assert (folder / "anna.jsonl").read_bytes() == before  # and the press into the void stays one
        window.key("2")
        window.shows(3)
        window.key("u")
        window.shows(2)
        assert answers(folder) == ["left", "left", "left", "undo", "right", "undo"]
    finally:
        second.kill()


def test_text_is_text(folder: Path, server: Server, window: Window) -> None:
    window.open(server.url)
    title = window.driver.title
    window.advance(1)
    item = ITEMS[1]
    panels = window.driver.find_elements(By.CSS_SELECTOR, ".text")
    raw = [window.driver.execute_script("return arguments[0].textContent", panel) for panel in panels]
    assert raw == [item.prompt, *item.sides("anna")]
    inside = "return [...arguments[0].childNodes].map(node => node.nodeType)"
    assert [window.driver.execute_script(inside, panel) for panel in panels] == [[3]] * 3  # text nodes and nothing else
    time.sleep(0.3)
    assert window.driver.title == title  # which the script would have changed

    window.open(server.url)  # served with the page, no longer sent as an update
    raw = [window.driver.execute_script("return arguments[0].textContent", panel)
           for panel in window.driver.find_elements(By.CSS_SELECTOR, ".text")]  # fmt: skip
    assert raw == [item.prompt, *item.sides("anna")]
    assert window.driver.title == title

    window.advance(2)
    side = ".side:nth-of-type(2)" if ITEMS[2].order("anna") == "ab" else ".side:nth-of-type(3)"
    assert "Hidden characters" in window.text(".prompt .note")
    note = window.text(f"{side} .note")
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in note
    assert "U+D800 lone surrogate" in note
    assert window.text(f"{side} .text").endswith("\u2400 \ufffd")
    assert window.style(f"{side} .text", "unicode-bidi") == "isolate"  # an override ends with its panel
    assert "(empty)" in [panel.text for panel in window.driver.find_elements(By.CSS_SELECTOR, ".side .text")]
    assert window.driver.get_log("browser") == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (420, 860)])
def test_long_texts_scroll_in_their_panels(server: Server, window: Window, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    window.open(server.url)
    window.advance(3)
    size = "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]"
    for name in ("left", "right", "tie", "both_bad", "undo"):  # always in sight
        left, top, right, bottom = window.driver.execute_script(size, window.one(f"[data-act={name}]"))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for panel in window.driver.find_elements(By.CSS_SELECTOR, ".text"):
        tall, wide = window.driver.execute_script(
            "const p = arguments[0]; return [p.scrollHeight / p.clientHeight, p.scrollWidth / p.clientWidth]", panel
        )
        assert tall > 2
        assert wide == 1  # the long word is broken
    assert window.driver.execute_script("return document.documentElement.scrollWidth") <= width
    tops = "return [...document.querySelectorAll('.side .text')].map(panel => panel.scrollTop)"
    window.key(Keys.ARROW_DOWN)  # up and down move both texts, and answer nothing
    window.wait(lambda: min(window.driver.execute_script(tops)) > 0)
    window.shows(3)
    window.advance(4)
    assert window.driver.execute_script(tops) == [0, 0]  # the next pair begins at its beginning


def test_presses_that_must_not_count(folder: Path, server: Server, window: Window) -> None:
    window.open(server.url)
    window.shows(0)
    press = """const [name, times, token] = arguments;
               for (let n = 0; n < times; n++) emitEvent("act", {name, token: token ?? root.dataset.token});"""
    root = "const root = document.querySelector('[data-token]');"
    window.driver.execute_script(root + press, "left", 5)  # five presses before the page can move on
    window.shows(1)
    window.wait(lambda: "answered already" in window.text("[role=status]"))
    for strange in ("best", "", None):
        window.driver.execute_script(root + press, strange, 1)
    window.driver.execute_script(root + "emitEvent('act', 'nonsense');")
    time.sleep(0.32)
    repeat = (
        "document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: arguments[0], ctrlKey: arguments[1]}))"
    )
    window.driver.execute_script(repeat, True, False)  # a key held down
    window.driver.execute_script(repeat, False, True)  # a shortcut of the browser
    time.sleep(0.3)
    assert answers(folder) == ["left"]
    window.driver.execute_script(repeat, False, False)
    window.shows(2)

    window.driver.switch_to.new_window("tab")  # a second window of the same annotator
    window.open(server.url)
    window.shows(2)
    time.sleep(0.32)
    window.key("3")
    window.shows(3)
    window.driver.close()
    window.driver.switch_to.window(window.driver.window_handles[0])
    window.shows(3)  # the first has moved on with it
    assert window.text(".prompt .text") == ITEMS[3].prompt
    assert answers(folder) == ["left", "left", "tie"]


def test_an_answer_that_cannot_be_written_is_said_and_asked_again(folder: Path, server: Server, window: Window) -> None:
    window.open(server.url)
    window.advance(1)
    (folder / "anna.jsonl").rename(folder / "away.jsonl")
    window.key("1")
    window.wait(lambda: "Not saved. anna.jsonl: the file has been removed" in window.text("[role=alert]"))
    window.shows(1)
    assert window.text(".prompt .text") == ITEMS[1].prompt
    (folder / "away.jsonl").rename(folder / "anna.jsonl")
    window.advance(2)
    assert window.text("[role=alert]") == ""
    assert answers(folder) == ["left", "left"]


def test_agreement_and_the_end(folder: Path, window: Window) -> None:
    items = ITEMS[5:9]
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "items.jsonl").write_text("".join(lines[5:9]), encoding="utf-8")
    ben = []
    for item, same in zip(items, (True, True, True, False), strict=True):
        left, right = item.sides("anna")
        row = {"kind": "answer", "item": item.id, "annotator": "ben", "time": "", "order": "ab", "source_row": 1}
        ben.append({**row, "prompt": item.prompt, "left": left, "right": right, "answer": "left" if same else "tie"})
    server = Server(folder, "--against", "ben.jsonl", "--port", "0")  # who has not begun yet
    try:
        window.open(server.url)
        button = "//button[contains(., 'Agreement')]"
        window.driver.find_element(By.XPATH, button).click()
        window.wait(lambda: "Nobody else has answered" in window.text(".annotate-agreement"))
        time.sleep(0.4)
        for key in ("1", Keys.ENTER):  # the dialog has the keyboard, and Enter closes it
            window.driver.switch_to.active_element.send_keys(key)
        window.wait(lambda: not window.driver.find_elements(By.CSS_SELECTOR, ".annotate-agreement"))
        window.shows(0, 4)
        (folder / "ben.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ben), encoding="utf-8")
        for count in range(4):
            time.sleep(0.32)
            window.key("1")
            window.shows(count + 1, 4)
        assert "Every pair is answered" in window.text(".done")
        assert "1 is better: 4" in window.text(".done")
        assert window.one(".done").is_displayed()
        assert not window.one(".prompt").is_displayed()
        assert not window.one("[data-act=left]").is_enabled()
        window.driver.find_element(By.XPATH, button).click()
        window.wait(lambda: "ben: 4 pairs in common" in window.text(".annotate-agreement"))
        assert "alike 75% [30%, 95%]" in window.text(".annotate-agreement")
    finally:
        server.kill()


def test_everything_can_be_reached_named_and_read(server: Server, window: Window) -> None:
    window.open(server.url)
    window.advance(1)
    names, rings = [], []
    for _ in range(9):
        window.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = window.driver.switch_to.active_element
        names.append(active.accessible_name)
        frame = "const e = arguments[0].closest('section') ?? arguments[0]; return getComputedStyle(e).outlineStyle"
        rings.append(window.driver.execute_script(frame, active))
    assert [name.removesuffix("U").strip() for name in names[:2]] == ["Undo", "Agreement"]
    panels = ["Prompt", "Completion 1", "Completion 2"]
    assert names[2:] == [*panels, "Completion 1 is better", "Tie", "Both bad", "Completion 2 is better"]
    assert rings == ["solid"] * 9
    bar = window.one("[role=progressbar]")
    assert (bar.get_attribute("aria-valuenow"), bar.get_attribute("aria-valuemax")) == ("1", str(len(ITEMS)))
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for css, ground in (
            (".prompt .text", ".prompt"),
            (".prompt h2", ".prompt"),
            ("[role=status]", ".annotate"),
            (".count", ".annotate"),
            ("[data-act=left]", "[data-act=left]"),
        ):
            assert contrast(window.style(css, "color"), window.style(ground, "background-color")) >= 4.5, (scheme, css)
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(first: str, second: str) -> float:
    """Of two colours "rgb(r, g, b)": (L1 + 0.05) / (L2 + 0.05) with relative luminances L1 >= L2 (WCAG 2.2)."""
    found = []
    for colour in (first, second):
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        found.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(found) + 0.05) / (min(found) + 0.05)


def test_only_this_machine_by_its_own_name(server: Server) -> None:
    """Listens on loopback alone, and a foreign name that was made to resolve to it is refused."""
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(server.url, headers={"Host": "evil.example"}), timeout=10)
    listening = [
        line.split()[1].split(":")[0]
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        if line.split()[1].endswith(f":{int(server.port):04X}") and line.split()[3] == "0A"
    ]
    assert listening == ["0100007F"]
