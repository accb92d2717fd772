import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments.compilers import cases, steps, targets
from experiments.framework import output
from experiments.library.accelerators import (
    capacity,
    check,
    compare,
    figure,
    lists,
    measures,
    process,
    report,
    study,
    worker,
)
from experiments.networks import norms

CASE = cases.Case(program="layer", norm="jaxbn")


def fake_worker(seen, *said, returncode=0, stderr=""):
    """Returns a fake `subprocess.run` that prints these lines and ends as requested."""

    def run(command, **options):
        seen.append(command)
        lines = "\n".join(["a log line", *map(json.dumps, said)])
        return subprocess.CompletedProcess(command, returncode, lines, stderr)

    return run


def made(case, **more):
    """Returns a row like one of the worker's."""
    about = {"jax": "1", "compiler": "libtpu 1", "fingerprint": "new", "kernels": 3}
    moved = {"read_MB": 10.0, "written_MB": 5.0, "conditionals": 0, "barriers": 0}
    memory = {"temporary_MB": 2.0, "argument_MB": 1.0, "output_MB": 1.0}
    row = dataclasses.asdict(case) | about | moved | memory
    row |= {"aliased_MB": 1.0, "compile_s": 1.5}
    if case.platform == "tpu":
        row |= {"cycles": 2_000_000, "branch_cycles": 0}
    if case.devices > 1:
        row["collectives"] = measures.count([])
    return row | more


def network_rows(**cycles):
    return [
        made(cases.Case(program="resnet50", norm=norm.replace("_", " ")), cycles=value)
        for norm, value in cycles.items()
    ]


def needs(bytes_per_image, fixed=1e9):
    """Returns a fake GPU compiler with linear memory, and the batch sizes it gets."""
    seen = []

    def compile_case(case):
        seen.append(case.images)
        total = (fixed + bytes_per_image * case.images) / 1e6
        return made(case, temporary_MB=total, argument_MB=0.0)

    return compile_case, seen


def test_the_largest_batch_is_found_on_a_line():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    compile_case, seen = needs(50e6)
    points = capacity.search(case, compile_case)
    assert capacity.largest(points, capacity.STEP["gpu"]) == "2688"  # 140e9 / 50e6
    assert seen == [1024, 2048, 2688, 2816]


def test_the_largest_batch_of_a_compiler_that_refuses():
    case = cases.Case(target="v5e:2x2", program="resnet50")
    limit = targets.MEMORY["v5e:2x2"]

    def compile_case(case):
        # Near the limit the compiler saves memory: there is no one line.
        total = 40e6 * case.images if case.images < 320 else 10.24e9 + 8e6 * case.images
        if total > limit:
            needed = f"the total memory required ({total / 2**30:.2f}G)"
            return made(case, error=f"RESOURCE_EXHAUSTED: {needed} exceeds (15.75G)")
        return made(case, temporary_MB=total / 1e6, argument_MB=0.0)

    points = capacity.search(case, compile_case)
    # (limit - 10.24e9) / 8e6
    assert capacity.largest(points, capacity.STEP["tpu"]) == "832"


def test_first_sizes_that_do_not_fit():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    compile_case, seen = needs(200e6)
    points = capacity.search(case, compile_case)
    assert capacity.largest(points, capacity.STEP["gpu"]) == "640"
    assert len(seen) <= 6


def test_a_search_that_cannot_say():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    points = capacity.search(case, lambda case: made(case, error="SIGSEGV"))
    assert points == {}
    assert capacity.largest({256: capacity.Point(True, 1e9)}, 16) == "at least 256"
    found = {256: capacity.Point(True, 1e9), 512: capacity.Point(False, None)}
    assert capacity.largest(found, 16) == "256 to 496"


def checked(changes=None):
    """Rows of a good check, with changes."""
    rows = {name: made(case) for name, case in check.CASES.items()}
    for name, row in rows.items():
        if "," in name:
            row["collectives"] |= {"forward": 1, "backward": 1, "gradients": 1}
    for name, row in (changes or {}).items():
        rows[name] |= row
    return rows


