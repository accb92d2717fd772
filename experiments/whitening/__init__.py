"""Full whitening of a layer beside Batch Normalization."""
