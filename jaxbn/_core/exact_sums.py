"""A stable variance of half-precision numbers in one pass: no sum is rounded.

`E[x^2] - E[x]^2` is not precise because float32 rounds the two sums. For bfloat16,
which has `b = 8` significant bits, and float16, which has 11, no sum need be rounded.

*Lemma.* If all terms are multiples of u, and n * max|term| <= 2^24 u, then float32 adds
the n terms exactly, in any order. Every partial sum is a multiple of u with at most 24
bits.

Let n <= 2^(23 - b), and let all |x| of a channel lie between a and sqrt(2) a.

1. The |x| lie in two neighbouring binades, [2^e, 2^(e+2)). They are multiples of
   u = 2^(e+1-b) and at most 2^(b+1) u, so the lemma holds. It does not matter if a
   binade ends within the range.
2. A square has 2b bits. It is split into `high`, the square rounded to b bits, and
   `low`, the rest, which has at most b bits too. The squares lie between a^2 and 2 a^2,
   so the lemma holds for `high` as in 1. `low` is at most half of the last bit of
   `high`, which leaves more room for it.
3. Larger sums have several levels. The first level adds over the last axes. Its results
   have 24 bits. The next level splits each into parts of at most b bits, for which the
   lemma holds as in 1 and 2, and adds each kind of part over the axes before.
4. With S1 and S2 for the sums of x and x^2, and `near`, the mean rounded to 12 bits:

       rest = S1 - n near,  n var = S2 - n near^2 - 2 near rest - rest^2 / n

   The products are computed in halves of 12 bits, so that they are exact. Each
   difference is exact or rounded relative to a result that is not larger than the
   variance or 2^-12 of the terms. A constant channel has a variance of exactly 0.

A mask changes nothing, because its zeros are multiples of every u.

If some |x| of a channel are not within sqrt(2) of the others, they are at least 17 %
away from the mean. If they are many, the variance is not small beside the squared mean,
and the rounding of a float32 sum does no harm. If they are few, few additions round.
The worst case is one such element in a channel of otherwise equal ones. Its variance
is wrong by 3e-4 for 3,136 elements in a level and by 1e-2 for 2^15.

XLA:GPU computes at most two sums in one kernel. With three it reads x once more, so
that another form is cheaper there.

`lax.reduce_precision` splits numbers. It costs nothing on a TPU. XLA may remove a pair
of casts, also that of x in the kernel that computes x, but it does not remove this.
"""

import math

import jax
import jax.numpy as jnp

_EXPONENT_BITS = 8  # Of float32.
_MANTISSA_BITS = 23

# A sum of squares above this counts as infinite: products near it might overflow.
_LARGE = 2.0**127


def applies(
    axes: tuple[int, ...], dtype: jnp.dtype, x: jax.Array, masked: bool
) -> bool:
    """Returns whether the sums of `x` can be computed without rounding.

    They can if `x` has half precision, the moments are float32, no axis is longer than
    one level may add, and float32 holds the count. With a mask, the count may be any
    number up to that of all elements.
    """
    if dtype != jnp.float32 or x.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    sizes = [x.shape[a] for a in axes]
    if not all(isinstance(n, int) and n <= _terms(_bits(x.dtype)) for n in sizes):
        return False
    number = math.prod(sizes)
    return number <= 2**24 or (not masked and _fits(number, 24))


def mean_and_variance(
    axes: tuple[int, ...], x: jax.Array, mask: jax.Array | None, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the moments from sums that are not rounded.

    Args:
      axes: the axes to reduce, in increasing order.
      x: bfloat16 or float16, with zeros outside of the mask; `applies` is true for it.
      mask: None if all elements are valid.
      count: the number of valid elements, `[C]` or of size 1.

    Returns:
      Mean, variance and tail of the mean, `[C]`, float32. The tail is 0. Where the sum
      of the squares is 2^127 or more, the variance is infinite. This takes |x| of about
      1e16.
    """
    bits = _bits(x.dtype)
    wide = _rounded(x.astype(jnp.float32), bits)
    square = wide * wide
    high = _rounded(square, bits)
    first, high, low = _sums((wide, high, square - high), axes, bits)
    count = jnp.maximum(count, 1)
    inverse = 1 / count
    number = math.prod(x.shape[a] for a in axes)
    halves = [count] if mask is None and _fits(number, 12) else _split(count, 12)
    near = _rounded(sum(first) * inverse, 12)
    rest = sum(first[1:], _less(first[0], [near], halves))
    offset = rest * inverse  # The mean minus `near`.
    square, low_square = _split(near * near, 12)
    var = _less(high[0], [square], halves)
    var = _less(sum([*high[1:], *low], var), [low_square], halves)
    var = _less(var, [2 * near], _split(rest, 12))
    var = jnp.maximum((var - rest * offset) * inverse, 0)
    overflow = high[0] > _LARGE  # False for NaN, so that NaN stays.
    # A float32 mean is close enough beside the std that half precision can have.
    mean = near + offset
    return mean, jnp.where(overflow, jnp.inf, var), jnp.zeros_like(mean)


def _fits(number: int, bits: int) -> bool:
    """Returns whether a number has at most so many significant bits."""
    return number <= 2**bits * (number & -number)


def _bits(dtype: jnp.dtype) -> int:
    return jnp.finfo(dtype).nmant + 1


def _terms(bits: int) -> int:
    """Returns the number of terms of so many bits that one level may add."""
    return 2 ** (_MANTISSA_BITS - bits)


def _sums(
    terms: tuple[jax.Array, ...], axes: tuple[int, ...], bits: int
) -> list[list[jax.Array]]:
    """Returns the sums of x, `high` and `low`, each as parts that are to be added."""
    axes, last = _level(terms[0].shape, axes, bits)
    first, high, low = (jnp.sum(term, last) for term in terms)
    # Where squares overflow, the other sums stay finite. It also lets a TPU compute the
    # later levels in fewer kernels, because all of them read `high`.
    overflow = jnp.isinf(high)
    sums = [[jnp.where(overflow, 0, first)], [high], [jnp.where(overflow, 0, low)]]
    while axes:
        axes, last = _level(first.shape, axes, bits)
        sums = [
            [jnp.sum(piece, last) for part in parts for piece in _split(part, bits)]
            for parts in sums
        ]
    return sums


def _level(
    shape: tuple[int, ...], axes: tuple[int, ...], bits: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes for later levels, and the last axes, which this level adds."""
    first = len(axes)
    while first and math.prod(shape[a] for a in axes[first - 1 :]) <= _terms(bits):
        first -= 1
    return axes[:first], axes[first:]


def _split(x: jax.Array, bits: int) -> list[jax.Array]:
    """Splits numbers of 24 bits into parts of at most `bits`, the largest first."""
    parts = []
    for _ in range(math.ceil((_MANTISSA_BITS + 1) / bits) - 1):
        parts.append(_rounded(x, bits))
        x = x - parts[-1]
    return [*parts, x]


def _rounded(x: jax.Array, bits: int) -> jax.Array:
    return jax.lax.reduce_precision(x, _EXPONENT_BITS, bits - 1)


def _less(x: jax.Array, a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Returns `x - sum(a) * sum(b)`; `x` is near the product, or smaller."""
    for one in a:
        for other in b:
            x = x - one * other
    return x
