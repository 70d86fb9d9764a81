"""Encoder-Decoder Without Attention: the article's section 3 (编码器 - 解码器没有注意).

Trains an encoder-decoder of two LSTMs on 5,000 pairs, one after the other, prints how many of 100
new sequences it then gets right from end to end, in %, and shows ten more. It takes less than a
minute.

Run it with `python baseline.py`. The training and the evaluation that all scripts share are here.
"""

import argparse
import os
import sys
from operator import index

import numpy as np

from data_prep import get_pairs, get_pairs_in_parts, one_hot_decode

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings, but not what it is doing
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN saves no time, but is announced
import keras
import tensorflow as tf
from keras import layers

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "these scripts need Keras on TensorFlow, but it already runs on "
        f"{keras.backend.backend()}: set KERAS_BACKEND=tensorflow before it is imported"
    )

UNROLL_UP_TO = 10  # time steps: training is up to 3 times faster, but takes longer to compile
UPDATES_PER_CALL = 1000  # of the compiled function: a progress bar moves in between

IMPORTED = {}  # {the path of a script: what it held when it was imported}, for compare.py


def baseline_model(n_timesteps_in, n_features, n_units=150):
    """Returns the article's compiled model without attention.

    It reads one-hot sequences (batch, n_timesteps_in, n_features) and writes probabilities of that
    shape. The encoder passes nothing on but its last output, `n_units` numbers, which the decoder
    sees at every step.
    """
    # Python's integers also of NumPy's, which Keras refuses.
    n_timesteps_in, n_features, n_units = map(index, (n_timesteps_in, n_features, n_units))
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential()
    model.add(keras.Input((n_timesteps_in, n_features)))
    model.add(layers.LSTM(n_units, unroll=unroll))  # (batch, n_units)
    model.add(layers.RepeatVector(n_timesteps_in))  # (batch, time steps, n_units)
    model.add(layers.LSTM(n_units, return_sequences=True, unroll=unroll))
    model.add(layers.TimeDistributed(layers.Dense(n_features, activation="softmax")))
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def train(model, X, y, verbose=0, jit_compile=True, updates=None):
    """Makes one update for each pair, in order: the article's training, batch size 1.

    It does what these two lines do, in a compiled loop:

        for X_i, y_i in zip(X, y):
            model.train_on_batch(X_i[None], y_i[None])

    Args:
        model: A compiled model of one input and one output.
        X, y: Pairs, arrays or lists (n_pairs, ...), as the model takes them.
        verbose: 1 shows a progress bar with the mean loss of the last thousand updates, where the
            output is a terminal or a notebook. Default: 0.
        jit_compile: Whether XLA compiles the loop, as by default. False also runs what XLA cannot
            compile, for which TensorFlow raises an error that names the operation.
        updates: What `compile_updates(model)` returned. By default, every call compiles anew, which
            takes some seconds: to train one model often, make it once, and give it to every call.

    Returns the losses before the updates, (n_pairs,). Raises ValueError if there are no pairs, or
    not as many in X as in y.
    """
    X, y = np.asarray(X), np.asarray(y)
    if X.shape[:1] != y.shape[:1] or X.shape[:1] in ((), (0,)):
        raise ValueError(
            "X and y must be equally many pairs, at least one, "
            f"got the shapes {X.shape} and {y.shape}"
        )
    bar = progress_bar(len(X), "update", ["loss"], verbose)
    if bar.verbose and updates is None:
        print("Compiling takes some seconds.")
    bar.update(0)
    losses = []
    if updates is None:
        # Not compiled: with this one, Keras makes what the model lacks, or says what does not fit.
        losses.append(float(update(model, X[:1], y[:1])))
        updates = compile_updates(model, jit_compile)
    for start in range(len(losses), len(X), UPDATES_PER_CALL):
        n_pairs = min(UPDATES_PER_CALL, len(X) - start)
        # Always of one shape, or it would be compiled again: the last pair stands in for more.
        rows = np.arange(start, start + UPDATES_PER_CALL)
        pairs = (array.take(rows, axis=0, mode="clip") for array in (X, y))
        losses.extend(updates(*map(tf.constant, pairs), tf.constant(n_pairs))[:n_pairs].numpy())
        bar.update(len(losses), [("loss", np.mean(losses[-1000:]))])
    return np.array(losses, dtype="float32")


