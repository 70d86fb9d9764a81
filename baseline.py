"""Encoder-Decoder Without Attention: the article's section 3 (编码器 - 解码器没有注意).

Trains an encoder-decoder of two LSTMs on 5,000 pairs, one after the other,
prints how many of 100 new sequences it then gets right from end to end, in %,
and shows ten more. It takes about ten seconds and writes no files.

Run it with `python baseline.py`. The training and the prediction that all
scripts share live here.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script at once

import inspect
import json
import os
import sys
import threading
from collections.abc import Callable

import numpy as np

from data_prep import Rng, check, get_pairs, one_hot_decode, parse_arguments, without_log_lines

os.environ["KERAS_BACKEND"] = "tensorflow"
with without_log_lines():
    import keras
    import tensorflow as tf
    from keras import layers

# Unrolled, recurrent layers train up to 3 times faster, but the time to compile grows with length.
UNROLL_UP_TO = 10
# Pairs that one call of the compiled training takes: 5,000 make 10 steps of the progress bar.
PAIRS_PER_CALL = 500


def baseline_model(n_timesteps_in: int, n_features: int, n_units: int = 150) -> keras.Model:
    """Returns the article's compiled model without attention.

    It reads and writes one-hot sequences (batch, n_timesteps_in, n_features). The encoder passes
    nothing on but its last state, `n_units` numbers, which the decoder sees at every step.
    Raises ValueError if a number is below 1 or `n_features` below 2.
    """
    check(n_timesteps_in=n_timesteps_in, n_features=n_features, n_units=n_units)
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential(
        [
            keras.Input((n_timesteps_in, n_features), name="pairs"),
            layers.LSTM(n_units, unroll=unroll, name="encoder"),  # (batch, n_units)
            layers.RepeatVector(n_timesteps_in, name="repeat"),  # (batch, n_timesteps_in, n_units)
            layers.LSTM(n_units, return_sequences=True, unroll=unroll, name="decoder"),
            layers.TimeDistributed(
                layers.Dense(n_features, activation="softmax", name="dense"), name="output"
            ),
        ],
        name="baseline",
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def train(model: keras.Model, X: np.ndarray, y: np.ndarray, verbose: int = 0) -> np.ndarray:
    """Makes one update for each pair, in order: the article's training, batch size 1.

    The same as `for i in range(len(X)): model.train_on_batch(X[i : i + 1], y[i : i + 1])`, compiled
    once for all models of the same layers (names included), loss and optimizer settings. Any number
    of threads may train at a time, each its own model.

    Args:
        model: A model compiled with a loss and a plain Adam, with float32 layers.
        X, y: Inputs and targets, (n_pairs, time steps, features).
        verbose: 1 shows a progress bar.

    Returns:
        The loss of every update, taken before it: a float array (n_pairs,).

    Raises:
        ValueError: If the model is not compiled so, if there are no pairs, or if X and y differ in
            number.
    """
    check(n_pairs=len(X))
    if len(X) != len(y):
        raise ValueError(f"X and y must have the same number of pairs, got {len(X)} and {len(y)}")
    check_compiled(model)
    adam = model.optimizer
    update_on_pairs, _ = compiled_functions(model)
    moments = (list(adam._momentums), list(adam._velocities))
    variables = [*model_variables(model), *moments, adam.iterations]
    state = keras.tree.map_structure(tf.convert_to_tensor, variables)
    learning_rate = tf.convert_to_tensor(adam.learning_rate)
    losses = []
    bar = keras.utils.Progbar(len(X), verbose=verbose, unit_name="update")
    for start in range(0, len(X), PAIRS_PER_CALL):
        bar.update(start)
        X_part, y_part = X[start : start + PAIRS_PER_CALL], y[start : start + PAIRS_PER_CALL]
        n_pairs = len(X_part)
        # Always arrays of one shape, so that one compilation serves them all.
        X_part, y_part = (np.resize(a, (PAIRS_PER_CALL, *a.shape[1:])) for a in (X_part, y_part))
        state, loss = update_on_pairs(state, learning_rate, X_part, y_part, tf.constant(n_pairs))
        losses.append(loss[:n_pairs])
    for variable, value in zip(keras.tree.flatten(variables), keras.tree.flatten(state)):
        variable.assign(value)
    bar.update(len(X))
    return np.concatenate(losses)


def predict(model: keras.Model, X: np.ndarray) -> np.ndarray:
    """Returns the model's outputs for X, as `model.predict_on_batch(X)`; compiled as in `train`."""
    _, outputs_of = compiled_functions(model)
    values = keras.tree.map_structure(tf.convert_to_tensor, model_variables(model))
    return outputs_of(values, X).numpy()


