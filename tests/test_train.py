"""`train` is Keras' `train_on_batch` on each pair, whatever a reader changes in a model.

So it is where compare.py trains several models of a kind with what it compiled for the first one.
"""

import functools
from unittest import mock

import numpy as np
import pytest

import baseline
import compare
import data_prep
from attention import attention_model
from attention_decoder import AttentionDecoder
from baseline import baseline_model, compile_updates, train
from data_prep import get_pairs
import keras
import tensorflow as tf
from keras import layers, losses, optimizers
from keras.layers import Dense

X, Y = get_pairs(8, 2, 1, 6, rng=0)


@pytest.fixture(scope="module", autouse=True)
def few_updates_per_call():
    """So that eight take several calls: one, four and three, or four and four."""
    with mock.patch.object(baseline, "UPDATES_PER_CALL", 4):
        with mock.patch.object(compare, "UPDATES_PER_CALL", 4):
            yield


# Models


def compiled(model, optimizer="adam", loss="categorical_crossentropy", **kwargs):
    model.compile(optimizer, loss, jit_compile=False, **kwargs)  # by XLA, Keras' own loop is slow
    return model


def model_of(*changed, **kwargs):
    """A compiled model of the changed layers and a dense one."""
    return compiled(
        keras.Sequential([keras.Input((2, 6)), *changed, Dense(6, "softmax")]), **kwargs
    )


def Decoder(**kwargs):
    return AttentionDecoder(4, 6, unroll=True, **kwargs)


def stateful_model():
    lstm = layers.LSTM(6, stateful=True, return_sequences=True, activation="softmax")
    return compiled(keras.Sequential([keras.Input(batch_shape=(1, 2, 6)), lstm]))


def mixed_precision_model():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return model_of(Decoder())
    finally:
        keras.config.set_dtype_policy("float32")


class OwnStep(keras.Sequential):
    def train_step(self, data):
        x, y = data[:2]  # fit hands two, train_on_batch a third, None
        return super().train_step((2 * x, y))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = Dense(6, "softmax")

    def call(self, x):
        return self.dense(x)


def normalization(data):
    layer = layers.Normalization()
    layer.adapt(data)
    return layer


RULES = {"kernel_regularizer": "l2", "bias_regularizer": "l1"}
RULES["recurrent_constraint"] = keras.constraints.MaxNorm(0.3)
# What a reader changes: {its name: makes the changed model}. To try another change, add a row.
CHANGES = {
    "baseline.py as it is": lambda: baseline_model(2, 6, 5),
    "attention.py as it is": lambda: attention_model(2, 6, 5),
    "regularizers and constraints": lambda: model_of(
        layers.LSTM(5, return_sequences=True, **RULES)
    ),
    "a loop that is not unrolled": lambda: model_of(AttentionDecoder(4, 6)),
    "BatchNormalization": lambda: model_of(layers.BatchNormalization()),
    "a stateful LSTM": stateful_model,
    "mixed precision": mixed_precision_model,
    "a subclassed model": lambda: compiled(Subclassed(), loss="mse", metrics=["acc"]),
    "a train_step of one's own": lambda: compiled(OwnStep([Dense(6)]), loss="mse"),
    "run_eagerly": lambda: model_of(run_eagerly=True),
    "averaged weights": lambda: model_of(
        optimizer=optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3)
    ),
}
TOLERANCES = {"mixed precision": 5e-3}
# What XLA may take otherwise: loops, precisions, rules. The rest trains without it, and faster.
BY_XLA = {
    "regularizers and constraints", "a loop that is not unrolled", "a stateful LSTM",
    "mixed precision", "averaged weights",
}  # fmt: skip


# The two lines that `train` stands for


def by_keras(model, X, y):
    """Trains the model on each pair, without compiling; returns the losses."""
    model.run_eagerly = True
    losses = []
    for X_i, y_i in zip(np.asarray(X), np.asarray(y)):
        model.reset_metrics()
        losses.append(model.train_on_batch(X_i[None], y_i[None], return_dict=True)["loss"])
    model.run_eagerly = False
    return losses


