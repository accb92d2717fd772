"""A study of regularisation in networks with Batch Normalization."""
