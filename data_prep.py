"""Test Problem for Attention: the article's section 2 (注意力的测试问题).

A sequence of random integers is to be answered with its first few integers, and
zeros after them: [45, 20, 8, 31, 2] becomes [45, 20, 0, 0, 0]. Models read and
write the integers one-hot encoded, in arrays (pairs, time steps, features).

Run it with `python data_prep.py`. The end of this file holds what the scripts
share to start: flags, their rules, the output folder, a quiet start.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script at once

import argparse
import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np

# What a source of randomness may be: a generator, a seed, or None for new numbers at every call.
Rng = np.random.Generator | int | None


def generate_sequence(length: int, n_unique: int, rng: Rng = None) -> list[int]:
    """Returns `length` random integers from 0 ... n_unique - 1 as a list.

    Raises ValueError if `length` is below 1 or `n_unique` below 2.
    """
    check(length=length, n_unique=n_unique)
    return np.random.default_rng(rng).integers(n_unique, size=length).tolist()


def one_hot_encode(sequence: Sequence[int] | np.ndarray, n_unique: int) -> np.ndarray:
    """Returns the integers, of any shape (...), as one-hot vectors (..., n_unique), float32.

    Raises ValueError for a value that is not an integer from 0 ... n_unique - 1.
    """
    check(n_unique=n_unique)
    values = np.asarray(sequence)
    wrong = values[(values < 0) | (values >= n_unique) | (values % 1 != 0)]
    if wrong.size:
        raise ValueError(
            f"sequence must hold integers from 0 to n_unique - 1 ({n_unique - 1}), "
            f"got {wrong.flat[0]}"
        )
    return np.eye(n_unique, dtype="float32")[values.astype(int)]


def one_hot_decode(encoded_seq: np.ndarray) -> list:
    """Returns the place of the largest value of each vector in (..., n_unique), as Python ints.

    One sequence (time steps, n_unique) gives a list, several give a list of lists.
    """
    return np.argmax(encoded_seq, axis=-1).tolist()


def get_pair(
    n_in: int, n_out: int, n_unique: int, rng: Rng = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one pair X and y, two float32 arrays (1, n_in, n_unique).

    X is a random sequence of `n_in` integers from 0 ... n_unique - 1, one-hot encoded; y has its
    first `n_out` integers and zeros up to the same length.
    Raises ValueError if a number is below 1, `n_unique` below 2 or `n_out` above `n_in`.
    """
    check(n_in=n_in, n_out=n_out)
    sequence_in = generate_sequence(n_in, n_unique, rng)
    sequence_out = sequence_in[:n_out] + [0] * (n_in - n_out)
    return one_hot_encode([sequence_in], n_unique), one_hot_encode([sequence_out], n_unique)


def get_pairs(
    n_pairs: int, n_in: int, n_out: int, n_unique: int, rng: Rng = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns many pairs at once: X and y, two float32 arrays (n_pairs, n_in, n_unique).

    The pairs are those of `n_pairs` calls of `get_pair` with the same generator.
    Raises ValueError as `get_pair`, and if `n_pairs` is below 1.
    """
    check(n_pairs=n_pairs, n_in=n_in, n_out=n_out)
    sequences_in = np.reshape(generate_sequence(n_pairs * n_in, n_unique, rng), (n_pairs, n_in))
    sequences_out = np.where(np.arange(n_in) < n_out, sequences_in, 0)
    return one_hot_encode(sequences_in, n_unique), one_hot_encode(sequences_out, n_unique)


# Numbers are at least 1, but for these, and some are at most another one.
LEAST = {"n_unique": 2, "n_features": 2, "n_words": 100, "seed": 0}
MOST = {"n_out": "n_in", "n_timesteps_out": "n_timesteps_in"}


def check(**values: int) -> None:
    """Raises ValueError, naming it, for the first of `values` that breaks a rule."""
    for name, value in values.items():
        if value < LEAST.get(name, 1):
            raise ValueError(f"{name} must be at least {LEAST.get(name, 1)}, got {value}")
        if name in MOST and value > values[MOST[name]]:
            most = f"{MOST[name]} ({values[MOST[name]]})"
            raise ValueError(f"{name} must be at most {most}, got {value}")
    last_seed = values.get("seed", 0) + values.get("n_repeats", 1) - 1
    if last_seed >= 2**32:
        raise ValueError(f"seed of the last repeat must be at most {2**32 - 1}, got {last_seed}")


# What a reader may vary from the command line.
FLAGS = {
    "n_timesteps_in": "time steps of a sequence",
    "n_timesteps_out": "time steps of it that the target repeats",
    "n_features": "different integers in the sequences",
    "n_units": "units of each recurrent layer",
    "n_updates": "Adam updates of a training, each on one new pair",
    "n_eval": "new pairs that an accuracy is taken on",
    "n_repeats": "trainings of each model, with new weights and pairs",
    "seed": "the same seed gives the same weights and pairs",
    "jobs": "trainings at a time",
    "epochs": "times that each word is learned",
    "n_words": "words to learn and to test, if there are as many",
    "output": "folder for the results",
    "resume": "keep the finished repeats, run only those missing",
    "scheduler": "run on the Dask cluster at tcp://HOST:PORT",
}


def parse_arguments(description: str, **defaults: int | str | bool | None) -> argparse.Namespace:
    """Returns the command line's values of some FLAGS, given with their defaults.

    What is wrong ends the script with one line and exit status 2.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None where it was closed
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # whatever the encoding, printing ends no script
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = stop
    for name, default in defaults.items():
        flag, help = "--" + name.replace("_", "-"), FLAGS[name]
        if default is False:
            parser.add_argument(flag, action="store_true", help=help)
            continue
        kind, metavar = (int, "N") if isinstance(default, int) else (str, name.upper())
        help += "" if default is None else f" (default: {default})"
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=help)
    args = parser.parse_args()
    try:
        check(**{name: value for name, value in vars(args).items() if type(value) is int})
    except ValueError as error:
        stop(str(error))
    return args


def stop(message: str, status: int = 2) -> NoReturn:
    """Ends the script with one line on standard error."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(status)


def make_folder(path: str) -> None:
    """Makes the folder unless it is there; ends the script if it can't be made or written to."""
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        stop(f"output must be a folder that can be written to, got {path!r}: {error.strerror}")


@contextlib.contextmanager
def without_log_lines() -> Iterator[None]:
    """Hides what TensorFlow logs as it is imported, unless TF_CPP_MIN_LOG_LEVEL is below 3.

    TensorFlow 2.21 then writes to file descriptor 2 whatever that variable says.
    """
    if sys.stderr is None or os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        yield
        return
    stderr = os.dup(2)
    faulthandler.enable(stderr)  # a crash is told all the same
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)


def main() -> None:
    # Configure the problem.
    args = parse_arguments(__doc__, n_timesteps_in=5, n_timesteps_out=2, n_features=50, seed=0)
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
