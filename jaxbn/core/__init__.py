"""The arithmetic of Batch Normalization: pure functions on arrays, jax only.

Data flows one way: `moments` -> `sync` -> `normalize`, and beside it `running`.
"""
