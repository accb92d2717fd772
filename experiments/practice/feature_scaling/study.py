"""Measures the steps that badly scaled features cost, and BN as the first layer.

The paper (Section 2) uses an old fact (LeCun et al., 1998): training converges faster
if inputs are whitened, with zero means and unit variances. Gradient descent on least
squares needs steps in proportion to the condition number of the Hessian, and badly
scaled features make it large.

The data are real tables of scikit-learn: as they are, scaled to [0, 1], standardised,
and with BN as the first layer (without scale and bias, the whole table as one batch,
epsilon 1e-5). Expected: standardised features need the fewest steps, unscaled ones
thousands of times more, and BN as many as standardised ones. Steps grow in proportion
to the condition number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import sklearn.datasets
import tqdm

from experiments.framework import options, output, study
from experiments.practice.feature_scaling import figure, quadratic, report
from jaxbn import linen

TABLES: dict[str, Callable[[], Any]] = {
    "iris": sklearn.datasets.load_iris,
    "wine": sklearn.datasets.load_wine,
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "diabetes": lambda: sklearn.datasets.load_diabetes(scaled=False),
}
# Two features of the wine table for the contours. Their scales differ by a factor of
# some hundreds.
_PAIR = ("alcohol", "proline")
_PATH = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScaling(study.Study):
    """Counts steps with features as they are, scaled, or BN first (10 seconds)."""

    name = "feature_scaling"
    small: ClassVar = {"tables": ("iris", "wine")}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    tables: tuple[str, ...] = tuple(TABLES)
    """The names of tables that are bundled with scikit-learn."""
    tolerance: float = 0.01
    """The share of the possible gain that is left where training ends."""

    def check(self) -> None:
        options.check_among(self, TABLES, "tables")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"`tolerance` must lie in (0, 1), got {self.tolerance}.")

    def measure(self) -> dict[str, Any]:
        """Computes steps and condition number of every table, and contours."""
        rows = []
        for name in tqdm.tqdm(self.tables, unit="table"):
            table = TABLES[name]()
            y = targets(table)
            for scaling, scale in SCALINGS.items():
                found = quadratic.spectrum(scale(table.data), y)
                rows.append(
                    {
                        "table": name,
                        "scaling": scaling,
                        "condition": quadratic.condition_number(found),
                        "steps": quadratic.steps_to(found, self.tolerance),
                    }
                )
        return {
            "options": self.identity(),
            "rows": rows,
            "smallest_variance": {
                name: float(TABLES[name]().data.var(0).min()) for name in self.tables
            },
            "contours": contours(),
        }


def contours() -> dict[str, Any]:
    """Computes the loss over two weights for each scaling, in the wine table.

    The output separates the first kind of wine from the others.
    """
    table = sklearn.datasets.load_wine()
    columns = [list(table.feature_names).index(name) for name in _PAIR]
    y = np.where(table.target == 0, 1.0, -1.0)
    made = {}
    for scaling, scale in SCALINGS.items():
        bowl = quadratic.bowl(scale(table.data[:, columns]), y, _PATH)
        made[scaling] = {
            name: output.plain(value, 6) for name, value in bowl._asdict().items()
        }
    return {"features": _PAIR, "loss": made}


def targets(table: Any) -> np.ndarray:
    """Returns standardised targets, `[N, outputs]`, with one output per class."""
    y = np.float64(table.target)
    if hasattr(table, "target_names"):
        y = y[:, None] == np.unique(y)[None]
    y = y.reshape(len(y), -1)
    return (y - y.mean(0)) / y.std(0)


def as_they_are(x: np.ndarray) -> np.ndarray:
    """Returns the features as float64."""
    return np.float64(x)


def min_max(x: np.ndarray) -> np.ndarray:
    """Scales each feature to [0, 1]."""
    return (x - x.min(0)) / (x.max(0) - x.min(0))


def z_score(x: np.ndarray) -> np.ndarray:
    """Scales each feature to mean 0 and variance 1."""
    return (x - x.mean(0)) / x.std(0)


def batch_norm(x: np.ndarray) -> np.ndarray:
    """Normalises all examples as one batch with `jaxbn.linen.BatchNorm`."""
    layer = linen.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    made, _ = layer.apply({}, jnp.asarray(x, jnp.float32), mutable=["batch_stats"])
    return np.float64(made)


SCALINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": as_they_are,
    "min-max": min_max,
    "z-score": z_score,
    "BN first": batch_norm,
}
