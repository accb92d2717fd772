import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn import sync_policies
from jaxbn.call import Call
from jaxbn.core import affine, reduction
from jaxbn.sync_policies import policy as policy_lib

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
STATS = jaxbn.init_batch_stats(3)


def run(policy, state=None, **options):
    options = {"group_size": 2, **options}
    stats = STATS if state is None else sync_policies.WithSync(STATS, state)
    return jaxbn.batch_norm_train(X, None, None, stats, sync=policy, **options)


@dataclasses.dataclass(frozen=True)
class Doubling:
    """A policy of a user: its own variance is that of twice as large values."""

    def init(self, shape, dtype):
        return {"calls": jnp.zeros((), jnp.int32)}

    def normalize(self, call, state):
        y = call.by(lambda mine: mine._replace(var=4 * mine.var))
        calls = state["calls"] + 1.0
        return policy_lib.Normalized(y, policy_lib.nothing(call), {"calls": calls})


def test_a_policy_of_ones_own():
    y, (stats, state) = run(Doubling(), {"calls": jnp.array(3, jnp.int32)}, epsilon=0.0)
    alone, _ = run(sync_policies.Local(), epsilon=0.0)
    np.testing.assert_allclose(y, alone / 2, rtol=1e-4, atol=1e-5)
    assert state["calls"] == 4
    assert state["calls"].dtype == jnp.int32  # The dtype of before.
    assert all(map(jnp.array_equal, stats, STATS))


@pytest.mark.parametrize(
    ("policy", "state", "options", "error", "message"),
    [
        ("stale", None, {}, TypeError, "`sync` must be a policy such as"),
        (sync_policies.Local, None, {}, TypeError, "`sync` must be a policy such as"),
        (sync_policies.Stale(), None, {}, ValueError, "give `WithSync(batch_stats"),
        (sync_policies.Local(), {"a": 1}, {}, ValueError, "one that its `init` made"),
        (
            sync_policies.Stale(),
            sync_policies.Stale().init((3,), jnp.dtype("float32")),
            {},
            ValueError,
            "a row for each of the 4 workers here, got 1; make it with "
            "`jaxbn.sync_policies.for_workers`",
        ),
        (
            sync_policies.Local(),
            None,
            {"group_size": None},
            ValueError,
            "`sync` tells workers apart, got neither an `axis_name`",
        ),
        (sync_policies.Group(3), None, {}, ValueError, "divides the 4 workers, got 3"),
    ],
)  # fmt: skip
def test_errors(policy, state, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run(policy, state, **options)


def test_groups_of_devices_as_well():
    def alone(x):
        options = {"axis_name": "d", "group_size": 2, "sync": sync_policies.Local()}
        return jaxbn.batch_norm_train(x, None, None, STATS, **options)

    with pytest.raises(ValueError, match="`sync` decides which devices share"):
        jax.vmap(alone, axis_name="d")(X.reshape(4, 2, 3))


def test_not_hashable():
    @dataclasses.dataclass
    class Changing(Doubling.__mro__[1]):
        number: int = 0

        init = Doubling.init
        normalize = Doubling.normalize

    with pytest.raises(TypeError, match="`sync` must be hashable"):
        run(Changing(), {"calls": jnp.zeros((), jnp.int32)})


def test_moments_of_nothing():
    how = reduction.Reduction((1,))
    output = affine.Output(1e-5, jnp.dtype("bfloat16"))
    x = jnp.ones((4, 3), jnp.bfloat16)
    call = Call(how, output, x, jnp.ones(3), jnp.zeros(3), None, None, STATS)
    for part in policy_lib.nothing(call):
        np.testing.assert_array_equal(part, np.zeros(3, np.float32), strict=True)
