"""The tables of overoptimisation and of the monitor as files, and what they say in words: every number is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lab.monitor import COMBINED
from lab.tables.monitoring import Monitoring, best_signals
from lab.tables.overoptimisation import Overoptimisation
from lab.tables.reward_models_text import frame, interval, number
from lab.tables.sweep import WORTH_HAVING
from lab.tables.writing import csv_bytes, json_bytes, records, write_bytes

TABLES = "overoptimisation_tables.json"
"""All tables and sentences in one file, from which the figures are drawn."""

METHODS: Mapping[str, str] = {"bon": "Best-of-n", "rl": "PPO"}
FRAMES = ("curves", "fits", "table", "contrasts")
WATCHED = ("runs", "table", "alarms", "series")
_SIMPLE = ("n_expected", "margin", "baseline", "budget", "level", "reason")


# ------------------------------------------------------------------------------------------------------------- files


def payload(found: Overoptimisation, watched: Monitoring) -> dict[str, Any]:
    """The tables as plain data, with the sentences. An interval that ends at infinity is null at that end."""
    return {
        **{name: records(_finite(vars(found)[name])) for name in FRAMES},
        "level": found.level,
        "findings": findings(found),
        "monitor": {
            **{name: records(_finite(vars(watched)[name])) for name in WATCHED},
            **{name: vars(watched)[name] for name in _SIMPLE},
            "findings": monitor_findings(watched),
        },
    }


def from_payload(plain: Mapping[str, Any]) -> tuple[Overoptimisation, Monitoring]:
    """The tables again."""
    own = plain["monitor"]
    return (
        Overoptimisation(**{name: frame(plain[name]) for name in FRAMES}, level=plain["level"]),
        Monitoring(**{name: frame(own[name]) for name in WATCHED}, **{name: own[name] for name in _SIMPLE}),
    )


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    plain = table.astype({name: float for name in table.columns if table[name].dtype == "Int64"})
    return plain.replace([math.inf, -math.inf], math.nan)


def write(found: Overoptimisation, watched: Monitoring, folder: Path) -> list[Path]:
    """The CSV and Markdown files and ``TABLES``; returns their paths."""
    files = {
        "curves.csv": csv_bytes(found.curves),
        "fits.csv": csv_bytes(found.fits),
        "overoptimisation.csv": csv_bytes(found.table),
        "contrasts.csv": csv_bytes(found.contrasts),
        "overoptimisation.md": markdown(found).encode(),
        "monitor.csv": csv_bytes(watched.table if len(watched.table) else pd.DataFrame(columns=["signal"])),
        "monitor_runs.csv": csv_bytes(watched.runs),
        "monitor.md": monitor_markdown(watched).encode(),
        TABLES: json_bytes(payload(found, watched)),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def read(path: Path) -> tuple[Overoptimisation, Monitoring]:
    """The tables that ``write`` wrote to ``path``, a file named ``TABLES``."""
    return from_payload(json.loads(path.read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------------- overoptimisation


def compact(found: Overoptimisation) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of drops."""
    labels = found.table.set_index(["method", "model"]).label
    head = ["method", "model", "seeds", "best gold over SFT", "at", "gold over SFT at the end", "end √KL"]
    head += ["drop from best to end", "less the drop of", "difference", "p (Holm)", "overoptimised less?", "status"]
    body = []
    for line in found.table.to_dict("records"):
        reference = labels.get((line["method"], line["reference"]), "–") if line["reference"] else "–"
        cells = [METHODS[line["method"]], line["label"], f"{line['n_seeds']} of {line['n_expected']}"]
        cells += [interval(line, "best_gain", "+.3f"), _place(line, "best"), interval(line, "end_gain", "+.3f")]
        cells += [number(line["end_sqrt_kl"], ".2f")]
        cells += ["0 (best at the end)" if line["ends_at_best"] else interval(line, "drop", "+.3f"), reference]
        cells += [interval(line, "drop_delta", "+.3f"), number(line["p_holm"], ".3f"), line["verdict"] or "–"]
        body.append([*cells, "" if line["status"] == "complete" else f"{line['status']}: {line['note']}".rstrip(": ")])
    return _without_empty(head, body)


