"""Question: can a judge take the annotator's place, and what is a written constitution worth?

From one SFT checkpoint and one pool of completions: the annotator's labels (all of them, and a part), the labels of a
judge that learnt from that part or from all (RLAIF, Lee et al. 2023, arXiv 2309.00267), and answers revised under a
constitution, labelled by the same judge (Bai et al. 2022, arXiv 2212.08073). DPO and PPO x RM on each, further SFT on
the revised answers. Prediction: a judge no better than its own labels cannot beat them: its labels agree less with gold
and its errors are not noise, so a policy trained on them falls behind the annotator's and stays near the policy of the
same few labels; revisions help where the reviser knows what its principle means. Whatever the rows say is the result.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import compare
from experiments.running import carry_out
from lab.config import ContinuedMethod, FewLabels, LabConfig, LabelSourceConfig, NoMethod, Revisions
from lab.execute import Outcome
from lab.graph import ArmRun, Graph, build_graph, seeds_of
from lab.plan import Step
from lab.records import Ledger
from lab.store import Store
from lab.typed import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lab.tables.ai_feedback import Feedback

NAME = "ai_feedback"


@dataclass(frozen=True)
class Branch:
    """One source of labels under one seed, which is the seed of its judge and of all that is trained on its labels."""

    source: str
    seed: int
    config: LabConfig
    graph: Graph

    def runs(self) -> list[tuple[str, ArmRun]]:
        """(name in the tables, run) of the arms that this source has a part in: all but SFT."""
        return [(f"{run.arm}.{self.source}", run) for run in self.graph.runs if self._takes_part(run.arm)]

    @property
    def steps(self) -> list[Step]:
        """What the tables are made from: the labels, and every arm that this source has a part in."""
        card = [self.graph.card] if self.graph.card is not None else []
        return [self.graph.pairs, *card, *(run.evaluation for _, run in self.runs())]

    def _takes_part(self, arm: str) -> bool:
        method = self.config.arms[arm].method
        if isinstance(method, ContinuedMethod):  # on demonstrations: the same whoever labels; or on revised answers
            return self.config.feedback is None or isinstance(self.config.feedback, Revisions)
        return not isinstance(method, NoMethod)


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write tables and figure; 0 if every run finished.

    Raises ConfigError unless exactly one source is the pool as it is, and if ``feedback`` is set too.
    """
    found, store = branches(config), Store(Path(config.run.store))
    steps = [baseline_run(found).evaluation, *(step for branch in found for step in branch.steps)]
    outcome = carry_out(config, steps, store)
    return 0 if outcome is None else report(config, found, store, outcome)


def branches(config: LabConfig) -> list[Branch]:
    """A graph for every source and seed; what they share is the same steps. Raises ConfigError as ``run``."""
    if config.feedback is not None:
        raise ConfigError("feedback: this experiment has its own in label_sources; expected null")
    found = []
    for name, source in ordered(config).items():
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            feedback = source.feedback
            if feedback is not None and not isinstance(feedback, FewLabels):
                feedback = dataclasses.replace(feedback, seed=feedback.seed + seed)
            own = dataclasses.replace(config, seeds=1, first_seed=seed, feedback=feedback)
            found.append(Branch(name, seed, own, build_graph(own)))
    return found


def baseline_run(found: list[Branch]) -> ArmRun:
    """The SFT checkpoint's own run, which is one for all sources."""
    arms = found[0].config.arms
    return next(run for run in found[0].graph.runs if isinstance(arms[run.arm].method, NoMethod))


def ordered(config: LabConfig) -> dict[str, LabelSourceConfig]:
    """The sources, the pool as it is before all others: that is what they are compared with. (Hydra puts first what a
    defaults list brings in.) ConfigError unless exactly one source is the pool as it is."""
    plain = [name for name, source in config.label_sources.items() if source.feedback is None]
    if len(plain) != 1:
        raise ConfigError(
            f"label_sources: expected one without feedback, the pool's own annotator, got {plain or 'none'}"
        )
    return {plain[0]: config.label_sources[plain[0]], **config.label_sources}