def twins(make_model):
    """Two models with the same weights, random ones, biases too."""
    models = [make_model(), make_model()]
    rng = np.random.default_rng(0)
    for model in models:
        if not model.built:
            model(X[:1])
    for a, b in zip(*(model.weights for model in models), strict=True):
        if a.trainable:
            a.assign(rng.uniform(0.1, 0.6, a.shape))
        b.assign(a)
    return models


def assert_trained_as_by_keras(
    model, twin, X=X, y=Y, tolerance=1e-4, jit_compile=False, updates=None
):
    losses = train(model, X, y, jit_compile=jit_compile, updates=updates)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, by_keras(twin, X, y), rtol=tolerance)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_trained_as_keras_trains_it(change):
    model, twin = twins(CHANGES[change])
    before = model.get_weights()
    tolerance = TOLERANCES.get(change, 1e-4)
    assert_trained_as_by_keras(model, twin, tolerance=tolerance, jit_compile=change in BY_XLA)
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before)) > 5e-3


def test_a_model_is_trained_in_float64():
    keras.config.set_floatx("float64")
    try:
        assert_trained_as_by_keras(*twins(model_of), jit_compile=True)
    finally:
        keras.config.set_floatx("float32")


def test_dropout_drops_something_else_at_every_update():
    model = model_of(Dense(9), layers.Dropout(0.5), optimizer=optimizers.Adam(0.0))
    same = np.repeat(X[:1], 12, axis=0), np.repeat(Y[:1], 12, axis=0)
    updates = compile_updates(model)
    first, second = (train(model, *same, updates=updates) for _ in range(2))
    assert len(set(first)) > 8 and list(first) != list(second)


# Models that look alike


def penalized(factor):
    model = model_of(Dense(5))
    model.layers[0].kernel.regularizer = keras.regularizers.L2(factor)
    return model


ALIKE = {
    "data that Normalization is adapted to": lambda a: model_of(normalization(a * X + a)),
    "Huber's delta": lambda a: model_of(loss=losses.Huber(a)),
    "a penalty on a weight that is built": penalized,
    "what a Lambda layer closes over": lambda a: model_of(layers.Lambda(lambda x: a * x)),
}


@pytest.mark.parametrize("setting", ALIKE)
def test_a_model_is_trained_as_itself_not_as_one_before_it(setting):
    for value in 0.1, 3.0:
        pair = twins(lambda: ALIKE[setting](value))  # noqa: B023
        assert_trained_as_by_keras(*pair)


# Several models, compiled once where they can share it


class Counting(keras.Sequential):
    """Learns slower and slower: a variable that Keras does not list counts the updates."""

    def __init__(self, layers):
        super().__init__(layers)
        self.count = tf.Variable(0.0)

    def train_step(self, data):
        x, y = data[:2]
        return super().train_step((x / self.count.assign_add(1.0), y))


class CountingByKeras(Counting):
    def __init__(self, layers):
        super().__init__(layers)
        self.count = keras.Variable(0.0)

    def train_step(self, data):
        self.count.assign_add(1.0)
        x, y = data[:2]
        return super(Counting, self).train_step((x / self.count, y))


def counting_model(make):
    return compiled(make([keras.Input((2, 6)), Dense(6)]), loss="mse")


class LateDense(layers.Layer):
    """Draws the seed of its weights when it is built, unlike Keras' own layers."""

    def build(self, shape):
        self.W = self.add_weight(shape=(shape[-1], 6), initializer="random_normal")

    def call(self, x):
        return keras.ops.softmax(x @ self.W)


def with_variable():
    variable = keras.Variable(tf.random.normal((6, 6), seed=np.random.randint(9)))
    return model_of(layers.Lambda(lambda x: x @ variable))


def with_projection(width):
    matrix = tf.random.normal((6, width), seed=np.random.randint(9))
    return model_of(layers.Lambda(lambda x: x @ matrix))


def model_of_ids():
    stack = [keras.Input((2,)), layers.Embedding(6, 5), Dense(6, "softmax")]
    model = keras.Sequential(stack)
    return compiled(model, loss="sparse_categorical_crossentropy", metrics=["acc"])


