"""``python -m lab``: Hydra composes ``conf/``, ``lab.config`` checks it, an experiment runs. Nothing else happens here.

Exit codes: 0 done, 1 something failed while running, 2 the configuration or the command line is wrong, 130 interrupted.
Neither torch nor transformers is imported before a step has to be computed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lab.checks import check
from lab.config import LabConfig
from lab.records import text_id
from lab.typed import ConfigError, build, nearest

CONF = Path(__file__).resolve().parents[1] / "conf"

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Hydra's own switch: the user wants tracebacks, also of mistakes in a config. Read before ``main`` sets it."""


class RunFailedError(RuntimeError):
    """A run of a sweep failed, and has said why. (Hydra goes on with the other runs, then raises it.)"""


def tenth(value: Any) -> Any:
    """``${tenth:${key}}`` in a config file. What is not a number passes through: the builder names the key."""
    return value / 10 if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def sweep_point() -> str:
    """``${sweep_point:}``: nothing in a single run; in a sweep ``/sweep/`` and the run's overrides, as one file name.

    Without it the runs of a sweep would write their results over each other's.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    name = re.sub(r"[^A-Za-z0-9._=,@~+-]+", "_", HydraConfig.get().job.override_dirname)
    if len(name) > 100:
        name = f"{name[:80]}-{text_id(name)}"
    return f"/sweep/{name or HydraConfig.get().job.num}"


# conf/hydra/launcher has files of the launchers' own names, complete in themselves; Hydra says at every composition
# that it will one day stop checking them against the plugins' schemas.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

OmegaConf.register_new_resolver("tenth", tenth, replace=True)
OmegaConf.register_new_resolver("sweep_point", sweep_point, replace=True)


def load(raw: DictConfig) -> LabConfig:
    """The typed and checked config. Raises ConfigError; a value from the environment is not repeated in its message."""
    try:
        plain = OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    try:
        config = build(LabConfig, plain)
        check(config)
    except ConfigError as error:
        raise ConfigError(hide_environment(str(error), raw)) from error
    return config


def hide_environment(message: str, raw: DictConfig) -> str:
    """``message`` with the values of ``${oc.env:NAME}`` interpolations replaced by the names: they may be secrets."""
    for name in re.findall(r"oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)", OmegaConf.to_yaml(raw, resolve=False)):
        if value := os.environ.get(name):
            message = message.replace(value, f"${{oc.env:{name}}}")
    return message


def offline(config: LabConfig) -> None:
    """Tell the libraries, and child processes, whether the hub may be asked. They read this when first imported."""
    flag = "1" if config.run.hub_offline else "0"
    os.environ.update(
        HF_HUB_OFFLINE=flag,
        TRANSFORMERS_OFFLINE=flag,
        HF_DATASETS_OFFLINE=flag,
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )


def task(raw: DictConfig) -> None:
    """One run. A single run ends the process itself; in a sweep it raises, so that Hydra goes on with the others."""
    name, code, reason = "", 0, ""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        name = f"run {HydraConfig.get().job.num} ({' '.join(HydraConfig.get().overrides.task)}): "
    try:
        config = load(raw)
        offline(config)
        import experiments  # after the environment is set

        code = experiments.run(config)
    except ConfigError as error:
        if FULL_ERROR:
            raise
        print(f"error: {name}{error}", file=sys.stderr)
        code, reason = 2, f": {error}"
    except Exception as error:
        traceback.print_exception(error)
        print(f"error: {name}{type(error).__name__}: {error}", file=sys.stderr)
        code, reason = 1, f": {type(error).__name__}: {error}"
    if code and name:
        raise RunFailedError(f"{name}exit code {code}{reason}")
    if code:
        sys.exit(code)


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's message, in one line where it can be, with the nearest key for an override that matched none."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {str(error.__cause__ or error).splitlines()[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if error.options:
            close = nearest(option, error.options)
            listed = "" if "known:" in close else f"; known: {', '.join(sorted(error.options))}"
            return f"{group}: there is no {option!r} in conf/{group}{close}{listed}"
    unknown = re.match(r"Could not (?:override|delete)(?: from config\.)?(?: The value of)? '([^']+)'", str(error))
    if not unknown:
        return f"{error}" + (f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else "")
    key = unknown.group(1).rstrip(".")
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    config = compose_what_can_be(overrides)
    return f"{key}: unknown key{suggest(key, config)}"


def compose_what_can_be(overrides: Sequence[str]) -> DictConfig:
    """The config with those overrides that fit, so that suggestions know the groups that were chosen."""
    kept: list[str] = []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config")
        for override in overrides:
            try:
                config = hydra.compose("config", [*kept, override])
            except (HydraException, OmegaConfBaseException):
                continue
            kept.append(override)
    return config


def suggest(key: str, config: DictConfig) -> str:
    """The nearest key in the same place, else a key of the same name elsewhere."""
    place = config
    done: list[str] = []
    parts = key.split("@")[0].split(".")
    for index, part in enumerate(parts):
        known = [str(item) for item in place]
        if part not in known:
            close = nearest(part, known)
            paths = {path.split(".")[-1]: path for path in reversed(leaves(OmegaConf.to_container(config)))}
            if part not in paths and "did you mean" in close:  # the very name in another place is the better guess
                return " (did you mean {!r}?)".format(".".join([*done, close.split("'")[1], *parts[index + 1 :]]))
            elsewhere = difflib.get_close_matches(parts[-1], paths, n=1, cutoff=0.8)
            return f" (did you mean {paths[elsewhere[0]]!r}?)" if elsewhere else nearest(part, known)
        done.append(part)
        below = OmegaConf.select(config, ".".join(done))
        if not isinstance(below, DictConfig):
            return f" ({'.'.join(done)} has nothing below it)"
        place = below
    return f" (it is in conf/, but not in this composition: see {key.split('.')[0]} in --cfg job)"


def leaves(value: Any, path: str = "") -> list[str]:
    """The dotted path of every value, shallow ones first."""
    found: list[str] = []
    for key, item in value.items() if isinstance(value, dict) else ():
        here = f"{path}.{key}" if path else str(key)
        found.append(here)
        found.extend(leaves(item, here))
    return sorted(found, key=lambda item: item.count("."))


def check_sweep(arguments: Sequence[str]) -> None:
    """Refuse a sweep before its first run if a later one could not start, or if runs would write over each other.

    Every swept value is tried once, beside the first value of the others: not the whole product, which costs a quarter
    of a second a point. Raises ConfigError.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return
    words = [argument for argument in arguments if re.match(r"[^-].*=|~", argument)]
    fixed: list[str] = []
    swept: list[list[str]] = []
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        key = override.key_or_group
        if override.is_choice_sweep() or override.is_range_sweep():
            values = list(override.sweep_string_iterator())
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ConfigError(f"{key}: {twice[0]} is given twice in the sweep")
            swept.append([f"{override.get_key_element()}={value}" for value in values])
            continue
        if key == "hydra.sweep.dir":
            folder = Path(str(override.value()))
            if folder.is_dir() and any(folder.iterdir()):
                raise ConfigError(f"hydra.sweep.dir: {str(folder)!r} already holds a sweep; name a new folder")
        if not key.startswith("hydra"):
            fixed.append(word)
    for word in fixed if swept else ():
        if re.match(r"\+*run\.results=", word) and "${" not in word:
            raise ConfigError(f"run.results: all runs of the sweep would write there; use '{word}${{sweep_point:}}'")
    if any(re.match(r"--config|-c[dnp]", argument) for argument in arguments):
        return  # other config folders than ours: Hydra will say what it cannot compose
    first = [values[0] for values in swept]
    points = [[*first[:i], value, *first[i + 1 :]] for i, values in enumerate(swept) for value in values]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for point in points:
            load(hydra.compose("config", [*fixed, *point]))


