"""Why evaluation differs from training: the batch beside the running statistics.

Works on any Linen or NNX model with layers of jaxbn or of Flax.
"""

from jaxbn.diagnosis.measure import LayerDiagnosis as LayerDiagnosis
from jaxbn.diagnosis.report import Diagnosis as Diagnosis
from jaxbn.diagnosis.report import diagnose as diagnose
