"""Imports point one way, public names have examples, tests mirror the rooms."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import sys
import tomllib

import jaxbn

ROOT = pathlib.Path(__file__).parent.parent

# A room imports only rooms before it, and itself.
ROOMS = (
    "_core",
    "estimators",
    "functional",
    "sync",
    "_layers",
    "linen",
    "nnx",
    "models",
    "convert",
    "parallel",
    "training",
    "variants",
    "testing",
)
EXPERIMENT_ROOMS = ("framework", "data", "networks", "compilers")
GROUPS = ("paper", "why", "practice", "library")  # The folders of studies.

# Inside of the core, a step of the computation imports only steps before it.
CORE = (
    "reduction",
    "barriers",
    "moments",
    "variance",
    "collectives",
    "affine",
    "derivative",
    "normalize",
    "call",
)


def modules(folder):
    """Returns the path of every module in a folder, by its dotted name."""
    paths = (ROOT / folder).rglob("*.py")
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


LIBRARY, EXPERIMENTS = modules("jaxbn"), modules("experiments")


def imported(path):
    """Yields the dotted names that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def as_module(name, known):
    """Returns the module that a dotted name is, or is in; None if it is not known."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "jaxbn" else None


def test_every_room_has_its_place():
    assert {room(name) for name in LIBRARY} - {None} == set(ROOMS)


def test_imports_of_the_library_point_one_way():
    for name, path in LIBRARY.items():
        for other in filter(None, map(room, imported(path))):
            if room(name) is not None:
                assert ROOMS.index(other) <= ROOMS.index(room(name)), f"{name}: {other}"


def test_imports_of_the_core_point_one_way():
    for step in CORE:
        for other in imported(LIBRARY[f"jaxbn._core.{step}"]):
            _, where, before = [*other.split("."), "", ""][:3]
            if where == "_core" and before in CORE:
                assert CORE.index(before) < CORE.index(step), f"{step}: {other}"


def test_no_module_imports_itself_through_others():
    graph = {
        name: {as_module(other, LIBRARY) for other in imported(path)} - {None, name}
        for name, path in LIBRARY.items()
        if name != "jaxbn"
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # Raises if there is one.


def test_the_core_imports_only_jax():
    allowed = {"jax", "jaxbn", "numpy", *sys.stdlib_module_names}
    for name, path in LIBRARY.items():
        if room(name) in ("_core", "estimators", "functional", "sync", "_layers"):
            assert {other.split(".")[0] for other in imported(path)} <= allowed, name


def study_of(name):
    """Returns group and folder of the study that a module belongs to, or None."""
    parts = name.split(".")
    in_group = parts[0] == "experiments" and parts[1:2] and parts[1] in GROUPS
    return tuple(parts[1:3]) if in_group else None


def test_a_study_is_imported_by_its_own_folder_only():
    for name, path in EXPERIMENTS.items():
        for other in filter(study_of, imported(path)):
            assert study_of(other) == study_of(name), f"{name} imports {other}"


def test_the_library_and_its_tests_import_no_study():
    tests = modules("tests")
    for name, path in {**LIBRARY, **tests}.items():
        if not name.startswith("tests.experiments"):
            assert not any(map(study_of, imported(path))), name
    for name, path in LIBRARY.items():
        assert not any(other.startswith("experiments") for other in imported(path)), (
            name
        )


def test_experiments_have_rooms_and_groups_only():
    found = {p.name for p in (ROOT / "experiments").iterdir()} - {"__pycache__"}
    loose = {"README.md", "__init__.py", "__main__.py", "parallel_example.py"}
    assert found == loose | {*EXPERIMENT_ROOMS, *GROUPS}
    for group in GROUPS:
        for path in (ROOT / "experiments" / group).glob("*/"):
            assert path.name == "__pycache__" or (path / "study.py").exists(), path


def test_every_folder_of_the_library_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name for name, path in LIBRARY.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_no_catch_all_modules():
    for name in LIBRARY | EXPERIMENTS:
        assert name.split(".")[-1] not in ("utils", "util", "misc", "common", "helpers")


def test_the_map_names_every_room():
    text = (ROOT / "jaxbn" / "README.md").read_text()
    for name in ROOMS:
        assert f"`{name}" in text, name


def test_tests_mirror_the_rooms():
    def folders(path):
        return {p.name for p in path.iterdir() if p.is_dir()} - {"__pycache__"}

    rooms = {name.removeprefix("_") for name in ROOMS}
    assert folders(ROOT / "tests") <= rooms | {"experiments"}
    of_experiments = {*EXPERIMENT_ROOMS, *GROUPS}
    assert folders(ROOT / "tests" / "experiments") <= of_experiments


def test_every_public_name_has_an_example():
    for room in (name for name in ROOMS if not name.startswith("_")):
        module = importlib.import_module(f"jaxbn.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert ">>>" in value.__doc__, f"jaxbn.{room}.{name}"


def test_dir_shows_public_names_only():
    assert dir(jaxbn) == sorted(jaxbn.__all__)
    for name in jaxbn.__all__:
        assert getattr(jaxbn, name).__doc__, name
