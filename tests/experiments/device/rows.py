"""A row as the worker prints it."""


def row(norm, ms, **changed):
    made = {"setting": "command buffers", "program": "layer", "dtype": "bfloat16",
            "images": 64, "norm": norm, "ms": ms, "over_flax": [ms / 4, ms / 5, ms / 2],
            "traffic_MB": 100 * ms, "copy_GBps": 200, "conditionals": 0,
            "temporary_MB": 7.0}  # fmt: skip
    return made | changed