def launch() -> None:
    """Hydra's run, or its sweep and then what the runs of the sweep say together: also where some of them failed.

    Raises RunFailedError if the sweep is not complete.
    """
    failed, code = "", 0
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, ConfigError):
        raise
    except RunFailedError as error:
        failed = str(error)
    except Exception as error:
        if str(error).startswith("Unknown plugin class"):
            raise ConfigError(f"hydra: {error}: not installed (pip install -e '.[cluster]')") from error
        if not sweep_is_open():
            raise
        failed = f"{type(error).__name__}: {error}"  # a launcher lost a run: its process died, or ran out of time
    if sweep_is_open():
        from experiments import sweep

        try:
            code = sweep.finish()
        except Exception as error:
            traceback.print_exception(error)
            failed = failed or f"{type(error).__name__}: {error}"
    if failed or code:
        raise RunFailedError(failed or "some of its runs are not complete")


def sweep_is_open() -> bool:
    """Whether this process has started a sweep that wants to be collected (``experiments.sweep.Collect``)."""
    sweep = sys.modules.get("experiments.sweep")
    return sweep is not None and bool(sweep.OPEN)


def main() -> None:
    """Entry point of ``lab`` and ``python -m lab``."""
    arguments = sys.argv[1:]
    if not CONF.is_dir():
        fail(f"{CONF}: no such folder; the lab runs from a checkout: pip install -e .", 2)
    sys.argv[0] = "lab"  # also for python -m lab: Hydra's help and completion name the command by it
    # Hydra prints its errors with a traceback and exits 1; this lets them through, to be printed in one line below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        check_sweep(arguments)
        launch()
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        if FULL_ERROR:
            raise
        fail(str(error) if isinstance(error, ConfigError) else explain(error, arguments), 2)
    except RunFailedError as error:
        fail(f"the sweep is not complete: {error}", 1)
    except OSError as error:
        if FULL_ERROR:
            raise
        fail(f"{error.filename}: {error.strerror}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and leave."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    # Under its real name, so that other processes (Hydra's launchers) can import the task and the resolver.
    from lab.__main__ import main as run_main

    run_main()
