"""Sweeps: what each run of ``python -m lab -m`` leaves behind, and how an experiment makes one result of all of them.

Hydra does not call the end of a sweep in which a run failed, and turns exceptions of callbacks into warnings. So the
callback ``Collect`` only notes what is planned, and lets every run report into the sweep's folder from whichever
process or machine it ran on; ``lab.__main__`` calls ``finish`` in every case, and what goes wrong there is an error.

A run that wrote results also leaves ``point.json`` beside them (``write_point``). Only runs that the sweep planned, and
that reported to it, are read: what an earlier sweep left in the same folder is never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from lab.config import LabConfig
from lab.typed import plain

if TYPE_CHECKING:
    import pandas as pd

POINT = "point.json"


def _rm_size(points: Sequence[Point], folder: Path) -> int:
    from experiments import rm_size  # not in every run of the sweep

    return rm_size.collect(points, folder)


def _data_quality(points: Sequence[Point], folder: Path) -> int:
    from experiments import data_quality

    return data_quality.collect(points, folder)


COLLECTORS: Mapping[str, Callable[[Sequence[Point], Path], int]] = {
    "rm_size": _rm_size,
    "data_quality": _data_quality,
}
"""Experiment -> what makes one result of a sweep's points, in ``run.results`` of a single run; returns an exit code."""


@dataclass(frozen=True)
class Point:
    """One planned run of a sweep and what became of it.

    ``choices``: config group -> the option chosen. ``seeds``: policy seeds planned. ``folder``: where its results lie.
    ``status``: "complete"; "partial" (it failed, but has results); "failed"; "missing" (it never reported).
    ``record``: its ``point.json``, None where it wrote none.
    """

    number: int
    experiment: str
    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    seeds: tuple[int, ...]
    folder: Path
    dry: bool = False
    status: str = "missing"
    note: str = ""
    record: Mapping[str, Any] | None = None

    @property
    def values(self) -> dict[str, str]:
        """The run's overrides as key -> value."""
        return dict(item.split("=", 1) for item in self.overrides if "=" in item)


@dataclass(frozen=True)
class Sweep:
    """What this process has set out to run; ``reports`` is the folder to which the runs report."""

    points: tuple[Point, ...]
    reports: Path


OPEN: list[Sweep] = []
"""The sweep of this process that is not collected yet: at most one."""


class Collect(Callback):  # type: ignore[misc, unused-ignore]
    """Hydra callback: ``hydra.callbacks.sweep: {_target_: experiments.sweep.Collect}``."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note every run that Hydra will start. An override that cannot be composed is left for Hydra to report."""
        OPEN.clear()
        if str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):  # only its points are known beforehand
            OPEN.append(Sweep(tuple(planned(config)), _reports(config)))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Take away the record of an earlier run at the same place: what stands there at the end is this run's."""
        if config.hydra.mode == RunMode.MULTIRUN and not config.plan:
            (_results(config) / POINT).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Report how the run ended, from the process that it ran in."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        done = job_return.status is JobStatus.COMPLETED
        note = "" if done else str(job_return._return_value)  # the property prints before it raises
        name = f"run {config.hydra.job.num} ({' '.join(config.hydra.overrides.task)}): "
        report = {
            "overrides": list(_as_written(config)),
            "completed": done,
            "note": note.removeprefix(name),
            "results": str(_results(config)),
        }
        _write(_reports(config) / f"{config.hydra.job.num}.json", report)


def planned(config: DictConfig) -> list[Point]:
    """The runs that Hydra's basic sweeper will start for a sweep's config, in its order, each composed as it will be.

    Raises Hydra's own exceptions for overrides that do not parse or compose.
    """
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *config.hydra.overrides.task])
    points = []
    before = HydraConfig.instance().cfg
    try:
        for number, own in enumerate(BasicSweeper.split_arguments(overrides, None)[0]):
            composed = loader.load_sweep_config(config, list(own))
            with open_dict(composed):
                composed.hydra.job.num = number
            HydraConfig.instance().set_config(composed)  # for ${sweep_point:}
            point = Point(
                number=number,
                experiment=composed.experiment,
                overrides=_as_written(composed),
                choices={k: str(v) for k, v in composed.hydra.runtime.choices.items() if not k.startswith("hydra")},
                seeds=tuple(range(composed.first_seed, composed.first_seed + composed.seeds)),
                folder=_results(composed),
                dry=bool(composed.plan),
            )
            points.append(point)
    finally:
        HydraConfig.instance().cfg = before
    return points