def update(model, X, y):
    """Makes one update, as `model.fit` does with a batch X, y; returns the loss before it."""
    model.reset_metrics()  # the loss is one of them: a mean since then
    return model.train_step((X, y))["loss"]


def compile_updates(model, jit_compile=True):
    """Returns a compiled function of X, y and n_pairs: an update for each of the first n_pairs.

    X and y are UPDATES_PER_CALL pairs; it returns as many losses, of which n_pairs count. It
    belongs to this model, as it is when the function is first called, which takes some seconds.
    """

    @tf.function(jit_compile=jit_compile)
    def updates(X, y, n_pairs):
        losses = tf.TensorArray("float32", UPDATES_PER_CALL)
        i = 0
        while i < n_pairs:
            loss = update(model, X[i][None], y[i][None])  # a pair (1, ...)
            losses = losses.write(i, tf.cast(loss, "float32"))
            i += 1
        return losses.stack()

    return updates


def in_notebook():
    """Returns whether a notebook or a Python prompt runs this."""
    return hasattr(sys, "ps1")  # what a prompt shows


def progress_bar(target, unit_name, metrics, verbose=1):
    """Returns Keras' bar, which shows where the output is a terminal or a notebook, or nowhere."""
    # Others put objects of their own there, which can write but no more, or None.
    in_terminal = hasattr(sys.stdout, "isatty") and sys.stdout.isatty()
    shown = verbose and hasattr(sys.stdout, "flush") and (in_terminal or in_notebook())
    return keras.utils.Progbar(
        target, verbose=int(bool(shown)), stateful_metrics=metrics, unit_name=unit_name
    )


def evaluate(model, n_timesteps_in, n_timesteps_out, n_features, n_eval=100, rng=None):
    """Returns the exact-match accuracy on `n_eval` new pairs, in %: all steps right, or wrong."""
    n_right = 0
    for X, y in get_pairs_in_parts(n_eval, n_timesteps_in, n_timesteps_out, n_features, rng):
        n_right += sum(expected == predicted for expected, predicted in answers(model, X, y))
    return 100 * n_right / n_eval


def spot_check(model, X, y):
    """Prints what the model makes of each pair beside what is right, one a line."""
    for expected, predicted in answers(model, X, y):
        print(f"Expected: {expected} Predicted {predicted}")


def answers(model, X, y):
    """Returns [(what is right, what the model makes of it)], lists of integers, for each pair."""
    predicted = model(X)
    if np.ndim(y) < len(predicted.shape):  # ids, which are integers already
        expected = np.asarray(y).tolist()
    else:
        expected = one_hot_decode(y)
    return list(zip(expected, one_hot_decode(predicted)))


def main():
    # Configure the problem.
    n_features = 50
    n_timesteps_in = 5
    n_timesteps_out = 2
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)

    # Define the model.
    model = baseline_model(n_timesteps_in, n_features)

    # Train it, on one new pair after the other.
    X, y = get_pairs(5000, n_timesteps_in, n_timesteps_out, n_features, rng)
    train(model, X, y, verbose=1)

    # Evaluate it on 100 others.
    accuracy = evaluate(model, n_timesteps_in, n_timesteps_out, n_features, 100, rng)
    print(f"Accuracy: {accuracy:.2f}%")

    # Spot-check ten more.
    X, y = get_pairs(10, n_timesteps_in, n_timesteps_out, n_features, rng)
    spot_check(model, X, y)


if __name__ == "__main__":
    # It takes no arguments. Its help leaves out the title, as not all code pages have Chinese.
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2]).parse_args()
    main()
