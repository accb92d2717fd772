"""The code that the Linen layer and the NNX layer share; it imports no framework.

`call` is one call of a layer. `switches` decides what the call uses and updates.
`accumulation` merges the moments of several passes. `folded` is a layer after
`jaxbn.fold`.
"""
