"""Every file under conf/ composes and builds; what is misspelt, mistyped or senseless is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

import lab.config
from lab.__main__ import CONF, hide_environment, load, sweep_point, tenth
from lab.checks import ANY_NUMBER, DIRECT_LOSSES, SHARES, ZERO_OR_MORE, check, numbers
from lab.config import DirectMethod, LabConfig, OnlineMethod, SizesConfig
from lab.records import DOMAINS
from lab.typed import ConfigError, build, nearest, plain

FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF and "hydra" not in path.parts)
TOGETHER = ("method", "reward")  # put into arms of one composition: each composition takes a quarter of a second
ABREAST = (("preferences", "backbone", "prompts"), ("quality", "filter"))  # they do not touch one another
CROSSED = ("experiment", "scale")  # each with each
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> LabConfig:
    return load(hydra.compose("config", list(overrides)))


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """The default config as plain data; tests change a copy of it, which is much faster than composing again."""
    return plain(composed("run.store=/tmp/store", "run.results=/tmp/results"))


def changed(default: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy of ``default`` with values at dotted paths (written with __), e.g. ``arms__dpo__method__beta=-1``."""
    raw = copy.deepcopy(default)
    for path, value in values.items():
        *places, name = path.split("__")
        place = raw
        for part in places:
            place = place.setdefault(part, {})
        place[name] = value
    return raw


def built(raw: dict[str, Any]) -> LabConfig:
    config = build(LabConfig, raw)
    check(config)
    return config


def refused(default: dict[str, Any], **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        built(changed(default, **values))
    return str(caught.value)


# ---------------------------------------------------------------- every file


def rows() -> list[tuple[Path, ...]]:
    """Every file that is not put into an arm or crossed, those of one row to be composed together."""
    of = {group.name: sorted(group.glob("*.yaml")) for group in CONF.iterdir() if group.is_dir()}
    left = [path for path in FILES if path.parent.name not in (*TOGETHER, *CROSSED, *itertools.chain(*ABREAST))]
    found = [(path,) for path in left if path.parent.name != "pipeline"]
    found.append(tuple(path for path in left if path.parent.name == "pipeline"))
    for groups in ABREAST:
        for row in itertools.zip_longest(*(of[group] for group in groups)):
            found.append(tuple(path for path in row if path is not None))
    return found


def test_no_file_is_forgotten() -> None:
    composed_together = [path for row in rows() for path in row]
    assert sorted(composed_together) == [p for p in FILES if p.parent.name not in (*TOGETHER, *CROSSED)]


def needed(path: Path, tmp_path: Path) -> list[str]:
    """The overrides with which a file composes: its option, and the paths that must be given."""
    group, name = path.parent.name, path.stem
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = ["model=checkpoint", f"model.path={tmp_path}"]
    if (group, name) == ("model", "checkpoint"):
        return checkpoint
    if (group, name) == ("data", "preference_jsonl"):
        return ["experiment=real_reward_model", f"data={name}", f"data.path={tmp_path / 'rows.jsonl'}"]
    if group == "data" and name != "world":
        return [f"data={name}", f"data.path={tmp_path / 'rows.jsonl'}", *checkpoint]
    if (group, name) == ("backbone", "checkpoint"):
        return [f"backbone={name}", f"reward_model.backbone.path={tmp_path}"]
    if (group, name) == ("preferences", "raschka"):
        return [f"preferences={name}", f"preferences.path={tmp_path / 'rows.jsonl'}"]
    if (group, name) == ("preferences", "file"):
        return [f"preferences={name}", f"preferences.path={tmp_path / 'rows.jsonl'}", "preferences.format=pairs"]
    local = ["feedback=ai_labels_local", f"feedback.judge.path={tmp_path}"]
    if group == "constitution":
        return [*local, f"constitution@feedback.constitution={name}"]
    if (group, name) == ("feedback", "ai_labels_local"):
        return local
    if (group, name) == ("feedback", "ai_labels_endpoint"):
        return [f"feedback={name}", "feedback.judge.url=http://127.0.0.1:1/v1", "feedback.judge.model=some"]
    if (group, name) == ("feedback", "revisions_written"):
        return [f"feedback={name}", f"feedback.judge.path={tmp_path}", *checkpoint]
    if group == "pipeline":
        return ["experiment=pipelines", f"+pipeline@pipelines.one_{name}={name}", f"pipelines.one_{name}.label={name}"]
    return [f"{group}={name}"]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: "+".join(f"{path.parent.name}-{path.stem}" for path in row))
