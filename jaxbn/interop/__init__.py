"""Weights from and to PyTorch, Keras and Haiku, as plain arrays by name.

None of these packages is imported, and no pickle is read: weights are arrays by name,
or the path of a `.safetensors` file of these (`load_safetensors`, `save_safetensors`).
What is converted is a tree of variables as Linen (`model.init(...)`) or NNX
(`nnx.to_pure_dict(nnx.state(model))`) has them; `names` says which of its modules is
which of theirs:

  >>> import numpy as np
  >>> template = {"params": {"bn": {"scale": np.ones(2), "bias": np.zeros(2)}},
  ...             "batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
  >>> weights = {"0.weight": np.full(2, 3.0), "0.bias": np.zeros(2),
  ...            "0.running_mean": np.ones(2), "0.running_var": np.ones(2)}
  >>> variables = from_torch(weights, template, {"bn": "0"})
  >>> variables["params"]["bn"]["scale"], variables["batch_stats"]["bn"]["mean"]
  (array([3., 3.]), array([1., 1.]))

Layers besides Batch Normalization are converted too: kernels of dense and convolutional
layers change their layout, embeddings and other normalisations keep it. A module with
neither a kernel nor an embedding is taken for a normalisation. What a name cannot tell
stays with the user: transposed convolutions, and a dense layer after a flattened image,
whose order of channels and places differs between the layouts.

What an `estimator` other than "ema" keeps beside mean and variance stays as the
template has it. Imported statistics count as established: the next batch moves them.

Hyperparameters: PyTorch's momentum is the weight of the NEW value, 1 - ours
(`momentum_from_torch`), and None means `estimator="cumulative"`. Keras's is ours, and
its epsilon is 1e-3 by default. Both have the variance that is stable; PyTorch moves its
running variance by the unbiased one, as jaxbn, Keras by the biased one
(`unbiased=False`).
"""

from jaxbn.interop.files import load_safetensors as load_safetensors
from jaxbn.interop.files import save_safetensors as save_safetensors
from jaxbn.interop.packages import from_haiku as from_haiku
from jaxbn.interop.packages import from_keras as from_keras
from jaxbn.interop.packages import from_torch as from_torch
from jaxbn.interop.packages import momentum_from_torch as momentum_from_torch
from jaxbn.interop.packages import to_keras as to_keras
from jaxbn.interop.packages import to_torch as to_torch