def _as_written(config: DictConfig) -> tuple[str, ...]:
    """The overrides of a run. Not where its results go: Hydra resolves ``${sweep_point:}`` there at another time."""
    return tuple(str(item) for item in config.hydra.overrides.task if not str(item).startswith("run.results="))


def _results(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd) / str(config.run.results)


def _reports(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd) / str(config.hydra.sweep.dir) / ".points"


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


# ------------------------------------------------------------------------------------------------------ one run's side


def write_point(
    config: LabConfig,
    folder: Path,
    *,
    shared: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    expected: Mapping[str, Sequence[int]],
    candidates: Sequence[Mapping[str, Any]] = (),
    preferences: Mapping[str, Any] | None = None,
    code: int = 0,
) -> Path:
    """``point.json`` beside ``folder``/rows.parquet: what a sweep must know of this run. To be written last of all.

    ``shared``: what all arms share, ``{"sft_digest", "prompts_digest", "sampler"}`` as ``assert_comparable`` had it.
    ``runs``: a mapping for each evaluation that was built: arm, seed, evaluation (its key), digest.
    ``expected``: arm -> the seeds that were planned. ``candidates``: one mapping for each reward source and seed:
    candidate, seed, of trained ones parameters, pairs, accuracy (of held-out pairs) and training_flops, and of the
    benchmark overall, easy, hard (shares, or None). ``preferences``: what was asked of the pairs, and their card.
    ``code``: exit code.

    Raises FileNotFoundError without rows, ValueError for NaN.
    """
    record = {
        "experiment": config.experiment,
        "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
        "code": code,
        "scale": plain(config.scale),
        "evaluation": plain(config.evaluation),
        "resamples": config.run.resamples,
        "shared": dict(shared),
        "runs": [dict(run) for run in runs],
        "expected": {arm: list(seeds) for arm, seeds in expected.items()},
        "candidates": [dict(one) for one in candidates],
        "preferences": dict(preferences or {}),
        "rows_sha256": _sha256(folder / "rows.parquet"),
    }
    _write(folder / POINT, record)
    return folder / POINT


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------ the whole sweep


def finish() -> int:
    """Collect the sweep that this process ran: exit code 0 if there was none, or if every planned run is complete.

    To be called after Hydra has returned, or raised because a run failed. Raises ValueError where the points cannot be
    compared.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Hydra's at INFO: matplotlib's fonts would tell their life story
    code = 0
    while OPEN:
        sweep = OPEN.pop()
        points = [read(point, sweep.reports) for point in sweep.points if not point.dry]
        for experiment in dict.fromkeys(point.experiment for point in points):
            own = [point for point in points if point.experiment == experiment]
            for point in own:
                if point.status != "complete":
                    print(f"{' '.join(point.overrides)}: {point.status}. {point.note}".rstrip(), file=sys.stderr)
            code |= any(point.status != "complete" for point in own)
            if experiment in COLLECTORS:
                code |= COLLECTORS[experiment](own, home(own))
    return int(code)


def home(points: Sequence[Point]) -> Path:
    """Where the sweep's own result goes: ``run.results`` without ``${sweep_point:}``. ValueError if the runs differ."""
    found = {point.folder.parent.parent if point.folder.parent.name == "sweep" else point.folder for point in points}
    if len(found) > 1:
        raise ValueError(f"run.results: the runs of the sweep lie in different places: {', '.join(map(str, found))}")
    folder = found.pop()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def read(point: Point, reports: Path) -> Point:
    """``point`` with what became of it. Raises ValueError if its rows are not those that its record names."""
    report = reports / f"{point.number}.json"
    if not report.exists():
        return replace(point, note="It has not reported: it never started, or its process died.")
    said = json.loads(report.read_text(encoding="utf-8"))
    if tuple(said["overrides"]) != point.overrides:
        raise ValueError(f"{report}: is of {' '.join(said['overrides'])}, expected {' '.join(point.overrides)}")
    point = replace(point, folder=Path(said["results"]))  # a run.results of the command line resolves only in the run
    path = point.folder / POINT
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if record is not None and record["rows_sha256"] != _sha256(point.folder / "rows.parquet"):
        raise ValueError(f"{point.folder / 'rows.parquet'}: not the rows that {POINT} names; run the sweep again")
    if said["completed"] and record is None and point.experiment in COLLECTORS:
        return replace(point, status="failed", note=f"It ended without {path}.")
    if said["completed"]:
        return replace(point, status="complete", record=record)
    return replace(point, status="failed" if record is None else "partial", note=said["note"], record=record)


