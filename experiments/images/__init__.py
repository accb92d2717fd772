"""The input pipeline for data sets of large images, such as ImageNet.

Data go `source -> order -> cropping, distortions -> pipeline -> devices`. Every batch
is a function of seed and step alone, for any number of processes, so that the whole
state of an input pipeline is one integer.
"""