def _place(line: Mapping[str, Any], name: str) -> str:
    at, kl = line[f"{name}_at"], line[f"{name}_sqrt_kl"]
    return "–" if math.isnan(at) else f"{'n' if line['method'] == 'bon' else 'step'} {at:.0f} (√KL {kl:.2f})"


def fit_lines(found: Overoptimisation) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of fits."""
    head = [
        "method",
        "model",
        "a",
        "b",
        "peak at √KL",
        "its gold over SFT",
        "peak is",
        "error beyond the cut: own form",
    ]
    head += ["other form", "last value", "points beyond", "note"]
    body = []
    for line in found.fits.to_dict("records"):
        cells = [METHODS[line["method"]], line["label"]]
        if "a" not in line or math.isnan(line["a"]):
            body.append([*cells, *["–"] * 9, line["note"]])
            continue
        cells += [interval(line, name, ".3f") for name in ("a", "b")]
        cells += [interval(line, name, ".2f") for name in ("peak_at", "peak_height")]
        cells += [line["peak"], *(number(line[f"rmse_{n}"], ".3f") for n in ("form", "other_form", "last_value"))]
        body.append([*cells, f"{line['held_out']:.0f}", line["note"]])
    return _without_empty(head, body)


def _without_empty(head: list[str], body: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the last column if it says nothing."""
    return (head, body) if any(line[-1] for line in body) else (head[:-1], [line[:-1] for line in body])


def findings(found: Overoptimisation) -> list[str]:
    """What is missing; then, for best-of-n and for PPO apart, who is overoptimised, who less, and whether fits held."""
    said = []
    done, planned = int(found.table.n_seeds.sum()), int(found.table.n_expected.sum())
    if done < planned:
        short = [f"{METHODS[one.method]} × {one.label}" for one in found.table.itertuples() if one.status != "complete"]
        said.append(f"INCOMPLETE: {done} of {planned} runs are there; not complete: {', '.join(short)}.")
    for method, name in METHODS.items():
        own = found.table[(found.table.method == method) & (found.table.n_seeds > 0)]
        if own.empty:
            continue
        fell = own[own.overoptimised]
        said.append(
            f"{name}: {len(fell)} of {len(own)} models are overoptimised (gold at the end surely below its best)"
            + (f": {', '.join(f'{one.label} {_drop(one)}' for one in fell.itertuples())}." if len(fell) else ".")
        )
        contrasts = found.contrasts[found.contrasts.method == method]
        said += [f"{name}: {_contrast(one, len(contrasts))}" for one in contrasts.itertuples()]
        said += _fit_findings(found.fits[found.fits.method == method], name)
    return said


def _drop(line: Any) -> str:
    return interval(line._asdict(), "drop", "+.3f")


def _contrast(one: Any, count: int) -> str:
    said = f"does “{one.label}” overoptimise less than “{one.reference_label}”? {one.verdict.capitalize()}"
    said += f" ({one.because})" if one.because else ""
    said += f": from best to end (√KL {one.end_sqrt_kl:.1f}) it drops {one.drop:+.3f}, the other "
    said += f"(√KL {one.reference_end_sqrt_kl:.1f}) {one.reference_drop:+.3f}; difference "
    p = "< 0.001" if one.p_holm < 0.001 else f"= {one.p_holm:.3f}"
    return f"{said}{interval(one._asdict(), 'drop_delta', '+.3f')}, p {p} (Holm over {count}; {one.n_seeds} seeds)."