def assert_comparable(points: Sequence[Point], group: str) -> None:
    """Refuse points that do not share the SFT checkpoint and the sampler, or, within an option of the config group
    ``group``, the evaluation prompts. ValueError naming the points on each side."""
    found = [(point, point.record) for point in points if point.record is not None]
    _one_value({_name(point): record["shared"]["sft_digest"] for point, record in found}, "sft_digest")
    samplers = {_name(point): json.dumps(record["shared"]["sampler"], sort_keys=True) for point, record in found}
    _one_value(samplers, "sampler")
    for option in dict.fromkeys(point.choices.get(group) for point, _ in found):
        own = {_name(p): record["shared"]["prompts_digest"] for p, record in found if p.choices.get(group) == option}
        _one_value(own, f"prompts_digest ({group}={option})")


def _name(point: Point) -> str:
    return " ".join(point.overrides) or f"run {point.number}"


def _one_value(values: Mapping[str, str], what: str) -> None:
    sides: dict[str, list[str]] = {}
    for name, value in values.items():
        sides.setdefault(value, []).append(name)
    if len(sides) > 1:
        said = "; ".join(f"{', '.join(names)}: {value}" for value, names in sides.items())
        raise ValueError(f"cannot compare: {what} differs between the points of the sweep ({said})")


def gather_rows(points: Sequence[Point], columns: Sequence[str]) -> pd.DataFrame | None:
    """The evaluation rows of all points that have any, with the option of each config group in ``columns`` as a column;
    None if no point has any."""
    import pandas as pd

    from lab.tables import read_rows

    frames = [
        read_rows([point.folder / "rows.parquet"]).assign(**{name: point.choices[name] for name in columns})
        for point in points
        if point.record is not None
    ]
    return pd.concat(frames, ignore_index=True) if frames else None


# -------------------------------------------------------------------------------------- what every collector is made of


def described(point: Point, columns: Sequence[str]) -> dict[str, Any]:
    """A planned point as the tables take it: the options of ``columns``, seeds, status, note, its reward models (one a
    seed, with what the random and the length-only reward score on the benchmark) and its preferences."""
    found = point.record["candidates"] if point.record else []
    of = {one["candidate"]: one for one in found}
    beside = {key: of[name]["overall"] for key, name in (("chance", "random"), ("length_only", "length")) if name in of}
    models = [{**one, **beside} for one in found if one["candidate"] == "reward_model"]
    state = {"seeds": point.seeds, "status": point.status, "note": point.note, "reward_models": models}
    known = (point.record or {}).get("preferences")
    return {**{name: point.choices[name] for name in columns}, **state, "preferences": known}


def resamples(points: Sequence[Point]) -> int:
    """Of the bootstrap: the most that any run was told."""
    return max((point.record["resamples"] for point in points if point.record), default=2000)


def sources(experiment: str, points: Sequence[Point]) -> dict[str, Any]:
    """What a figure of the sweep owes to its points. No path of this machine, no time: the same runs give the same
    bytes. Raises ValueError if the points have different scales."""
    scales = {json.dumps(point.record["scale"], sort_keys=True) for point in points if point.record}
    if len(scales) > 1:
        raise ValueError(f"cannot compare: the points of the sweep have different scales: {', '.join(sorted(scales))}")
    scale = json.loads(scales.pop()) if scales else {"name": None, "note": ""}
    keys = ("shared", "runs", "rows_sha256")
    return {
        "experiment": experiment,
        "scale": scale["name"],
        "note": scale["note"] or None,
        "points": [
            {"overrides": list(point.overrides), "status": point.status}
            | ({key: point.record[key] for key in keys} if point.record else {})
            for point in points
        ],
    }


def write_files(folder: Path, rows: pd.DataFrame | None, files: Mapping[str, bytes]) -> list[Path]:
    """``rows.parquet``, where there are rows, and ``files`` (name -> content), each whole. Returns the paths."""
    from lab.tables import write_bytes

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "rows.parquet"] if rows is not None else []
    if rows is not None:
        rows.to_parquet(paths[0].with_suffix(".tmp"), index=False, compression="zstd")
        paths[0].with_suffix(".tmp").replace(paths[0])
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [*paths, *(folder / name for name in files)]
