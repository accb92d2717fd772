"""The arithmetic of Batch Normalization: pure functions on arrays that import only jax.

Data flows one way. `reduction` specifies a reduction. `forms` and `local` compute the
moments of one device, and `sync` those of a group. `affine` computes the output, and
`tangent` its derivative. `normalize` is the op that joins them. `running` and
`estimators` estimate the statistics of the population. `sub_batches` first splits a
batch whose parts share statistics.
"""
