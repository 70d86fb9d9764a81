"""The article's section "Test Problem for Attention". Run it with `python data_prep.py`.

A sequence of random integers is to be answered with its first few integers, and zeros after them:
[45, 20, 8, 31, 2] becomes [45, 20, 0, 0, 0]. Models read and write the integers one-hot encoded, in
arrays of shape (pairs, time steps, features).

The end of this file holds the command-line flags that the scripts share.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np


def generate_sequence(
    length: int, n_unique: int, rng: np.random.Generator | None = None
) -> list[int]:
    """Returns `length` random integers from 0 … n_unique - 1 as a list.

    `rng` is where the randomness comes from; by default a generator of its own.
    Raises ValueError if `length` is below 1 or `n_unique` below 2.
    """
    at_least(1, length=length)
    at_least(2, n_unique=n_unique)
    rng = rng or np.random.default_rng()
    return rng.integers(n_unique, size=length).tolist()


def one_hot_encode(sequence: Sequence[int] | np.ndarray, n_unique: int) -> np.ndarray:
    """Returns the integers, of any shape (…), as one-hot vectors (…, n_unique), float32.

    Raises ValueError for a value that is not an integer from 0 … n_unique - 1.
    """
    at_least(2, n_unique=n_unique)
    values = np.asarray(sequence)
    wrong = values[(values < 0) | (values >= n_unique) | (values % 1 != 0)]
    if wrong.size:
        raise ValueError(
            f"sequence must hold integers from 0 to n_unique - 1 ({n_unique - 1}), "
            f"got {wrong.flat[0]}"
        )
    return np.eye(n_unique, dtype="float32")[values.astype(int)]


def one_hot_decode(encoded_seq: np.ndarray) -> list:
    """Returns the place of the largest value of each vector in (…, n_unique), as Python ints.

    One sequence (time steps, n_unique) gives a list, several give a list of lists.
    """
    return np.argmax(encoded_seq, axis=-1).tolist()


def get_pair(
    n_in: int, n_out: int, n_unique: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one pair: `get_pairs` with n_pairs = 1, two arrays (1, n_in, n_unique)."""
    return get_pairs(1, n_in, n_out, n_unique, rng)


def get_pairs(
    n_pairs: int, n_in: int, n_out: int, n_unique: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns X and y, two float32 arrays (n_pairs, n_in, n_unique).

    X is `n_pairs` random sequences of `n_in` integers from 0 … n_unique - 1, one-hot encoded; y has
    their first `n_out` integers and zeros up to the same length. `rng` is where the randomness
    comes from; by default a generator of its own.
    Raises ValueError if a number is below 1, `n_unique` below 2 or `n_out` above `n_in`.
    """
    at_least(1, n_pairs=n_pairs, n_in=n_in, n_out=n_out)
    at_least(2, n_unique=n_unique)
    if n_out > n_in:
        raise ValueError(f"n_out must be at most n_in ({n_in}), got {n_out}")
    rng = rng or np.random.default_rng()
    sequence_in = rng.integers(n_unique, size=(n_pairs, n_in))
    sequence_out = np.where(np.arange(n_in) < n_out, sequence_in, 0)
    return one_hot_encode(sequence_in, n_unique), one_hot_encode(sequence_out, n_unique)


def at_least(minimum: int, **values: int) -> None:
    """Raises ValueError, naming it, for the first of `values` that is below `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# What a reader may vary from the command line: default (the article's), least value, meaning.
FLAGS = {
    "n_timesteps_in": (5, 1, "time steps of a sequence"),
    "n_timesteps_out": (2, 1, "time steps of it that the target repeats"),
    "n_features": (50, 2, "different integers in the sequences"),
    "n_units": (150, 1, "units of each recurrent layer"),
    "n_updates": (5000, 1, "Adam updates of a training, each on one new pair"),
    "n_eval": (100, 1, "new pairs that an accuracy is taken on"),
    "n_repeats": (10, 1, "trainings of each model, with new weights and new pairs"),
    "jobs": (available_cores(), 1, "processes that share the repeats"),
    "seed": (0, 0, "seed of weights and pairs; the same seed gives the same numbers"),
}


def argument_parser(description: str | None, *flags: str) -> argparse.ArgumentParser:
    """Returns a parser for some of the FLAGS; what is wrong it says in one line, exit status 2."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    for name in flags:
        default, _, meaning = FLAGS[name]
        flag = "--" + name.replace("_", "-")
        help = f"{meaning} (default: {default})"
        parser.add_argument(flag, type=int, default=default, metavar="N", help=help)
    return parser


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns the command line's arguments, or ends the script where they break a rule."""
    args = parser.parse_args()
    try:
        for name in FLAGS.keys() & vars(args).keys():
            at_least(FLAGS[name][1], **{name: getattr(args, name)})
        if args.n_timesteps_out > args.n_timesteps_in:
            raise ValueError(
                f"n_timesteps_out must be at most n_timesteps_in ({args.n_timesteps_in}), "
                f"got {args.n_timesteps_out}"
            )
        if "output" in args:
            make_folder(args.output)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_folder(path: str) -> None:
    """Makes the folder unless it is there; raises ValueError if it can't be made or written to."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output must be a folder, got {path!r}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"output must be a folder that can be written to, got {path!r}")


def main() -> None:
    flags = ("n_timesteps_in", "n_timesteps_out", "n_features", "seed")
    args = parse_arguments(argument_parser(__doc__, *flags))
    rng = np.random.default_rng(args.seed)

    print("A random sequence:")
    sequence = generate_sequence(args.n_timesteps_in, args.n_features, rng)
    print(sequence)

    print("\nThe same, one-hot encoded and decoded again:")
    encoded = one_hot_encode(sequence, args.n_features)
    print(encoded)
    print(one_hot_decode(encoded))

    print("\nA pair, the shapes of its two arrays and what they say:")
    X, y = get_pair(args.n_timesteps_in, args.n_timesteps_out, args.n_features, rng)
    print(X.shape, y.shape)
    print(f"X={one_hot_decode(X[0])}, y={one_hot_decode(y[0])}")


if __name__ == "__main__":
    main()
