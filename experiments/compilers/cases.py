"""The cases to compile: each is a program for a described accelerator."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program, its normalisation and its accelerator."""

    platform: str = "tpu"
    """The kind of accelerator, `tpu` or `gpu`."""
    target: str = "v5e:2x2"
    """The TPU topology to compile for, such as v5e:2x2, or h200."""
    program: str = "resnet50"
    """The program: layer, small_network, resnet50, short_resnet, bn_inception or
    inference."""
    norm: str = "jaxbn"
    """The normalisation, a name in experiments/networks/norms.py."""
    dtype: str = "bfloat16"
    """The dtype in which the program computes."""
    parameters: str = "float32"
    """The dtype of the parameters: with `float32` the layers have a `dtype`, with
    `cast` the parameters are cast to `dtype` before the network."""
    activation: str = "relu"
    """The activation, relu or leaky_relu."""
    style: str = "one"
    """The parallel style: one (device), jit (over a sharded batch), jit_mesh (jit under
    `set_mesh`) or shard_map."""
    devices: int = 1
    """The number of devices that share the batch."""
    statistics: str = "global"
    """The devices that share statistics: global, groups (of eight devices) or local."""
    images: int = 0
    """The number of images per device; with 0 it is the program's own."""

    @property
    def key(self) -> str:
        """A string that is equal for equal cases."""
        return json.dumps(dataclasses.asdict(self))

    def label(self) -> str:
        """Returns a line of text that names the case."""
        on = f" x{self.devices} {self.style}" if self.devices > 1 else ""
        statistics = "" if self.statistics == "global" else f" {self.statistics}"
        cast = " cast" if self.parameters == "cast" else ""
        images = f" {self.images} images" if self.images else ""
        return (
            f"{self.target}{on} {self.program} {self.dtype}{cast} {self.activation}"
            f"{images}: {self.norm}{statistics}"
        )
