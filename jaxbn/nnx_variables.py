"""The variables of the NNX layer that Flax's layer does not have, and reading them."""

from typing import Any

from flax import nnx


class Collected(nnx.Variable):
    """The `Passes` of a layer that collects moments instead of moving."""


class BatchSync(nnx.Variable):
    """The state of a layer's policy of synchronisation."""


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


def values(state: nnx.State) -> dict[str, Any]:
    """The value of every variable of a state, by its path."""
    return {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def with_values(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """The state with other values, as `values` gives them."""
    replaced = [
        (path, variable.replace(values["/".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.from_flat_state(replaced)
