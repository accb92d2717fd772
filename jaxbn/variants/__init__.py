"""Relatives of Batch Normalization, for small batches and for data that change.

Most are given as `variant=` to functions and layers:

  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(variant=Renorm(r_max=3.0, d_max=5.0))

| name | what it changes |
| --- | --- |
| `Renorm` | training: corrected to the running statistics |
| `ghost` | training: parts of a batch are normalised apart |
| `CrossIteration` | training: moments of the last batches, brought to the new weights |
| `MovingAverage` | training: averages over steps, forward and backward |
| `ExampleWeighting` | inference: mixes in the statistics of each example |
| `TestTime` | inference: mixes in the statistics of the test batch |

| `DomainBatchNorm`, `NnxDomainBatchNorm` | layers with statistics for each domain |
| `FilterResponseNorm`, `NnxFilterResponseNorm` | layers that need no batch |

`with_variant` gives a variant to a model that exists already, and `make_tent`
and `nnx_tent` adapt one to test data. `update_teacher` averages the parameters and
statistics of a whole model. A variant of your own is a
subclass of `Variant`.
"""

from jaxbn.variants._cross_iteration import CrossIteration as CrossIteration
from jaxbn.variants._domains import DomainBatchNorm as DomainBatchNorm
from jaxbn.variants._domains import NnxDomainBatchNorm as NnxDomainBatchNorm
from jaxbn.variants._domains import (
    domain_batch_norm_inference as domain_batch_norm_inference,
)
from jaxbn.variants._domains import (
    domain_batch_norm_train as domain_batch_norm_train,
)
from jaxbn.variants._example_weighting import ExampleWeighting as ExampleWeighting
from jaxbn.variants._filter_response import FilterResponseNorm as FilterResponseNorm
from jaxbn.variants._filter_response import (
    NnxFilterResponseNorm as NnxFilterResponseNorm,
)
from jaxbn.variants._filter_response import filter_response_norm as filter_response_norm
from jaxbn.variants._ghost import ghost as ghost
from jaxbn.variants._moving_average import MovingAverage as MovingAverage
from jaxbn.variants._moving_average import centralize as centralize
from jaxbn.variants._renorm import Renorm as Renorm
from jaxbn.variants._teacher import update_teacher as update_teacher
from jaxbn.variants._tent import Tent as Tent
from jaxbn.variants._tent import TentState as TentState
from jaxbn.variants._tent import entropy as entropy
from jaxbn.variants._tent import make_tent as make_tent
from jaxbn.variants._tent import nnx_tent as nnx_tent
from jaxbn.variants._tent import nnx_tent_step as nnx_tent_step
from jaxbn.variants._test_time import TestTime as TestTime
from jaxbn.variants._variant import State as State
from jaxbn.variants._variant import Variant as Variant
from jaxbn.variants._with_variant import with_variant as with_variant

__all__ = [
    "CrossIteration",
    "DomainBatchNorm",
    "ExampleWeighting",
    "FilterResponseNorm",
    "MovingAverage",
    "NnxDomainBatchNorm",
    "NnxFilterResponseNorm",
    "Renorm",
    "State",
    "Tent",
    "TentState",
    "TestTime",
    "Variant",
    "centralize",
    "domain_batch_norm_inference",
    "domain_batch_norm_train",
    "entropy",
    "filter_response_norm",
    "ghost",
    "make_tent",
    "nnx_tent",
    "nnx_tent_step",
    "update_teacher",
    "with_variant",
]