def test_every_file_composes_and_builds(row: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # model=smollm2 without its packages
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    composed(*dict.fromkeys(word for path in row for word in needed(path, tmp_path)))


def test_every_method_and_every_reward_composes_and_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = sorted(path.stem for path in FILES if path.parent.name == "reward")
    methods = {path.stem: path.read_text(encoding="utf-8") for path in FILES if path.parent.name == "method"}
    arms = {f"reward_{name}": ("grpo", name) for name in rewards}
    arms |= {f"method_{name}": (name, "gold" if "kind: online" in text else "") for name, text in methods.items()}
    overrides = []
    for arm, (method, reward) in arms.items():
        overrides += [f"+method@arms.{arm}.method={method}", f"+arms.{arm}.label={arm}", f"+arms.{arm}.family=control"]
        overrides += [f"+reward@arms.{arm}.reward={reward}"] * bool(reward)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge = "arms.reward_judge"
    overrides += [f"{judge}_local.reward.judge.path={tmp_path}", f"{judge}_endpoint.reward.judge.model=some"]
    overrides += [f"{judge}_endpoint.reward.judge.url=http://127.0.0.1:1/v1"]
    found = composed(*overrides).arms
    for arm, (_, reward) in arms.items():
        assert (found[arm].reward is None) == (not reward)
        if reward:
            assert reward.startswith(found[arm].reward.kind), "a file's name begins with the kind that it is"  # type: ignore[union-attr]
    kinds = {name: found[f"method_{name}"].method.kind for name in methods}
    expected = {"none": "none", "sft_continued": "supervised", "best_of_n": "best_of_n"}
    expected |= dict.fromkeys(("dpo", "hinge", "ipo", "robust_dpo"), "direct")
    expected |= dict.fromkeys(("ppo", "grpo", "rloo"), "online")
    expected |= {"length_normalised_dpo": "direct", "kto": "unpaired", "rejection": "rejection"}
    assert {name: kinds[name] for name in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_at_every_scale(experiment: str, scale: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    files = {"real_reward_model": [f"preferences.path={tmp_path / 'rows.json'}"]}
    config = composed(f"experiment={experiment}", f"scale={scale}", *files.get(experiment, []))
    assert config.experiment == experiment
    assert config.scale.name == scale
    if not config.arms:  # no policy is trained
        return
    online = [arm.method for arm in config.arms.values() if isinstance(arm.method, OnlineMethod)]
    assert online
    assert {method.steps for method in online} == {config.sizes.rl_steps}, "a scale must reach every arm"


def test_a_scale_file_holds_the_whole_table_and_nothing_else() -> None:
    fields = {field.name for field in dataclasses.fields(SizesConfig)}
    for scale in SCALES:
        raw = OmegaConf.load(CONF / "scale" / f"{scale}.yaml")
        assert set(raw) == {"scale", "sizes"}, scale
        assert set(raw.sizes) == fields, scale


def test_every_size_is_used_by_some_file() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml") if path.parent.name != "scale")
    unused = [field.name for field in dataclasses.fields(SizesConfig) if f"${{sizes.{field.name}}}" not in text]
    assert unused == []


def test_compare_has_its_arms_in_order() -> None:
    arms = composed().arms
    assert {name: (arm.label, arm.family, arm.reward and arm.reward.kind) for name, arm in arms.items()} == {
        "sft": ("SFT", "control", None),
        "sft_continued": ("SFT continued", "control", None),
        "best_of_n": ("Best-of-N × RM", "with", None),
        "dpo": ("DPO", "without", None),
        "ppo_rm": ("PPO × RM", "with", "classifier"),
        "grpo_rm": ("GRPO × RM", "with", "classifier"),
        "ppo_verifier": ("PPO × verifier", "without", "verifier"),
        "grpo_verifier": ("GRPO × verifier (RLVR)", "without", "verifier"),
        "grpo_random": ("GRPO × random", "control", "random"),
    }
    assert list(arms)[:5] == ["sft", "sft_continued", "best_of_n", "dpo", "ppo_rm"]
    assert list(arms)[5:] == ["grpo_rm", "ppo_verifier", "grpo_verifier", "grpo_random"]


def test_arms_change_from_the_command_line() -> None:
    config = composed("~arms.grpo_random", "method@arms.dpo.method=ipo", "arms.ppo_rm.method.kl_coefficient=0.03")
    assert "grpo_random" not in config.arms
    assert isinstance(config.arms["dpo"].method, DirectMethod)
    assert config.arms["dpo"].method.loss_type == ("ipo",)
    assert config.arms["ppo_rm"].method.kl_coefficient == 0.03  # type: ignore[union-attr]
    assert config.arms["grpo_rm"].method.kl_coefficient != 0.03  # type: ignore[union-attr]


# ---------------------------------------------------------------- health: the same PPO, a tenth of the coefficient


@pytest.mark.slow
def test_the_low_kl_arm_follows_ppo_in_everything_but_a_tenth_of_the_coefficient() -> None:
    """Every number of ppo_rm is overridden; the other arm must differ in kl_coefficient alone."""
    method = hydra.compose("config", ["experiment=health"]).arms.ppo_rm.method
    overrides = []
    for key, value in OmegaConf.to_container(method, resolve=True).items():
        if isinstance(value, bool):
            overrides.append(f"arms.ppo_rm.method.{key}={not value}")
        elif isinstance(value, (int, float)):
            overrides.append(f"arms.ppo_rm.method.{key}={value + 1}")
    raw = hydra.compose("config", ["experiment=health", *overrides, "arms.ppo_rm.reward.scale=3"])
    held, loose = (OmegaConf.to_container(raw, resolve=True)["arms"][name] for name in ("ppo_rm", "ppo_rm_low_kl"))
    assert loose["reward"] == held["reward"]
    assert loose["method"] == held["method"] | {"kl_coefficient": held["method"]["kl_coefficient"] / 10}
    assert held["method"]["kl_coefficient"] > 1


def test_tenth() -> None:
    assert tenth(0.2) == 0.02
    assert tenth("abc") == "abc"
    assert tenth(True) is True


def test_low_kl_names_the_arm_that_was_mistyped() -> None:
    with pytest.raises(ConfigError, match=r"^arms\.ppo_rm\.method\.kl_coefficient: expected a number, got 'abc'"):
        composed("experiment=health", "arms.ppo_rm.method.kl_coefficient=abc")


# ---------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seedz": 3}, "seedz: unknown key (did you mean 'seeds'?)"),
        ({"arms__dpo__method__bta": 1.0}, "arms.dpo.method.bta: unknown key (did you mean 'beta'?)"),
        ({"sizes__rl_stepz": 3}, "sizes.rl_stepz: unknown key (did you mean 'rl_steps'?)"),
        ({"seeds": "abc"}, "seeds: expected an integer, got 'abc'"),
        ({"seeds": True}, "seeds: expected an integer, got True"),
        ({"seeds": 1.0}, "seeds: expected an integer, got 1.0"),
        ({"seeds": [0, 0]}, "seeds: expected an integer, got [0, 0]"),
        ({"sft__learning_rate": "1e-5"}, "sft.learning_rate: expected a number, got '1e-5'"),
        ({"sft__learning_rate": math.nan}, "sft.learning_rate: expected a finite number, got nan"),
        ({"sft__learning_rate": math.inf}, "sft.learning_rate: expected a finite number, got inf"),
        ({"plan": 1}, "plan: expected a boolean (true or false), got 1"),
        ({"model": None}, "model: missing (it is null)"),
        ({"run__store": "???"}, "run.store: must be given (it is ??? in the config)"),
        ({"arms__dpo__method__kind": "dirct"}, "arms.dpo.method.kind: 'dirct' is unknown (did you mean 'direct'?)"),
        (
            {"sft__schedule": "cosin"},
            "sft.schedule: 'cosin' is not one of cosine, linear, constant (did you mean 'cosine'?)",
        ),
        ({"arms__dpo__method__loss_type": "sigmoid"}, "arms.dpo.method.loss_type: expected a list, got 'sigmoid'"),
        ({"arms__x__method__kind": "none"}, "arms.x.label: missing"),
        ({"arms": []}, "arms: expected a mapping, got []"),
    ],
)  # fmt: skip
def test_mistyped(default: dict[str, Any], values: dict[str, Any], message: str) -> None:
    assert refused(default, **values) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds: expected more than 0, got 0"),
        ({"first_seed": -1}, "first_seed: expected 0 or more, got -1"),
        ({"sft__learning_rate": -1.0}, "sft.learning_rate: expected more than 0, got -1.0"),
        ({"preferences__flip_rate": 1.5}, "preferences.flip_rate: expected a number from 0 to 1, got 1.5"),
        ({"arms__ppo_rm__method__gamma": -0.1}, "arms.ppo_rm.method.gamma: expected a number from 0 to 1"),
        ({"arms__best_of_n__method__ns": [0, 2]}, "arms.best_of_n.method.ns[0]: expected more than 0, got 0"),
        ({"model__size__heads": 3}, "model.size.heads: 3 does not divide model.size.hidden (64)"),
        ({"model__size__heads": 64}, "model.size.heads: 64 heads are 1 wide each"),
        ({"sft__micro_batch": 3}, "sft.micro_batch: 3 does not divide sft.batch (32)"),
        ({"sft__examples": 5}, "sft.batch: 32 is more than the 5 rows there are"),
        ({"reward_model__batch": 9999}, "reward_model.batch: 9999 is more than the 4000 rows there are"),
        ({"preferences__pairs": 10**6}, "preferences.pairs: 1000000 and 500 held out are more than the 11400 that"),
        ({"preferences__samples_per_prompt": 1}, "preferences.samples_per_prompt: a pair needs 2 samples, got 1"),
        ({"preferences__sampling_temperature": 0}, "preferences.sampling_temperature: expected more than 0"),
        ({"evaluation__pass_k": 99}, "evaluation.pass_k: pass@99 cannot be estimated"),
        ({"arms__ppo_rm__method__minibatches": 7}, "arms.ppo_rm.method.minibatches: 7 does not divide"),
        ({"arms__ppo_rm__method__micro_batch": 3}, "arms.ppo_rm.method.micro_batch: 3 does not divide"),
        ({"arms__grpo_rm__method__completions_per_prompt": 1}, "arms.grpo_rm.method.completions_per_prompt: expected"),
        ({"arms__grpo_rm__method__temperature": 0}, "arms.grpo_rm.method.temperature: expected more than 0"),
        ({"arms__grpo_rm__method__prompts_per_rollout": 9999}, "arms.grpo_rm.method.prompts_per_rollout: 9999 is more"),
        ({"arms__grpo_rm__method__checkpoints": 41}, "arms.grpo_rm.method.checkpoints: 41 do not fit in 32 steps"),
        ({"arms__ppo_rm__method__critic_initial": "reward_model"}, "arms.ppo_rm.method.critic_initial: a critic on"),
        (
            {"arms__ppo_rm__method__kl_controller": "adaptive", "arms__ppo_rm__method__kl_coefficient": 0},
            "arms.ppo_rm.method.kl_coefficient: an adaptive controller",
        ),
        ({"arms__ppo_rm__reward": None}, "arms.ppo_rm.reward: missing: online training needs one"),
        ({"arms__dpo__reward": {"kind": "gold"}}, "arms.dpo.reward: a method of kind direct takes no reward"),
        ({"arms__best_of_n__method__ns": [2, 128]}, "arms.best_of_n.method.ns: best of 128 needs a pool as large"),
        ({"arms__best_of_n__method__ns": [2, 2]}, "arms.best_of_n.method.ns: expected increasing numbers, none twice"),
        (
            {"arms__dpo__method__loss_type": ["sigmod"]},
            "arms.dpo.method.loss_type[0]: 'sigmod' is unknown (did you mean 'sigmoid'?)",
        ),
        ({"arms__dpo__method__loss_type": []}, "arms.dpo.method.loss_type: empty"),
        ({"arms__dpo__method__loss_weights": [1, 2]}, "arms.dpo.method.loss_weights: 2 weights for 1 losses"),
        ({"arms__dpo__method__loss_type": ["exo_pair"]}, "arms.dpo.method.label_smoothing: the exo_pair loss needs"),
        (
            {"arms__dpo__method__loss_type": ["robust"], "arms__dpo__method__label_smoothing": 0.5},
            "arms.dpo.method.label_smoothing: the robust loss needs less than 0.5",
        ),
        ({"arms__dpo__label": "SFT"}, "arms.dpo.label: 'SFT' is the label of arms.sft too"),
        ({"run__device": "gpu"}, "run.device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
        ({"run__dtype": "fp16"}, "run.dtype: expected one of auto, float32, bfloat16, float16, got 'fp16'"),
        ({"run__store": "/dev/null/store"}, "run.store: '/dev/null/store' cannot be made: '/dev/null' is a file"),
        ({"run__results": "/dev/null"}, "run.results: '/dev/null' is a file, not a folder"),
    ],
)  # fmt: skip
def test_senseless(default: dict[str, Any], values: dict[str, Any], message: str) -> None:
    assert refused(default, **values).startswith(message)


