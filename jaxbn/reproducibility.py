"""A list of results that are equal, bit for bit or up to rounding, and their tests.

They were measured on CPUs, with trainings of five steps with dropout and Adam in
float32. There the rounding is about 1e-6 of a weight. It grows with the number of
steps, as in any training.

These are equal bit for bit, on one kind of machine with the same versions and number of
devices:

- the same program run twice, compiled anew
  (`tests/test_reproducibility.py::test_the_same_program_twice_bit_for_bit`), and in
  another process (`tests/test_reproducibility.py::test_another_process_bit_for_bit`);
- a training that restarts from a checkpoint, through bytes or orbax, and one without
  interruption
  (`tests/test_reproducibility.py::test_restart_from_a_checkpoint_bit_for_bit`), also
  after one of two processes was killed
  (`tests/test_two_processes.py::test_a_run_whose_process_died_goes_on_with_the_same_statistics`);
- the Linen layer, the NNX layer and the functions
  (`tests/test_forms_agree.py::test_many_random_cases`);
- trainings in Linen and NNX
  (`tests/test_reproducibility.py::test_linen_and_nnx_training_bit_for_bit`), except for
  dropout, whose keys differ;
- the copies of weights and running statistics on all devices, for any shards
  (`tests/jaxbn/test_parallel.py::test_every_style_equals_one_device`).

These are equal up to rounding, because sums are computed in another order:

- one device and many, under jit with shardings, shard_map and pmap, also with empty
  shards and unequal numbers of valid examples
  (`tests/jaxbn/test_parallel.py::test_every_style_equals_one_device`);
- one device and many under jit with dropout
  (`tests/test_reproducibility.py::test_jit_with_shardings_but_for_rounding`); along a
  mapped axis each device draws its own dropout;
- two processes and one
  (`tests/test_reproducibility.py::test_two_processes_train_as_one_but_for_rounding`);
- jit and execution operation by operation
  (`tests/test_reproducibility.py::test_op_by_op_but_for_rounding`);
- one step per call and several steps under `lax.scan`
  (`tests/jaxbn/training/test_steps.py::test_multi_step_equals_single_steps`);
- a batch and its examples in another order
  (`tests/test_reproducibility.py::test_order_of_examples_but_for_rounding`), or with
  padding under a mask
  (`tests/jaxbn/training/test_steps.py::test_padding_changes_nothing`);
- the running statistics of a first layer from micro-batches and from the whole batch
  (`tests/jaxbn/training/test_accumulation.py::test_running_statistics_move_once_by_the_whole`).

These are not equal:

- a training with `micro_batches=k` and one on whole batches. Each part is normalised by
  its own statistics. So it equals, up to rounding, a training with a `group_size` of
  the part's size and the examples in the order of the parts
  (`tests/test_reproducibility.py::test_micro_batches_are_groups_of_the_whole_batch_but_for_rounding`);
- a bias right before a normalisation, under Adam and similar optimisers. Its gradient
  is 0 up to rounding, which they scale to whole steps. The network's output in training
  is the same, and the running means follow the bias
  (`tests/test_reproducibility.py::test_a_bias_before_normalisation_follows_the_rounding_under_adam`).
  Leave this bias out: `nn.Dense(..., use_bias=False)`.

GPUs and TPUs were not measured. On a GPU `XLA_FLAGS=--xla_gpu_deterministic_ops=true`
asks XLA for deterministic programs.
"""
