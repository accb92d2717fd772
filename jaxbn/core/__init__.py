"""The arithmetic of Batch Normalization: pure functions on arrays, jax only.

Data flows one way: `reduction` says how; `forms` and `local` make the moments of one
device, `sync` those of a group; `affine` makes the output of them and `tangent` its
derivative; `normalize` is the op that joins them. `running` and `estimators` follow the
population. `sub_batches` takes a batch apart first, where parts of it share statistics.
"""
