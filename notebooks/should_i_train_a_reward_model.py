# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Should I train a reward model for my task?
#
# Read from the committed results of the lab's two sweeps: `data_quality` (what better preferences buy DPO and PPO
# against a reward model, beside RLVR, which needs none) and `rm_size` (what a larger reward model buys). Nothing is
# trained here, and every number and every answer below is computed from those tables. They are of a small world whose
# true utility ("gold") is known: what carries over to your task is the questions and the way to answer them.
#
# Open it with `jupytext --to notebook should_i_train_a_reward_model.py`, or in an editor that knows percent cells.

# %%
import io
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from lab import results
from lab.figures.quality import quality_figure
from lab.figures.style import paper
from lab.figures.sweep import size_figure
from lab.tables.quality import Quality
from lab.tables.quality_text import FRAMES, crossing_said

QUALITY = {name: results.load("data_quality", name) for name in FRAMES}
SIZES = {name: results.load("rm_size", name) for name in ("table", "seeds", "slopes")}
POINTS = QUALITY["table"]
NAMES = {"dpo": "DPO", "ppo": "PPO against a reward model", "rlvr": "RLVR"}


def say(*sentences: str) -> None:
    """Print sentences as a list."""
    display(Markdown("\n".join(f"- {sentence}" for sentence in sentences)))


def show(figure: Figure) -> None:
    """Display a figure as it is saved."""
    buffer = io.BytesIO()
    with paper():
        figure.savefig(buffer, format="png", dpi=150)
    display(Image(buffer.getvalue()))


def note(name: str) -> str | None:
    """What the result's figure must say of itself, e.g. that it is of a trial."""
    sidecar = json.loads((results.folder(name) / f"{name}.json").read_text(encoding="utf-8"))
    said: str | None = sidecar["sources"]["note"]
    return said


def interval(line: Mapping[str, Any], name: str, style: str = "+.3f") -> str:
    """The number and its 95% interval."""
    if pd.isna(line[name]):
        return "not measured"
    return f"{line[name]:{style}} [{line[f'{name}_low']:{style}}, {line[f'{name}_high']:{style}}]"


