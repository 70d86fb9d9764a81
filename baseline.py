"""Encoder-Decoder Without Attention: the article's section 3 (编码器 - 解码器没有注意).

Trains an encoder-decoder of two LSTMs on 5,000 pairs, one after the other, prints how many of 100
new sequences it then gets right from end to end, in %, and shows ten more. It takes less than a
minute.

Run it with `python baseline.py`. The training and the evaluation that all scripts share are here.
"""

import argparse
import json
import os
import sys
import threading

import numpy as np

from data_prep import get_pairs, one_hot_decode

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings, but not what it is doing
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN saves no time, but is announced
import keras
import tensorflow as tf

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "these scripts need Keras on TensorFlow, but it already runs on "
        f"{keras.backend.backend()}: set KERAS_BACKEND=tensorflow before it is imported"
    )

UNROLL_UP_TO = 10  # time steps: training is up to 3 times faster, but takes longer to compile


def baseline_model(n_timesteps_in, n_features, n_units=150):
    """Returns the article's compiled model without attention.

    It reads one-hot sequences (batch, n_timesteps_in, n_features) and writes probabilities of that
    shape. The encoder passes nothing on but its last output, `n_units` numbers, which the decoder
    sees at every step.
    """
    unroll = n_timesteps_in <= UNROLL_UP_TO
    dense = keras.layers.Dense(n_features, activation="softmax", name="dense")
    layers = [
        keras.Input((n_timesteps_in, n_features), name="pairs"),
        keras.layers.LSTM(n_units, unroll=unroll, name="encoder"),  # (batch, n_units)
        keras.layers.RepeatVector(n_timesteps_in, name="repeat"),  # (batch, time steps, n_units)
        keras.layers.LSTM(n_units, return_sequences=True, unroll=unroll, name="decoder"),
        keras.layers.TimeDistributed(dense, name="output"),  # (batch, time steps, n_features)
    ]
    model = keras.Sequential(layers, name="baseline")
    adam = keras.optimizers.Adam(name="adam")
    model.compile(loss="categorical_crossentropy", optimizer=adam, metrics=["acc"])
    return model


def describe(model):
    """Returns what the model's updates depend on, or None where that is not certain to be all."""
    adam, weights = getattr(model, "optimizer", None), model.trainable_variables
    if type(adam) is not keras.optimizers.Adam or model.run_eagerly:
        return None
    plain = keras.optimizers.Adam(*settings_of(adam), name=adam.name)
    if adam.get_config() != plain.get_config() or {w.dtype for w in weights} != {"float32"}:
        return None
    if type(model).__module__.split(".")[0] != "keras":  # it may train in a way of its own
        return None
    # Of a class or function that is not Keras' own, the JSON has the name alone, which several may
    # have. Those that are registered can be told apart.
    registered = []

    def find_registered(part):
        is_code = "module" in part or part.get("class_name") == "__lambda__"
        if is_code and (part.get("module") or "").split(".")[0] != "keras":
            registered.append(keras.saving.get_registered_object(part.get("registered_name")))

    try:
        architecture = model.to_json()
    except NotImplementedError:  # a layer that cannot be saved
        return None
    json.loads(architecture, object_hook=find_registered)
    if None in registered:
        return None
    return architecture, *registered, *(weight.path for weight in weights)


def settings_of(adam):
    return float(adam.learning_rate), adam.beta_1, adam.beta_2, adam.epsilon


def variables_of(model):
    """Returns what an update by Adam changes, as lists of variables.

    They are the weights, all others (statistics, seeds, frozen weights), the first and the second
    moments of the weights, and the number of updates. None if the optimizer has no such moments.
    """
    adam, weights = model.optimizer, model.trainable_variables
    adam.build(weights)
    known = {variable.path: variable for variable in adam.variables}
    paths = [f"{adam.name}/{weight.path.replace('/', '_')}" for weight in weights]
    if not all(f"{path}_momentum" in known for path in paths):  # it was built for other weights
        return None
    m, v = ([known[f"{path}_{moment}"] for path in paths] for moment in ("momentum", "velocity"))
    return [weights, model.non_trainable_variables, m, v, [adam.iterations]]


def values_of(variables):
    return tf.nest.map_structure(tf.convert_to_tensor, variables)