def test_check_passes():
    flax = checked()["flax"]["cycles"]
    assert check.problems(checked({"jaxbn": {"cycles": flax}})) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flax", {"cycles": 1_000_000}, "2.000 of the cycles with Flax"),
        ("jaxbn", {"barriers": 3}, "3 barriers, none is expected"),
        ("jaxbn, jit", {"barriers": 1}, "1 barriers, none is expected"),
        ("jaxbn", {"conditionals": 2}, "2 conditionals, none is expected"),
        ("flax", {"error": "it crashed"}, "it crashed"),
    ],
)
def test_check_says_what_is_wrong(name, changes, message):
    rows = checked({"jaxbn": {"cycles": 2_000_000}, "flax": {"cycles": 2_000_000}})
    rows[name] |= changes
    (found,) = check.problems(rows)
    assert message in found


def test_check_counts_collectives():
    rows = checked()
    rows["jaxbn, shard_map"]["collectives"] |= {"backward": 2}
    (found,) = check.problems(rows)
    assert "shard_map on four chips has 2 backward collectives" in found


def test_ratios():
    rows = network_rows(none=40, flax=80, jaxbn=60, flax_stable=100)
    *_, jaxbn, stable = rows
    assert compare.over_flax(rows, jaxbn) == 0.75
    assert compare.normalisation_over_flax(rows, jaxbn) == 0.5
    assert compare.normalisation_over_flax(rows, stable) == 1.5
    dear = network_rows(none=90, flax=80, jaxbn=60, flax_stable=100)
    assert compare.normalisation_over_flax(dear, dear[2]) is None
    level = network_rows(none=1000, flax=1009, jaxbn=1020, flax_stable=1030)
    assert compare.normalisation_over_flax(level, level[2]) is None
    for other in ({"activation": "leaky_relu"}, {"parameters": "cast"}):
        alone = made(cases.Case(program="resnet50", **other))
        assert compare.over_flax([*rows, alone], alone) is None
    on_gpu = made(cases.Case(platform="gpu", target="h200"))
    assert compare.cost(on_gpu) == 15.0
    assert compare.cost(on_gpu | {"error": "no"}) is None


def test_cases_are_named_once_and_known():
    every = [*lists.all_cases(), *lists.memory_cases(), *lists.quick_cases()]
    assert len(set(lists.all_cases())) == len(lists.all_cases())
    for case in every:
        assert case.platform in targets.PLATFORMS
        assert case.target in targets.NAMES
        assert case.program in steps.PROGRAMS
        assert case.norm in norms.ALL
        assert (case.platform == "gpu") == (case.target == "h200")
        assert (case.devices > 1) == (case.style != "one")
    assert set(lists.quick_cases()) <= set(lists.all_cases())
    for case in lists.all_cases():  # What ratios are taken over is compiled too.
        same = {"statistics": "global", "norm": "flax"}
        flax = dataclasses.replace(case, **same)
        assert flax in lists.all_cases() or case.style == "jit_mesh"


def test_reasons_are_short():
    message = "RESOURCE_EXHAUSTED: Ran   out of memory\n\nmore " + 999 * "x"
    assert measures.reason(message) == "RESOURCE_EXHAUSTED: Ran out of memory"
    assert measures.reason("") == "no message"


def test_collectives_are_counted_by_what_they_are_for():
    assert measures.kind("jit(step)/jvp(Net)/BatchNorm_0/reduce_sum") == "forward"
    backward = "jit(step)/transpose(jvp(Net))/BatchNorm_0/psum"
    assert measures.kind(backward) == "backward"
    assert measures.kind("jit(f)/transpose(jvp(Net))/Conv_0/conv") == "gradients"
    assert measures.kind("jit(step)/shard_map/psum") == "gradients"
    assert measures.kind("") == "gradients"
    one = measures.hlo.Collective("all-reduce", 4, True, backward, True, 2, 30)
    counts = measures.count([one])
    assert counts["conditional"] == counts["asynchronous"] == 1
    assert (counts["backward"], counts["kernels_beside"]) == (0, 2)
    assert counts["cycles_beside"] == 30


