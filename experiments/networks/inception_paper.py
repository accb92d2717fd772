"""The paper's Figures 2 and 3 (arXiv:1502.03167v3): Inception on ImageNet."""

# `STEPS` are millions of steps to Inception's best accuracy.
STEPS = {"Inception": 31.0, "BN-Baseline": 13.3, "BN-x5": 2.1, "BN-x30": 2.7}
BEST = {
    "Inception": 0.722,
    "BN-Baseline": 0.727,
    "BN-x5": 0.730,
    "BN-x30": 0.748,
    "BN-x5-Sigmoid": 0.698,
    "Inception-Sigmoid": 0.001,  # "Never achieves better than 1/1000 accuracy."
}
"""The best validation accuracy of each, on a single crop."""


def times_fewer(name: str) -> float | None:
    """Returns how many times fewer steps than Inception a configuration needs.

    Both are steps to Inception's best accuracy.
    """
    return STEPS["Inception"] / STEPS[name] if name in STEPS else None