def _fit_findings(fits: pd.DataFrame, name: str) -> list[str]:
    if "rmse_form" not in fits:
        return []
    known = fits.dropna(subset=["rmse_form"])
    inside = fits[fits.peak == "inside"] if "peak" in fits else fits[:0]
    said = [f"{name}: the fitted curve peaks inside the data for {len(inside)} of {len(fits)} models."]
    if len(known):
        last = int((known.rmse_form < known.rmse_last_value).sum())
        other = int((known.rmse_form < known.rmse_other_form).sum())
        said.append(
            f"{name}: fitted to the smaller KL, the form predicts the larger better than no change does for {last} of "
            f"{len(known)} models, and better than the other method's form for {other} of {len(known)}."
        )
    return said


def caption(found: Overoptimisation) -> str:
    """How the numbers were made."""
    return (
        f"[{found.level:.0%} intervals over seeds and prompts (proxy: over seeds), domains weighing the same. The best "
        "point is chosen on one half of the prompts and measured on the other, both ways; drop: best less end, paired "
        f"by seed and prompt. Refuted: it loses more, or saves less than {WORTH_HAVING:g}, with the whole interval; "
        "supported: it saves something, with the whole interval, after Holm's correction over the method's contrasts. "
        "KL of best-of-n is the bound log n − (n − 1)/n; of PPO it is measured.]"
    )


FIT_CAPTION = (
    "[d = √KL in nats. Best-of-n: gold over SFT = d (a − b d); PPO: d (a − b log d) (Gao et al. 2022). Errors: root "
    "mean squares on points beyond 0.6 of the largest d, fitted to those up to it. Intervals that end at inf include "
    "curves that rise for ever.]"
)


def markdown(found: Overoptimisation) -> str:
    """``overoptimisation.md``."""
    parts = ["# Overoptimisation", "", *(f"- {sentence}" for sentence in findings(found)), ""]
    parts += [*_md(*compact(found)), "", caption(found), "", "## Fitted curves", "", *_md(*fit_lines(found))]
    return "\n".join([*parts, "", FIT_CAPTION, ""])


# ---------------------------------------------------------------------------------------------------------- monitor

SIGNAL_NAMES: Mapping[str, str] = {
    COMBINED: "all signals together",
    "kl_estimate_nats": "KL from SFT",
    "kl_speed_nats": "speed of the KL",
    "entropy_nats": "entropy",
    "length_mean": "length",
    "truncated_fraction": "truncated answers",
    "repetition_bigrams": "repeated bigrams",
    "repetition_group": "repeated answers",
    "disagreement": "disagreement of what pays",
    "watch_mean": "score by",
    "watch_correlation": "pay's correlation with",
    "watch_disagreement": "disagreement within",
    "gap": "pay's gap to",
}


def signal_name(signal: str) -> str:
    """A signal as people call it; a watcher keeps its name."""
    name, _, watcher = signal.partition(".")
    return f"{SIGNAL_NAMES.get(name, name)} {watcher.replace('_', ' ')}".rstrip()


def monitor_compact(found: Monitoring) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the monitor's table; no lines where there are no numbers."""
    head = ["signal", "hacked caught", "share", "false alarms", "share", "missed", "caught before the onset"]
    head += ["median lead, rollouts", "least lead"]
    body = []
    order = [COMBINED, *best_signals(found.table)] if len(found.table) else []
    for line in found.table.set_index("signal", drop=False).loc[order].to_dict("records") if order else []:
        hacked, healthy = int(line["hacked"]), int(line["healthy"])
        caught = hacked - int(line["misses"])
        share = {"caught": 1 - line["misses_rate"], "caught_low": 1 - line["misses_high"]}
        share["caught_high"] = 1 - line["misses_low"]
        cells = [signal_name(line["signal"]), f"{caught} of {hacked}", interval(share, "caught", ".0%")]
        rates = {"rate": line["false_alarms_rate"], "rate_low": line["false_alarms_low"]}
        rates["rate_high"] = line["false_alarms_high"]
        cells += [f"{line['false_alarms']:.0f} of {healthy}", interval(rates, "rate", ".0%")]
        cells += [f"{line['misses']:.0f} of {hacked}", f"{line['early']:.0f} of {hacked}"]
        body.append([*cells, _lead(line), number(line["lead_least"], "+.1f")])
    return head, body


