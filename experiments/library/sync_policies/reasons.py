"""Measures why a policy loses or keeps accuracy: its gradients and the drift.

Gradients are compared with those of exact synchronisation. Both are measured during
training, at the current weights. Every record uses the same mini-batches of the shards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.framework import recording
from experiments.library.sync_policies import trainings
from experiments.library.sync_policies.trainings import Recipe, Setting, model_of
from experiments.networks import fully_connected
from jaxbn import training

LAGS = (1, 2, 4, 8, 16, 32, 64)
"""The numbers of steps over which the drift of the statistics is measured."""


def beside_exact(
    recipe: Recipe, setting: Setting
) -> Callable[[training.TrainState, recording.Batch], dict[str, jax.Array]]:
    """Compares the gradient of every layer with that of exact synchronisation.

    Returns:
      A function of a state and the held-out data. It returns `cosine` and `length`, the
      relative length, of shape `[layers]` each. Both are means over the mini-batches in
      `probe_image`, `[probes, examples, workers, ...]`.
    """
    exact = model_of(recipe, setting, "exact")
    gradient = training.value_and_grad(fully_connected.loss_fn)

    def compared(state: training.TrainState, held_out: recording.Batch):
        reference = state.replace(apply_fn=exact.apply, batch_sync={})

        def of(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            batch = trainings.as_batch(batch)
            made, right = (
                _kernels(gradient(each, batch).grads) for each in (state, reference)
            )
            cosine, length = [], []
            for one, other in zip(made, right, strict=True):
                lengths = jnp.linalg.norm(one), jnp.linalg.norm(other)
                product = lengths[0] * lengths[1]
                cosine.append(jnp.vdot(one, other) / jnp.where(product, product, 1))
                length.append(lengths[0] / jnp.where(lengths[1], lengths[1], 1))
            return {"cosine": jnp.stack(cosine), "length": jnp.stack(length)}

        probes = {
            "image": held_out["probe_image"],
            "label": held_out["probe_label"],
        }
        found = jax.lax.map(of, probes)
        return jax.tree.map(lambda values: jnp.mean(values, 0), found)

    return compared


def drifting(run: recording.Run, recipe: Recipe, every: int) -> recording.Run:
    """Returns `run` with a record of how fast the statistics move.

    Args:
      run: the run of exact synchronisation, from `trainings.run`.
      recipe: the settings that all trainings share.
      every: the steps between two records, more than the longest of `LAGS`.

    Returns:
      A run that also records `drift`, `[lags, layers]`. It is the distance between the
      means of the current weights and those of some steps before, in standard
      deviations: the root mean square over the units of a layer. The means are taken
      over all images in `probe_image`.
    """

    def init(key: jax.Array) -> Any:
        state = run.init(key)
        return state, [state.params] * len(LAGS)

    def step(carried: Any, batch: recording.Batch) -> Any:
        state, earlier = carried
        left = every - state.step % every  # Steps until the next record.
        earlier = [
            jax.tree.map(lambda old, now, at=lag: jnp.where(left == at, now, old),
                         params, state.params)
            for lag, params in zip(LAGS, earlier, strict=True)
        ]  # fmt: skip
        return run.step(state, batch), earlier

    def record(carried: Any, held_out: recording.Batch) -> dict[str, jax.Array]:
        state, earlier = carried
        image = held_out["probe_image"].reshape(-1, *recipe.shape)
        now, std = _means(state, state.params, image)
        drift = []
        for params in earlier:
            before, _ = _means(state, params, image)
            drift.append(
                [jnp.sqrt(jnp.mean(((a - b) / s) ** 2))
                 for a, b, s in zip(now, before, std, strict=True)]
            )  # fmt: skip
        return dict(run.record(state, held_out)) | {"drift": jnp.array(drift)}

    return run._replace(name=f"{run.name}, drift", init=init, step=step, record=record)


def _kernels(grads: Any) -> list[jax.Array]:
    """Returns the kernels of the layers before a normalisation, in their order."""
    names = sorted(name for name in grads if name.startswith("Dense_"))
    return [grads[name]["kernel"] for name in names[:-1]]


def _means(state: training.TrainState, params: Any, image: jax.Array) -> Any:
    """Returns means and standard deviations of the inputs of all normalisations.

    Both are lists with one array `[C]` per normalisation.
    """
    variables = {"params": params, "batch_stats": state.batch_stats}
    _, seen = state.apply_fn(
        variables,
        image,
        train=False,
        capture_intermediates=lambda module, _: "Dense_" in (module.name or ""),
        mutable=["intermediates"],
    )
    inputs = [
        seen["intermediates"][name]["__call__"][0]
        for name in sorted(seen["intermediates"])
    ][:-1]
    return [x.mean(0) for x in inputs], [x.std(0) + 1e-6 for x in inputs]
