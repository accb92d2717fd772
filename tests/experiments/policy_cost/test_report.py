import copy

from experiments.policy_cost import modelled, report

RATIO = {"median": 1.0, "low": 0.98, "high": 1.02}
COUNTS = {
    "collectives": 2, "waited_for": 1, "in_a_row": 2, "conditional": 0,
    "conditional_waited_for": 0, "bytes": 100, "conditional_bytes": 0,
}  # fmt: skip
EXACT = COUNTS | {"collectives": 8, "waited_for": 7, "in_a_row": 7}
TIMED = {"ms": 1.0, "over_none": RATIO, "over_local": RATIO}
PROGRAM = {"target": "v5e:2x4", "devices": 8, "layers": 3, "kernels": 9, "cycles": 4}
NAMES = ("none", "Exact", "Local", "Stale")


def made():
    part = {
        name: TIMED | {"collectives": EXACT if name == "Exact" else COUNTS}
        for name in NAMES
    }
    added = {policy: [0.1] * len(modelled.DEVICES) for policy in modelled.POLICIES}
    hardware = {
        name: {"step_ms": 40.0, "added_ms": added}
        for name in ("TPU v3", "GPU, nodes of 8")
    }
    run = {
        "run": "v0.6", "cores": 32, "images_per_core": 8, "group": 1,
        "published_ms": 11.0, "steady_ms": 10.0, "spread": 0.1, "predicted_ms": 11.0,
        "error": 0.1, "fitted": False,
    }  # fmt: skip
    return {
        "measured": {"layers": 3, "eight devices": part, "two processes": part},
        "compiled": [
            PROGRAM | {"policy": name} | (EXACT if name == "Exact" else COUNTS)
            for name in NAMES
        ],
        "modelled": {
            "devices": list(modelled.DEVICES),
            "networks": {
                "ResNet-50": {
                    "layers": 53,
                    "hardware": hardware,
                    "sent_floats": {
                        policy: [5] * len(modelled.DEVICES)
                        for policy in modelled.POLICIES
                    },
                }
            },
        },
        "mlperf": {"factor": 0.8, "runs": [run], "straight_line": {"errors": [0.5]}},
    }


def test_all_as_expected():
    result = made()
    assert all(report.statements(result).values())
    text = report.table(result)
    assert text.startswith("Verdict: holds.")
    assert "| Stale | 2 | 1 | 5 | 1.00 (0.98 to 1.02) |" in text
    assert "| v5e:2x4, 8 devices | Exact | 8 | 7 | 7 | 0 | 0 | 9 | 1.00 |" in text


def test_each_can_fail():
    ways = {
        "collective more": lambda r: r["compiled"][3].update(collectives=3),
        "no layer waits": lambda r: r["compiled"][3].update(waited_for=2),
        "wait for all": lambda r: r["compiled"][1].update(waited_for=6),
        "within 5 %": lambda r: r["measured"]["two processes"]["Stale"].update(
            over_local=RATIO | {"high": 1.06}
        ),
        "under 1 %": lambda r: r["modelled"]["networks"]["ResNet-50"]["hardware"][
            "TPU v3"
        ].update(step_ms=9.0),
        "published steps": lambda r: r["mlperf"]["runs"][0].update(error=-0.21),
    }
    for words, spoil in ways.items():
        result = copy.deepcopy(made())
        spoil(result)
        failed = [name for name, held in report.statements(result).items() if not held]
        assert len(failed) == 1
        assert words in failed[0]
        assert report.table(result).startswith("Verdict: holds partly.")


def test_without_compiled_programs():
    result = made() | {"compiled": []}
    assert len(report.statements(result)) == 3
    assert "no normalised layers" in report.table(result)