def test_names_of_arms_are_file_names(default: dict[str, Any]) -> None:
    assert "an arm's name is letters" in refused(default, arms={"../up": default["arms"]["sft"]})
    assert refused(default, arms={}).startswith("arms: there are none")


@pytest.mark.parametrize("key", ["store", "results"])
def test_read_only_folder(default: dict[str, Any], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write where chmod forbids
    assert refused(default, **{f"run__{key}": str(tmp_path / "a" / "b")}).startswith(f"run.{key}: cannot write to ")
    assert list(tmp_path.iterdir()) == []
    built(changed(default, plan=True, **{f"run__{key}": str(tmp_path / "a")}))  # printing a plan writes nothing


def jsonl(path: Path | str, **values: Any) -> dict[str, Any]:
    counts = {"preference": 2500, "rl": 3000, "evaluation": 300, "tuning": 180}
    data = {"kind": "jsonl", "path": str(path), "question": "q", "answer": "a", "verifier": "gsm8k", "domain": "math"}
    return {**data, "sft": 100, "counts": counts, **values}


def test_files_that_must_exist(default: dict[str, Any], tmp_path: Path) -> None:
    rows, there = tmp_path / "train.jsonl", {"kind": "checkpoint", "path": str(tmp_path)}
    rows.write_text("{}\n")
    assert "holds no config.json" in refused(default, model=there, data=jsonl(rows))
    (tmp_path / "config.json").write_text("{}")
    built(changed(default, model=there, data=jsonl(rows)))

    def data(path: Path, **values: Any) -> str:
        return refused(default, model=there, data=jsonl(path, **values))

    assert data(tmp_path / "tran.jsonl").endswith("tran.jsonl' (did you mean 'train.jsonl'?)")
    assert data(tmp_path / "no" / "x.jsonl").endswith(f"(of its path, '{tmp_path}' exists)")
    assert data(tmp_path) == f"data.path: '{tmp_path}' is not a file"
    assert data(rows, verifier="gsm8").endswith("(did you mean 'gsm8k'?)")
    assert data(rows, domain="maths").startswith("data.domain: 'maths' is not one of math, ")
    assert refused(default, model={"kind": "checkpoint", "path": str(rows)}).endswith("is not a folder")
    assert refused(default, data=jsonl(rows)).startswith("model: the world's own model knows only")


def test_a_missing_package_is_named(default: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "make smollm2" in refused(default, model={"kind": "smollm2"})


def test_secrets_are_not_repeated(default: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    raw = OmegaConf.create({**default, "seeds": "${oc.env:MY_TOKEN}"})
    with pytest.raises(ConfigError) as caught:
        load(raw)
    assert str(caught.value) == "seeds: expected an integer, got '${oc.env:MY_TOKEN}'"
    assert hide_environment("nothing here", raw) == "nothing here"


def test_a_broken_interpolation_is_named(default: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"seeds: .*nowhere"):
        load(OmegaConf.create({**default, "seeds": "${nowhere}"}))


# ---------------------------------------------------------------- the builder, and what the tables of checks name


def test_plain_and_build_are_inverse(default: dict[str, Any]) -> None:
    config = build(LabConfig, default)
    assert plain(config) == default
    assert build(LabConfig, plain(config)) == config


def test_frozen(default: dict[str, Any]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build(LabConfig, default).seeds = 4  # type: ignore[misc]


def test_nearest() -> None:
    assert nearest("bta", ["beta", "epochs"]) == " (did you mean 'beta'?)"
    assert nearest("zzz", ["beta", "epochs"]) == " (known: beta, epochs)"
    assert nearest("zzz", [str(number) for number in range(99)]) == ""


def test_tables_name_real_fields() -> None:
    """A renamed field must not fall out of its table of ranges unnoticed."""
    kinds = [value for value in vars(lab.config).values() if dataclasses.is_dataclass(value)]
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert (ANY_NUMBER | SHARES | ZERO_OR_MORE) - names == set()
    assert len(ANY_NUMBER | SHARES | ZERO_OR_MORE) == len(ANY_NUMBER) + len(SHARES) + len(ZERO_OR_MORE)


def test_numbers_reach_lists_and_arms() -> None:
    found = {path: value for path, _, value in numbers(composed())}
    assert found["arms.best_of_n.method.ns[1]"] == 4
    assert found["arms.ppo_rm.method.clip"] == 0.2
    assert "plan" not in found  # a boolean is no number


def test_losses_are_those_of_trl() -> None:
    """The list is repeated in lab.checks to spare an import; read TRL's source, which costs nothing."""
    source = Path(str(pytest.importorskip("importlib.util").find_spec("trl").origin)).parent
    text = (source / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8")
    for loss in DIRECT_LOSSES:
        assert f'loss_type == "{loss}"' in text, loss
    assert text.count('if loss_type == "') == len(DIRECT_LOSSES)


def test_domains_of_data_files_are_known() -> None:
    assert OmegaConf.load(CONF / "data" / "gsm8k_jsonl.yaml").domain in DOMAINS


def test_sweep_point_is_empty_outside_sweeps() -> None:
    assert sweep_point() == ""
    assert composed().run.results == "results/compare"
