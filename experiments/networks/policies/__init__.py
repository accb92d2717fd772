"""Policies of synchronisation as examples: one file each, written with `jaxbn.sync`.

Each policy is a frozen dataclass with two methods, `init` and `normalize`. It uses only
the protocol that `jaxbn.sync.Policy` describes. Copy a file to start a policy of your
own.

  >>> import jax, jax.numpy as jnp, jaxbn
  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> stats = jaxbn.init_batch_stats(3, sync=Periodic(2))
  >>> y, stats = jaxbn.batch_norm_train(
  ...     x, None, None, stats, group_size=2, sync=Periodic(2)  # Four workers.
  ... )
  >>> stats.sync
  {'step': Array(1, dtype=int32)}
"""

from experiments.networks.policies.exact import Exact as Exact
from experiments.networks.policies.group import Group as Group
from experiments.networks.policies.local import Local as Local
from experiments.networks.policies.periodic import Periodic as Periodic
from experiments.networks.policies.sampled import Sampled as Sampled
