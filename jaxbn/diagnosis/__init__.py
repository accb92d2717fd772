"""Comparison of a batch with the running statistics, layer by layer.

It shows why evaluation differs from training. It works on any Linen or NNX model with
layers of jaxbn or of Flax.
"""

from jaxbn.diagnosis.measure import LayerDiagnosis as LayerDiagnosis
from jaxbn.diagnosis.report import Diagnosis as Diagnosis
from jaxbn.diagnosis.report import diagnose as diagnose
