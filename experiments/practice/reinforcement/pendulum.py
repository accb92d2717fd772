"""The pendulum of Gymnasium (`Pendulum-v1`) in JAX: swing up and hold.

The state is angle and angular velocity, and 0 is upright. An episode has 200 steps.
"""

import jax
import jax.numpy as jnp

EPISODE = 200
OBSERVATION, ACTION = 3, 1
_DT, _GRAVITY, _MAX_SPEED, _MAX_TORQUE = 0.05, 10.0, 8.0, 2.0


def reset(key: jax.Array) -> jax.Array:
    """Returns a random first state, `[2]`."""
    return jax.random.uniform(
        key, (2,), minval=jnp.array([-jnp.pi, -1.0]), maxval=jnp.array([jnp.pi, 1.0])
    )


def observe(state: jax.Array) -> jax.Array:
    """Returns cosine, sine and angular velocity, `[3]`."""
    angle, speed = state
    return jnp.array([jnp.cos(angle), jnp.sin(angle), speed])


def step(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the next state and the reward.

    Args:
      state: `[2]`.
      action: `[1]` in [-1, 1], as a share of the largest torque.
    """
    angle, speed = state
    torque = _MAX_TORQUE * action[0]
    wrapped = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    cost = wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
    acceleration = 1.5 * _GRAVITY * jnp.sin(angle) + 3.0 * torque
    speed = jnp.clip(speed + acceleration * _DT, -_MAX_SPEED, _MAX_SPEED)
    return jnp.array([angle + speed * _DT, speed]), -cost
