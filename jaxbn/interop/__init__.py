"""Conversion of weights from and to PyTorch, Keras and Haiku, as arrays by name.

It imports none of these packages and reads no pickle. Weights are arrays by name, or
the path of a `.safetensors` file of them (`load_safetensors`, `save_safetensors`). On
the side of JAX they are a tree of variables, from Linen (`model.init(...)`) or NNX
(`nnx.to_pure_dict(nnx.state(model))`). `names` gives each module of the tree its name
in the other package:

  >>> import numpy as np
  >>> template = {"params": {"bn": {"scale": np.ones(2), "bias": np.zeros(2)}},
  ...             "batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
  >>> weights = {"0.weight": np.full(2, 3.0), "0.bias": np.zeros(2),
  ...            "0.running_mean": np.ones(2), "0.running_var": np.ones(2)}
  >>> variables = from_torch(weights, template, {"bn": "0"})
  >>> variables["params"]["bn"]["scale"], variables["batch_stats"]["bn"]["mean"]
  (array([3., 3.]), array([1., 1.]))

Layers besides Batch Normalization are converted too. Kernels of dense and convolutional
layers change their layout; embeddings and other normalisations keep it. A module with
neither a kernel nor an embedding counts as a normalisation. The names do not identify
two kinds of layers, which the user must convert: transposed convolutions, and a dense
layer after a flattened image, whose order of channels and places differs between the
layouts.

State of an `estimator` other than "ema", beside mean and variance, stays as it is in
the template. Imported statistics count as established: the next batch moves them.

The hyperparameters differ. PyTorch's momentum is the weight of the NEW value, 1 - ours
(`momentum_from_torch`), and None means `estimator="cumulative"`. Keras's momentum is
the same as ours, and its epsilon is 1e-3 by default. Both compute the variance in a
stable way. PyTorch moves its running variance by the unbiased variance, as jaxbn does.
Keras moves it by the biased one (`unbiased=False`).
"""

from jaxbn.interop.files import load_safetensors as load_safetensors
from jaxbn.interop.files import save_safetensors as save_safetensors
from jaxbn.interop.packages import from_haiku as from_haiku
from jaxbn.interop.packages import from_keras as from_keras
from jaxbn.interop.packages import from_torch as from_torch
from jaxbn.interop.packages import momentum_from_torch as momentum_from_torch
from jaxbn.interop.packages import to_keras as to_keras
from jaxbn.interop.packages import to_torch as to_torch