def report(config: LabConfig, found: list[Branch], store: Store, outcome: Outcome) -> int:
    """Rows, tables and figure of what was built, and the table on the terminal; 0 if nothing is missing."""
    from lab.tables.ai_feedback import TABLES, terminal, write

    folder = Path(config.run.results)
    folder.mkdir(parents=True, exist_ok=True)
    start = baseline_run(found)
    if not store.has(start.evaluation.key):
        print(f"no table: {start.arm!r}, from which all differences are measured, did not finish", file=sys.stderr)
        return 1
    tables, paths = tabulate(config, found, store, outcome, folder)
    paths += write(tables, folder)
    drawn = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    paths += draw(drawn, sources(config, found, store), folder)
    print(f"\n{terminal(tables)}\n")
    for path in paths:
        print(path)
    missing = [name for branch in found for name, run in branch.runs() if not store.has(run.evaluation.key)]
    if missing:
        print(f"{len(missing)} runs are missing: {', '.join(dict.fromkeys(missing))}", file=sys.stderr)
    return 1 if missing else 0


# ------------------------------------------------------------------------------------------------ from store to tables


def tabulate(
    config: LabConfig, found: list[Branch], store: Store, outcome: Outcome, folder: Path
) -> tuple[Feedback, list[Path]]:
    """The tables of ``lab.tables.ai_feedback`` from what is in the store; and the files of ``lab.tables.compare``."""
    from lab.tables import assert_comparable, read_rows, write_tables
    from lab.tables import compare as compare_arms
    from lab.tables.ai_feedback import feedback_tables

    start = baseline_run(found)
    baseline = start.arm
    built = [(branch, name, run) for branch in found for name, run in branch.runs() if store.has(run.evaluation.key)]
    assert_comparable(
        {f"{name}, seed {run.seed}": compare.provenance(branch.graph, store, run) for branch, name, run in built}
        | {baseline: compare.provenance(found[0].graph, store, start)}
    )
    frames = [read_rows([store.load(start.evaluation.key).path / "rows.parquet"])]
    frames += [
        read_rows([store.load(run.evaluation.key).path / "rows.parquet"]).assign(arm=name) for _, name, run in built
    ]
    import pandas as pd

    rows = pd.concat(frames, ignore_index=True)
    rows.to_parquet(folder / "rows.tmp", index=False, compression="zstd")
    (folder / "rows.tmp").replace(folder / "rows.parquet")
    names = {
        name: (branch.source, run.arm)
        for arm in config.arms
        for branch in found
        for name, run in branch.runs()
        if run.arm == arm
    }
    expected = {baseline: seeds_of(config, config.arms[baseline])} | {
        name: list(range(config.first_seed, config.first_seed + config.seeds)) for name in names
    }
    costs = {name: [dataclasses.asdict(spent(b, store, run)) for b, own, run in built if own == name] for name in names}
    compared = compare_arms(
        rows,
        expected=expected,
        baseline=baseline,
        costs={baseline: [dataclasses.asdict(Ledger())], **costs},
        failures={
            name: [note for branch in found for note in compare.failures(branch.graph, outcome, name.split(".")[0])]
            for name in names
        },
        k=config.evaluation.pass_k,
        resamples=config.run.resamples,
    )
    titles = {baseline: (config.arms[baseline].label, "")} | {name: title(config, *of) for name, of in names.items()}
    tables = feedback_tables(
        compared,
        rows,
        names,
        labels={name: source.label for name, source in ordered(config).items()},
        titles=titles,
        cards=[one for branch in found for one in cards(branch, store)],
        revised=[one for branch in found for one in revisions(branch, store)],
        resamples=config.run.resamples,
    )
    labels = {name: ": ".join(part for part in parts if part) for name, parts in titles.items()}
    return tables, [folder / "rows.parquet", *write_tables(compared, folder, labels)]


def title(config: LabConfig, source: str, arm: str) -> tuple[str, str]:
    """What people call an arm under a source, and whose labels it learnt from."""
    one, chosen = config.arms[arm], config.label_sources[source]
    if not isinstance(one.method, ContinuedMethod):
        return one.label, chosen.label
    return ("SFT on revised answers", chosen.label) if isinstance(chosen.feedback, Revisions) else (one.label, "")


