"""The cases to compile: each is a program for a described accelerator."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program, its normalisation and its accelerator."""

    platform: str = "tpu"
    """tpu or gpu."""
    target: str = "v5e:2x2"
    """A TPU topology, such as v5e:2x2, or h200."""
    program: str = "resnet50"
    """layer, small_network, resnet50, short_resnet, bn_inception or inference."""
    norm: str = "jaxbn"
    """A name in experiments/networks/norms.py."""
    dtype: str = "bfloat16"
    """The dtype in which the program computes."""
    parameters: str = "float32"
    """float32: the layers have a `dtype`; cast: cast to `dtype` before the network."""
    activation: str = "relu"
    """relu or leaky_relu."""
    style: str = "one"
    """one (device), jit (over a sharded batch), jit_mesh (jit under `set_mesh`), or
    shard_map."""
    devices: int = 1
    """Devices that share the batch."""
    statistics: str = "global"
    """global, groups of eight devices, or local."""
    images: int = 0
    """Images per device; 0: the program's own number."""

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
