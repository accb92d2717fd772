"""Population statistics of a trained model, from data instead of a moving average.

This is the second half of the paper's Algorithm 2, known as precise Batch
Normalization. The weights stay fixed, and batches run through the model in training
mode. The running statistics become those of these batches, whatever they were before.
"""

from jaxbn.population.recalibration import recalibrate as recalibrate
