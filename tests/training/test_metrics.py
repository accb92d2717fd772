import chex
import numpy as np
import pytest
from absl.testing import parameterized

from jaxbn import training
from tests.small_net import BATCH, loss_fn, make_state


class MetricTest(chex.TestCase):
    def test_sum(self):
        step = training.make_eval_step(loss_fn)
        parts = [{k: v[a:b] for k, v in BATCH.items()} for a, b in ((0, 5), (5, 12))]
        total = sum(step(make_state(), part)["loss"] for part in parts)
        whole = step(make_state(), BATCH)["loss"]
        assert int(total.count) == 12
        np.testing.assert_allclose(float(total), float(whole), rtol=1e-6)
        with pytest.raises(TypeError):
            total + 1


class ErrorTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda values: values.mean(), None, "one value per example"),
        (lambda values: values[:3], np.ones(12, bool), r"\(12,\), as the mask; got"),
    )
    def test_shape_of_values(self, change, mask, message):
        def changed(model, batch, train):
            values = loss_fn(model, {"x": batch["x"], "y": batch["y"]}, train)
            return {**values, "loss": change(values["loss"])}

        batch = BATCH if mask is None else {**BATCH, "mask": mask}
        with pytest.raises(ValueError, match=message):
            training.make_train_step(changed)(make_state(), batch)

    def test_no_mapping(self):
        with pytest.raises(TypeError, match=r"must return a mapping .* got ndarray"):
            training.make_eval_step(lambda model, batch, train: np.ones(3))(
                make_state(), BATCH
            )

    def test_no_loss(self):
        with pytest.raises(ValueError, match=r"with 'loss', got \['error'\]"):
            training.make_eval_step(lambda model, batch, train: {"error": 0})(
                make_state(), BATCH
            )
