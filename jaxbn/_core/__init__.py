"""The arithmetic of Batch Normalization, and the checks of its arguments.

Data flows one way. `call` holds the checked arguments of one call: `arguments` checks
the arrays, and `groups` finds the devices or examples that share statistics.
`reduction` specifies what is reduced. `variance` computes the moments of one device,
and `collectives` those of a group of devices. `affine` computes the output, and
`derivative` its tangent. `normalize` is the op that joins them. `running` holds the
running statistics.
"""