def get_ids(*numbers):
    return [array.argmax(axis=-1) for array in get_pairs(*numbers)]


SHARED = {
    # As they are, the article's models are in test_compare.py.
    **{name: make for name, make in CHANGES.items() if "as it is" not in name},
    **{name: functools.partial(make, 2.0) for name, make in ALIKE.items()},
    "a variable of a train_step of one's own": lambda: counting_model(Counting),
    "a variable that Keras lists": lambda: counting_model(CountingByKeras),
    "a variable that a Lambda layer uses": with_variable,
    "a small random matrix": lambda: with_projection(5),
    "a large random matrix": lambda: with_projection(50),
    "an optimizer of its own": lambda: model_of(optimizer=optimizers.SGD(0.3, momentum=0.9)),
    "dropout": lambda: model_of(Decoder(dropout=0.5)),
    "ids": model_of_ids,
    "a length that is unknown": lambda: compiled(
        keras.Sequential([keras.Input((None, 6)), layers.LSTM(6, return_sequences=True)])
    ),
    "weights that are made late": lambda: compiled(keras.Sequential([LateDense()])),
}
NOT_SHARED = {
    "regularizers and constraints",  # Keras keeps the factor of an L1 penalty as a tensor
    "a stateful LSTM",  # Keras does not list its states
    "a subclassed model",
    "data that Normalization is adapted to",
    "a variable of a train_step of one's own",
    "a variable that a Lambda layer uses",
    "a small random matrix",
    "a large random matrix",
}
SETTINGS = dict(zip(compare.SETTINGS, (2, 1, 6, 5, 8, 1)))


@pytest.mark.parametrize("kind", SHARED)
def test_a_model_after_another_of_its_kind_is_trained_as_keras_trains_it(
    kind, monkeypatch, without_xla
):
    """By what compare.py runs, but for XLA."""
    if kind == "ids":
        monkeypatch.setattr("data_prep.get_pairs", get_ids)
    monkeypatch.setitem(compare.MODELS, kind, lambda *_: SHARED[kind]())
    monkeypatch.setattr(compare, "WINDOW", 1)
    first, second = (compare.run_repeat(kind, seed, SETTINGS)["losses"] for seed in (1, 2))
    (updates,) = compare.COMPILED.values() or [None]
    assert (updates is None) == (kind in NOT_SHARED)
    with compare.random_numbers_of(2):
        twin = SHARED[kind]()
        if not twin.built:
            twin(X[:1])
    expected = by_keras(twin, *data_prep.get_pairs(8, 2, 1, 6, 2))
    np.testing.assert_allclose(second, expected, rtol=TOLERANCES.get(kind, 1e-4))
    assert first != second


# One model, several trainings


def test_what_changes_between_two_trainings_is_noticed():
    model, twin = twins(lambda: model_of(Dense(5, trainable=False), Dense(6)))
    for change in (
        lambda model: None,
        lambda model: setattr(model.optimizer, "learning_rate", 0.1),
        lambda model: model.layers[0].kernel.assign(np.ones((6, 5))),
        lambda model: setattr(model.layers[1].kernel, "trainable", False),
        lambda model: compiled(model, optimizers.Adam(0.1), loss="mse"),
    ):
        change(model)
        change(twin)
        assert_trained_as_by_keras(model, twin)


def test_updates_that_are_given_are_not_compiled_again():
    model, twin = twins(lambda: model_of(metrics=["acc"]))
    updates = compile_updates(model)
    assert_trained_as_by_keras(model, twin, updates=updates)
    count = updates.experimental_get_tracing_count()
    assert_trained_as_by_keras(model, twin, X[:5], Y[:5], updates=updates)
    assert updates.experimental_get_tracing_count() == count > 0


def test_what_was_learned_before_ctrl_c_is_kept():
    model, twin = twins(model_of)
    shown = [None, KeyboardInterrupt]  # the bar, and after one update and four more
    with mock.patch.object(keras.utils.Progbar, "update", side_effect=shown):
        with pytest.raises(KeyboardInterrupt):
            train(model, X, Y)
    by_keras(twin, X[:5], Y[:5])
    assert_trained_as_by_keras(model, twin, X[5:], Y[5:])


