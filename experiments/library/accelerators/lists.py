"""All cases of the study, and the few of `--quick`."""

from collections.abc import Iterable, Iterator

from experiments.compilers import cases
from experiments.networks import norms

OTHER_TPUS = ("v5p:2x2x1", "v6e:2x2", "v4:2x2x1")
DTYPES = ("bfloat16", "float32")

ONE_LAYER = (*norms.FOUR, "jaxbn, activation outside", "haiku", "jaxbn, fast variance")
# A single layer has no convolution to join, and no blocks to recompute.
OF_NETWORKS = ("jaxbn, joined", "jaxbn, recomputed")
ALL = (*ONE_LAYER, *OF_NETWORKS)
VARIANTS = ("jaxbn, renorm",)
LEAKY = ("flax", "jaxbn", "jaxbn, in_place")
TWO = ("flax", "jaxbn")
STABLE = ("flax", "flax stable", "jaxbn")


def all_cases() -> list[cases.Case]:
    """Returns the cases of both platforms, with the small programs first."""
    return [
        *_layers(),
        *_small_networks(),
        *_cast(),
        *_networks(),
        *_pods(),
        *_parallel(),
    ]


def quick_cases() -> list[cases.Case]:
    """Returns the layer and the small network, with jaxbn and with Flax."""
    return [
        case
        for program in ("layer", "small_network")
        for target in ("v5e:2x2", "h200")
        for case in _each(TWO, target=target, program=program)
    ]


def memory_cases() -> list[cases.Case]:
    """Returns the cases for which the largest batch is searched."""
    return [
        case
        for target in ("v5e:2x2", "h200")
        for case in _each(
            (*LEAKY, *OF_NETWORKS),
            target=target,
            program="resnet50",
            activation="leaky_relu",
        )
    ]


def _layers() -> Iterator[cases.Case]:
    for dtype in DTYPES:
        for target in ("v5e:2x2", "h200"):
            chosen = (*ONE_LAYER, *norms.FORMS)
            yield from _each(chosen, target=target, program="layer", dtype=dtype)
    for target in OTHER_TPUS:
        yield from _each(norms.FOUR, target=target, program="layer")
    for target in ("v5e:2x2", "h200"):
        yield from _each(LEAKY, target=target, program="layer", activation="leaky_relu")


def _small_networks() -> Iterator[cases.Case]:
    program = "small_network"
    for target in ("v5e:2x2", "h200"):
        for dtype, chosen in (("bfloat16", ALL), ("float32", norms.FOUR)):
            chosen = (*chosen, *norms.FORMS)
            yield from _each(chosen, target=target, program=program, dtype=dtype)
        yield from _each(VARIANTS, target=target, program=program)
        leaky = (*LEAKY, *OF_NETWORKS)
        yield from _each(leaky, target=target, program=program, activation="leaky_relu")
    for target in OTHER_TPUS:
        yield from _each(TWO, target=target, program=program)


def _pods() -> Iterator[cases.Case]:
    for target, devices in (("v5e:8x8", 64), ("v5e:16x16", 256)):
        for program in ("layer", "short_resnet"):
            on = {"target": target, "devices": devices, "program": program}
            jaxbn = ("jaxbn",)
            yield from _each(TWO, style="shard_map", **on)
            yield from _each(jaxbn, style="shard_map", statistics="groups", **on)
            if program == "layer" or devices == 64:
                yield from _each(TWO, style="jit", **on)
                yield from _each(jaxbn, style="shard_map", statistics="local", **on)
                yield from _each(jaxbn, style="jit_mesh", statistics="local", **on)


def _cast() -> Iterator[cases.Case]:
    """Yields cases with half-precision scale and bias, as jmp and Haiku use them."""
    for target in ("v5e:2x2", "h200"):
        for program in ("layer", "small_network", "resnet50"):
            on = {"target": target, "program": program, "parameters": "cast"}
            yield from _each((*norms.FOUR, "jaxbn, fast variance"), **on)
    for target in ("v5p:2x2x1", "v6e:2x2"):
        on = {"target": target, "program": "resnet50", "parameters": "cast"}
        yield from _each(TWO, **on)


def _networks() -> Iterator[cases.Case]:
    for target in ("v5e:2x2", "h200"):
        yield from _each((*ALL, *VARIANTS), target=target, program="resnet50")
        yield from _each(
            (*LEAKY, *OF_NETWORKS),
            target=target,
            program="resnet50",
            activation="leaky_relu",
        )
        chosen = (*STABLE, "jaxbn, joined")
        yield from _each(chosen, target=target, program="bn_inception")
        yield from _each(("none", "flax", "jaxbn"), target=target, program="inference")
    for target in OTHER_TPUS:
        yield from _each(STABLE, target=target, program="resnet50")


def _parallel() -> Iterator[cases.Case]:
    for target, devices in (("v5e:2x4", 8), ("h200", 4)):
        for style in ("jit", "shard_map"):
            for program in ("layer", "resnet50"):
                yield from _each(
                    TWO, target=target, devices=devices, style=style, program=program
                )


def _each(names: Iterable[str], *, target: str, **options) -> Iterator[cases.Case]:
    platform = "gpu" if target == "h200" else "tpu"
    for name in names:
        yield cases.Case(platform=platform, target=target, norm=name, **options)
