"""Several passes of an NNX model before one update of its running statistics."""

import contextlib
from collections.abc import Iterator

from flax import nnx

from jaxbn.models import _layers_by_path
from jaxbn.nnx import BatchNorm


@contextlib.contextmanager
def accumulate(model: nnx.Module) -> Iterator[None]:
    """Merges the moments of all calls in a block; updates the statistics at its end.

    The collection `batch_moments` does the same for Linen models. Use it for a large
    batch in parts, for a discriminator that gets real and generated images, or for a
    siamese network. Calls that do not update statistics are not collected. A layer
    without collected calls keeps its statistics. If an exception leaves the block,
    nothing is updated.

    The block may be inside of `nnx.jit`, or around calls of jitted steps. Afterwards
    the model has the same structure as before.

    Args:
      model: an NNX model with layers of `jaxbn.nnx.BatchNorm`.

    Raises:
      TypeError: if `model` is not an NNX model.
      ValueError: if a layer is Flax's, or if the model accumulates already.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = BatchNorm(1, momentum=0.0, unbiased=False, rngs=nnx.Rngs(0))
      >>> with accumulate(layer):
      ...     for part in (jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])):
      ...         y = layer(part)
      >>> layer.mean[...], layer.var[...]
      (Array([4.], dtype=float32), Array([5.], dtype=float32))
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be an NNX model, got {type(model).__name__}; a Linen model "
            'accumulates with `mutable=["batch_moments"]` and `jaxbn.end_accumulation`.'
        )
    _layers_by_path.check_collectable(model)
    layers = _layers_by_path.nnx_layers(model, (BatchNorm,))
    if any(hasattr(layer, "accumulated") for layer in layers.values()):
        raise ValueError("`model` must not accumulate already, got one that does.")
    for layer in layers.values():
        layer.begin_accumulation()
    try:
        yield
        moved = {
            path: layer.accumulated.get_value().batch_stats
            for path, layer in layers.items()
        }
    finally:
        for layer in layers.values():
            del layer.accumulated
    for path, stats in moved.items():
        layers[path].store(stats)
