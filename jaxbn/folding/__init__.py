"""Inference without Batch Normalization: `jaxbn.fold`."""

from jaxbn.folding.models import Folded as Folded
from jaxbn.folding.models import fold as fold
from jaxbn.folding.nnx_layer import FoldedBatchNorm as FoldedBatchNorm
from jaxbn.folding.nnx_model import as_affine as as_affine
from jaxbn.folding.report import FoldedLayer as FoldedLayer
from jaxbn.folding.report import Report as Report
