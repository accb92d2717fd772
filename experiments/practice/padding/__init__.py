"""A study of Batch Normalization on sequences of unequal length."""