def evaluate(
    model: keras.Model,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_eval: int = 100,
    rng: Rng = None,
) -> float:
    """Returns the exact-match accuracy on `n_eval` new pairs, in %: all steps right, or wrong.

    Raises ValueError as `get_pairs` does.
    """
    X, y = get_pairs(n_eval, n_timesteps_in, n_timesteps_out, n_features, rng)
    pairs = zip(one_hot_decode(y), one_hot_decode(predict(model, X)))
    return 100 * sum(expected == predicted for expected, predicted in pairs) / n_eval


def spot_check(model: keras.Model, X: np.ndarray, y: np.ndarray) -> None:
    """Prints what the model makes of each pair beside what is right, one a line."""
    for expected, predicted in zip(one_hot_decode(y), one_hot_decode(predict(model, X))):
        print(f"Expected: {expected} Predicted {predicted}")


# From here on: what is compiled, once for all models of one architecture.

COMPILED = {}  # for the last few architectures, one of its models and what is compiled from it
COMPILING = threading.Lock()


def compiled_functions(model: keras.Model) -> tuple[Callable, Callable]:
    """Returns the training and the prediction for the model's layers and settings of now."""
    key = architecture(model)
    with COMPILING:
        # The model may have been given other settings since: then it no longer stands for these.
        if key not in COMPILED or architecture(COMPILED[key][0]) != key:
            COMPILED.pop(key, None)
            if len(COMPILED) == 8:
                del COMPILED[next(iter(COMPILED))]
            COMPILED[key] = model, compile_functions(model)
        return COMPILED[key][1]


def architecture(model: keras.Model) -> tuple:
    """Returns what a compiled function depends on, the same for models of the same settings."""
    settings = keras.saving.serialize_keras_object(model)
    if settings.get("compile_config"):  # the name counts up, the learning rate is no constant
        optimizer = model.optimizer.get_config() | {"name": None, "learning_rate": None}
        settings["compile_config"]["optimizer"] = optimizer
    # They name classes and functions, but these may have been written anew under the same name.
    parts = [model, *keras.tree.flatten(getattr(model, "loss", None))]
    for layer in model._flatten_layers(include_self=False):
        own = [value for name, value in vars(layer).items() if not hasattr(type(layer), name)]
        parts += [layer, *own]  # activations, regularizers, ...
    named = [part if inspect.isfunction(part) else type(part) for part in parts if callable(part)]
    return json.dumps(settings), *named


def compile_functions(model: keras.Model) -> tuple[Callable, Callable]:
    """Returns the training and the prediction of all models like this one.

    They are compiled at their first call and have no state: weights, Adam's moments and the number
    of updates go in and come out.
    """

    def with_values(weights, others):
        """While this holds, the model's variables have the values given."""
        variables = model.trainable_variables + model.non_trainable_variables
        return keras.StatelessScope(zip(variables, weights + others), collect_losses=True)

    @tf.function(jit_compile=tf.test.is_built_with_xla())
    def update_on_pairs(state, learning_rate, X, y, n_pairs):
        weights, others, m, v, t = state
        losses = tf.TensorArray(tf.float32, PAIRS_PER_CALL)
        i = 0
        while i < n_pairs:  # for i in tf.range(n_pairs) would be compiled anew for each n_pairs
            X_i, y_i = X[i][None], y[i][None]  # (1, time steps, features)
            with tf.GradientTape() as tape, with_values(weights, others) as scope:
                tape.watch(weights)
                loss = model.compute_loss(X_i, y_i, model(X_i, training=True))
            gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
            others = [scope.get_current_value(other) for other in model.non_trainable_variables]
            t += 1
            weights, m, v = adam_update(model, weights, gradients, m, v, t, learning_rate)
            losses = losses.write(i, loss)
            i += 1
        return [weights, others, m, v, t], losses.stack()  # (PAIRS_PER_CALL,)

    @tf.function
    def outputs_of(variables, X):
        with with_values(*variables):
            return model(X, training=False)

    return update_on_pairs, outputs_of


