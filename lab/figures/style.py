"""How figures look: for a paper's two columns, for colour-blind eyes, and the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

WIDTH_INCHES = 7.0
"""The text width of a two-column paper."""

SMALL, BASE = 6.5, 7.0
"""Points; nothing is smaller."""

PAPER: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": BASE,
    "axes.labelsize": BASE,
    "axes.titlesize": BASE,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.minor.size": 1.2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.minor.width": 0.4,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "lines.linewidth": 1.0,
    "legend.fontsize": SMALL,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "path",
    "svg.hashsalt": "alignment-lab",  # without it every SVG has new ids
    "path.simplify": False,
}


def paper() -> AbstractContextManager[None]:
    """A context in which figures are built and rendered in the style of ``PAPER``, leaving global settings alone."""
    settings: Any = dict(PAPER)
    return mpl.rc_context(settings)


BLACK, GREY, LIGHT_GREY, WHITE = "#000000", "#757575", "#A8A8A8", "#FFFFFF"
SKY, BLUE, GREEN = "#56B4E9", "#0072B2", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
"""The palette of Okabe and Ito 2008, which people with any common colour blindness tell apart, without its yellow (too
faint on white) and with two greys."""
WARNING = "#8A3B00"
"""Text that must not be missed."""


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is named and drawn. What is left None is chosen by family, in the order of the table.

    ``family``: "control", "no_rm" or "rm" (any other is drawn last). ``open_marker``: white inside, for a variant
    that shares its parent's colour. ``joined``: whether its curve is a path (checkpoints) or just points (best-of-n).
    """

    label: str
    family: str = "other"
    color: str | None = None
    marker: str | None = None
    open_marker: bool = False
    joined: bool = True


COMPARE_ARMS: Mapping[str, ArmStyle] = {
    "sft": ArmStyle("SFT", "control", BLACK, "o"),
    "sft_continued": ArmStyle("SFT continued", "control", GREY, "D"),
    "grpo_random": ArmStyle("GRPO × random", "control", LIGHT_GREY, "X"),
    "dpo": ArmStyle("DPO", "no_rm", SKY, "s"),
    "ppo_verifier": ArmStyle("PPO × verifier", "no_rm", BLUE, "^"),
    "grpo_verifier": ArmStyle("GRPO × verifier (RLVR)", "no_rm", GREEN, "v"),
    "best_of_n": ArmStyle("Best-of-N × RM", "rm", ORANGE, "P", joined=False),
    "ppo_rm": ArmStyle("PPO × RM", "rm", VERMILION, "<"),
    "grpo_rm": ArmStyle("GRPO × RM", "rm", PURPLE, "d"),
    "ppo_rm_low_kl": ArmStyle("PPO × RM, KL/10", "rm", VERMILION, "<", open_marker=True),
}
"""The arms of the shipped comparison, the same in every figure. Pass another mapping, or add to a copy of this one."""

FAMILIES: Mapping[str, str] = {
    "control": "Controls",
    "no_rm": "Without a reward model",
    "rm": "With a reward model (RM)",
    "other": "Other",
}

LINESTYLES: Mapping[str, Any] = {"control": (0, (1, 1.2)), "no_rm": "-", "rm": (0, (4, 1.2)), "other": "-."}

_COLORS: Mapping[str, tuple[str, ...]] = {
    "control": (BLACK, GREY, LIGHT_GREY),
    "no_rm": (SKY, BLUE, GREEN),
    "rm": (ORANGE, VERMILION, PURPLE),
    "other": (PURPLE, BLUE, ORANGE, GREEN, VERMILION),
}
_MARKERS: Mapping[str, tuple[str, ...]] = {
    "control": ("o", "D", "X"),
    "no_rm": ("s", "^", "v"),
    "rm": ("P", "<", "d"),
    "other": ("h", "*", "p", "H", "8"),
}


@dataclass(frozen=True)
class Drawn:
    """A resolved style: nothing left to choose."""

    label: str
    family: str
    color: str
    marker: str
    face: str
    linestyle: Any
    joined: bool


def resolve(arms: Mapping[str, ArmStyle], names: Iterable[str]) -> dict[str, Drawn]:
    """The style of every arm in ``names``, grouped by family; an arm without a style is drawn under its own name.

    Within a family colours and markers go by order of ``names``; when they run out, they repeat with open markers.
    """
    wanted = {name: arms.get(name, ArmStyle(name)) for name in names}
    drawn: dict[str, Drawn] = {}
    for family in FAMILIES:
        members = [name for name, style in wanted.items() if _family(style) == family]
        for place, name in enumerate(members):
            style = wanted[name]
            colors, markers = _COLORS[family], _MARKERS[family]
            color = style.color or colors[place % len(colors)]
            hollow = style.open_marker or family == "other" or (style.color is None and place >= len(colors))
            drawn[name] = Drawn(
                style.label,
                family,
                color,
                style.marker or markers[place % len(markers)],
                WHITE if hollow else color,
                LINESTYLES[family],
                style.joined,
            )
    return drawn


def _family(style: ArmStyle) -> str:
    return style.family if style.family in FAMILIES else "other"
