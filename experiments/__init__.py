"""Studies of Batch Normalization. `python -m experiments` lists them."""
