"""Batch Normalization of sequences of unequal length."""
