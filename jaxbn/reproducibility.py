"""What is equal bit for bit, and what but for rounding, with the test that shows it.

Measured on CPUs, with trainings of five steps with dropout and Adam in float32.
Rounding is then some 1e-6 of a weight; it grows with the number of steps, as in any
training.

Bit for bit, on one kind of machine with the same versions and number of devices:

- the same program run twice, compiled anew
  (`tests/test_reproducibility.py::test_the_same_program_twice_bit_for_bit`), and in
  another process (`tests/test_reproducibility.py::test_another_process_bit_for_bit`);
- a restart from a checkpoint, through bytes or orbax, and no interruption
  (`tests/test_reproducibility.py::test_restart_from_a_checkpoint_bit_for_bit`), after a
  process of two was killed as well
  (`tests/test_two_processes.py::test_a_run_whose_process_died_goes_on_with_the_same_statistics`);
- the Linen layer, the NNX layer and the functions
  (`tests/test_forms_agree.py::test_many_random_cases`), and
  trainings in Linen and NNX
  (`tests/test_reproducibility.py::test_linen_and_nnx_training_bit_for_bit`); their
  dropout has other keys;
- the copies of weights and running statistics on all devices, whatever their shards
  (`tests/jaxbn/test_parallel.py::test_every_style_equals_one_device`).

But for rounding, because sums are taken in another order:

- one device and many, under jit with shardings, shard_map and pmap, shards with unequal
  numbers of valid examples and empty ones among them
  (`tests/jaxbn/test_parallel.py::test_every_style_equals_one_device`);
- the same under jit with dropout
  (`tests/test_reproducibility.py::test_jit_with_shardings_but_for_rounding`); where an
  axis is mapped, each device draws dropout of its own;
- two processes and one
  (`tests/test_reproducibility.py::test_two_processes_train_as_one_but_for_rounding`);
- jit and operation by operation
  (`tests/test_reproducibility.py::test_op_by_op_but_for_rounding`), one step per call
  and several under `lax.scan`
  (`tests/jaxbn/training/test_steps.py::test_multi_step_equals_single_steps`);
- the examples of a batch in another order
  (`tests/test_reproducibility.py::test_order_of_examples_but_for_rounding`), or with
  padding under a mask
  (`tests/jaxbn/training/test_steps.py::test_padding_changes_nothing`);
- the running statistics of a first layer from micro-batches and from the whole batch
  (`tests/jaxbn/training/test_accumulation.py::test_running_statistics_move_once_by_the_whole`).

Not equal:

- a training with `micro_batches=k` and one on whole batches: each part is normalised by
  its own statistics, as with `group_size` of its size and the examples in its order, to
  which it is equal but for rounding
  (`tests/test_reproducibility.py::test_micro_batches_are_groups_of_the_whole_batch_but_for_rounding`);
- a bias right before a normalisation, under Adam and its like: its gradient is 0 but
  for rounding, which they scale to whole steps. What the network gives in training is
  the same, the running means follow the bias
  (`tests/test_reproducibility.py::test_a_bias_before_normalisation_follows_the_rounding_under_adam`).
  Leave it out: `nn.Dense(..., use_bias=False)`.

GPUs and TPUs were not measured. On a GPU `XLA_FLAGS=--xla_gpu_deterministic_ops=true`
asks XLA for programs that repeat.
"""
