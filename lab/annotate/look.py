"""How the page looks and which keys it knows: CSS and JavaScript, and texts made fit to be shown."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def shown(text: str) -> str:
    """A text as a browser can be sent it: lone surrogates, which UTF-8 cannot carry, become U+FFFD, and NUL U+2400."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("\x00", "\u2400")


def hidden(text: str) -> str:
    """The characters of a text that cannot be seen and change how it reads, e.g. "U+202E RIGHT-TO-LEFT OVERRIDE"; "" if
    none. Texts are shown as they are: this line says what the eye cannot."""
    counts = Counter(_HIDDEN.findall(text))
    named = [
        f"U+{ord(character):04X} {_name(character)}" + (f" ({count} times)" if count > 1 else "")
        for character, count in sorted(counts.items())
    ]
    more = f" and {len(named) - 4} more" if len(named) > 4 else ""
    return ", ".join(named[:4]) + more


def _name(character: str) -> str:
    unnamed = {"Cc": "control character", "Cs": "lone surrogate"}
    return unicodedata.name(character, unnamed.get(unicodedata.category(character), "unassigned"))


CSS = """
:root {
  --ground: #f3f4f2; --card: #ffffff; --ink: #1c2421; --dim: #55605b; --line: #c9cfcb; --edge: #7b8781;
  --accent: #14634f; --accent-ink: #ffffff; --accent-soft: #e1efe9; --warn: #8a4b00; --bad: #a3161f;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #141817; --card: #1d2321; --ink: #e7ecea; --dim: #a7b2ad; --line: #37403c; --edge: #7f8c86;
    --accent: #7fd6b8; --accent-ink: #10211b; --accent-soft: #21372f; --warn: #f0b45c; --bad: #ff9a9a;
  }
}
body { margin: 0; background: var(--ground); }
.nicegui-content { padding: 0; display: block; }
.annotate, .annotate * { box-sizing: border-box; }
.annotate {
  height: 100vh; height: 100dvh; display: grid; grid-template-rows: auto minmax(0, 1fr) auto;
  color: var(--ink); background: var(--ground); font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif;
}
.annotate > * { width: 100%; max-width: 1500px; margin-inline: auto; }
.annotate header { display: flex; align-items: center; gap: 14px; padding: 10px 20px 6px; }
.annotate h1 { font-size: 15px; line-height: 1.4; font-weight: 600; margin: 0; letter-spacing: 0; white-space: nowrap; }
.annotate .who { color: var(--dim); font-size: 14px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.annotate .bar {
  flex: 1; min-width: 60px; height: 8px; border-radius: 4px; background: var(--line); overflow: hidden;
}
.annotate .bar > div {
  height: 100%; width: 100%; background: var(--accent); transform-origin: left; transition: transform .15s;
}
.annotate .count { font-variant-numeric: tabular-nums; font-size: 14px; white-space: nowrap; }
.annotate main {
  display: grid; gap: 12px; padding: 6px 20px 12px; min-height: 0;
  grid-template: minmax(72px, max-content) minmax(0, 1fr) / 1fr 1fr;
}
.annotate section {
  display: flex; flex-direction: column; min-height: 0; min-width: 0; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
.annotate section:has(.text:focus-visible) { outline: 3px solid var(--accent); outline-offset: -2px; }
.annotate section.prompt { grid-column: 1 / -1; max-height: 34vh; }
.annotate h2 {
  font-size: 13px; line-height: 1.4; font-weight: 600; letter-spacing: .01em; color: var(--dim); margin: 0;
  padding: 8px 16px 0;
}
.annotate .text {
  flex: 1; min-height: 0; overflow: auto; padding: 4px 16px 14px; max-width: 100%; tab-size: 4;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; scrollbar-width: thin;
}
.annotate .text.empty { color: var(--dim); font-style: italic; }
.annotate .text:focus { outline: none; }
.annotate .note {
  padding: 6px 16px; font-size: 13px; color: var(--warn); border-top: 1px solid var(--line); overflow-wrap: anywhere;
}
.annotate .note:empty, .annotate .alert:empty { display: none; }
.annotate footer { padding: 0 20px 10px; }
.annotate .answers { display: grid; grid-template-columns: 2fr 1fr 1fr 2fr; gap: 12px; }
.annotate button, .annotate-agreement button {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  min-height: 52px; padding: 6px 12px; cursor: pointer; display: flex; align-items: center; justify-content: center;
  gap: 10px; touch-action: manipulation;
}
.annotate button:hover:enabled, .annotate-agreement button:hover {
  background: var(--accent-soft); border-color: var(--accent);
}
.annotate button:active:enabled { background: var(--accent); color: var(--accent-ink); }
.annotate button:focus-visible, .annotate-agreement button:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 2px;
}
.annotate button:disabled { color: var(--dim); border-color: var(--line); background: transparent; cursor: default; }
.annotate button.better { font-weight: 600; }
.annotate button.small { min-height: 34px; padding: 2px 10px; font-size: 14px; }
.annotate kbd {
  font: 600 12px/1 ui-monospace, monospace; padding: 4px 6px; border: 1px solid currentColor; border-radius: 4px;
  opacity: .8;
}
.annotate .below { display: flex; gap: 16px; justify-content: space-between; min-height: 22px; margin-top: 8px; }
.annotate .below > * { font-size: 13px; color: var(--dim); min-width: 0; overflow-wrap: anywhere; }
.annotate .alert {
  color: var(--bad); border: 2px solid var(--bad); background: var(--card); border-radius: 8px; padding: 8px 14px;
  margin-bottom: 10px; font-weight: 600; overflow-wrap: anywhere;
}
.annotate .done { place-self: center; grid-area: 1 / 1 / -1 / -1; text-align: center; max-width: 34em; padding: 20px; }
.annotate .done h2 { font-size: 22px; color: var(--ink); padding: 0 0 8px; }
.annotate .done p { margin: 4px 0; color: var(--dim); overflow-wrap: anywhere; }
.annotate .gone { display: none; }
.annotate-agreement {
  background: var(--card); color: var(--ink); padding: 20px 24px; width: 520px; border-radius: 8px;
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif;
}
.annotate-agreement button { min-height: 40px; }
.annotate-agreement h2 { font-size: 18px; line-height: 1.4; font-weight: 600; margin: 0 0 8px; letter-spacing: 0; }
.annotate-agreement p { margin: 0 0 10px; white-space: pre-line; overflow-wrap: anywhere; }
.annotate-agreement .dim { color: var(--dim); font-size: 13px; }
@media (max-width: 720px) {
  .annotate header { flex-wrap: wrap; gap: 6px 10px; padding: 8px 10px 4px; }
  .annotate h1 { display: none; }
  .annotate .who { flex: 1; }
  .annotate .bar { order: 9; flex-basis: 100%; height: 5px; }
  .annotate main { display: block; overflow: auto; padding: 4px 10px 10px; }
  .annotate section { margin-bottom: 10px; }
  .annotate section .text, .annotate section.prompt { max-height: 50vh; }
  .annotate section.prompt { max-height: 30vh; }
  .annotate footer { padding: 8px 10px; border-top: 1px solid var(--line); }
  .annotate .answers { grid-template-columns: 1fr 1fr; gap: 8px; }
  .annotate .answers [data-act=right] { order: -1; }
  .annotate .answers [data-act=left] { order: -2; }
  .annotate button { min-height: 46px; }
  .annotate .file { display: none; }
}
@media (hover: none) and (pointer: coarse) { .annotate kbd { display: none; } }
@media (prefers-reduced-motion: reduce) { .annotate .bar > div { transition: none; } }
"""

SCRIPT = """
(() => {
  const keys = {
    1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 3: "tie", 4: "both_bad", u: "undo", U: "undo",
  };
  // What the browser shows goes with every press: the server refuses an answer to a pair that is no longer asked.
  const act = (name) => {
    const root = document.querySelector("[data-token]");
    if (root && window.did_handshake && window.socket?.connected) emitEvent("act", { name, token: root.dataset.token });
  };
  const scroll = (event, by) => {
    if (document.activeElement?.closest(".text")) return;
    document.querySelectorAll(".annotate .side .text").forEach((panel) => panel.scrollBy(0, by));
    event.preventDefault();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button && !button.disabled) act(button.dataset.act);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (document.querySelector(".q-dialog")) return;
    if (event.key === "ArrowDown") return scroll(event, 80);
    if (event.key === "ArrowUp") return scroll(event, -80);
    const name = keys[event.key];
    if (!name) return;
    event.preventDefault();
    if (!event.repeat) act(name);
  });
})();
"""
