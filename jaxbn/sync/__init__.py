"""Policies for sharing batch statistics, given as `sync=` to functions and layers.

  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(axis_name="data", sync=Stale(memory=0.8))

Workers are the devices along `axis_name`. Without an axis name they are parts of the
batch with `group_size` examples each, so one device can simulate many workers. Without
a policy, devices share statistics exactly, and each layer waits for two collectives.

- `FrozenAfter` shares exactly in the first steps. Later the frozen running statistics
  normalise, and no layer waits.
- `Stale` merges each worker's own moments with those of the other workers in earlier
  steps. No layer waits, and one collective after the step serves all layers.

A policy of your own is an object with two methods; see `Policy`. If its workers
exchange messages after the step, the training step has to do four things. The steps of
`jaxbn.training` do them, and `jaxbn/sync/_exchange.py` explains them.
"""

from jaxbn._core.call import Call as Call
from jaxbn._core.call import Normalized as Normalized
from jaxbn.sync._exchange import exchange as exchange
from jaxbn.sync._exchange import messages_of as messages_of
from jaxbn.sync._exchange import scale_messages as scale_messages
from jaxbn.sync._exchange import with_messages as with_messages
from jaxbn.sync._frozen_after import FrozenAfter as FrozenAfter
from jaxbn.sync._placement import for_workers as for_workers
from jaxbn.sync._placement import partition_specs as partition_specs
from jaxbn.sync._policy import Policy as Policy
from jaxbn.sync._policy import State as State
from jaxbn.sync._stale import Stale as Stale

__all__ = [
    "Call",
    "FrozenAfter",
    "Normalized",
    "Policy",
    "Stale",
    "State",
    "exchange",
    "for_workers",
    "messages_of",
    "partition_specs",
    "scale_messages",
    "with_messages",
]
