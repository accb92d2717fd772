"""The tables of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

from experiments.framework import interleaved, output
from experiments.library.benchmark import peers

_TITLES = {
    "both": "Forward and backward",
    "forward": "Forward, in training",
    "inference": "Inference",
}


def table(result: Mapping[str, Any]) -> str:
    """Returns the parts that were measured as Markdown."""
    parts = [
        f"{result['rounds']} rounds. Times over those of jaxbn: above 1, jaxbn is "
        "faster. Flax, Haiku and jaxbn with their default variance, which is stable "
        "for jaxbn, Equinox and PyTorch only. Measured on this device alone; jaxbn has "
        "no hand-written kernel for any."
    ]
    for needed, sections in _SECTIONS:
        if needed <= set(result):
            parts += [section(result) for section in sections]
    return "\n\n".join(filter(None, parts)) + "\n"


def geometric_means(
    result: Mapping[str, Any], dtype: str, part: str
) -> dict[str, float]:
    """Returns the time of each peer and of the limit relative to jaxbn.

    The times are geometric means over all shapes.
    """
    ratios: dict[str, list[float]] = {}
    for row in result["layers"].get(dtype, []):
        for name, (median, *_) in row[part]["over_jaxbn"].items():
            ratios.setdefault(name, []).append(median)
    return {name: interleaved.geometric_mean(each) for name, each in ratios.items()}


def _dtypes(result: Mapping[str, Any]) -> list[str]:
    return sorted(result["layers"], reverse=True)


def _names(result: Mapping[str, Any]) -> list[str]:
    """Returns the columns: the limit and the peers that were measured."""
    rows = [row for dtype in _dtypes(result) for row in result["layers"][dtype]]
    measured = {
        name for row in rows for part in _TITLES for name in row[part]["over_jaxbn"]
    }
    names = [*peers.REFERENCES, *peers.PEERS]
    return [name for name in names if name in measured]


def _missing(result: Mapping[str, Any]) -> str:
    missing = {
        name: why
        for dtype in _dtypes(result)
        for row in result["layers"][dtype]
        for name, why in row["missing"].items()
    }
    reasons = ", ".join(f"{name} ({why})" for name, why in missing.items())
    return f"Missing: {reasons}" if missing else ""


def _summary(result: Mapping[str, Any]) -> str:
    names = _names(result)
    rows = []
    for part, title in _TITLES.items():
        for dtype in _dtypes(result):
            means = geometric_means(result, dtype, part)
            cells = [f"{means[name]:.2f}" if name in means else "" for name in names]
            rows.append([title, dtype, *cells])
    return "Times over jaxbn's, geometric means over the shapes:\n\n" + output.markdown(
        ["", "dtype", *names], rows
    )


def _aims(result: Mapping[str, Any]) -> str:
    means = {
        dtype: geometric_means(result, dtype, "both") for dtype in result["layers"]
    }
    times = result["depth"]["50"]
    compared = {
        part: times["jaxbn"][part] / times["flax.linen"][part]
        for part in ("trace", "compile")
    }
    both = sum(times["jaxbn"].values()) / sum(times["flax.linen"].values())
    rows = [
        ("flax.linen over jaxbn, float32", 1.5, means["float32"]["flax.linen"], True),
        ("flax.linen over jaxbn, bfloat16", 1.2, means["bfloat16"]["flax.linen"], True),
        ("PyTorch over jaxbn, float32", 1.0, means["float32"].get("torch"), True),
        *(
            (
                f"jaxbn over the limit, {dtype}",
                1.3,
                1 / means[dtype][peers.LIMIT],
                False,
            )
            for dtype in _dtypes(result)
        ),
        ("tracing of 50 layers, of Flax's", 1.0, compared["trace"], False),
        ("compiling 50 layers, of Flax's", 1.0, compared["compile"], False),
        ("both", 1.0, both, False),
    ]
    lines = [
        [name, f"{aim} or {'more' if more else 'less'}", f"{value:.2f}",
         "met" if (value >= aim if more else value <= aim) else "missed"]
        for name, aim, value, more in rows
        if value is not None
    ]  # fmt: skip
    return "What was aimed at, forward and backward:\n\n" + output.markdown(
        ["", "aim", "measured", ""], lines
    )


def _spread(ratio: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def _layer_tables(result: Mapping[str, Any]) -> str:
    names = _names(result)
    tables = []
    for part, title in _TITLES.items():
        rows = []
        for dtype in _dtypes(result):
            for row in result["layers"][dtype]:
                over = row[part]["over_jaxbn"]
                cells = [_spread(over[name]) if name in over else "" for name in names]
                rows.append([dtype, tuple(row["shape"]), *cells])
        tables.append(
            f"{title}:\n\n" + output.markdown(["dtype", "shape", *names], rows)
        )
    return "\n\n".join(tables)


def _traffic_table(result: Mapping[str, Any]) -> str:
    names = [name for name in (peers.LIMIT, *peers.PEERS) if name in
             result["traffic"]["float32"]]  # fmt: skip
    rows = [
        [
            dtype,
            *("{read} + {written} in {kernels}".format(**of[name]) for name in names),
        ]
        for dtype, of in result["traffic"].items()
    ]
    return (
        "What the compiled kernels of one layer read + write forward and backward, in "
        "sizes of the input, in how many kernels, by its HLO, branches left out:\n\n"
        + output.markdown(["dtype", *names], rows)
    )


def _kept_table(result: Mapping[str, Any]) -> str:
    layers = list(result["kept"]["float32"])
    rows = [[dtype, *kept.values()] for dtype, kept in result["kept"].items()]
    return (
        "Kept for the backward pass of BN and ReLU, in sizes of the input, the ReLU's "
        "own included:\n\n" + output.markdown(["dtype", *layers], rows)
    )


def _memory_table(result: Mapping[str, Any]) -> str:
    header = ["normalisation", "kept", "peak, written out", "peak, scanned",
              "time over jaxbn's, scanned"]  # fmt: skip
    rows = [
        [
            name, row["kept"], row["written out"], row["scanned"],
            _spread(row["over_jaxbn"]),
        ]
        for name, row in sorted(
            result["memory"].items(), key=lambda item: -item[1]["scanned"]
        )
    ]  # fmt: skip
    return (
        "50 layers of normalisation, leaky ReLU and dense, activations per layer that "
        "the gradient needs:\n\n" + output.markdown(header, rows)
    )


def _device_table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["style"], row["devices"], row["jaxbn_ms"],
            _spread(row["over_jaxbn"]),
        ]
        for row in result["devices"]["rows"]
    ]  # fmt: skip
    header = ["style", "devices", "jaxbn, ms", "flax.linen over jaxbn"]
    return (
        f"A batch of {tuple(result['devices']['shape'])} over the devices that one "
        "processor is split into, forward and backward:\n\n"
        + output.markdown(header, rows)
    )


def _depth_table(result: Mapping[str, Any]) -> str:
    rows = [
        [depth, *(f"{t['trace']} + {t['compile']}" for t in times.values())]
        for depth, times in sorted(
            result["depth"].items(), key=lambda item: int(item[0])
        )
    ]
    header = ["layers", *result["depth"]["10"]]
    return (
        "Seconds to trace + compile the gradient of BN, ReLU and dense layers:\n\n"
        + output.markdown(header, rows)
    )


def _model_table(result: Mapping[str, Any]) -> str:
    header = ["model", "normalisation", "time over jaxbn's", "temporary MB",
              "accessed MB", "trace + compile, s"]  # fmt: skip
    rows = [
        [
            model, name, _spread(row["over_jaxbn"]),
            row["temporary_MB"], row["accessed_MB"],
            f"{row['trace_s']} + {row['compile_s']}",
        ]
        for model, by_norm in result["models"].items()
        for name, row in by_norm.items()
    ]  # fmt: skip
    some = next(iter(next(iter(result["models"].values())).values()))
    return (
        f"Training steps, {some['images']} images of {some['size']}x{some['size']}:\n\n"
        + output.markdown(header, rows)
    )


def _folded_table(result: Mapping[str, Any]) -> str:
    header = ["model", "normalisation", "time over that of the folded model",
              "arrays", "numbers"]  # fmt: skip
    rows = [
        [model, name, _spread(row["over_folded"]), row["arrays"], row["numbers"]]
        for model, by_name in result["folded"].items()
        for name, row in by_name.items()
    ]
    errors = ", ".join(
        f"{model} {by_name['folded']['error']:.1e} ({by_name['folded']['into_others']} "
        f"of {by_name['folded']['layers']} layers folded into others)"
        for model, by_name in result["folded"].items()
    )
    some = next(iter(result["folded"].values()))["folded"]
    return (
        f"Inference of images of {some['size']}x{some['size']}, with "
        "normalisation and with it folded away by `jaxbn.fold`. Largest difference of "
        f"an output by that, of the largest output: {errors}.\n\n"
        + output.markdown(header, rows)
    )


_SECTIONS = (
    ({"layers"}, (_missing, _summary)),
    ({"layers", "depth"}, (_aims,)),
    ({"layers"}, (_layer_tables,)),
    ({"traffic", "kept"}, (_traffic_table, _kept_table)),
    ({"memory"}, (_memory_table,)),
    ({"depth"}, (_depth_table,)),
    ({"models"}, (_model_table,)),
    ({"folded"}, (_folded_table,)),
    ({"devices"}, (_device_table,)),
)
"""The parts of the JSON that sections need, and the sections. Parts may be missing."""
