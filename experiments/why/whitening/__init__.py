"""A study that compares full whitening with Batch Normalization."""
