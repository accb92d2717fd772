"""An agent like CrossQ: soft actor-critic, with or without target networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.practice.reinforcement import pendulum
from jaxbn import variants

Norm = Callable[..., Any] | None
"""Makes a normalisation; None for none."""

_DISCOUNT = 0.99
_TARGET_ENTROPY = -float(pendulum.ACTION)


class Setting(NamedTuple):
    """The settings of an agent.

    Attributes:
      norm: the normalisation of both networks.
      target: True keeps target networks, which follow the critics slowly. False uses
        the critics themselves, and runs them once for both states (CrossQ).
      rate: the learning rate of Adam.
      units: the number of units in each of two hidden layers.
      batch: the number of transitions in a mini-batch.
      random: the number of first steps with random actions.
    """

    norm: Norm
    target: bool
    rate: float
    units: int
    batch: int
    random: int


class _Layers(nn.Module):
    """Two hidden layers, each with a normalisation before and after."""

    setting: Setting
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def normalised(x: jax.Array) -> jax.Array:
            if self.setting.norm is None:
                return x
            return self.setting.norm(use_running_average=not train)(x)

        x = normalised(x)
        for _ in range(2):
            x = normalised(nn.relu(nn.Dense(self.setting.units)(x)))
        return nn.Dense(self.outputs)(x)


class _Critics(nn.Module):
    """Two critics; returns `[2, N]`."""

    setting: Setting

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        many = nn.vmap(
            _Layers,
            in_axes=None,
            out_axes=0,
            axis_size=2,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        return many(self.setting, 1)(x, train)[..., 0]


class State(NamedTuple):
    """Everything that a step changes."""

    actor: Any  # Variables, and so are the critics.
    critics: Any
    targets: Any
    log_alpha: jax.Array  # The weight of the entropy.
    optimizers: Any
    pendulum: jax.Array  # The state of the environment.
    time: jax.Array  # The steps of this episode.
    steps: jax.Array  # The steps so far.
    memory: dict[str, jax.Array]  # All transitions, `[steps, ...]`.


class Agent:
    """The functions of an agent, all of them pure.

    Args:
      setting: the settings.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self._actor = _Layers(setting, 2 * pendulum.ACTION)
        self._critics = _Critics(setting)
        self._optimizer = optax.adam(setting.rate, b1=0.5)

    def init(self, key: jax.Array, steps: int) -> State:
        """Returns the first state, with room for a number of steps."""
        keys = jax.random.split(key, 3)
        seen = jnp.zeros((2, pendulum.OBSERVATION))
        pairs = jnp.zeros((2, pendulum.OBSERVATION + pendulum.ACTION))
        actor = self._actor.init(keys[0], seen, False)
        critics = self._critics.init(keys[1], pairs, False)
        log_alpha = jnp.zeros(())
        trained = (actor["params"], critics["params"], log_alpha)
        sizes = {"seen": 3, "action": 1, "reward": None, "next": 3}
        return State(
            actor,
            critics,
            critics,
            log_alpha,
            tuple(map(self._optimizer.init, trained)),
            pendulum.reset(keys[2]),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            {
                name: jnp.zeros((steps,) if size is None else (steps, size))
                for name, size in sizes.items()
            },
        )

    def step(self, state: State, key: jax.Array) -> State:
        """Takes one step in the environment, and trains once."""
        keys = jax.random.split(key, 5)
        state = self._act(state, keys[:3])
        trained = self._train(state, keys[3:])
        ready = state.steps >= self.setting.random
        return jax.tree.map(lambda a, b: jnp.where(ready, a, b), trained, state)

    def returns(self, state: State, key: jax.Array, episodes: int) -> jax.Array:
        """Returns the mean return of episodes in which the agent does not explore."""

        def episode(key: jax.Array) -> jax.Array:
            def one(state_now: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
                seen = pendulum.observe(state_now)[None]
                mean, _ = jnp.split(self._actor.apply(state.actor, seen, False)[0], 2)
                return pendulum.step(state_now, jnp.tanh(mean))

            first = pendulum.reset(key)
            return jax.lax.scan(one, first, length=pendulum.EPISODE)[1].sum()

        return jax.vmap(episode)(jax.random.split(key, episodes)).mean()

    def _act(self, state: State, keys: jax.Array) -> State:
        seen = pendulum.observe(state.pendulum)
        action, _, _ = self._sample(state.actor, seen[None], keys[0], False)
        at_random = jax.random.uniform(keys[1], (1,), minval=-1, maxval=1)
        action = jnp.where(state.steps < self.setting.random, at_random, action[0])
        new, reward = pendulum.step(state.pendulum, action)
        entry = {
            "seen": seen,
            "action": action,
            "reward": reward,
            "next": pendulum.observe(new),
        }
        memory = {
            name: values.at[state.steps].set(entry[name])
            for name, values in state.memory.items()
        }
        time = state.time + 1
        over = time >= pendulum.EPISODE
        return state._replace(
            pendulum=jnp.where(over, pendulum.reset(keys[2]), new),
            time=jnp.where(over, 0, time),
            steps=state.steps + 1,
            memory=memory,
        )

    def _sample(self, variables, seen, key, train):
        """Returns actions, their log probabilities, and the new variables."""
        outputs, changed = self._run(self._actor, variables, seen, train)
        mean, log_std = jnp.split(outputs, 2, -1)
        log_std = jnp.clip(log_std, -10, 2)
        noise = jax.random.normal(key, mean.shape)
        raw = mean + jnp.exp(log_std) * noise
        log_p = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        # The derivative of tanh, in a form that does not overflow.
        log_p = log_p - 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        return jnp.tanh(raw), log_p.sum(-1), changed

    def _run(self, model, variables, x, train):
        if not train or self.setting.norm is None:
            return model.apply(variables, x, train), variables
        y, new = model.apply(variables, x, True, mutable=["batch_stats"])
        return y, {**variables, **new}

    def _train(self, state: State, keys: jax.Array) -> State:
        index = jax.random.randint(keys[0], (self.setting.batch,), 0, state.steps)
        batch = {name: values[index] for name, values in state.memory.items()}
        key_next, key_now = jax.random.split(keys[1])
        alpha = jnp.exp(state.log_alpha)
        after, log_p, _ = self._sample(state.actor, batch["next"], key_next, False)
        pairs = jnp.concatenate([batch["seen"], batch["action"]], -1)
        next_pairs = jnp.concatenate([batch["next"], after], -1)

        def critic_loss(params):
            variables = {**state.critics, "params": params}
            if self.setting.target:
                q, new = self._run(self._critics, variables, pairs, True)
                q_next, _ = self._run(self._critics, state.targets, next_pairs, False)
            else:  # Both states in one batch, so that the statistics fit both.
                both = jnp.concatenate([pairs, next_pairs])
                q, new = self._run(self._critics, variables, both, True)
                q, q_next = jnp.split(q, 2, -1)
            target = batch["reward"] + _DISCOUNT * (q_next.min(0) - alpha * log_p)
            error = q - jax.lax.stop_gradient(target)[None]
            return jnp.mean(error**2), new

        def actor_loss(params, critics):
            variables = {**state.actor, "params": params}
            action, log_p, new = self._sample(variables, batch["seen"], key_now, True)
            given = jnp.concatenate([batch["seen"], action], -1)
            q, _ = self._run(self._critics, critics, given, False)
            return jnp.mean(alpha * log_p - q.min(0)), (log_p, new)

        grads, critics = jax.grad(critic_loss, has_aux=True)(state.critics["params"])
        critic_params, critic_opt = self._updated(
            grads, state.optimizers[1], state.critics["params"]
        )
        critics = {**critics, "params": critic_params}
        grads, (log_p_now, actor) = jax.grad(actor_loss, has_aux=True)(
            state.actor["params"], critics
        )
        actor_params, actor_opt = self._updated(
            grads, state.optimizers[0], state.actor["params"]
        )
        alpha_grad = -jnp.exp(state.log_alpha) * jnp.mean(log_p_now + _TARGET_ENTROPY)
        log_alpha, alpha_opt = self._updated(
            alpha_grad, state.optimizers[2], state.log_alpha
        )
        return state._replace(
            actor={**actor, "params": actor_params},
            critics=critics,
            targets=variants.update_teacher(state.targets, critics, 0.995),
            log_alpha=log_alpha,
            optimizers=(actor_opt, critic_opt, alpha_opt),
        )

    def _updated(self, grads, opt_state, params):
        updates, opt_state = self._optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state
