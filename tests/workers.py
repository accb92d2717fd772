"""Simulates training on several workers by every policy, in float64 NumPy.

The network is a dense layer and Batch Normalization. The loss of an example is half the
squared distance of its output from a target. The simulation follows the definitions of
the policies. It has lists of workers, and does not store or send sums as jaxbn does.
"""

import dataclasses

import numpy as np

RATE, MOMENTUM, EPSILON = 0.5, 0.9, 1e-5


@dataclasses.dataclass
class Trained:
    kernel: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray  # Mean and variance are the running statistics.
    var: np.ndarray
    losses: list


@dataclasses.dataclass
class Used:
    """The statistics by which one worker normalises, and its backward pass."""

    mean: np.ndarray
    var: np.ndarray
    count: float  # Infinite: no gradient goes through mean and variance.
    group: list  # The workers whose sums of this step are added, itself among them.
    remembered: tuple = (0.0, 0.0)  # The sums of earlier steps that are added.
    no_gradient: bool = False  # No gradient goes through the layer at all.


def pooled(parts):
    """Returns the moments of the union, from (count, mean, var) of every part."""
    count = sum(n for n, _, _ in parts)
    if count == 0:
        return 0, np.zeros_like(parts[0][1]), np.zeros_like(parts[0][1])
    mean = sum(n * m for n, m, _ in parts) / count
    var = sum(n * (v + (m - mean) ** 2) for n, m, v in parts) / count
    return count, mean, var


def moments_of(h, counted):
    if not counted.any():
        return 0, np.zeros(h.shape[1]), np.zeros(h.shape[1])
    return int(counted.sum()), h[counted].mean(0), h[counted].var(0)


class Groups:
    """Exact synchronisation within groups of workers, of a part of their examples."""

    def __init__(self, size, fraction=1.0):
        self.size, self.fraction = size, fraction

    def counted(self, mask):
        first = np.arange(len(mask)) < np.ceil(self.fraction * len(mask))
        return mask & first

    def use(self, step, parts, running):
        """Returns `Used` of every worker, and what moves the running statistics."""
        used = []
        for worker in range(len(parts)):
            start = worker // self.size * self.size
            group = list(range(start, start + self.size))
            n, mean, var = pooled([parts[i] for i in group])
            used.append(Used(mean, var, max(n, 1), group))
        return used, pooled(parts)

    def after(self, parts, sums):
        pass


class Periodic(Groups):
    def __init__(self, every, workers, between):
        super().__init__(workers)
        self.every, self.between, self.last = every, between, None

    def use(self, step, parts, running):
        if step % self.every == 0:
            used, whole = super().use(step, parts, running)
            self.last = whole
            return used, whole
        if self.between == "frozen":
            _, mean, var = self.last
            return [Used(mean, var, np.inf, []) for _ in parts], None
        used = [Used(m, v, max(n, 1), [i]) for i, (n, m, v) in enumerate(parts)]
        return used, None


class FrozenAfter(Groups):
    def __init__(self, step, workers):
        super().__init__(workers)
        self.first = step

    def use(self, step, parts, running):
        if step < self.first:
            return super().use(step, parts, running)
        return [Used(*running, np.inf, []) for _ in parts], None


class Stale(Groups):
    """Keeps the moments of all steps of all workers, and weights them by their age."""

    def __init__(self, memory, backward):
        super().__init__(1)
        self.memory, self.backward = memory, backward
        self.steps = []  # (parts, sums) of each step.

    def use(self, step, parts, running):
        ages = range(len(self.steps))[::-1]
        weights = [self.memory**age for age in ages]
        total = sum(weights) or 1
        used = []
        for i, mine in enumerate(parts):
            others, first, second = [mine], 0.0, 0.0
            for weight, (earlier, sums) in zip(weights, self.steps, strict=True):
                share = weight / total
                for j, (n, m, v) in enumerate(earlier):
                    if j != i:
                        others.append((share * n, m, v))
                        first = first + share * sums[j][0]
                        second = second + share * sums[j][1]
            n, mean, var = pooled(others)
            remembered = self.backward * first, self.backward * second
            first_step = len(parts) > 1 and not self.steps
            used.append(Used(mean, var, max(n, 1), [i], remembered, first_step))
        return used, pooled(self.steps[-1][0]) if self.steps else None

    def after(self, parts, sums):
        self.steps.append((parts, sums))


def train(policy, kernel, batches):
    """Returns the network after a step on each (x, target, mask).

    Args:
      policy: one of the classes above.
      kernel: the first weights of the dense layer.
      batches: arrays of shape `[workers, examples, ...]`.
    """
    channels = kernel.shape[1]
    made = Trained(
        kernel.astype(np.float64),
        np.ones(channels),
        np.zeros(channels),
        np.zeros(channels),
        np.ones(channels),
        [],
    )
    for step, (x, target, mask) in enumerate(batches):
        x, target = x.astype(np.float64), target.astype(np.float64)
        workers, examples = range(len(x)), max(mask.sum(), 1)
        h = [x[i] @ made.kernel for i in workers]
        counted = [policy.counted(mask[i]) for i in workers]
        parts = [moments_of(h[i], counted[i]) for i in workers]
        used, moved = policy.use(step, parts, (made.mean, made.var))
        x_hat, g, std, sums, loss = [], [], [], [], 0.0
        dscale, dbias = np.zeros(channels), np.zeros(channels)
        for i in workers:
            var = used[i].var + EPSILON
            std.append(np.sqrt(var))
            x_hat.append((h[i] - used[i].mean) / std[i])
            error = x_hat[i] * made.scale + made.bias - target[i]
            loss += 0.5 * (error[mask[i]] ** 2).sum() / examples
            dy = np.where(mask[i][:, None], error, 0) / examples
            dscale += (dy * x_hat[i]).sum(0)
            dbias += dy.sum(0)
            g.append(dy * made.scale)
            sums.append((g[i].sum(0), (x_hat[i] * g[i]).sum(0)))
        dkernel = np.zeros_like(made.kernel)
        for i in workers:
            first, second = used[i].remembered
            first = first + sum(sums[j][0] for j in used[i].group)
            second = second + sum(sums[j][1] for j in used[i].group)
            through = (first + x_hat[i] * second) / used[i].count
            dh = (g[i] - np.where(counted[i][:, None], through, 0)) / std[i]
            dkernel += 0 if used[i].no_gradient else x[i].T @ dh
        policy.after(parts, sums)
        made.kernel = made.kernel - RATE * dkernel
        made.scale = made.scale - RATE * dscale
        made.bias = made.bias - RATE * dbias
        if moved is not None and moved[0] > 1:
            n, mean, var = moved
            made.mean = MOMENTUM * made.mean + (1 - MOMENTUM) * mean
            made.var = MOMENTUM * made.var + (1 - MOMENTUM) * var * n / (n - 1)
        made.losses.append(loss)
    return made
