"""The arithmetic of Batch Normalization: pure functions on arrays, jax only.

Data flows one way: `reduction` (how) -> `forms`, `local` (moments of a device) ->
`sync` (of a group) -> `affine` (the output), `tangent` (its derivative) -> `normalize`
(the op that joins them), and beside it `running` (the population).
"""
