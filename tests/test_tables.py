"""Tables against rows small enough to work out by hand, and the refusals that keep a comparison fair."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lab import tables
from lab.records import EvalRow
from tests.synthetic_rows import evaluation_rows, ledgers, plan

SMALL = ("sft", "dpo", "ppo_rm")


def row(arm: str, seed: int, prompt: str, gold: float, **other: Any) -> EvalRow:
    """One line, with plain values where a test does not care. Prompts named m... are checked math, s... safety."""
    known: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "run": f"{arm}-{seed}",
        "step": 0 if arm == "sft" else 10,
        "final": True,
        "decode": "sampled",
        "prompt_id": prompt,
        "domain": "math" if prompt.startswith("m") else "safety",
        "level": 1,
        "sample": 0,
        "completion": "x",
        "gold": gold,
        "gold_correct": None,
        "gold_style": None,
        "verdict": "incorrect" if prompt.startswith("m") else None,
        "proxy": None,
        "kl_nats": 0.0 if arm == "sft" else 1.0,
        "entropy_nats": None,
        "length": 5,
        "truncated": False,
        "training_flops": 0.0 if arm == "sft" else 100.0,
        "generated_tokens": 0,
    }
    return EvalRow(**{**known, **other})


def frame(*rows: EvalRow) -> pd.DataFrame:
    return pd.DataFrame([dataclasses.asdict(one) for one in rows])


def compare(*rows: EvalRow, **other: Any) -> tables.Comparison:
    expected = other.pop("expected", {"sft": [0], "dpo": [0]})
    return tables.compare(frame(*rows), expected=expected, resamples=50, **other)


def line(found: pd.DataFrame, arm: str, domain: str = "all") -> pd.Series:
    chosen = found[(found.arm == arm) & (found.domain == domain)]
    assert len(chosen) == 1
    return chosen.iloc[0]


SFT = (row("sft", 0, "m1", 0.2), row("sft", 0, "m2", 0.4), row("sft", 0, "s1", 0.5))


def test_means_are_over_prompts_then_domains() -> None:
    found = compare(*SFT, row("dpo", 0, "m1", 0.6), row("dpo", 0, "m2", 0.8), row("dpo", 0, "s1", 0.3))
    assert line(found.table, "dpo", "math").gold == pytest.approx(0.7)
    assert line(found.table, "dpo", "safety").gold == pytest.approx(0.3)
    assert line(found.table, "dpo").gold == pytest.approx(0.5)  # not 1.7 / 3: domains count alike
    assert line(found.table, "dpo").gold_delta == pytest.approx(0.5 - (0.3 + 0.5) / 2)
    assert line(found.table, "dpo", "verifiable").gold_delta == pytest.approx(0.4)
    assert line(found.table, "dpo", "unverifiable").gold_delta == pytest.approx(-0.2)
    assert math.isnan(line(found.table, "sft").gold_delta)
    assert list(found.table.domain.unique()) == ["math", "safety", "verifiable", "unverifiable", "all"]


def test_pass_rates_exist_only_where_a_verifier_does_and_a_broken_verifier_is_not_a_wrong_answer() -> None:
    verdicts = ["correct", "incorrect", "timeout", "correct"]
    answers = [row("dpo", 0, "m1", 0.5, sample=i, verdict=verdict) for i, verdict in enumerate(verdicts)]
    greedy = row("dpo", 0, "m1", 0.9, decode="greedy", verdict="correct")
    found = compare(*SFT, *answers, greedy, row("dpo", 0, "s1", 0.3), k=2)
    math_line = line(found.table, "dpo", "math")
    assert math_line.pass1 == pytest.approx(2 / 3)
    assert math_line.unjudged == pytest.approx(1 / 4)
    assert math_line.pass_at_k == pytest.approx(1)  # two of three correct: every pair holds one
    assert math_line.greedy_pass1 == 1
    assert math_line.greedy_gold == pytest.approx(0.9)
    assert line(found.table, "dpo").pass1 == pytest.approx(2 / 3)  # over the verifiable domains
    assert math.isnan(line(found.table, "dpo", "safety").pass1)
    assert math.isnan(line(found.table, "dpo", "unverifiable").pass1)


def test_wins_pair_prompt_and_sample_with_ties_half() -> None:
    base = [row("sft", 0, "m1", gold, sample=i) for i, gold in enumerate([0.1, 0.5, 0.9, 0.4])]
    ours = [row("dpo", 0, "m1", gold, sample=i) for i, gold in enumerate([0.2, 0.5, 0.8, 0.7])]
    assert line(compare(*base, *ours).table, "dpo").win_rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)


def test_distinct_completions() -> None:
    texts = ["a", "b", "a", "a"]
    ours = [row("dpo", 0, "m1", 0, sample=i, completion=text) for i, text in enumerate(texts)]
    found = compare(row("sft", 0, "m1", 0), *ours)
    assert line(found.table, "dpo").distinct == pytest.approx(0.5)
    assert math.isnan(line(found.table, "sft").distinct)  # one sample says nothing


def test_missing_seeds_and_failed_arms_stay_in_the_table() -> None:
    expected = {"sft": [0], "dpo": [0, 1, 2], "ppo_rm": [0, 1]}
    found = compare(
        *SFT,
        *(row("dpo", seed, prompt, 0.6) for seed in (0, 1) for prompt in ("m1", "m2", "s1")),
        expected=expected,
        failures={"ppo_rm": ["seed 0: diverged at step 3", "seed 1: out of memory"]},
    )
    dpo, ppo = line(found.table, "dpo"), line(found.table, "ppo_rm")
    assert (dpo.n_seeds, dpo.n_expected, dpo.status, dpo.note) == (2, 3, "partial", "no rows of seed 2")
    assert (ppo.n_seeds, ppo.n_expected, ppo.status) == (0, 2, "failed")
    assert ppo.note == "seed 0: diverged at step 3; seed 1: out of memory"
    assert math.isnan(ppo.gold)
    assert line(found.table, "sft").status == "complete"
    text = tables.terminal_table(found, {"dpo": "DPO"})
    assert "2 of 3" in text
    assert "0 of 2" in text
    assert "diverged at step 3" in text


def test_a_seed_without_a_domain_does_not_enter_the_mean_over_domains() -> None:
    rows = [row("dpo", 0, prompt, 0.6) for prompt in ("m1", "m2", "s1")] + [row("dpo", 1, "m1", 0.0)]
    found = compare(*SFT, *rows, expected={"sft": [0], "dpo": [0, 1]})
    assert line(found.table, "dpo").gold == pytest.approx(0.6)
    assert line(found.table, "dpo").n_seeds == 1
    assert line(found.table, "dpo", "math").n_seeds == 2
    of_seed = found.seeds[(found.seeds.arm == "dpo") & (found.seeds.seed == 1)].set_index("domain")
    assert of_seed.gold["math"] == 0
    assert math.isnan(of_seed.gold["all"])  # its mean over domains would be a mean over fewer


def test_one_checkpoint_sampled_under_several_seeds_is_not_several_policies() -> None:
    rows = [row("sft", seed, prompt, 0.1 * seed, run="same") for seed in range(3) for prompt in ("m1", "m2", "m3")]
    found = compare(*rows, expected={"sft": [0, 1, 2]})
    assert line(found.table, "sft").resampled == "prompts only (one seed)"
    assert line(found.table, "sft").n_seeds == 3
    own = [dataclasses.replace(one, run=str(one.seed)) for one in rows]
    assert line(compare(*own, expected={"sft": [0, 1, 2]}).table, "sft").resampled == "seeds and prompts"


def test_costs_are_means_over_seeds() -> None:
    spent = [{"preference_labels": 100, "training_flops": 5.0, "sampling_flops": 1.0}, {"preference_labels": 300}]
    found = compare(*SFT, *(row("dpo", 0, p, 0.6) for p in ("m1", "m2", "s1")), costs={"dpo": spent})
    assert line(found.table, "dpo").preference_labels == 200
    assert line(found.table, "dpo").total_flops == 3.0
    assert math.isnan(line(found.table, "sft").preference_labels)


def test_equal_kl_reads_each_curve_where_it_first_gets_there() -> None:
    points = [(10, False, 1.0, 0.4), (20, False, 9.0, 0.8), (30, True, 4.0, 0.1)]  # KL 1, 9, then back to 4
    rows = [
        row("dpo", 0, prompt, gold, step=step, final=final, kl_nats=kl, training_flops=10.0 * step)
        for step, final, kl, gold in points
        for prompt in ("m1", "m2", "s1")
    ]
    found = compare(*SFT, *rows, sqrt_kl=(0.5, 2.0, 3.5), upfront_flops={"dpo": 50.0})
    at = found.equal_kl.set_index("sqrt_kl")
    assert at.gold[0.5] == pytest.approx((0.4 + 0.4) / 2)  # half-way from SFT, whose mean over domains is 0.4
    assert at.gold[2.0] == pytest.approx(0.6)  # half-way from sqrt(KL) 1 to 3, not at the end
    assert at.gold_delta[2.0] == pytest.approx(0.2)
    assert at.training_flops[2.0] == pytest.approx(150)
    assert math.isnan(at.gold[3.5])
    assert at.n_seeds[3.5] == 0
    curve = found.curves[found.curves.arm == "dpo"]
    assert list(curve.step) == [0, 10, 20, 30]
    assert list(curve.sqrt_kl) == [0, 1, 3, 2]
    assert list(curve.compute_flops) == [50, 150, 250, 350]
    assert list(found.equal_compute.compute_flops) == [175, 350]
    assert list(found.equal_compute.gold) == pytest.approx([0.5, 0.1])


def test_a_curve_uses_the_prompts_that_all_its_points_share() -> None:
    early = [row("dpo", 0, prompt, 0.5, step=5, final=False) for prompt in ("m1", "s1")]
    late = [row("dpo", 0, prompt, gold) for prompt, gold in (("m1", 0.6), ("m2", 0.0), ("s1", 0.8))]
    found = compare(*SFT, *early, *late)
    curve = found.curves[found.curves.arm == "dpo"]
    assert list(curve.gold) == pytest.approx([(0.2 + 0.5) / 2, 0.5, 0.7])  # m2 is in no point, SFT's included
    assert line(found.table, "dpo").gold == pytest.approx((0.3 + 0.8) / 2)  # but it is in the table


@pytest.mark.slow
def test_the_order_of_rows_does_not_matter() -> None:
    rows = evaluation_rows(SMALL, prompts=3, points=2)
    there = tables.compare(rows, expected=plan(SMALL), resamples=50)
    back = tables.compare(rows.sample(frac=1, random_state=0), expected=plan(SMALL), resamples=50)
    for name in ("table", "seeds", "curves", "equal_kl", "equal_compute"):
        assert tables.table_digest(getattr(there, name)) == tables.table_digest(getattr(back, name)), name


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("kto", 0, "m1", 0)], "arm 'kto', seed 0, which the plan does not have"),
        ([row("dpo", 5, "m1", 0)], "arm 'dpo', seed 5"),
        ([row("dpo", 0, "m1", 0), row("dpo", 0, "m1", 1)], "prompt m1: sample 0 twice"),
        ([row("dpo", 0, "m9", 0)], "arm 'dpo' answers prompt m9, which 'sft' does not"),
        ([row("dpo", 0, "m1", 0), row("dpo", 0, "m1", 0, step=20)], "'dpo' has more than one end point"),
    ],
)
def test_rows_that_do_not_fit_the_plan_are_refused(rows: list[EvalRow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*SFT, *rows)


def test_a_comparison_needs_its_baseline() -> None:
    with pytest.raises(ValueError, match="no sampled rows of the baseline 'sft'"):
        compare(row("dpo", 0, "m1", 0))


def test_only_arms_from_one_checkpoint_prompts_and_sampler_are_compared() -> None:
    record = {"sft_digest": "aa", "prompts_digest": "bb", "sampler": {"temperature": 1.0, "max_new_tokens": 32}}
    tables.assert_comparable({"sft": record, "dpo": dict(record)})
    for key, other in (("sft_digest", "zz"), ("prompts_digest", "zz"), ("sampler", {"temperature": 0.7})):
        with pytest.raises(ValueError, match=f"{key} differs between arms .sft, ppo: .*; dpo: "):
            tables.assert_comparable({"sft": record, "dpo": {**record, key: other}, "ppo": record})
    with pytest.raises(ValueError, match="dpo does not record sft_digest"):
        tables.assert_comparable({"sft": record, "dpo": {**record, "sft_digest": None}})


def test_parquet_rows_are_read_and_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = frame(*SFT)
    pq.write_table(pa.Table.from_pandas(rows), tmp_path / "rows.parquet")
    pq.write_table(pa.Table.from_pandas(frame(row("dpo", 0, "m1", 0.6, proxy=0.5))), tmp_path / "more.parquet")
    read = tables.read_rows([tmp_path / "rows.parquet", tmp_path / "more.parquet"])
    assert list(read.gold) == [0.2, 0.4, 0.5, 0.6]
    assert read.proxy.notna().tolist() == [False, False, False, True]
    pq.write_table(pa.Table.from_pandas(rows.drop(columns="gold")), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet: column 'gold' is missing"):
        tables.read_rows([tmp_path / "bad.parquet"])


@pytest.mark.slow
def test_written_tables(tmp_path: Path) -> None:
    rows = evaluation_rows(SMALL, prompts=3, points=2)
    rows = rows[~((rows.arm == "dpo") & (rows.seed == 1))]
    found = tables.compare(rows, expected=plan(SMALL), costs=ledgers(SMALL), resamples=50)
    paths = tables.write_tables(found, tmp_path / "compare", {"dpo": "DPO"})
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "compare").iterdir())
    markdown = (tmp_path / "compare/table.md").read_text(encoding="utf-8")
    assert "| DPO | 2 of 3 |" in markdown
    assert "partial: no rows of seed 1" in markdown
    summary = json.loads((tmp_path / "compare/summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    dpo = next(one for one in summary["table"] if (one["arm"], one["domain"]) == ("dpo", "safety"))
    assert dpo["pass1"] is None
    assert dpo["gold_low"] < dpo["gold"] < dpo["gold_high"]
    again = pd.read_csv(tmp_path / "compare/table.csv")
    assert list(again.gold) == list(found.table.gold)  # to the last bit


def test_json_refuses_what_it_cannot_say() -> None:
    assert tables.json_bytes({"b": [1, None], "a": "√"}) == '{\n "a": "√",\n "b": [\n  1,\n  null\n ]\n}\n'.encode()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"\$\.runs\[1\]\.gold"):
            tables.json_bytes({"runs": [{}, {"gold": bad}]})
