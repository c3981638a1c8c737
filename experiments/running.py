"""How every experiment runs its steps: the plan, the check of its data, then what the store lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from experiments.overlap import check_first
from lab.config import LabConfig
from lab.execute import Outcome, execute
from lab.graph import FLOPS_PER_SECOND
from lab.graph.overlap import check_steps
from lab.plan import Plan, Step
from lab.store import Store


def carry_out(config: LabConfig, steps: Iterable[Step], store: Store) -> Outcome | None:
    """Build what the store lacks, once the data is known not to overlap (``experiments.overlap``); None where only the
    plan was asked for, which is printed. What failed is said on standard error. Raises ConfigError where an overlap is
    refused."""
    steps = list(steps)
    if config.plan:
        plan = Plan([*check_steps(config, steps), *steps])
        print(plan.render(store, config.run.workers, FLOPS_PER_SECOND))
        return None
    check_first(config, steps, store)
    outcome = execute(
        Plan(steps),
        store,
        workers=config.run.workers,
        runner="lab.stages.run_stage",
        warm_up="lab.warm_up",
        offline=config.run.hub_offline,
        flops_per_second=FLOPS_PER_SECOND,
    )
    if not outcome.ok:
        print(outcome.summary(), file=sys.stderr)
    return outcome
