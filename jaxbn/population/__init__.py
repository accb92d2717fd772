"""Population statistics of a trained model, from data instead of a moving average.

The second half of the paper's Algorithm 2, known as precise Batch Normalization: the
weights stay, batches go through the model in training mode, and the running statistics
become those of these batches, however the moving average had followed them.
"""

from jaxbn.population.recalibration import recalibrate as recalibrate
