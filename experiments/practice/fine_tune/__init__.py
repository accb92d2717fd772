"""A study that adapts a network from PyTorch to new data and folds its layers."""
