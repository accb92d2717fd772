"""The variables that only jaxbn's NNX layer has, and functions to access them."""

from typing import Any

from flax import nnx

from jaxbn import sync_policies


class Collected(nnx.Variable):
    """The `Passes` of a layer that collects moments and does not update statistics."""


class BatchSync(nnx.Variable):
    """The part of a policy's state that is the same for all workers."""


class OwnBatchSync(nnx.Variable):
    """The part of a policy's state that each worker has for itself, `[workers, C]`."""


ANY_SYNC = nnx.Any(BatchSync, OwnBatchSync)
"""A filter for both kinds of variables."""

_SHARED, _OWN = sync_policies.NAME, f"own_{sync_policies.NAME}"


def read(module: nnx.Module, kind: type[Any]) -> Any:
    """Returns the running statistics of a layer.

    Args:
      module: the layer, with a variable for every field of `kind`.
      kind: the type of the state of the layer's estimator.
    """
    return kind(*(getattr(module, name)[...] for name in kind._fields))


def write(module: nnx.Module, state: Any) -> None:
    """Sets the running statistics of a layer, in the form that `read` returns."""
    for name, value in state._asdict().items():
        variable = getattr(module, name)
        if variable[...].dtype == value.dtype:
            variable[...] = value
        else:  # The first complex batch.
            variable.set_value(value)


def begin_sync(module: nnx.Module, state: sync_policies.State) -> None:
    """Gives a layer the variables for its policy's state; none if it is empty."""
    if state:
        shared, own = _apart(state)
        setattr(module, _SHARED, BatchSync(shared))
        setattr(module, _OWN, OwnBatchSync(own))


def read_sync(module: nnx.Module) -> sync_policies.State:
    """Returns the state of a layer's policy; empty if there is none."""
    found: list[Any] = [getattr(module, name, None) for name in (_SHARED, _OWN)]
    if None in found:
        return {}
    shared, own = (variable.get_value() for variable in found)
    return {**shared, **own}


def write_sync(module: nnx.Module, state: sync_policies.State) -> None:
    """Sets the state that `read_sync` returns."""
    for name, part in zip((_SHARED, _OWN), _apart(state), strict=True):
        getattr(module, name).set_value(part)


def sync_values(state: nnx.State) -> dict[str, sync_policies.State]:
    """Returns all policies' states in a model's state, by the path of the layer."""
    made: dict[str, sync_policies.State] = {}
    for path, variable in nnx.to_flat_state(state):
        made.setdefault(_path(path), {}).update(variable.get_value())
    return made


def with_sync_values(
    state: nnx.State, values: dict[str, sync_policies.State]
) -> nnx.State:
    """Returns the state of a model with new values, as `sync_values` returns them."""
    return nnx.from_flat_state(
        [
            (path, variable.replace(_apart(values[_path(path)])[path[-1] == _OWN]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path[:-1]))


def _apart(state: sync_policies.State) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: part for name, part in state.items() if name in sync_policies.OF_EACH}
    return {name: part for name, part in state.items() if name not in own}, own
