"""Trainings that record the weights of the hidden layers and the Jacobians."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.framework import recording
from experiments.networks import fully_connected
from jaxbn import training

NETWORKS = ("with_bn", "without_bn")
_EXAMPLES = 10  # The examples for Jacobians; each costs a decomposition.
_CONSTANT = 1000  # The examples for the statistics of their normalisation.


def run(
    network: str,
    activation: str,
    hidden: Sequence[int],
    pixels: int,
    learning_rate: float,
    scales: Sequence[float],
    batch_size: int,
) -> recording.Run:
    """Returns a run of networks whose hidden weights start `scales` times as large.

    The run records `accuracy`, and by hidden layer:

      norm: |W|^2.
      predicted: |W|^2 at the start plus the squares of all steps since.
      angle: the largest |cos| between W and its gradient.
      singular: the sorted singular values of the Jacobians between the inputs of
        consecutive nonlinearities, `[layers - 1, units]`, as means over some examples.
    """
    options = {} if network == "with_bn" else {"norm": None}
    model = fully_connected.FullyConnected(tuple(hidden), activation, **options)
    gradient_step = training.make_train_step(fully_connected.loss_fn)

    def init(key: jax.Array, scale: jax.Array) -> dict[str, Any]:
        state = fully_connected.init_state(model, pixels, key, learning_rate)
        state = fully_connected.scaled(state, scale, 1.0)
        norm = squares(kernels(state, len(hidden)))
        return {"state": state, "predicted": norm, "angle": jnp.zeros_like(norm)}

    def step(watched: dict[str, Any], batch: recording.Batch) -> dict[str, Any]:
        before = kernels(watched["state"], len(hidden))
        state, _ = gradient_step(watched["state"], batch)
        after = kernels(state, len(hidden))
        moves = [b - a for a, b in zip(before, after, strict=True)]
        inner = [jnp.vdot(w, move) for w, move in zip(before, moves, strict=True)]
        size = jnp.sqrt(squares(before) * squares(moves))
        cosine = jnp.abs(jnp.stack(inner)) / jnp.maximum(size, 1e-30)
        return {
            "state": state,
            "predicted": watched["predicted"] + squares(moves),
            "angle": jnp.maximum(watched["angle"], cosine),
        }

    def record(watched: dict[str, Any], held_out: recording.Batch):
        state = watched["state"]
        return {
            "accuracy": fully_connected.evaluate(state, held_out)["accuracy"],
            "norm": squares(kernels(state, len(hidden))),
            "predicted": watched["predicted"],
            "angle": watched["angle"],
            "singular": singular_values(model, state, held_out["image"]),
        }

    single = recording.Run(f"{network}_{activation}", init, step, record, batch_size)
    return recording.side_by_side(single, jnp.asarray(scales, jnp.float32))


def kernels(state: training.TrainState, layers: int) -> list[jax.Array]:
    """Returns the weights of the hidden layers."""
    return [state.params[f"Dense_{i}"]["kernel"] for i in range(layers)]


def squares(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns |W|^2 of each array, `[layers]`."""
    return jnp.stack([jnp.sum(jnp.square(each)) for each in arrays])


def singular_values(
    model: fully_connected.FullyConnected,
    state: training.TrainState,
    images: jax.Array,
) -> jax.Array:
    """Returns the singular values of Jacobians between inputs of nonlinearities.

    The Jacobians are those of consecutive nonlinearities. With Batch Normalization the
    inputs are the standardised values before scale and bias. The statistics are those
    of many images, and the derivative treats them as constants.

    Returns:
      The sorted singular values as means over some examples, `[layers - 1, units]`.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (_, inputs), _ = model.apply(
        variables, images[:_CONSTANT], train=True, mutable=["batch_stats"]
    )
    act = getattr(jax.nn, model.activation)
    found = []
    for i, u in enumerate(inputs[:-1]):
        kernel = state.params[f"Dense_{i + 1}"]["kernel"]
        slope = jax.vmap(jax.vmap(jax.grad(act)))(u[:_EXAMPLES])
        if model.norm is not None:
            slope = slope * state.params[f"BatchNorm_{i}"]["scale"][None]
            var = jnp.var(act(u) @ kernel, axis=0)
            kernel = kernel * jax.lax.rsqrt(var + 1e-5)[None]
        jacobians = slope[:, :, None] * kernel[None]
        found.append(jnp.linalg.svd(jacobians, compute_uv=False).mean(0))
    return jnp.stack(found)
