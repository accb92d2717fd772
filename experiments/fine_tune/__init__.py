"""A network from PyTorch, adapted to new data and shipped without normalisation."""
