"""Imports point one way: core -> checks, functional -> layers -> the rest."""

import ast
import pathlib
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (
    "jaxbn.core.reduction",
    "jaxbn.core.barriers",
    "jaxbn.core.moments",
    "jaxbn.core.forms",
    "jaxbn.core.local",
    "jaxbn.core.sync",
    "jaxbn.core.sub_batches",
    "jaxbn.core.affine",
    "jaxbn.core.peers",
    "jaxbn.core.echo",
    "jaxbn.core.tangent",
    "jaxbn.core.normalize",
    "jaxbn.core.running",
    "jaxbn.core.estimators",
    "jaxbn.core.passes",
    "jaxbn.checks",
    "jaxbn.optional",
    "jaxbn.grouping",
    "jaxbn.call_site",
    "jaxbn.stats_tree",
    "jaxbn.estimation",
    "jaxbn.moments_collection",
    "jaxbn.statistics",
    "jaxbn.call",
    "jaxbn.sync_policies.policy",
    "jaxbn.sync_policies.within_step",
    "jaxbn.sync_policies.scheduled",
    "jaxbn.sync_policies.stale",
    "jaxbn.sync_policies.exchange",
    "jaxbn.sync_policies.placement",
    "jaxbn.sync_policies",
    "jaxbn.functional",
    "jaxbn.switches",
    "jaxbn.layer",
    "jaxbn.folded",
    "jaxbn.linen",
    "jaxbn.nnx_variables",
    "jaxbn.nnx",
    "jaxbn.model_layers",
    "jaxbn.patching",
    "jaxbn.nnx_passes",
    "jaxbn.population.pooling",
    "jaxbn.population.sources",
    "jaxbn.population.recalibration",
    "jaxbn.population",
    "jaxbn.diagnosis.calls",
    "jaxbn.diagnosis.measure",
    "jaxbn.diagnosis.figure",
    "jaxbn.diagnosis.report",
    "jaxbn.diagnosis",
    "jaxbn.selection",
    "jaxbn.freezing",
    "jaxbn.replacement",
    "jaxbn.folding.graph",
    "jaxbn.folding.kernels",
    "jaxbn.folding.linear",
    "jaxbn.folding.merging",
    "jaxbn.folding.report",
    "jaxbn.folding.search",
    "jaxbn.folding.program",
    "jaxbn.folding.linen_model",
    "jaxbn.folding.nnx_layer",
    "jaxbn.folding.nnx_model",
    "jaxbn.folding.models",
    "jaxbn.folding",
    "jaxbn.replicas",
    "jaxbn.interop.conversion",
    "jaxbn.interop.files",
    "jaxbn.interop.packages",
    "jaxbn.interop",
    "jaxbn.parallel",
    "jaxbn.training.metrics",
    "jaxbn.training.weight_decay",
    "jaxbn.training.frozen_mask",
    "jaxbn.training.state",
    "jaxbn.training.finite",
    "jaxbn.training.gradient",
    "jaxbn.training.accumulation",
    "jaxbn.training.steps",
    "jaxbn.training.nnx_steps",
    "jaxbn.training",
    "jaxbn.testing",
    "jaxbn.guide",
    "jaxbn.reproducibility",
    "experiments",
)


def modules():
    for path in sorted(
        [*ROOT.glob("jaxbn/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    ):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def level(name):
    matching = [
        i for i, prefix in enumerate(ORDER) if f"{name}.".startswith(f"{prefix}.")
    ]
    return matching[0] if matching else None


def test_every_module_has_its_place():
    for name, _ in modules():
        assert level(name) is not None or name in ("jaxbn", "jaxbn.core"), name


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_no_upward_edge(name, path):
    mine = level(name)
    for other in imported(path):
        theirs = level(other)
        if (
            mine is not None
            and theirs is not None
            and not name.startswith("experiments")
        ):
            assert theirs < mine, f"{name} imports {other}"


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_core_imports_jax_only(name, path):
    if name.startswith("jaxbn.core"):
        allowed = {"jax", "jaxbn", *sys.stdlib_module_names}
        assert {other.split(".")[0] for other in imported(path)} <= allowed


def test_every_folder_of_the_library_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("jaxbn/**/__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_no_catch_all_modules():
    for name, _ in modules():
        assert name.split(".")[-1] not in ("utils", "util", "misc", "common", "helpers")


STUDIES = sorted(path.parent.name for path in ROOT.glob("experiments/*/study.py"))


def study_of(name):
    """The study that a module belongs to; None for machinery and the library."""
    parts = name.split(".")
    return parts[1] if parts[0] == "experiments" and parts[1:2][0] in STUDIES else None


@pytest.mark.parametrize(
    ("name", "path"), [m for m in modules() if m[0].startswith("experiments.")]
)
def test_studies_stand_alone(name, path):
    if name in ("experiments.studies", "experiments.pages"):  # Of all of them.
        return
    for other in imported(path):
        if other.startswith("experiments.") and study_of(other):
            assert study_of(other) == study_of(name), f"{name} imports {other}"


def test_there_are_studies():
    assert {"accelerators", "benchmark", "figure1", "sync_cost"} <= set(STUDIES)


def names_in(folder, pattern):
    """Paths of Python files without suffix, `test_` left out."""
    root = ROOT / folder
    for path in root.glob(pattern):
        name = path.name.removesuffix(".py").removeprefix("test_")
        name = {"__main__": "main"}.get(name, name)
        if name != "__init__":
            yield (path.relative_to(root).parent / name).as_posix()


def test_tests_mirror_the_source():
    for folder in ("jaxbn", "experiments"):
        source = set(names_in(folder, "**/*.py"))
        tests = set(names_in(f"tests/{folder}", "**/test_*.py"))
        assert sorted(tests - source) == []
        if folder == "jaxbn":
            assert sorted(source - tests) == []
