"""The paper's own Figure 1, read from the vector graphics of its PDF.

Ioffe and Szegedy, arXiv:1502.03167v3, 2 March 2015. Accuracies are read to .001 at the
vertices of the curves of panel (a), about one every 4,000 steps. Percentiles are read
to .01 at twelve steps of panels (b) and (c).
"""

ACCURACY_STEPS = (
    4000, 8000, 12000, 16000, 20000, 24000, 28000, 32000, 36000, 40000, 44000, 49000,
)  # fmt: skip
ACCURACY = {  # The curve without Batch Normalization ends at 44,000 steps.
    "with_bn": (
        0.953, 0.967, 0.965, 0.974, 0.974, 0.975,
        0.977, 0.978, 0.980, 0.980, 0.980, 0.982,
    ),
    "without_bn": (
        0.737, 0.909, 0.943, 0.956, 0.963, 0.968,
        0.968, 0.968, 0.970, 0.972, 0.972,
    ),
}  # fmt: skip

PERCENTILES = (15, 50, 85)
PERCENTILE_STEPS = (
    250, 1000, 2000, 2500, 3000, 4000, 5000, 7500, 10000, 20000, 30000, 50000,
)  # fmt: skip
TRACES = {
    "without_bn": (
        (0.755, 0.48, -0.03, -1.03, -1.09, -0.80,
         -0.85, -1.52, -1.74, -1.70, -1.67, -1.70),
        (0.79, 0.51, 0.08, -0.18, 0.04, 0.64, 0.99, 0.53, 0.12, -0.20, -0.15, 0.05),
        (0.82, 0.55, 0.16, 0.80, 1.36, 1.95, 2.06, 1.41, 1.03, 1.15, 1.33, 1.70),
    ),
    "with_bn": (
        (-1.05, -1.32, -1.41, -1.45, -1.46, -1.45,
         -1.57, -1.62, -1.62, -1.73, -1.87, -1.95),
        (-0.15, -0.10, -0.04, 0.02, -0.02, -0.01, -0.07, -0.05, 0.01, 0.06, 0.05, 0.05),
        (1.25, 1.33, 1.43, 1.41, 1.48, 1.52, 1.54, 1.59, 1.65, 1.85, 1.88, 1.95),
    ),
}  # fmt: skip
