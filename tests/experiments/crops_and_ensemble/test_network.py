import functools

import jax
import numpy as np
import pytest

from experiments.crops_and_ensemble import network


def variables_of(member, seed=0):
    net = network.Network(4, member)
    return jax.jit(lambda key: net.variables(key, (14, 14, 1)))(jax.random.key(seed))


def test_six_networks_with_the_changes_of_the_paper():
    members = list(network.MEMBERS.values())
    assert len(members) == len(set(members)) == 6
    assert {member.dropout for member in members} == {0.0, 0.05, 0.1}
    for member in members:  # Each changed by some of them.
        assert member != network.Member()


def test_larger_initial_weights_of_the_convolutions_only():
    plain, larger = (
        variables_of(network.Member(initial=factor))["params"] for factor in (1.0, 2.0)
    )
    for name, layer in plain.items():
        factor = 2 if name.startswith("ConvNorm") else 1
        kernel = "Conv_0" if factor == 2 else None
        mine = layer[kernel]["kernel"] if kernel else layer["kernel"]
        theirs = larger[name][kernel]["kernel"] if kernel else larger[name]["kernel"]
        np.testing.assert_allclose(theirs, factor * mine)
    assert any(name.startswith("ConvNorm") for name in plain)


def test_statistics_per_activation_in_the_last_hidden_layer():
    def shapes(per_activation):
        member = network.Member(per_activation=per_activation)
        statistics = jax.eval_shape(lambda: variables_of(member))["batch_stats"]
        return [
            layer["BatchNorm_0"]["mean"].shape
            for _, layer in sorted(statistics.items())
        ]

    assert shapes(False) == [(4,), (8,), (16,)]
    assert shapes(True) == [(4,), (8,), (2, 2, 16)]  # 14, 7, 4, 2 pixels.


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_dropout_in_training_only(rate):
    member = network.Member(dropout=rate)
    variables = variables_of(member)
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
