import numpy as np
import pytest

from experiments.data import order

LENGTHS = (30, 7, 50, 13)
STARTS = np.cumsum((0, *LENGTHS))


def shard_of(record):
    return int(np.searchsorted(STARTS, record, side="right")) - 1


@pytest.mark.parametrize("shards_at_once", [1, 3, 4, 9])
@pytest.mark.parametrize("within_shards", [True, False])
def test_every_record_once_in_each_epoch(shards_at_once, within_shards):
    records = order.Order(
        LENGTHS, 0, 3, shards_at_once=shards_at_once, within_shards=within_shards
    )
    epochs = np.array(list(records)).reshape(3, 100)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_within_shards_or_as_they_are_stored():
    for within_shards in (True, False):
        records = order.Order(LENGTHS, 0, 1, within_shards=within_shards)
        by_shard = [[r for r in records if shard_of(r) == s] for s in range(4)]
        rising = [own == sorted(own) for own in by_shard]
        assert rising == [not within_shards] * 4


def test_few_shards_are_read_at_a_time():
    records = list(order.Order(LENGTHS, 0, 1, shards_at_once=2))
    shards = [shard_of(record) for record in records]
    first = set(shards[:5])
    boundary = sum(LENGTHS[shard] for shard in first)
    assert len(first) == 2
    assert set(shards[:boundary]) == first
    assert not set(shards[boundary:]) & first


def test_records_of_all_shards_meet():
    """Read together, shards take turns in proportion to their lengths."""
    records = [
        r for seed in range(200) for r in list(order.Order(LENGTHS, seed, 1))[:10]
    ]
    share = np.bincount([shard_of(record) for record in records]) / len(records)
    # 2,000 draws: four standard errors of a share of .5 are .045.
    np.testing.assert_allclose(share, np.array(LENGTHS) / 100, atol=0.045)


def test_a_function_of_the_seed():
    first, again, other = (list(order.Order(LENGTHS, seed, 1)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_any_place_can_be_read_first():
    records = list(order.Order(LENGTHS, 3, 2))
    assert order.Order(LENGTHS, 3, 2)[150] == records[150]
    with pytest.raises(IndexError):
        order.Order(LENGTHS, 3, 2)[200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 0, 1), "`shard_lengths` must be at least 1"),
        ((LENGTHS, 0, 0), "`epochs` must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        order.Order(*arguments)
