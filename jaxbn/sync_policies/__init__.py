"""How workers share batch statistics: the option `sync=` of functions and layers.

  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(axis_name="data", sync=Stale(memory=0.8))

Workers are the devices along `axis_name`. Without an axis name they are parts of the
batch, of `group_size` examples each, which is also the way to simulate many on one.

  policy        normalises by                              waits in a step for
  Exact         the moments of all workers                 two collectives per layer
  Group         those of neighbouring workers              the same
  Sampled       those of a part of all workers' examples   two collectives per layer
  Periodic      all workers' in every k-th step            the same, in every k-th step
  FrozenAfter   all workers', later the running ones       the same, at the beginning
  Local         each worker's own                          nothing
  Stale         own of now and peers' of before            nothing

A policy of your own is an object with two functions; see `Policy`.
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
