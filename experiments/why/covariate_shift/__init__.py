"""A study of Batch Normalization and internal covariate shift."""
