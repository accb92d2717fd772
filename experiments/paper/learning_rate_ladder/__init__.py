"""A study of the steps that Batch Normalization saves: Figures 2 and 3."""
