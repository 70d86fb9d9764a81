"""Encoder-Decoder Without Attention: the article's section 3 (编码器 - 解码器没有注意).

Trains an encoder-decoder of two LSTMs on 5,000 pairs, one after the other, prints how many of 100
new sequences it then gets right from end to end, in %, and shows ten more. It takes ten seconds.

Run it with `python baseline.py`. The training and the evaluation that all scripts share are here.
"""

import argparse
import faulthandler
import os
import threading

import numpy as np

from data_prep import FLAGS as PROBLEM_FLAGS, at_least, get_pairs, one_hot_decode, parse_arguments

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
stderr = os.dup(2)  # TensorFlow 2.21 writes six lines when it is imported, whatever its settings:
faulthandler.enable(stderr)  # they are not shown, but where it crashes is
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
finally:
    os.dup2(stderr, 2)

UNROLL_UP_TO = 10  # time steps: training is up to 3 times faster, but takes longer to compile


def baseline_model(n_timesteps_in, n_features, n_units=150):
    """Returns the article's compiled model without attention.

    It reads and writes one-hot sequences (batch, n_timesteps_in, n_features). The encoder passes
    nothing on but its last state, `n_units` numbers, which the decoder sees at every step.
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


def train(model, X, y):
    """Makes one update for each pair, in order: the article's training, batch size 1.

    X and y are (n_pairs, time steps, features), float32. Returns the losses before the updates,
    (n_pairs,). Adam starts anew in each call, with moments of zero, which are not kept. Only what
    is trainable changes: dropout would drop the same at every update. Threads may call this at the
    same time, each for its own model. Raises ValueError if X and y differ in number, or if the
    model's optimizer is not a plain `keras.optimizers.Adam`.
    """
    if len(X) != len(y):
        raise ValueError(f"X and y must have the same number of pairs, got {len(X)} and {len(y)}")
    architecture = model.to_json()
    with LOCK:
        if architecture not in COMPILED:
            COMPILED[architecture] = compile_updates(model)
    weights = [tf.convert_to_tensor(variable) for variable in model.trainable_variables]
    zeros = [tf.zeros_like(weight) for weight in weights]
    state = [weights, zeros, zeros, tf.constant(0.0)]
    losses = []
    for start in range(0, len(X), PAIRS_PER_CALL):
        n_pairs = min(PAIRS_PER_CALL, len(X) - start)
        # One shape for all: behind the last pair, it is repeated, but not trained on.
        rows = np.minimum(start + np.arange(PAIRS_PER_CALL), len(X) - 1)
        state, loss = COMPILED[architecture](state, X[rows], y[rows], tf.constant(n_pairs))
        losses.append(loss[:n_pairs])
    for variable, weight in zip(model.trainable_variables, state[0]):
        variable.assign(weight)
    return np.concatenate(losses)


def evaluate(model, n_timesteps_in, n_timesteps_out, n_features, n_eval=100, rng=None):
    """Returns the exact-match accuracy on `n_eval` new pairs, in %: all steps right, or wrong."""
    X, y = get_pairs(n_eval, n_timesteps_in, n_timesteps_out, n_features, rng)
    pairs = zip(one_hot_decode(y), one_hot_decode(model(X)))
    return 100 * sum(expected == predicted for expected, predicted in pairs) / n_eval


def spot_check(model, X, y):
    """Prints what the model makes of each pair beside what is right, one a line."""
    for expected, predicted in zip(one_hot_decode(y), one_hot_decode(model(X))):
        print(f"Expected: {expected} Predicted {predicted}")


# From here on: the updates, compiled once for all models of one architecture.
PAIRS_PER_CALL = 1000
COMPILED = {}  # {model.to_json(): what compile_updates made of the first such model}
LOCK = threading.Lock()  # one thread at a time makes models or compiles


def compile_updates(model):
    """Returns updates without state: weights, moments and their number go in and come out."""
    rate, beta_1, beta_2, epsilon = settings_of_adam(getattr(model, "optimizer", None))
    loss_function = keras.losses.get(model.loss)
    constants = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]

    @tf.function(jit_compile=True)
    def update_on_pairs(state, X, y, n_pairs):
        w, m, v, t = state
        losses = tf.TensorArray(tf.float32, PAIRS_PER_CALL)
        i = 0
        while i < n_pairs:
            X_i, y_i = X[i][None], y[i][None]  # (1, time steps, features)
            with tf.GradientTape() as tape:
                tape.watch(w)
                outputs, _ = model.stateless_call(w, constants, X_i, training=True)
                loss = tf.reduce_mean(loss_function(y_i, outputs))
            g = tape.gradient(loss, w)
            # Adam (arXiv:1412.6980, end of section 2)
            t += 1
            m = [beta_1 * m_k + (1 - beta_1) * g_k for m_k, g_k in zip(m, g)]
            v = [beta_2 * v_k + (1 - beta_2) * g_k**2 for v_k, g_k in zip(v, g)]
            alpha = rate * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
            w = [w_k - alpha * m_k / (tf.sqrt(v_k) + epsilon) for w_k, m_k, v_k in zip(w, m, v)]
            losses = losses.write(i, loss)
            i += 1
        return [w, m, v, t], losses.stack()  # (PAIRS_PER_CALL,)

    w = [tf.TensorSpec(variable.shape) for variable in model.trainable_variables]
    X, y = (tf.TensorSpec((PAIRS_PER_CALL, *t.shape[1:])) for t in (*model.inputs, *model.outputs))
    state = [w, w, w, tf.TensorSpec(())]
    return update_on_pairs.get_concrete_function(state, X, y, tf.TensorSpec((), tf.int32))


def settings_of_adam(adam):
    """Returns learning rate, betas and epsilon of a plain Adam; others raise a ValueError."""
    if type(adam) is keras.optimizers.Adam:
        settings = float(adam.learning_rate), adam.beta_1, adam.beta_2, adam.epsilon
        if adam.get_config() == keras.optimizers.Adam(*settings, name=adam.name).get_config():
            return settings
    raise ValueError(f"model must be compiled with a plain Adam, got {adam}")


FLAGS = argparse.ArgumentParser(add_help=False, parents=[PROBLEM_FLAGS])
FLAGS.add_argument("--n-units", type=at_least(1), default=150, help="units of each recurrent layer")
FLAGS.add_argument("--n-updates", type=at_least(1), default=5000, help="each on one new pair")
FLAGS.add_argument("--n-eval", type=at_least(1), default=100, help="new pairs for the accuracy")


def main():
    # Configure the problem.
    args = parse_arguments(__doc__, FLAGS)
    problem = args.n_timesteps_in, args.n_timesteps_out, args.n_features
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    # Define the model, train it on one new pair after the other, evaluate it on other pairs.
    model = baseline_model(args.n_timesteps_in, args.n_features, args.n_units)
    train(model, *get_pairs(args.n_updates, *problem, rng))
    accuracy = evaluate(model, *problem, args.n_eval, rng)
    print(f"Accuracy: {accuracy:.2f}%")

    # Spot-check ten more.
    spot_check(model, *get_pairs(10, *problem, rng))


if __name__ == "__main__":
    main()
