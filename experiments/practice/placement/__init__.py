"""A study of the best place of Batch Normalization in a network."""
