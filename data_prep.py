"""Test Problem for Attention: the article's section 2 (注意力的测试问题).

A sequence of random integers is to be answered with its first few integers, and zeros after them:
[45, 20, 8, 31, 2] becomes [45, 20, 0, 0, 0]. Models read and write the integers one-hot encoded.

Run it with `python data_prep.py`. In all scripts, `rng` is a numpy.random.Generator, a seed, or
None for new random numbers at every call.
"""

import argparse

import numpy as np

PAIRS_AT_ONCE = 10_000  # that `get_pairs_in_parts` holds in memory


def generate_sequence(length, n_unique, rng=None):
    """Returns a list of `length` random integers from 0 ... n_unique - 1."""
    return np.random.default_rng(rng).integers(n_unique, size=length).tolist()


def one_hot_encode(sequence, n_unique):
    """Returns integers, of any shape (...), as one-hot vectors (..., n_unique), float32.

    Raises ValueError if there are none, or one is not an integer from 0 ... n_unique - 1.
    """
    values = np.asarray(sequence)
    whole = values.size > 0 and values.dtype.kind in "iuf" and np.all(values == np.floor(values))
    if not (whole and np.all((values >= 0) & (values < n_unique))):
        raise ValueError(f"sequence must hold integers from 0 to {n_unique - 1}, got {sequence}")
    encoded = np.zeros((*values.shape, n_unique), dtype="float32")
    np.put_along_axis(encoded, values.astype(int)[..., None], 1, axis=-1)
    return encoded


def one_hot_decode(encoded_seq):
    """Returns the place of the largest value of each vector in (..., n_unique), as lists (...)."""
    return np.argmax(encoded_seq, axis=-1).tolist()


def get_pair(n_in, n_out, n_unique, rng=None):
    """Returns one pair X and y, as `get_pairs`: two arrays (1, n_in, n_unique)."""
    return get_pairs(1, n_in, n_out, n_unique, rng)


def get_pairs(n_pairs, n_in, n_out, n_unique, rng=None):
    """Returns pairs X and y, two one-hot encoded arrays (n_pairs, n_in, n_unique), float32.

    A sequence of X has `n_in` random integers from 0 ... n_unique - 1; that of y has the first
    `n_out` of them, and zeros up to the same length. Raises ValueError if `n_pairs` is below 1 or
    `n_out` is not an integer from 1 to `n_in`.
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}")
    if n_out not in range(1, int(n_in) + 1):
        raise ValueError(f"n_out must be an integer from 1 to n_in ({n_in}), got {n_out}")
    n_integers = int(n_pairs) * int(n_in)  # NumPy's small integers would overflow
    sequences_in = np.reshape(generate_sequence(n_integers, n_unique, rng), (n_pairs, n_in))
    sequences_out = np.where(np.arange(n_in) < n_out, sequences_in, 0)
    return one_hot_encode(sequences_in, n_unique), one_hot_encode(sequences_out, n_unique)


def get_pairs_in_parts(n_pairs, n_in, n_out, n_unique, rng=None):
    """Yields the pairs that `get_pairs` returns, X and y of up to PAIRS_AT_ONCE at a time."""
    rng = np.random.default_rng(rng)
    for start in range(0, max(n_pairs, 1), PAIRS_AT_ONCE):
        yield get_pairs(min(PAIRS_AT_ONCE, n_pairs - start), n_in, n_out, n_unique, rng)


def main():
    # Configure the problem.
    n_features = 50
    n_timesteps_in = 5
    n_timesteps_out = 2
    rng = np.random.default_rng(0)

    # A random sequence, the same one-hot encoded, and decoded again.
    sequence = generate_sequence(n_timesteps_in, n_features, rng)
    print(sequence)
    encoded = one_hot_encode(sequence, n_features)
    print(encoded.astype(int))
    print(one_hot_decode(encoded))

    # A pair: the shapes of its two arrays and what they say.
    X, y = get_pair(n_timesteps_in, n_timesteps_out, n_features, rng)
    print(X.shape, y.shape)
    print(f"X={one_hot_decode(X[0])}, y={one_hot_decode(y[0])}")


if __name__ == "__main__":
    # It takes no arguments. Its help leaves out the title, as not all code pages have Chinese.
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2]).parse_args()
    main()
