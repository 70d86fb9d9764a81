"""Test Problem for Attention: the article's section 2 (注意力的测试问题).

A sequence of random integers is to be answered with its first few integers, and zeros after them:
[45, 20, 8, 31, 2] becomes [45, 20, 0, 0, 0]. Models read and write the integers one-hot encoded.

Run it with `python data_prep.py`. In all scripts, `rng` is a numpy.random.Generator, a seed, or
None for new random numbers at every call.
"""

import argparse
import os
import signal
import tempfile

import numpy as np


def generate_sequence(length, n_unique, rng=None):
    """Returns a list of `length` random integers from 0 ... n_unique - 1."""
    return np.random.default_rng(rng).integers(n_unique, size=length).tolist()


def one_hot_encode(sequence, n_unique):
    """Returns integers, of any shape (...), as one-hot vectors (..., n_unique), float32.

    Raises ValueError if one is not from 0 ... n_unique - 1.
    """
    values = np.asarray(sequence)
    if np.any((values < 0) | (values >= n_unique)):
        raise ValueError(f"sequence must hold integers from 0 to {n_unique - 1}, got {sequence}")
    return np.eye(n_unique, dtype="float32")[values]


def one_hot_decode(encoded_seq):
    """Returns the place of the largest value of each vector in (..., n_unique), as lists (...)."""
    return np.argmax(encoded_seq, axis=-1).tolist()


def get_pair(n_in, n_out, n_unique, rng=None):
    """Returns one pair X and y, as `get_pairs`: two arrays (1, n_in, n_unique)."""
    return get_pairs(1, n_in, n_out, n_unique, rng)


def get_pairs(n_pairs, n_in, n_out, n_unique, rng=None):
    """Returns pairs X and y, two one-hot encoded arrays (n_pairs, n_in, n_unique), float32.

    A sequence of X has `n_in` random integers from 0 ... n_unique - 1; that of y has the first
    `n_out` of them, and zeros up to the same length. Raises ValueError if `n_out` is above `n_in`.
    """
    if n_out > n_in:
        raise ValueError(f"n_out must be at most n_in ({n_in}), got {n_out}")
    sequences_in = np.reshape(generate_sequence(n_pairs * n_in, n_unique, rng), (n_pairs, n_in))
    sequences_out = np.where(np.arange(n_in) < n_out, sequences_in, 0)
    return one_hot_encode(sequences_in, n_unique), one_hot_encode(sequences_out, n_unique)


def at_least(least):
    """Returns the type of a flag that takes an integer from `least` up."""

    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return integer


def folder(path):
    """The type of a flag that takes a folder to write to; makes it unless it is there."""
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{error.strerror}: {path!r}") from None
    return path


FLAGS = argparse.ArgumentParser(add_help=False)
FLAGS.add_argument("--n-timesteps-in", type=at_least(1), default=5, help="time steps of a sequence")
FLAGS.add_argument("--n-timesteps-out", type=at_least(1), default=2, help="those to repeat")
FLAGS.add_argument("--n-features", type=at_least(2), default=50, help="different integers")
FLAGS.add_argument("--seed", type=at_least(0), default=0, help="the same gives the same numbers")


def parse_arguments(doc, flags):
    """Returns the command line's values; --help shows the second paragraph of the script's doc."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a script at once, threads and all
    parser = argparse.ArgumentParser(
        description=doc.split("\n\n")[1],
        parents=[flags],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    args = parser.parse_args()
    if args.n_timesteps_out > args.n_timesteps_in:
        parser.error(f"argument --n-timesteps-out: must be at most {args.n_timesteps_in}")
    return args


def main():
    # Configure the problem.
    args = parse_arguments(__doc__, FLAGS)
    rng = np.random.default_rng(args.seed)

    # A random sequence, the same one-hot encoded, and decoded again.
    sequence = generate_sequence(args.n_timesteps_in, args.n_features, rng)
    encoded = one_hot_encode(sequence, args.n_features)
    print(sequence, encoded, one_hot_decode(encoded), sep="\n")

    # A pair: the shapes of its two arrays and what they say.
    X, y = get_pair(args.n_timesteps_in, args.n_timesteps_out, args.n_features, rng)
    print(X.shape, y.shape)
    print(f"X={one_hot_decode(X[0])}, y={one_hot_decode(y[0])}")


if __name__ == "__main__":
    main()
