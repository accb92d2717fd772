"""A part of `benchmark` in a process of its own: python -m ... PART ROUNDS OUT.

`benchmark` gives it an environment in which malloc keeps what it has, so that no peer
pays for pages, and as many devices as the part needs.
"""

import json
import pathlib
import sys

import jax

from experiments.benchmark import devices, layers, networks

PARTS = {
    "layers": layers.measure,
    "networks": networks.measure,
    "devices": devices.measure,
}

if __name__ == "__main__":
    part, rounds, out = sys.argv[1:]
    about = {"device": layers.device_name(), "jax": jax.__version__}
    result = about | PARTS[part](int(rounds))
    pathlib.Path(out).write_text(json.dumps(result))