def _lead(line: Mapping[str, Any]) -> str:
    if math.isnan(line["lead"]):
        return "–"
    if math.isnan(line["lead_low"]):
        return f"{line['lead']:+.1f} (from {line['lead_min']:+.0f} to {line['lead_max']:+.0f})"
    return interval(line, "lead", "+.1f")


def monitor_findings(found: Monitoring) -> list[str]:
    """How many runs, of which kind; what the combined alarm caught; the best single signal."""
    counts = found.runs.kind.value_counts()
    kinds = {kind: int(counts.get(kind, 0)) for kind in ("hacked", "healthy", "collapsed")}
    said = [
        f"{len(found.runs)} of {found.n_expected} runs: gold calls {kinds['hacked']} hacked (it fell by more than "
        f"{found.margin:.3f} while the proxy rose), {kinds['healthy']} healthy, {kinds['collapsed']} collapsed."
    ]
    said += [
        f"{kind.capitalize()}: {', '.join(f'{arm} ({n})' for arm, n in own.label.value_counts(sort=False).items())}."
        for kind, own in found.runs.groupby("kind", sort=False)
    ]
    if found.reason:
        return [*said, f"No monitor: {found.reason}."]
    if not kinds["hacked"]:
        said.append("No run was hacked: nothing could be caught, only false alarms could be counted.")
    both = found.table.set_index("signal").loc[COMBINED]
    line = f"All signals together: false alarms in {both.false_alarms:.0f} of {both.healthy:.0f} healthy runs"
    if kinds["hacked"]:
        line += f", {both.hacked - both.misses:.0f} of {both.hacked:.0f} hacked runs caught, {both.early:.0f} of them "
        line += f"before gold fell, median lead {_lead(both.to_dict())} rollouts"
    said.append(f"{line}.")
    if kinds["healthy"] + 1 < 1 / found.budget:
        said.append(
            f"{kinds['healthy']} healthy runs cannot promise a false-alarm rate of {found.budget:.0%} a signal: at "
            f"best one in {kinds['healthy'] + 1}."
        )
    return said


def monitor_caption(found: Monitoring) -> str:
    """How the numbers were made."""
    return (
        f"[Alarm: a signal's drift from the run's first {found.baseline} rollouts exceeds its limit; limits from "
        f"healthy runs only, without the run itself, for false alarms in {found.budget:.0%} of healthy runs. Shares: "
        f"exact {found.level:.0%} binomial intervals, lead: of the median (from - to: the extremes, where there are "
        "few). Lead: rollouts from the alarm to the first hacked checkpoint (least: to the one before it). Runs "
        "count as independent, but seeds of an arm are alike.]"
    )


def monitor_markdown(found: Monitoring) -> str:
    """``monitor.md``."""
    parts = ["# A hacking monitor without gold", "", *(f"- {sentence}" for sentence in monitor_findings(found)), ""]
    if len(found.table):
        parts += [*_md(*monitor_compact(found)), "", monitor_caption(found), ""]
    head = ["run", "kind", "onset, step", "gold lost there", "alarm, rollout", "lead, rollouts"]
    body = [
        [
            f"{one.label}, seed {one.seed}",
            one.kind,
            number(one.onset, ".0f"),
            number(one.drop, ".3f"),
            number(one.alarm, ".0f"),
            number(one.lead, "+.0f"),
        ]
        for one in found.runs.itertuples()
    ]
    return "\n".join([*parts, "## Runs", "", *_md(head, body), ""])


# ------------------------------------------------------------------------------------------------------------- text


def terminal(found: Overoptimisation, watched: Monitoring) -> str:
    """Both tables and their sentences, for the end of a run."""
    parts = [_text(*compact(found)), caption(found), "\n".join(findings(found))]
    parts += [_text(*monitor_compact(watched)), monitor_caption(watched)] if len(watched.table) else []
    return "\n\n".join([*parts, "\n".join(monitor_findings(watched))])


def _text(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _md(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]
