import numpy as np

from experiments.saturation import figure, report


def make_result(saturated, gradient):
    """Returns a result of two layers and one scale, equal for both activations."""

    def run(network):
        def curve(values):
            return [[[values]], [[values]]]

        return {
            "accuracy": [[None if network == "lost" else 0.5]],
            "saturated": curve([saturated[network]] * 2),
            "dead": curve([0.0, 0.0]),
            "gradient": curve([gradient[network], 1.0]),
            "vanished": curve([0.0, 0.0]),
        }

    names = {"with_bn": "with_bn", "without_bn": "without_bn"}
    return {
        "config": {"activations": ["sigmoid", "relu"], "scales": [1.0], "seeds": 1},
        "steps": [1, 2],
        "runs": {
            f"{name}_{activation}": run(network)
            for name, network in names.items()
            for activation in ("sigmoid", "relu")
        },
    }


def verdicts_of(result):
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    return [line.split("**")[1] for line in lines]


def test_as_the_paper_says():
    result = make_result(
        {"with_bn": 0.4, "without_bn": 0.9}, {"with_bn": 1.0, "without_bn": 0.001}
    )
    assert verdicts_of(result) == ["holds"] * 4
    assert figure.draw(result).axes


def test_the_other_way_round():
    result = make_result(
        {"with_bn": 0.9, "without_bn": 0.1}, {"with_bn": 0.001, "without_bn": 1.0}
    )
    assert verdicts_of(result) == ["does not hold here"] * 4


def test_a_divergence_is_named():
    result = make_result(
        {"with_bn": 0.4, "without_bn": 0.9}, {"with_bn": 1.0, "without_bn": 0.001}
    )
    lost = result["runs"]["without_bn_relu"]
    lost["accuracy"] = [[None]]
    for name in ("saturated", "dead", "gradient", "vanished"):
        lost[name] = [[[[None, None]]]] * 2
    assert "| relu, without BN | 1 | diverged |" in report.table(result)
    assert np.isnan(report.curves(result, "without_bn_relu", "dead")).all()
    assert figure.draw(result).axes