def adam_update(model, weights, gradients, m, v, t, learning_rate):
    """Update t of Adam (arXiv:1412.6980, end of section 2), as `keras.optimizers.Adam` makes it."""
    adam = model.optimizer
    t = tf.cast(t, tf.float32)
    alpha = learning_rate * tf.sqrt(1 - adam.beta_2**t) / (1 - adam.beta_1**t)
    m = [m_k + (g_k - m_k) * (1 - adam.beta_1) for m_k, g_k in zip(m, gradients)]
    v = [v_k + (g_k * g_k - v_k) * (1 - adam.beta_2) for v_k, g_k in zip(v, gradients)]
    weights = [
        w_k - m_k * alpha / (tf.sqrt(v_k) + adam.epsilon) for w_k, m_k, v_k in zip(weights, m, v)
    ]
    constraints = [variable.constraint for variable in model.trainable_variables]
    return [w if c is None else c(w) for w, c in zip(weights, constraints)], m, v


def model_variables(model: keras.Model) -> list:
    """Returns the weights, and the other variables that the model's layers set, as two lists."""
    return [model.trainable_variables, model.non_trainable_variables]


def check_compiled(model: keras.Model) -> None:
    """Raises ValueError for a model that `train` would not train just as Keras does."""
    adam = getattr(model, "optimizer", None)
    if type(adam) is not keras.optimizers.Adam:
        got = type(adam).__name__ if adam else "no optimizer"
        raise ValueError(f"model must be compiled with Adam, got {model.name!r} with {got}")
    plain = keras.optimizers.Adam(0.0, adam.beta_1, adam.beta_2, adam.epsilon).get_config()
    for name, value in adam.get_config().items():
        if name == "learning_rate" and isinstance(value, float):
            continue
        if name != "name" and value != plain[name]:
            raise ValueError(f"model must be compiled with a plain Adam, got {name}={value}")
    for layer in (model, *model.layers):
        if layer.compute_dtype != "float32":
            raise ValueError(
                f"model must compute in float32, got {layer.name!r} in {layer.compute_dtype}"
            )
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(f"model must have Keras' own train_step, got that of {type(model)}")
    if not model.built:
        raise ValueError(f"model must be built, for example by a keras.Input, got {model.name!r}")
    adam.build(model.trainable_variables)
    if list(map(id, adam._trainable_variables)) != list(map(id, model.trainable_variables)):
        raise ValueError("model must be compiled again: its weights are not its optimizer's")


def main() -> None:
    # Configure the problem.
    args = parse_arguments(
        __doc__,
        n_timesteps_in=5,
        n_timesteps_out=2,
        n_features=50,
        n_units=150,
        n_updates=5000,
        n_eval=100,
        seed=0,
    )
    problem = (args.n_timesteps_in, args.n_timesteps_out, args.n_features)
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    # Define the model, train it on one new pair after the other, evaluate it on other pairs.
    model = baseline_model(args.n_timesteps_in, args.n_features, args.n_units)
    train(model, *get_pairs(args.n_updates, *problem, rng), verbose=int(sys.stdout.isatty()))
    accuracy = evaluate(model, *problem, args.n_eval, rng)
    print(f"Accuracy: {accuracy:.2f}%")

    # Spot-check ten more.
    spot_check(model, *get_pairs(10, *problem, rng))


if __name__ == "__main__":
    main()
