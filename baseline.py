"""The article's section "Encoder-Decoder Without Attention". Run it with `python baseline.py`.

Trains an encoder-decoder of two LSTMs on 5,000 pairs, one after the other, prints how many of 100
new sequences it then gets right from end to end, in %, and shows ten of them. It takes about ten
seconds and writes no files.

The training and the evaluation that all scripts share live here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from data_prep import argument_parser, at_least, get_pairs, one_hot_decode, parse_arguments

# Pairs that one call of the compiled training takes: 5,000 make 10 steps of the progress bar.
PAIRS_PER_CALL = 500
# Unrolled, recurrent layers train up to 3 times faster, but the time to compile grows with length.
UNROLL_UP_TO = 10

os.environ["KERAS_BACKEND"] = "tensorflow"
# Products of one pair are too small to share. One thread also makes every run add in one order.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # lets processes share a GPU


@contextlib.contextmanager
def without_start_up_log() -> Iterator[None]:
    """Drops what TensorFlow logs as it starts, unless the user set TF_CPP_MIN_LOG_LEVEL to 0 or 1.

    TensorFlow 2.21 writes to file descriptor 2 whatever that variable says.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") in ("0", "1"):
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


with without_start_up_log():
    gc.disable()  # what is imported stays: looking there for garbage takes a fifth of the time
    import keras
    import tensorflow as tf
    from keras import layers

    # Wake devices and compiler while nobody listens.
    tf.function(lambda: tf.constant(0), jit_compile=tf.test.is_built_with_xla())()
    gc.freeze()
    gc.enable()


def baseline_model(n_timesteps_in: int, n_features: int, n_units: int = 150) -> keras.Model:
    """Returns the article's compiled model without attention.

    It reads and writes one-hot sequences (batch, n_timesteps_in, n_features). The encoder passes
    nothing on but its last state, `n_units` numbers, which the decoder sees at every step.
    Raises ValueError if a number is below 1 or `n_features` below 2.
    """
    check_sizes(n_timesteps_in, n_features, n_units)
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential(
        [
            keras.Input((n_timesteps_in, n_features)),
            layers.LSTM(n_units, unroll=unroll),  # (batch, n_units)
            layers.RepeatVector(n_timesteps_in),  # (batch, n_timesteps_in, n_units)
            layers.LSTM(n_units, return_sequences=True, unroll=unroll),
            layers.TimeDistributed(layers.Dense(n_features, activation="softmax")),
        ],
        name="baseline",
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def check_sizes(n_timesteps_in: int, n_features: int, n_units: int) -> None:
    """Raises ValueError if a number is below 1 or `n_features` below 2."""
    at_least(1, n_timesteps_in=n_timesteps_in, n_units=n_units)
    at_least(2, n_features=n_features)


def train(model: keras.Model, X: np.ndarray, y: np.ndarray, verbose: int = 0) -> np.ndarray:
    """Makes one update for each pair, in order: the article's training, batch size 1.

    The same as `for i in range(len(X)): model.train_on_batch(X[i : i + 1], y[i : i + 1])`, compiled
    once for each model.

    Args:
        model: A compiled model.
        X, y: Inputs and targets, (n_pairs, time steps, features).
        verbose: 1 shows a progress bar.

    Returns:
        The loss of every update, taken before it: a float array (n_pairs,).

    Raises:
        ValueError: If the model is not compiled, there are no pairs, or X and y differ in number.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"model must be compiled, got {model.name!r} without an optimizer")
    if len(X) != len(y):
        raise ValueError(f"X and y must have the same number of pairs, got {len(X)} and {len(y)}")
    at_least(1, n_pairs=len(X))
    update_on_pairs = compiled_updates(model, model.optimizer)
    bar = keras.utils.Progbar(len(X), verbose=verbose, unit_name="update")
    bar.update(0)
    losses = []
    for start in range(0, len(X), PAIRS_PER_CALL):
        X_part, y_part = X[start : start + PAIRS_PER_CALL], y[start : start + PAIRS_PER_CALL]
        n_pairs = len(X_part)
        rest = [(0, PAIRS_PER_CALL - n_pairs), (0, 0), (0, 0)]  # one shape, so one compilation
        loss = update_on_pairs(np.pad(X_part, rest), np.pad(y_part, rest), tf.constant(n_pairs))
        losses.append(loss[:n_pairs])
        bar.update(start + n_pairs)
    return np.concatenate(losses)


@functools.lru_cache(maxsize=8)
def compiled_updates(model: keras.Model, optimizer: keras.Optimizer) -> Callable:
    """Returns the loop over the pairs as one compiled function of (X, y, n_pairs)."""
    has_xla = tf.test.is_built_with_xla()
    if not has_xla:  # some Windows builds
        print("This TensorFlow was built without XLA: training takes longer", file=sys.stderr)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=has_xla)
    def update_on_pairs(X, y, n_pairs):
        losses = tf.TensorArray(tf.float32, PAIRS_PER_CALL)
        i = 0
        while i < n_pairs:  # for i in tf.range(n_pairs) would be compiled anew for each n_pairs
            X_i, y_i = X[i][None], y[i][None]  # (1, time steps, features)
            with tf.GradientTape() as tape:
                loss = model.compute_loss(X_i, y_i, model(X_i, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            losses = losses.write(i, loss)
            i += 1
        return losses.stack()  # (PAIRS_PER_CALL,)

    return update_on_pairs


def evaluate(
    model: keras.Model,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_eval: int = 100,
    rng: np.random.Generator | None = None,
) -> float:
    """Returns the exact-match accuracy on `n_eval` new pairs, in %: all steps right, or wrong.

    Raises ValueError as `get_pairs` does.
    """
    X, y = get_pairs(n_eval, n_timesteps_in, n_timesteps_out, n_features, rng)
    expected, predicted = one_hot_decode(y), one_hot_decode(model.predict_on_batch(X))
    return 100 * sum(e == p for e, p in zip(expected, predicted, strict=True)) / n_eval


def show_examples(
    model: keras.Model,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_examples: int = 10,
    rng: np.random.Generator | None = None,
) -> None:
    """Prints what the model makes of `n_examples` new pairs, one a line."""
    X, y = get_pairs(n_examples, n_timesteps_in, n_timesteps_out, n_features, rng)
    expected, predicted = one_hot_decode(y), one_hot_decode(model.predict_on_batch(X))
    for e, p in zip(expected, predicted, strict=True):
        print(f"Expected: {e} Predicted {p}")


def run_example(
    model_function: Callable, args: argparse.Namespace
) -> tuple[keras.Model, np.random.Generator]:
    """Makes, trains and evaluates one model as the article does; returns it and the generator."""
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    problem = (args.n_timesteps_in, args.n_timesteps_out, args.n_features)
    model = model_function(args.n_timesteps_in, args.n_features, args.n_units)
    train(model, *get_pairs(args.n_updates, *problem, rng), verbose=int(sys.stdout.isatty()))
    print(f"Accuracy: {evaluate(model, *problem, args.n_eval, rng):.2f}%")
    show_examples(model, *problem, rng=rng)
    return model, rng


# The flags of one training; the comparison has more.
EXAMPLE_FLAGS = (
    "n_timesteps_in", "n_timesteps_out", "n_features", "n_units", "n_updates", "n_eval", "seed",
)  # fmt: skip


def main() -> None:
    run_example(baseline_model, parse_arguments(argument_parser(__doc__, *EXAMPLE_FLAGS)))


if __name__ == "__main__":
    main()
