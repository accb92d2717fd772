"""Batch Normalization that undoes itself."""
