"""The variables of the NNX layer that Flax's layer does not have, and reading them."""

from typing import Any

from flax import nnx

from jaxbn import sync_policies


class Collected(nnx.Variable):
    """The `Passes` of a layer that collects moments instead of moving."""


class BatchSync(nnx.Variable):
    """What a policy of synchronisation remembers, the same for all workers."""


class OwnBatchSync(nnx.Variable):
    """What of it is each worker's own, with one more axis before."""


ANY_SYNC = nnx.Any(BatchSync, OwnBatchSync)
"""A filter of both."""

_SHARED, _OWN = sync_policies.NAME, f"own_{sync_policies.NAME}"


def read(module: nnx.Module, kind: type[Any]) -> Any:
    """The running statistics of a layer.

    Args:
      module: has a variable for every field of `kind`.
      kind: of the state of the layer's estimator.
    """
    return kind(*(getattr(module, name)[...] for name in kind._fields))


def write(module: nnx.Module, state: Any) -> None:
    """Sets the running statistics of a layer, as `read` gives them."""
    for name, value in state._asdict().items():
        variable = getattr(module, name)
        if variable[...].dtype == value.dtype:
            variable[...] = value
        else:  # The first batch of complex numbers.
            variable.set_value(value)


def begin_sync(module: nnx.Module, state: sync_policies.State) -> None:
    """Gives a layer the variables for the state of its policy, none if it is empty."""
    if state:
        shared, own = _apart(state)
        setattr(module, _SHARED, BatchSync(shared))
        setattr(module, _OWN, OwnBatchSync(own))


def read_sync(module: nnx.Module) -> sync_policies.State:
    """The state of a layer's policy, empty if there is none."""
    found: list[Any] = [getattr(module, name, None) for name in (_SHARED, _OWN)]
    if None in found:
        return {}
    shared, own = (variable.get_value() for variable in found)
    return {**shared, **own}


def write_sync(module: nnx.Module, state: sync_policies.State) -> None:
    """Sets what `read_sync` reads."""
    for name, part in zip((_SHARED, _OWN), _apart(state), strict=True):
        getattr(module, name).set_value(part)


def sync_values(state: nnx.State) -> dict[str, sync_policies.State]:
    """The states of all policies in the state of a model, by the path of the layer."""
    made: dict[str, sync_policies.State] = {}
    for path, variable in nnx.to_flat_state(state):
        made.setdefault(_path(path), {}).update(variable.get_value())
    return made


def with_sync_values(
    state: nnx.State, values: dict[str, sync_policies.State]
) -> nnx.State:
    """The state of a model with other ones, as `sync_values` gives them."""
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
