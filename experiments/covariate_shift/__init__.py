"""What Batch Normalization does to internal covariate shift."""
