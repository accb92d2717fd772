"""Tools for a whole model, of Linen or of NNX.

`recalibrate` computes running statistics from data, and `diagnose` finds layers whose
statistics are wrong. `freeze` freezes layers for fine-tuning. `replace` and
`patch_flax` replace Flax's layers by jaxbn's. `accumulate` makes one update after
several passes. `fold` merges layers into the convolutions beside them.
"""

from jaxbn.models._accumulate import accumulate as accumulate
from jaxbn.models._batch_stats_by_path import reset_batch_stats as reset_batch_stats
from jaxbn.models._diagnose import diagnose as diagnose
from jaxbn.models._fold import fold as fold
from jaxbn.models._freeze import freeze as freeze
from jaxbn.models._freeze import unfreeze as unfreeze
from jaxbn.models._recalibrate import recalibrate as recalibrate
from jaxbn.models._replace import patch_flax as patch_flax
from jaxbn.models._replace import replace as replace

__all__ = [
    "accumulate",
    "diagnose",
    "fold",
    "freeze",
    "patch_flax",
    "recalibrate",
    "replace",
    "reset_batch_stats",
    "unfreeze",
]
