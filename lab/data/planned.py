"""What a step that reads somebody else's data will find: everything is read once before any work starts.

A bad row must not stop a run that has begun; and a step's identity is what was read, not where it lay.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lab.config.data import JsonlData, PairsFileConfig
from lab.data.origin import PLACE, Origin
from lab.data.preference_files import PairScan, check_share, is_held_out
from lab.data.sources import load, split
from lab.typed import plain

COLUMNS = ("question", "answer", "verifier", "domain", "demonstration")
OPTIONAL = ("demonstration", "rows", "weights", "pairing", "drop")
"""Fields that are no part of identity at their defaults: older steps did not know them."""


@dataclass(frozen=True)
class Planned:
    """A stage's ``config`` and ``resources``, a ``title`` for people, and how much there is of what, by name."""

    config: dict[str, Any]
    resources: dict[str, Any]
    title: str
    counts: dict[str, int]


def plan_pairs(settings: PairsFileConfig) -> Planned:
    """The step ``pairs_file``; counts: training (within the limit) and held_out.

    Raises ValueError naming file and row (``lab.data.preference_files``), and for a split with an empty side.
    """
    origin, scan = _origin(settings), scan_of(settings)
    check_share(settings.held_out)
    sides = [0, 0]
    for pair in scan:
        sides[is_held_out(pair, settings.held_out, settings.seed)] += 1
    for side, name in enumerate(("training", "held-out")):
        if not sides[side]:
            raise ValueError(
                f"{origin.name}: preferences.held_out: {settings.held_out} leaves no {name} pair of {sum(sides)}"
            )
    own = _identity(settings)
    own["drop"] = list(settings.drop)  # older steps knew it, whatever it was
    counts = {"training": min(sides[0], settings.limit or sides[0]), "held_out": sides[1]}
    return Planned({**own, "digest": scan.digest}, origin.resources, origin.title, counts)


def scan_of(settings: PairsFileConfig) -> PairScan:
    """The pairs that a config names."""
    return PairScan(
        _origin(settings),
        settings.format,
        max_characters=settings.max_characters,
        drop=settings.drop,
        weights=settings.weights,
        pairing=settings.pairing,
    )


def plan_prompts(settings: JsonlData) -> Planned:
    """The step ``data``; counts: rows (different prompts).

    Raises ValueError naming file and row (``lab.data.sources``), and for counts that the data cannot fill.
    """
    origin, own = _origin(settings), _identity(settings)
    counts = {"sft": own.pop("sft"), **own.pop("counts")}
    columns = {key: getattr(settings, key) for key in COLUMNS}
    loaded = load(origin, **columns, drop=settings.drop)
    shown = split(loaded.rows, counts, settings.seed)["sft"]
    if empty := sum(not one.completion.strip() for one in shown):
        raise ValueError(
            f"{origin.name}: {empty} of the {len(shown)} rows set apart for SFT (data.sft) have no demonstration; "
            "data.demonstration names a column that has"
        )
    config = {"kind": settings.kind, **own, "counts": counts, "digest": loaded.digest}
    return Planned(config, origin.resources, origin.title, {"rows": len(loaded.rows)})


def _origin(settings: PairsFileConfig | JsonlData) -> Origin:
    return Origin(**{key: getattr(settings, key) for key in (*PLACE, "rows")})


def _identity(settings: PairsFileConfig | JsonlData) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(settings)}
    return {
        key: value
        for key, value in plain(settings).items()
        if key not in ("kind", *PLACE) and not (key in OPTIONAL and value == plain(_default(fields[key])))
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