# What is compiled belongs to an architecture: once for all models with the same JSON. That is why
# layers and optimizers have names; Keras would number them.
COMPILED = {}
PAIRS_PER_CALL = 1000
LOCK = threading.Lock()  # one thread at a time makes a model or traces one: both may draw numbers


def compile_updates(model, X, y):
    """Compiles the updates of `train`, for pairs like those of X and y, unless that is done.

    Returns a function without state: the values of `variables_of(model)`, PAIRS_PER_CALL pairs and
    how many of these to train on go in; new values and the losses (PAIRS_PER_CALL,) come out. It
    returns None where only Keras' own loop is sure to do what Keras does.
    """
    architecture = describe(model)
    variables = variables_of(model) if architecture else None
    if variables is None:
        return None
    weights, others, *_ = variables
    rate, beta_1, beta_2, epsilon = settings_of(model.optimizer)

    def update(values, X_i, y_i):
        w, o, m, v, (n,) = values
        with tf.GradientTape() as tape:
            tape.watch(w)
            known = list(zip(weights + others, w + o))
            with keras.StatelessScope(known, collect_losses=True) as scope:
                loss = model.compute_loss(X_i, y_i, model(X_i, training=True))
        g = tape.gradient(loss, w)
        if any(g_k is None for g_k in g):
            raise NotImplementedError("Keras warns of weights that the loss does not depend on")
        if any(scope.get_current_value(weight) is not w_k for weight, w_k in zip(weights, w)):
            raise NotImplementedError("a layer changes a weight itself, beside the optimizer")
        if len(scope.state_mapping) > len(known):
            raise NotImplementedError("a layer has a state that the model does not know of")
        o = [scope.get_current_value(variable) for variable in others]
        # Adam (arXiv:1412.6980, end of section 2)
        n += 1
        t = tf.cast(n, "float32")
        m = [beta_1 * m_k + (1 - beta_1) * g_k for m_k, g_k in zip(m, g)]
        v = [beta_2 * v_k + (1 - beta_2) * g_k**2 for v_k, g_k in zip(v, g)]
        alpha = rate * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w = [w_k - alpha * m_k / (tf.sqrt(v_k) + epsilon) for w_k, m_k, v_k in zip(w, m, v)]
        w = [
            weight.constraint(w_k) if weight.constraint else w_k for weight, w_k in zip(weights, w)
        ]
        return [w, o, m, v, [n]], tf.cast(loss, "float32")

    @tf.function(jit_compile=True)
    def updates(values, X, y, n_pairs):
        losses = tf.TensorArray("float32", PAIRS_PER_CALL)
        i = 0
        while i < n_pairs:
            values, loss = update(values, X[i][None], y[i][None])  # a pair (1, ...)
            losses = losses.write(i, loss)
            i += 1
        return values, losses.stack()

    no_pairs = [tf.zeros((PAIRS_PER_CALL, *array.shape[1:]), array.dtype) for array in (X, y)]
    arguments = values_of(variables), *no_pairs, tf.constant(0)
    key = *architecture, X.shape[1:], X.dtype, y.shape[1:], y.dtype
    try:
        with LOCK:
            if key not in COMPILED:
                COMPILED[key] = updates.get_concrete_function(*arguments)
        if COMPILED[key]:
            COMPILED[key](*arguments)  # the first time, it is compiled, beside those of other keys
    except (NotImplementedError, tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        COMPILED[key] = None  # the last two errors: XLA cannot
    return COMPILED[key]


def train(model, X, y, verbose=0):
    """Makes one update for each pair, in order: the article's training, batch size 1.

    It does what these two lines do, for any model of one input and one output:

        for X_i, y_i in zip(X, y):
            model.train_on_batch(X_i[None], y_i[None])

    This is compiled, and many times as fast, with a plain `keras.optimizers.Adam`, float32 weights,
    and a model, layers, loss and metrics that are Keras' own or registered with it. Whatever else
    there is, or cannot be compiled, is trained by the two lines.

    Args:
        model: A compiled model. Threads may train at the same time, each its own.
        X, y: Pairs, arrays or lists (n_pairs, ...) of the shapes that the model reads and writes.
            Integers y may lack the last axis, or have 1 there: ids, for a sparse loss.
        verbose: 1 shows a progress bar with the mean loss of the last thousand updates, where the
            output is a terminal or a notebook. Default: 0.

    Returns the losses before the updates, (n_pairs,). Raises ValueError if there are no pairs, or
    not as many in X as in y, or if they do not have the model's shapes.
    """
    X, y = np.asarray(X), np.asarray(y)
    check_pairs(model, X, y)
    bar = progress_bar(len(X), "update", ["loss"], verbose)
    bar.update(0)
    updates = compile_updates(model, X, y)
    variables = variables_of(model) if updates else []
    values, losses = values_of(variables), []
    try:
        for start in range(0, len(X), PAIRS_PER_CALL if updates else 1):
            if updates:
                n_pairs = min(PAIRS_PER_CALL, len(X) - start)
                # One shape for all: behind the last pair, it is repeated, but not trained on.
                rows = np.minimum(start + np.arange(PAIRS_PER_CALL), len(X) - 1)
                pairs = tf.constant(X[rows]), tf.constant(y[rows])
                values, loss = updates(values, *pairs, tf.constant(n_pairs))
                losses.extend(loss[:n_pairs].numpy())
            else:
                model.reset_metrics()  # else the loss is a mean in Keras 3.10
                pair = X[start][None], y[start][None]
                losses.append(model.train_on_batch(*pair, return_dict=True)["loss"])
            bar.update(len(losses), [("loss", np.mean(losses[-1000:]))])
    finally:  # also after Ctrl-C: what was learned until then
        tf.nest.map_structure(lambda variable, value: variable.assign(value), variables, values)
    return np.array(losses, dtype="float32")


def progress_bar(target, unit_name, metrics, verbose=1):
    """Returns Keras' bar, which shows where the output is a terminal or a notebook, or nowhere."""
    verbose = int(bool(verbose) and (sys.stdout.isatty() or hasattr(sys, "ps1")))
    return keras.utils.Progbar(
        target, verbose=verbose, stateful_metrics=metrics, unit_name=unit_name
    )


def check_pairs(model, X, y):
    """Builds the model, and raises a ValueError if it cannot be trained on X and y."""
    if X.shape[:1] != y.shape[:1] or X.size == 0:
        raise ValueError(
            "X and y must be equally many pairs, at least one, "
            f"got the shapes {X.shape} and {y.shape}"
        )
    if not model.built:
        with LOCK:
            model(X[:1])
    if not hasattr(model, "inputs"):  # a subclass of keras.Model: Keras tells what does not fit
        return
    shapes = [tensor.shape[1:] for tensor in (*model.inputs, *model.outputs)]
    if len(shapes) != 2:
        raise ValueError(f"model must have one input and one output, got the shapes {shapes}")
    shape_in, shape_out = shapes
    ids = [shape_out[:-1], (*shape_out[:-1], 1)] if y.dtype.kind in "iu" else []
    if not (fits(X, shape_in) and any(fits(y, shape) for shape in (shape_out, *ids))):
        raise ValueError(
            f"X and y must have the model's shapes, {shape_in} and {shape_out}, or integers y "
            f"without its last axis, for each pair, got {X.shape[1:]} and {y.shape[1:]} ({y.dtype})"
        )


def fits(array, shape):
    """Whether the pairs' arrays have this shape, in which None is any number."""
    return array.ndim == 1 + len(shape) and all(
        b in (None, a) for a, b in zip(array.shape[1:], shape)
    )


def evaluate(model, n_timesteps_in, n_timesteps_out, n_features, n_eval=100, rng=None):
    """Returns the exact-match accuracy on `n_eval` new pairs, in %: all steps right, or wrong."""
    X, y = get_pairs(n_eval, n_timesteps_in, n_timesteps_out, n_features, rng)
    pairs = zip(one_hot_decode(y), one_hot_decode(model(X)))
    return 100 * sum(expected == predicted for expected, predicted in pairs) / n_eval


def spot_check(model, X, y):
    """Prints what the model makes of each pair beside what is right, one a line."""
    for expected, predicted in zip(one_hot_decode(y), one_hot_decode(model(X))):
        print(f"Expected: {expected} Predicted {predicted}")


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
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes no arguments
    main()
