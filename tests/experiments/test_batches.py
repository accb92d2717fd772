"""Mini-batches by seed and step."""

import numpy as np
import pytest

from experiments import batches


@pytest.mark.parametrize("replacement", [False, True])
def test_they_do_not_depend_on_where_a_run_starts(replacement):
    def indices(seed, start, steps):
        return batches.indices(seed, 30, 4, start, steps, replacement=replacement)

    whole = indices(3, 0, 40)
    parts = [indices(3, start, 8) for start in range(0, 40, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (40, 4)
    assert whole.dtype == np.int32
    assert not np.array_equal(whole, indices(4, 0, 40))


def test_every_epoch_is_a_permutation():
    indices = batches.indices(0, 32, 5, 0, 12).reshape(2, 30)  # Two are left over.
    for epoch in indices:
        assert len(set(epoch)) == 30
    assert not np.array_equal(*indices)


def test_fixed_batches_come_in_another_order():
    whole = batches.indices(0, 32, 5, 0, 18, fixed=True)
    epochs = [sorted(tuple(sorted(batch)) for batch in epoch)
              for epoch in whole.reshape(3, 6, 5)]  # fmt: skip
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(whole[:6].ravel())) == 30
    assert not np.array_equal(whole[:6], whole[6:12])
    np.testing.assert_array_equal(
        batches.indices(0, 32, 5, 4, 5, fixed=True), whole[4:9]
    )
    with pytest.raises(ValueError, match="`replacement` and `fixed` must not both"):
        batches.indices(0, 32, 5, 0, 1, fixed=True, replacement=True)


def test_with_replacement_some_come_twice():
    drawn = batches.indices(0, 30, 30, 0, 1, replacement=True)
    assert len(set(drawn.ravel())) < 30


def test_a_batch_that_is_too_large():
    with pytest.raises(ValueError, match="must be at most the 30 training images"):
        batches.indices(0, 30, 31, 0, 1)
