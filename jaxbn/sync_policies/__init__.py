"""Policies for sharing batch statistics, given as `sync=` to functions and layers.

  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(axis_name="data", sync=Stale(memory=0.8))

Workers are the devices along `axis_name`. Without an axis name they are parts of the
batch with `group_size` examples each, so one device can simulate many workers.

  policy       normalises by                                waits in a step for
  Exact        the moments of all workers                   2 collectives per layer
  Group        the moments of neighbouring workers          2 collectives per layer
  Sampled      the moments of a part of all examples        2 collectives per layer
  Periodic     all workers' moments in every k-th step      2 per layer, in those steps
  FrozenAfter  all workers' moments, later running ones     2 per layer, at first
  Local        each worker's own moments                    nothing
  Stale        own moments, and others' of earlier steps    nothing

A custom policy is an object with two functions; see `Policy`.
"""

from jaxbn.sync_policies.exchange import NAME as NAME
from jaxbn.sync_policies.exchange import exchange as exchange
from jaxbn.sync_policies.exchange import said_of as said_of
from jaxbn.sync_policies.exchange import scaled_messages as scaled_messages
from jaxbn.sync_policies.exchange import with_said as with_said
from jaxbn.sync_policies.placement import OF_EACH as OF_EACH
from jaxbn.sync_policies.placement import for_workers as for_workers
from jaxbn.sync_policies.placement import partition_specs as partition_specs
from jaxbn.sync_policies.policy import Normalized as Normalized
from jaxbn.sync_policies.policy import Policy as Policy
from jaxbn.sync_policies.policy import State as State
from jaxbn.sync_policies.policy import WithSync as WithSync
from jaxbn.sync_policies.policy import init_state as init_state
from jaxbn.sync_policies.policy import normalize as normalize
from jaxbn.sync_policies.policy import nothing as nothing
from jaxbn.sync_policies.scheduled import FrozenAfter as FrozenAfter
from jaxbn.sync_policies.scheduled import Periodic as Periodic
from jaxbn.sync_policies.stale import Stale as Stale
from jaxbn.sync_policies.within_step import Exact as Exact
from jaxbn.sync_policies.within_step import Group as Group
from jaxbn.sync_policies.within_step import Local as Local
from jaxbn.sync_policies.within_step import Sampled as Sampled