# Kinds of pairs


@pytest.mark.parametrize("pairs", [(X.tolist(), Y.tolist()), (X[:1], Y[:1])], ids=["lists", "one"])
def test_other_kinds_of_pairs_are_trained_as_by_keras(pairs):
    assert_trained_as_by_keras(*twins(model_of), *pairs)


def test_tokens_are_trained_as_by_keras():
    ids = Y.argmax(axis=-1)
    assert_trained_as_by_keras(*twins(model_of_ids), ids, ids)


def test_what_xla_cannot_compile_is_told_and_runs_without():
    def make_model():
        x = keras.Input((2, 6))
        h = layers.Hashing(5)(keras.ops.cast(x, "int32"))
        return compiled(keras.Model(x, Dense(6, "softmax")(keras.ops.cast(h, "float32"))))

    model, twin = twins(make_model)
    assert_trained_as_by_keras(model, twin)
    with pytest.raises(tf.errors.InvalidArgumentError, match="AsString"):
        train(model, X, Y)


def test_a_model_without_an_input_layer_is_built():
    model = compiled(keras.Sequential([Dense(6, "softmax")]))
    assert train(model, X, Y).shape == (8,) and model.built


def test_many_pairs_are_drawn_in_parts_and_trained_as_by_keras(monkeypatch, without_xla):
    """By a call without `updates`, the article's: more than two parts, the last a short one."""
    monkeypatch.setattr("data_prep.PAIRS_AT_ONCE", 3)
    model, twin = twins(lambda: baseline_model(2, 6, 5))
    accuracy, losses = compare.train_evaluate_model(model, 2, 1, 6, 8, 20, rng=0)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(losses, by_keras(twin, *get_pairs(8, 2, 1, 6, rng)), rtol=1e-4)
    monkeypatch.undo()
    assert accuracy == baseline.evaluate(twin, 2, 1, 6, 20, rng)


# What does not fit, and the bar

BAD_PAIRS = {
    "no pairs": (X[:0], Y[:0], r"equally many pairs, .* got the shapes \(0, 2, 6\)"),
    "unequal numbers": (X[:4], Y[:3], r"got the shapes \(4, 2, 6\) and \(3, 2, 6\)"),
    "numbers": (3, 4, r"got the shapes \(\) and \(\)"),
    "steps": (X[:, :1], Y, "shape"),  # this and the next are told by Keras, in its words
    "features of y": (X, Y[..., :5], "shape"),
}


@pytest.mark.parametrize("pairs", BAD_PAIRS)
def test_pairs_that_do_not_fit_are_told(pairs):
    X, y, message = BAD_PAIRS[pairs]
    with pytest.raises(ValueError, match=message):
        train(model_of(), X, y)


def test_a_bar_shows_the_mean_loss_of_the_last_thousand_updates(monkeypatch, capsys):
    model, before_compiling = model_of(), []

    def compile_and_look(model, jit_compile):
        before_compiling.append(capsys.readouterr().out)
        return compile_updates(model, jit_compile=False)  # many updates at once take no less

    monkeypatch.setattr(baseline, "compile_updates", compile_and_look)
    train(model, X, Y, verbose=1)
    assert capsys.readouterr().out == ""  # it is no terminal
    for stdout in mock.Mock(spec=["write"]), None:  # a logger of one's own; none, as under pythonw
        with mock.patch("sys.stdout", stdout):
            train(model, X, Y, verbose=1)
        assert stdout is None or not stdout.write.called
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(model, X, Y)
    assert capsys.readouterr().out == ""
    losses = train(model, *get_pairs(1100, 2, 1, 6, rng=0), verbose=1)
    assert before_compiling[-1].startswith("Compiling takes some seconds.\n")
    assert "0/1100" in before_compiling[-1]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1100/1100" in last and f"loss: {losses[-1000:].mean():.4f}" in last
