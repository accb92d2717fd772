"""What regularises a network with Batch Normalization."""
