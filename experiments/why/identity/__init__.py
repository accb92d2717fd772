"""A study of Batch Normalization that undoes itself."""
