"""The house rules that no reader should have to check by eye: imports run downward, files stay short, nothing local."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lab", "experiments")
MAX_LINES = 500

# From the ground up. A module may import its own layer (without cycles) and those above it in this table.
# Names are modules or packages directly under lab/, and `experiments`.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "lab",
        "records",
        "typed",
        "artifact",
        "lease",
        "store",
        "config",
        "checks",
        "reward_checks",
        "filter_checks",
        "preference_checks",
        "feedback_checks",
        "plan",
        "progress",
        "costs",
    ),
    (
        *("objectives", "verifiers", "stats", "best_of_n", "diagnostics", "overoptimisation", "monitor", "claims"),
        *("tables", "results"),
    ),
    ("models", "data", "world", "benchmarks"),
    ("sampling", "rewards"),
    ("evaluation", "training", "trl_private", "online", "feedback"),
    ("stages", "figures", "report", "annotate"),
    ("graph", "worker", "execute", "warm_up"),
    ("experiments",),
    ("__main__",),
)
LIGHT = (
    *LAYERS[0],
    *("stats", "best_of_n", "diagnostics", "overoptimisation", "monitor", "claims", "tables", "results", "figures"),
    *("graph", "worker", "execute", "experiments", "__main__"),
)
"""What must answer at once (`--help`, `plan=true`, redrawing a figure) and so never loads a training library."""
HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "tokenizers")


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports(source: str, module: str, package: bool, top_only: bool = False) -> set[str]:
    """Dotted names that a module imports, ``from a import b`` giving both ``a`` and ``a.b``.

    ``top_only``: only what runs when the module is imported, so neither function bodies nor ``if TYPE_CHECKING``.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*parents, base] if base else parents)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        if top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return names


@functools.cache
def imports_of(module: str, top_only: bool = False) -> frozenset[str]:
    path = MODULES[module]
    return frozenset(imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py", top_only))


@functools.cache
def own_imports_of(module: str, top_only: bool = False) -> frozenset[str]:
    return frozenset(name for name in imports_of(module, top_only) if name in MODULES and name != module)


def layer_name(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "lab" and len(parts) > 1 else parts[0]


RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def closure(module: str) -> dict[str, str]:
    """Every module of ours that importing ``module`` runs -> the one that asked for it (parent packages included)."""
    asked = {module: module}
    queue = [module]
    while queue:
        current = queue.pop()
        for name in own_imports_of(current, top_only=True) | set(with_parents(current)):
            for needed in with_parents(name):
                if needed in MODULES and needed not in asked:
                    asked[needed] = current
                    queue.append(needed)
    return asked


def upward(importer: str, imported: str) -> bool:
    return RANK[layer_name(imported)] > RANK[layer_name(importer)]


def test_import_reader_sees_every_spelling() -> None:
    source = (
        "import torch.nn as nn\nfrom lab import stats\nfrom . import gold\nfrom ..store import Store\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trl\n"
        "def f():\n    import datasets\nclass C:\n    import scipy\n"
    )
    everything = imports(source, "lab.world.generate", package=False)
    assert {"torch.nn", "lab.stats", "lab.world.gold", "lab.store.Store", "trl", "datasets", "scipy"} <= everything
    at_import = imports(source, "lab.world.generate", package=False, top_only=True)
    assert everything - at_import == {"trl", "datasets"}
    assert "lab.world.gold" in imports("from . import gold", "lab.world", package=True)


def test_upward_is_told_from_downward() -> None:
    assert upward("lab.objectives", "lab.models")
    assert upward("lab.sampling", "lab.stages.sft")
    assert not upward("lab.stages.sft", "lab.sampling")
    assert not upward("experiments.compare", "lab.plan")


def test_every_module_has_a_layer() -> None:
    homeless = sorted(module for module in MODULES if layer_name(module) not in RANK)
    assert not homeless, f"give these a place in LAYERS: {homeless}"


@pytest.mark.parametrize("module", [name for name in MODULES if layer_name(name) in RANK])
def test_imports_run_downward(module: str) -> None:
    ranked = [name for name in own_imports_of(module) if layer_name(name) in RANK]  # the others fail the test above
    wrong = sorted(name for name in ranked if upward(module, name))
    assert not wrong, f"{module} imports upward: {wrong}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("lab.stages.")])
def test_stages_never_import_each_other(module: str) -> None:
    others = sorted(name for name in imports_of(module) if name.startswith("lab.stages."))
    assert not others, f"{module} imports {others}: artifacts connect stages, not imports"


def test_imports_have_no_cycle() -> None:
    graph = {module: own_imports_of(module, top_only=True) for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if layer_name(name) in LIGHT])
def test_light_modules_load_no_training_library(module: str) -> None:
    for needed, asked_by in closure(module).items():
        heavy = sorted({name for name in imports_of(needed, top_only=True) if name.split(".")[0] in HEAVY})
        assert not heavy, f"importing {module} loads {needed} (asked for by {asked_by}), which imports {heavy}"


@pytest.mark.slow
def test_light_modules_leave_torch_unloaded() -> None:
    """The same by experiment: third-party packages could drag the training libraries in behind our backs."""
    wanted = [name for name in MODULES if layer_name(name) in LIGHT]
    code = (
        f"import importlib, sys\nfor name in {wanted!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "lab"])
def test_no_file_is_too_long(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{MODULES[module].relative_to(ROOT)}: {lines} lines; does something want to leave?"


# Written with classes of one character, so that this file does not match itself.
LOCAL = {
    "a path of one machine": re.compile(r"(?<![\w.])/(wor[k]|roo[t]|opt/pyp[i])/|(?<![\w.])/hom[e]/\w+/"),
    "a package index": re.compile(
        r"(index[-_]url|find[-_]links)[\"'=\s]+(https?|file)[:]/|https?[:]//([\w.-]+\.)?pypi\.[o]rg/simple"
    ),
}


def findings(text: str) -> list[str]:
    return [
        f"line {number}: {what}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in LOCAL.items()
        if pattern.search(line)
    ]


def test_machine_paths_are_recognised() -> None:
    for bad in (
        "cd " + "/work" + "/main",
        'open("' + "/root" + '/x")',
        "--find-links=" + "file:" + "//" + "/opt/pypi" + "/simple",
        "/home" + "/anna/store",
        "--index-url " + "https:" + "//example.org/simple",
        "https:" + "//pypi.org" + "/simple",
    ):
        assert findings(bad), bad
    for good in (
        "src/work/plan.py",
        "https://pypi.org/project/trl",
        "~/store",
        "a framework/root/x",
        "--find-links wheels",
    ):
        assert not findings(good), good


def test_no_tracked_file_names_a_machine_or_an_index() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 5
    found = []
    for path in files:
        if not path.is_file() or path.is_symlink():
            continue  # deleted in the working tree
        raw = path.read_bytes()
        if b"\0" in raw[:8192]:
            continue  # an image
        found += [f"{path.relative_to(ROOT)}, {line}" for line in findings(raw.decode("utf-8", "replace"))]
    assert not found, "\n".join(found)
