import functools

import jax
import numpy as np
import pytest

from experiments.crops_and_ensemble import network


def shapes_of(member):
    """Returns the shapes of the variables for images of 14 pixels; compiles nothing."""
    net = network.Network(4, member)
    return jax.eval_shape(lambda: net.variables(jax.random.key(0), (14, 14, 1)))


def filled(shapes):
    """Returns variables of these shapes with made-up numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes
    )


def test_six_networks_with_the_changes_of_the_paper():
    members = list(network.MEMBERS.values())
    assert len(members) == len(set(members)) == 6
    assert {member.dropout for member in members} == {0.0, 0.05, 0.1}
    assert network.NETWORKS[network.UNCHANGED] == network.Member()
    assert list(network.NETWORKS) == [*network.MEMBERS, network.UNCHANGED]
    for member in members:  # Each changed by some of them.
        assert member != network.Member()


def test_larger_initial_weights_of_the_convolutions_only(monkeypatch):
    member = network.Member(initial=2.0)
    made_up = filled(shapes_of(member))
    monkeypatch.setattr(network.Network, "init", lambda *args, **kwargs: made_up)
    larger = network.Network(4, member).variables(jax.random.key(0), (14, 14, 1))
    expected = jax.tree.map(np.copy, made_up)
    for place in range(3):
        expected["params"][f"ConvNorm_{place}"]["Conv_0"]["kernel"] *= 2
    jax.tree.map(np.testing.assert_allclose, dict(larger), expected)


def test_statistics_per_activation_in_the_last_hidden_layer():
    def shapes(per_activation):
        member = network.Member(per_activation=per_activation)
        statistics = shapes_of(member)["batch_stats"]
        return [
            layer["BatchNorm_0"]["mean"].shape
            for _, layer in sorted(statistics.items())
        ]

    assert shapes(False) == [(4,), (8,), (16,)]
    assert shapes(True) == [(4,), (8,), (2, 2, 16)]  # 14, 7, 4, 2 pixels.


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_dropout_in_training_only(rate):
    member = network.Member(dropout=rate)
    variables = filled(shapes_of(member))
    net = network.Network(4, member)
    x = jax.random.normal(jax.random.key(1), (8, 14, 14, 1))

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
        return net.apply(
            variables,
            x,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )[0]

    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    assert np.array_equal(logits(0, True), logits(1, True)) == (rate == 0)