def spent(branch: Branch, store: Store, run: ArmRun) -> Ledger:
    """What a run spent beyond the SFT checkpoint. The ledger of a source's pairs is all that its labels cost."""
    total = compare.ledger(branch.config, branch.graph, store, run)
    if isinstance(branch.config.arms[run.arm].method, ContinuedMethod) and branch.config.feedback is not None:
        revised = Ledger(**store.manifest(branch.graph.data["sft"].key)["ledger"])
        total = dataclasses.replace(total, demonstrations=0) + revised  # the answers are the reviser's, not bought
    return total


def cards(branch: Branch, store: Store) -> list[dict[str, Any]]:
    """What the labels of a source are worth under one seed: the label card, and its judge's accuracy on held-out pairs.

    The annotator's labels do not depend on the seed: they are looked at once.
    """
    from lab.data.jsonl import read_pairs

    step = branch.graph.pairs
    if not store.has(step.key) or (step.kind != "ai_labels" and branch.seed != branch.config.first_seed):
        return []
    path = store.load(step.key).path
    if step.kind == "ai_labels":
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
    else:
        import numpy as np

        from lab.feedback.agreement import label_card
        from lab.feedback.truth import margins

        pairs = read_pairs(path / "pairs.jsonl")
        card = label_card(
            pairs, np.ones(len(pairs)), margins(pairs, "world" if branch.config.data.kind == "world" else "verifier")
        )
    judge = step.inputs.get("judge")
    known = store.manifest(judge.key)["metrics"] if judge is not None and store.has(judge.key) else {}
    ledger = store.manifest(step.key)["ledger"]
    return [
        {
            "source": branch.source,
            "seed": branch.seed,
            "by_judge": step.kind == "ai_labels",
            "judge_accuracy": known.get("compare", {}).get("accuracy"),
            "card": card,
            **{name: ledger[name] for name in ("preference_labels", "demonstrations", "judge_calls")},
        }
    ]


def revisions(branch: Branch, store: Store) -> list[dict[str, Any]]:
    """The card of a source's revisions, if it has any."""
    if not isinstance(branch.config.feedback, Revisions):
        return []
    step = branch.graph.data["sft"]
    if not store.has(step.key):
        return []
    card = json.loads((store.load(step.key).path / "card.json").read_text(encoding="utf-8"))
    principles = {one.id: one.principle for one in branch.config.feedback.constitution.principles}
    return [{"source": branch.source, "seed": branch.seed, "card": card, "principles": principles}]


# ------------------------------------------------------------------------------------------------------------- figures


def sources(config: LabConfig, found: list[Branch], store: Store) -> dict[str, Any]:
    """What the figure was drawn from: keys and digests of the checkpoint, of every source's pairs and of every run."""
    from lab.artifact import sha256_file
    from lab.tables.ai_feedback import TABLES

    def named(key: str) -> dict[str, str]:
        return {"key": key, "digest": store.manifest(key)["digest"]}

    return {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "tables_sha256": sha256_file(Path(config.run.results) / TABLES),
        "sft": named(found[0].graph.sft.key),
        "pairs": [
            {"source": branch.source, "seed": branch.seed, "pairs": named(branch.graph.pairs.key)}
            for branch in found
            if store.has(branch.graph.pairs.key)
        ],
        "runs": [
            {"arm": name, "seed": run.seed, "evaluation": named(run.evaluation.key)}
            for branch in found
            for name, run in branch.runs()
            if store.has(run.evaluation.key)
        ],
    }


def drawing(found: Mapping[str, Any], told: Mapping[str, Any]) -> Figure:
    """The figure from the content of the tables' JSON file and the sources that its sidecar names."""
    from lab.figures.ai_feedback import feedback_figure
    from lab.tables.ai_feedback import from_payload

    return feedback_figure(from_payload(found), note=told["note"])


def draw(found: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> list[Path]:
    """The figure with its sidecar; returns the paths."""
    from lab.figures import save

    return save(drawing(found, told), folder / NAME, told)