def listed(items: list[str]) -> str:
    """The items as "a, b and c", or "none"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else "none"


# %% [markdown]
# ## How much of it was run

# %%
for name, table in (("data_quality", POINTS), ("rm_size", SIZES["table"])):
    complete = table[(table.status == "complete") & (table.n_seeds == table.n_expected)]
    warning = f" **{note(name)}**" if note(name) else ""
    seeds = f"{table.n_expected.max():.0f} seeds each"
    say(f"{name}: {len(complete)} of {len(table)} points are complete, {seeds}.{warning}")
results.describe("data_quality").head(12)

# %% [markdown]
# ## The data

# %%
show(quality_figure(Quality(**QUALITY, level=0.95), note("data_quality")))


# %% [markdown]
# ## When is it the best of the three?
#
# At each point of the sweep: whether PPO against a reward model surely has more gold than both DPO on the same labels
# and RLVR (intervals of the paired differences above 0), surely less than one of them, or neither.


# %%
def pays(line: Mapping[str, Any]) -> str:
    """One of yes, no, open, and not measured where the runs failed."""
    rivals = [name for name in ("ppo_minus_dpo", "ppo_minus_rlvr") if not pd.isna(line[name])]
    if not rivals:
        return "not measured"
    if any(line[f"{name}_high"] < 0 for name in rivals):
        return "no"
    return "yes" if all(line[f"{name}_low"] > 0 for name in rivals) else "open"


def best(line: Mapping[str, Any]) -> str:
    """The way with the most gold, whether surely so or not."""
    if pays(line) == "not measured":
        return "–"
    known = {name: line[name] for name in NAMES if not pd.isna(line[name])}
    return NAMES[max(known, key=lambda name: known[name])]


answers = POINTS.assign(pays=[pays(line) for line in POINTS.to_dict("records")])
answers = answers.assign(best=[best(line) for line in POINTS.to_dict("records")])
by_answer = {word: list(answers.quality[answers.pays == word]) for word in ("yes", "no", "open", "not measured")}
say(
    f"A reward model surely pays at {len(by_answer['yes'])} of {len(answers)} points: {listed(by_answer['yes'])}.",
    f"It surely does not at {len(by_answer['no'])}: {listed(by_answer['no'])}.",
    f"Open: {listed(by_answer['open'])}. Not measured: {listed(by_answer['not measured'])}.",
)
shown = ["quality", "agreement", "accuracy", "dpo", "ppo", "rlvr", "ppo_minus_dpo", "ppo_minus_rlvr", "best", "pays"]
answers[shown].round(3)

# %% [markdown]
# ## How good must my labels be, and how many do I need?

# %%
sentences = []
for line in QUALITY["crossings"].to_dict("records"):
    if "sft" not in (line["first"], line["second"]):
        axis = {"flips": "As more labels are turned round", "pairs": "As pairs are added"}[line["axis"]]
        sentences.append(f"{axis}: {crossing_said(line)}.")
say(*sentences) if sentences else say("Not measured: no curve has two points.")

# %% [markdown]
# ## Is my time better spent on data or on the algorithm?

# %%
effects = {(line["effect"], line["within"]): line for line in QUALITY["effects"].to_dict("records")}
if effects:
    data, algorithm, gap, extremes = (
        effects[key]
        for key in (
            ("data", "mean"),
            ("algorithm", "mean"),
            ("data - algorithm", "sizes"),
            ("data - algorithm", "extremes"),
        )
    )
    answer = {"data": "On data", "algorithm": "On the algorithm", "open": "That is open"}[gap["verdict"]]
    within = [
        f"{interval(line, 'value')} within {place}"
        for (effect, place), line in effects.items()
        if effect == "algorithm" and place != "mean"
    ]
    always = "so in every case" if extremes["verdict"] == "data" else "not surely in every case"
    say(
        f"{answer}, on average: the better preset is worth {interval(data, 'value')} gold, PPO with a reward model "
        f"instead of DPO {interval(algorithm, 'value')}; the size of the first less that of the second is "
        f"{interval(gap, 'value')}.",
        f"The algorithm is worth {' and '.join(within)}; data's smaller effect less the algorithm's larger one is "
        f"{interval(extremes, 'value')}: {always}.",
    )
else:
    say("Not measured: a preset is missing.")

# %% [markdown]
# ## How large must the reward model be?

# %%
sizes = SIZES["table"]
ns = sorted(int(name.split("_")[2]) for name in sizes if name.startswith("best_of_") and name.count("_") == 2)
show(size_figure(sizes, SIZES["seeds"], SIZES["slopes"], ns=ns, note=note("rm_size")))

# %%
for prompts, own in sizes.dropna(subset=["parameters", "ppo_delta"]).groupby("prompts"):
    own = own.sort_values("parameters")
    slope = SIZES["slopes"].query("quantity == 'ppo' and prompts == @prompts").iloc[0]
    least = own[own.ppo_delta_low > 0].head(1)
    first = "no size surely improves on SFT"
    if len(least):
        one = least.iloc[0]
        first = f"the smallest that surely improves on SFT has {one.parameters:,.0f} parameters"
    tenfold = {"supported": "pays", "refuted": "does not pay", "open": "may or may not pay"}[slope.verdict]
    say(
        f"On {prompts} prompts {first}; PPO gains {interval(own.iloc[0], 'ppo_delta')} with the smallest reward model "
        f"({own.iloc[0].parameters:,.0f} parameters) and {interval(own.iloc[-1], 'ppo_delta')} with the largest "
        f"({own.iloc[-1].parameters:,.0f}). Ten times the parameters {tenfold}: {interval(slope, 'slope')} gold."
    )

# %% [markdown]
# ## So: should I?

# %%
measured = answers[answers.pays != "not measured"]
yes, no = measured[measured.pays == "yes"], measured[measured.pays == "no"]
advice = []
if len(yes) and len(no):
    advice.append(f"**It depends.** It surely paid at {len(yes)} of {len(measured)} points, surely not at {len(no)}.")
    clean, dirty = yes.agreement.dropna(), no.agreement.dropna()
    if len(clean) and len(dirty):
        how = "agreement with gold alone does not tell these points apart"
        if clean.min() > dirty.max():
            how = "it paid where labels are cleaner"
        elif clean.max() < dirty.min():
            how = "it paid where labels are noisier"
        advice.append(
            f"Of your labels' agreement with gold: {how} (paid: {clean.min():.0%} to {clean.max():.0%}; did not: "
            f"{dirty.min():.0%} to {dirty.max():.0%})."
        )
elif len(yes):
    advice.append(f"**Yes**, at every point that answers ({len(yes)} of {len(measured)}).")
elif len(no):
    advice.append(f"**No**, at every point that answers ({len(no)} of {len(measured)}).")
else:
    advice.append("**These runs do not say.**")
for name in NAMES:
    where = list(measured.quality[measured.best == NAMES[name]])
    advice.append(f"{NAMES[name]} has the most gold at {len(where)} of {len(measured)} points: {listed(where)}.")
if len(measured) and measured.rlvr.notna().any():
    beaten = int((measured[["dpo_minus_rlvr_low", "ppo_minus_rlvr_low"]].max(axis=1) > 0).sum())
    advice.append(
        f"If a rule can check your answers, RLVR is the line to beat: preferences surely beat it at {beaten} of "
        f"{len(measured)} points."
    )
say(*advice)
