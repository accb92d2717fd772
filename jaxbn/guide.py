"""Questions about Batch Normalization in JAX, each with an answer that runs.

  >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
  >>> import jaxbn
  >>> from jaxbn import linen, training
  >>> class Net(nn.Module):
  ...     axis_name: str | None = None
  ...     @nn.compact
  ...     def __call__(self, x, train, mask=None):
  ...         x = nn.Dense(8, use_bias=False)(x)
  ...         mask = None if mask is None else mask[:, None]
  ...         norm = linen.BatchNorm(axis_name=self.axis_name, momentum=0.9)
  ...         return nn.Dense(2)(nn.relu(norm(x, not train, mask=mask)))
  >>> x, y = jax.random.normal(jax.random.key(0), (16, 4)), jnp.arange(16) % 2
  >>> net = Net()
  >>> variables = net.init(jax.random.key(1), x, train=False)

**What is mutable?** A layer has two kinds of variables. `params` (scale, bias) are
changed by the optimiser. `batch_stats` (mean, var) are changed by the forward pass in
training, which hands the new ones back; in evaluation they are only read.

  >>> sorted(variables)
  ['batch_stats', 'params']
  >>> logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
  >>> variables = variables | new  # Forget this, and evaluation knows no data.
  >>> logits = net.apply(variables, x, train=False)

`mutable` forgotten, and `batch_stats` not given:

  >>> net.apply(variables, x, train=True)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  flax.errors.ModifyScopeVariableError: ..."batch_stats" is immutable...
  >>> params = {"params": variables["params"]}
  >>> net.apply(params, x, train=False)  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  flax.errors.ScopeCollectionNotFound: ..."batch_stats"...the collection is empty...

Not given but mutable is no error: every step then begins with new statistics. An NNX
model holds its state itself, and changes it in training; `model.train()` and
`model.eval()` say which it is.

**What does a train step look like?** By hand, with the new statistics as auxiliary
output of the loss:

  >>> @jax.jit
  ... def step(params, batch_stats, x, y):
  ...     def loss(params):
  ...         given = {"params": params, "batch_stats": batch_stats}
  ...         logits, new = net.apply(given, x, train=True, mutable=["batch_stats"])
  ...         each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  ...         return each.mean(), new["batch_stats"]
  ...     grads, batch_stats = jax.grad(loss, has_aux=True)(params)
  ...     return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), batch_stats
  >>> params, batch_stats = step(**variables, x=x, y=y)

Or by `jaxbn.training`, with masks, metrics, dropout and any optimiser of optax.
Evaluate with the state that the step returned:

  >>> def loss_fn(model, batch, train):
  ...     logits = model(batch["x"], train=train, mask=batch.get("mask"))
  ...     loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
  ...     return {"loss": loss}
  >>> def begin(net):
  ...     return training.TrainState.create(net.apply, variables, optax.sgd(0.1))
  >>> train_step = training.make_train_step(loss_fn)
  >>> state, metrics = train_step(begin(net), {"x": x, "y": y})

Leave out biases right before a normalisation (`use_bias=False`), and scale and bias out
of weight decay (`training.weight_decay_mask`).

**Why is evaluation worse than training?** It normalises by the running statistics,
which may not be those of the data: after few steps, with tiny batches, on other data,
with averaged weights (EMA, SWA), or because the new ones were never kept. `diagnose`
says in which layer; `recalibrate` takes those of data, for the weights that it is
given; with `estimator="debiased"` they are right from the first batch on.

  >>> def call(model, x):
  ...     return model(x, train=True)
  >>> print(jaxbn.diagnose(net, variables, 5 + x, call))  # doctest: +ELLIPSIS
  layer        channels  elements  mean off by ...
  BatchNorm_0: the running statistics are not those of this batch: recalibrate...
  >>> variables = jaxbn.recalibrate(net, variables, [5 + x[:8], 5 + x[8:]], call)

**What does momentum mean?** The weight of the OLD value; PyTorch's is that of the new
one, 1 - ours. About 1/(1 - momentum) batches are averaged, 100 by default. After n
steps the initial 0 and 1 still weigh momentum**n, after 100 of them 37 %: lower it for
short runs.

  >>> layer = linen.BatchNorm(use_running_average=False, momentum=0.75)
  >>> _, new = layer.init_with_output(jax.random.key(0), x)
  >>> of_mean_1 = x + 1 - x.mean(0, keepdims=True)
  >>> _, new = layer.apply(new, of_mean_1, mutable=["batch_stats"])
  >>> new["batch_stats"]["mean"].round(3)
  Array([0.25, 0.25, 0.25, 0.25], dtype=float32)

**How do statistics span devices?** Under jit with sharded batches they are global by
themselves: leave `axis_name` out. Where an axis is mapped (pmap, shard_map, vmap), name
it, in the layers and in the step; all devices then hold equal statistics. While
initialising the name need not be bound; later an unknown one is an error.

  >>> mesh = jaxbn.parallel.data_mesh(axis_name="data")
  >>> batch = jaxbn.parallel.shard_batch({"x": x, "y": y}, mesh)
  >>> by_jit, _ = train_step(jaxbn.parallel.replicate(begin(net), mesh), batch)
  >>> named = training.make_train_step(loss_fn, axis_name="data")
  >>> shards, whole = jax.P("data"), jax.P()
  >>> specs = {"in_specs": (whole, shards), "out_specs": whole}
  >>> mapped = jax.jit(jax.shard_map(named, mesh=mesh, **specs))
  >>> by_map, _ = mapped(begin(Net("data")), {"x": x, "y": y})
  >>> means = [s.batch_stats["BatchNorm_0"]["mean"] for s in (by_jit, by_map)]
  >>> np.allclose(*means, atol=1e-6)
  True

`jax.pmap(named, axis_name="data")` is the same with a copy of the state per device. If
replicas kept statistics of their own, `jaxbn.sync_batch_stats` merges them, and
`jaxbn.in_sync` asks whether they are equal.

**Must every layer wait for all devices?** No: `sync=` takes another policy, such as
groups of devices, each alone, or `Stale`, which takes the other devices' terms from the
steps before, in one collective after the step. What a policy remembers is in the
collection `batch_sync`, of which a part is each device's own: `for_workers` and
`partition_specs` of `jaxbn.sync_policies` prepare the state for `shard_map`.

  >>> sync = jaxbn.sync_policies.Stale(memory=0.8)
  >>> layer = linen.BatchNorm(use_running_average=False, axis_name="data", sync=sync)

**My batches are small.** Their moments are noisy: share them over all devices
(`axis_name`), or over `group_size` neighbouring ones where a part is enough. The
running variance is the unbiased one, m/(m - 1) times that of the m values, so that
small batches do not make it too small; `unbiased=False` is Flax's and Keras's. One
value per channel has no variance: the layer warns, gives its bias, and keeps its
statistics.

  >>> layer = linen.BatchNorm(use_running_average=False, group_size=4, axis_name="data")

**Some of my examples are padding.** Give every layer a `mask`, True where an element
counts; it broadcasts to `x`, so that `[N, L]` of sequences becomes `mask[..., None]`.
Pad with finite numbers. What is masked changes nothing elsewhere, over devices with
unequal counts too. The `mask` of a batch, `[N]`, leaves examples out of loss and
metrics; `pad_batch` makes it:

  >>> batch = jaxbn.parallel.pad_batch({"x": x[:13], "y": y[:13]}, multiple=8)
  >>> options = {"train": True, "mutable": ["batch_stats"]}
  >>> _, padded = net.apply(variables, batch["x"], mask=batch["mask"], **options)
  >>> _, of_13 = net.apply(variables, x[:13], **options)
  >>> means = [new["batch_stats"]["BatchNorm_0"]["mean"] for new in (padded, of_13)]
  >>> np.allclose(*means, atol=1e-6)
  True
  >>> metrics = training.make_eval_step(loss_fn)(state, batch)
  >>> int(metrics["loss"].count)
  13

**How do I fine-tune with frozen statistics?** A layer has two switches, in the
constructor or the call. `use_running_average=True` normalises by the running
statistics, and `update_running_average` moves them (default: when the batch normalises
itself). In a given model `freeze` makes these choices by path and passes no gradient to
scale and bias. It changes an NNX model in place, and for a Linen model it returns the
function that runs it. `unfreeze` undoes it, for some layers or all.

  >>> frozen = jaxbn.freeze(loss_fn, "BatchNorm_0", bias=False)  # Its bias is trained.
  >>> new, _ = training.make_train_step(frozen)(begin(net), {"x": x, "y": y})
  >>> bool(jnp.all(new.batch_stats["BatchNorm_0"]["mean"]
  ...              == variables["batch_stats"]["BatchNorm_0"]["mean"]))
  True

Weight decay and momentum move what has no gradient, too; so mask it:

  >>> mask = training.frozen_mask(variables["batch_stats"], bias=False)
  >>> tx = optax.chain(optax.adamw(1e-3), optax.masked(optax.set_to_zero(), mask))

Other layers in the place of these: `jaxbn.replace` in an NNX model, by path; a Linen
model takes them as a field, `norm: Callable = linen.BatchNorm`.

**My model comes from a package that is written for Flax.** `patch_flax` puts these
layers in the place of `flax.linen.BatchNorm` and `flax.nnx.BatchNorm`, by a plain call
or in a `with` statement. Its options are the defaults of the layers. Patch before the
package is imported, because its code may keep the class that it finds then. All tools
know the layers, also after the patch.

  >>> with jaxbn.patch_flax(unbiased=False):
  ...     layer = nn.BatchNorm(momentum=0.9)  # The package makes it in this way.
  >>> isinstance(layer, linen.BatchNorm), layer.unbiased
  (True, False)

**I accumulate gradients.** Parts that are applied one by one would move the statistics
k times by their noisy moments. `micro_batches=k` moves them once, by the moments of all
parts together. Each part is still normalised by its own.

  >>> train_step = training.make_train_step(loss_fn, micro_batches=4)
  >>> state, metrics = train_step(state, {"x": x, "y": y})

**My model runs several times per step** (GAN, siamese network, SAM). Each pass with
`mutable=["batch_stats"]` moves the statistics. `mutable=["batch_moments"]` collects
instead, and `move_batch_stats` makes one update by the passes that should count:

  >>> _, one = net.apply(variables, x[:8], True, mutable=["batch_moments"])
  >>> _, both = net.apply(variables | one, x[8:], True, mutable=["batch_moments"])
  >>> stats = jaxbn.move_batch_stats(variables["batch_stats"], both["batch_moments"])

For SAM drop what the second pass returns. A pass that should move nothing takes
`update_running_average=False`, and needs no `mutable`. If other modules keep state in
the collection `batch_stats`, such as a counter or `nn.SpectralNorm`, name it in
`mutable` as well: their state moves in every pass, and that of the layers stays.

**And under `nn.scan`, `nn.vmap`, `nn.remat`?** Statistics are stacked like parameters:
`variable_axes={"params": 0, "batch_stats": 0}`. Where all steps of a scan share them,
`variable_carry="batch_stats"`; call the cell once outside while initialising, as Flax
cannot make a carried variable inside. `nn.cond` and `nn.switch` need every branch to be
called once while initialising. Recomputation moves the statistics once.

To collect moments inside, give the collection `batch_moments` the same axis as
`batch_stats`, or carry both: `variable_carry=["batch_stats", "batch_moments"]`. Inside
of `nn.cond`, `nn.switch`, `nn.while_loop` and carries it must exist before the pass.
`recalibrate` and `micro_batches` see to that; by hand it is this line:

  >>> given = variables | {
  ...     "batch_moments": jaxbn.init_batch_moments(variables["batch_stats"])}
  >>> _, one = net.apply(given, x[:8], True, mutable=["batch_stats", "batch_moments"])

**What do I save?** Both collections; the whole `TrainState` has optimiser, step and key
besides, so that a run goes on bit for bit. Flax's layer reads and writes the same
names.

  >>> import flax.serialization
  >>> saved = flax.serialization.to_bytes(state)
  >>> state = flax.serialization.from_bytes(begin(net), saved)

With orbax, `with orbax.checkpoint.StandardCheckpointer() as c:`, in it `c.save(path,
state)` or `c.restore(path, begin(net))`; its end waits for the file.

**Losses become NaN, or half precision goes wrong.** Statistics are float32 in any
`dtype`, and the variance is the stable one; `use_fast_variance=True` is Flax's, which
cancels where the mean is large; `diagnose` counts such channels. Channels of a batch
that are not finite leave the running statistics as they are. Leave `dtype` to the
layers: statistics need no cast of your own. If you cast all variables to half
precision, leave `batch_stats` out: a moving average stalls there. Training computes and
returns such statistics in float32, and warns; a `lax.scan` that carries them raises.

**How do I ship the model?** `fold` puts normalisation into the layers beside it, and
says what it could not. The result evaluates to the same up to rounding, and can go
through `jax.export`.

  >>> folded, report = jaxbn.fold(net, variables, x, lambda net, x: net(x, train=False))
  >>> print(report)
  BatchNorm_0  folded into Dense_0
  >>> logits = net.apply(folded, x, train=False)

**I come from PyTorch.** `interop.from_torch` takes a `state_dict` or a `.safetensors`
file; `from_keras` and `from_haiku` are beside it.

  ====================================  ============================================
  `torch.nn.BatchNorm2d`                `jaxbn.linen.BatchNorm`
  ====================================  ============================================
  weight, bias                          `params`: scale, bias
  running_mean, running_var             `batch_stats`: mean, var (unbiased, as there)
  momentum=0.1, None                    momentum=0.9 (0.99 by default),
                                        estimator="cumulative"
  [N, C, H, W]                          [N, H, W, C], or axis=1
  model.train(), model.eval()           use_running_average=False, True
  track_running_stats=False             use_running_average=False,
                                        update_running_average=False
  SyncBatchNorm, process_group          axis_name, group_size
  ====================================  ============================================

**What is equal bit for bit, and what but for rounding?** See `jaxbn.reproducibility`.
"""