@pytest.mark.parametrize(
    ("said", "ending", "error", "kept"),
    [
        ({"error": "RESOURCE_EXHAUSTED: 29.96G"}, {}, "RESOURCE_EXHAUSTED", True),
        ({}, {"returncode": -signal.SIGSEGV}, "ended by SIGSEGV", True),
        ({}, {"returncode": -signal.SIGKILL}, "ended by SIGKILL", False),
        ({}, {"returncode": 1, "stderr": "Traceback\nValueError: no"}, "no", False),
    ],
)
def test_failures_are_rows(said, ending, error, kept, monkeypatch):
    worker = fake_worker([], {"fingerprint": "abc"}, said, **ending)
    monkeypatch.setattr(process.subprocess, "run", worker)
    row = process.compile_case(CASE)
    assert error in row["error"]
    assert ("fingerprint" in row) == kept
    assert row["norm"] == "jaxbn"
    assert error in report.line(row)


def test_an_interrupted_worker_gives_no_row(monkeypatch):
    ended = fake_worker([], {"fingerprint": "abc"}, returncode=-signal.SIGINT)
    monkeypatch.setattr(process.subprocess, "run", ended)
    with pytest.raises(KeyboardInterrupt):
        process.compile_case(CASE)


def test_a_compilation_that_does_not_end(monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(process.subprocess, "run", run)
    assert "not compiled after 30 minutes" in process.compile_case(CASE)["error"]


def test_report_of_rows(tmp_path):
    several = {"program": "short_resnet", "style": "shard_map", "devices": 64}
    pod = cases.Case(target="v5e:8x8", **several)
    counts = measures.count([]) | {"forward": 17, "backward": 34, "gradients": 1}
    few = cases.Case(target="v5e:2x4", style="jit", devices=8)
    big = dataclasses.replace(CASE, program="resnet50", activation="leaky_relu")
    cast = cases.Case(program="resnet50", parameters="cast")
    refused = "RESOURCE_EXHAUSTED: Ran out of memory (17.00G)"
    rows = [
        *network_rows(none=40, flax=80, jaxbn=60),
        made(dataclasses.replace(cast, norm="flax"), cycles=10),
        made(cast, cycles=9),
        made(pod, collectives=counts),
        made(few),
        made(dataclasses.replace(CASE, norm="haiku"), error="it crashed"),
        made(dataclasses.replace(big, images=16)),
        made(dataclasses.replace(big, images=32), error=refused),
    ]
    about = {"layers": 17, "predicted_ms": {"8": 0.1, "64": 0.2, "256": 0.4}}
    result = {"rows": rows, "pods": {"short_resnet": about}}
    text = report.table(result)
    tables = [line for line in text.splitlines() if line.endswith(":")]
    assert tables
    assert all(report.NOT_RUN in line for line in tables)
    assert "| resnet50 | bfloat16 | relu | jaxbn | 0.75 |" in text
    assert "| resnet50 | bfloat16 | relu | jaxbn | 0.50 |" in text
    assert "| resnet50 | bfloat16, cast | relu | jaxbn | 0.90 |" in text
    assert "| global | 1.00 | 2.00 | 0.00 | 1 | 2.00 | 0.200 |" in text
    assert "| TPU v5e | jaxbn | 16 | 16: 3, 32: 18254 (too many) |" in text
    assert "| haiku | it crashed |" in text
    assert report.table({"rows": rows[::-1], "pods": result["pods"]}) == text
    path = tmp_path / "accelerators.json"
    output.write_json(path, process.ABOUT | result)
    assert text in study.Accelerators.write_pages(path)
    assert (tmp_path / "accelerators.png").stat().st_size > 1000


def test_report_of_nothing():
    assert report.NOT_RUN in report.table({"rows": []})
    assert figure.draw({"rows": []}).axes


def test_the_summary_is_that_of_the_rows():
    cast = cases.Case(parameters="cast")
    rows = [
        made(dataclasses.replace(cast, norm=norm), cycles=cycles)
        for norm, cycles in {"flax": 100, "jaxbn": 78, "none": 50}.items()
    ]
    text = report.table({"rows": rows})
    title = "ResNet-50, parameters cast to bfloat16: cycles"
    assert f"| TPU v5e | {title} | 1.00 |  | **0.78** |  | 0.50 |" in text
    assert "| ResNet-50, v5e, cast | 0.78 | 0.780 | met |" in text
    itself = "ResNet-50, v5e, cast: the normalisation itself"
    assert f"| {itself} | 0.5 | 0.560 | missed |" in text
    assert "| ResNet-50, H200 | 0.96 |  | not known |" in text


def test_a_known_program_is_not_compiled_again(tmp_path, monkeypatch):
    seen = []
    program = {"fingerprint": "abc"}
    first = fake_worker(seen, program, {"cycles": 7})
    monkeypatch.setattr(process.subprocess, "run", first)
    path = tmp_path / "accelerators.json"
    assert process.Results(path).compile(CASE)["cycles"] == 7
    assert "--known" not in seen[-1]

    unchanged = fake_worker(seen, program, {"unchanged": True})
    monkeypatch.setattr(process.subprocess, "run", unchanged)
    assert process.Results(path).compile(CASE)["cycles"] == 7
    assert seen[-1][-2:] == ["--known", "abc"]

    other = fake_worker(seen, {"fingerprint": "def"}, {"cycles": 9})
    monkeypatch.setattr(process.subprocess, "run", other)
    known = process.Results(path)
    assert known.compile(CASE)["cycles"] == 9
    assert len(known.content["rows"]) == 1
    assert json.loads(path.read_text()) == known.content


def test_worker_takes_the_options_of_a_case(monkeypatch):
    seen = []
    monkeypatch.setattr(process.subprocess, "run", fake_worker(seen, {"cycles": 1}))
    case = cases.Case(norm="jaxbn, in_place", activation="leaky_relu", images=3)
    process.compile_case(case, {"fingerprint": "abc"})
    made = worker.parse(seen[0][3:])
    fields = [field.name for field in dataclasses.fields(case)]
    assert all(getattr(made, name) == getattr(case, name) for name in fields)
    assert made.known == "abc"


def test_parent_and_worker_leave_the_environment_to_the_worker():
    # jax reads the environment when it is imported: the worker sets it before.
    module = "experiments.library.accelerators.worker"
    code = f"import {module}, sys; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[3],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_missing_compilers_are_one_line_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "compiler_version", lambda platform: None)
    study.Accelerators(out=tmp_path).run()
    lines = capsys.readouterr().out.splitlines()
    version = targets.jax_version()
    assert f"pip install 'jax[tpu]=={version}'" in lines[0]
    assert f"pip install 'jax[cuda12]=={version}'" in lines[1]


def test_study_runs_with_what_is_there(tmp_path, monkeypatch, capsys):
    compiled = []

    def compile_case(case, old):
        compiled.append(case)
        return made(case)

    monkeypatch.setattr(process, "compile_case", compile_case)
    only_tpu = {"tpu": "libtpu 1", "gpu": None}
    monkeypatch.setattr(targets, "compiler_version", only_tpu.get)
    study.Accelerators(quick=True, out=tmp_path).run()
    assert "No GPU compiler is installed" in capsys.readouterr().out
    tpu = [case for case in lists.quick_cases() if case.platform == "tpu"]
    assert set(compiled) == set(tpu)
    for name in ("json", "md", "png"):
        assert (tmp_path / f"accelerators.{name}").exists()
    rows = json.loads((tmp_path / "accelerators.json").read_text())["rows"]
    assert rows == sorted(rows, key=process.key)
    assert len(rows) == len(tpu)

    compiled.clear()
    study.Accelerators(network="inference", out=tmp_path).run()
    assert {case.program for case in compiled} == {"inference"}
    rows = json.loads((tmp_path / "accelerators.json").read_text())["rows"]
    assert {row["program"] for row in rows} == {"layer", "small_network", "inference"}


def test_stopping_is_one_line(tmp_path, monkeypatch):
    def compile_case(case, old):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "compile_case", compile_case)
    monkeypatch.setattr(targets, "compiler_version", lambda platform: "libtpu 1")
    with pytest.raises(SystemExit, match=r"^Stopped"):
        study.Accelerators(quick=True, out=tmp_path).run()


def test_rows_that_no_list_names_are_left_out(tmp_path, monkeypatch):
    gone = made(dataclasses.replace(CASE, program="layer", norm="gone"))
    path = tmp_path / "accelerators.json"
    path.write_text(json.dumps({"rows": [gone, made(CASE)]}))
    monkeypatch.setattr(targets, "compiler_version", lambda platform: None)
    study.Accelerators(out=tmp_path).run()
    rows = json.loads(path.read_text())["rows"]
    assert [row["norm"] for row in rows] == ["jaxbn"]
