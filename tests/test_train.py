"""`train` is Keras' `train_on_batch` on each pair, whatever a reader changes in a model."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

import baseline
from attention import attention_model
from attention_decoder import AttentionDecoder
from baseline import baseline_model, compile_updates, train
from data_prep import get_pairs
import keras
from keras import layers, optimizers
from keras.layers import Dense

X, Y = get_pairs(8, 2, 1, 6, rng=0)
IDS = Y.argmax(axis=-1)


@pytest.fixture(scope="module", autouse=True)
def few_pairs_per_call():
    """So that eight pairs take several; what is compiled here is of no use to other tests."""
    with mock.patch.multiple(baseline, PAIRS_PER_CALL=4, COMPILED={}):
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


def LSTM(**kwargs):
    return layers.LSTM(4, return_sequences=True, unroll=True, **kwargs)


def Decoder(**kwargs):
    return AttentionDecoder(4, 6, unroll=True, **kwargs)


def stateful_model():
    lstm = layers.LSTM(6, stateful=True, return_sequences=True, activation="softmax")
    return compiled(keras.Sequential([keras.Input(batch_shape=(1, 2, 6)), lstm]))


def functional_model():
    x = keras.Input((2, 6))
    h = layers.Concatenate()([layers.Bidirectional(LSTM())(x), Dense(3)(x)])
    outputs = layers.TimeDistributed(Dense(6, "softmax"))(h)
    return compiled(keras.Model(x, outputs), loss_weights=[0.3])


def model_with_a_layer_that_gets_no_gradient():
    x = keras.Input((2, 6))
    h = keras.ops.stop_gradient(Dense(5)(x))
    return compiled(keras.Model(x, Dense(6, "softmax")(h)))


def hashing_model():
    x = keras.Input((2, 6))
    h = layers.Hashing(5)(keras.ops.cast(x, "int32"))
    return compiled(keras.Model(x, Dense(6, "softmax")(keras.ops.cast(h, "float32"))))


@keras.saving.register_keras_serializable("test_train")
class OwnStep(keras.Sequential):
    def train_step(self, data):
        x, y, *_ = data
        return super().train_step((2 * x, y))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = Dense(6, "softmax")

    def call(self, x):
        return self.dense(x)


def clip(x):  # of a function, a model's JSON knows the name alone
    return keras.ops.clip(x, -0.1, 0.1)


def mean_difference(y, y_pred):
    return keras.ops.mean(abs(y - y_pred))


SMOOTHED = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
RULES = {"kernel_regularizer": "l2", "bias_regularizer": "l1"}
RULES["recurrent_constraint"] = keras.constraints.MaxNorm(0.3)
SCHEDULE = optimizers.schedules.ExponentialDecay(0.1, decay_steps=4, decay_rate=0.5)
# What a reader changes: {its name: makes the changed model}. To try another change, add a row.
COMPILED_CHANGES = {
    "baseline.py as it is": lambda: baseline_model(2, 6, 5),
    "attention.py as it is": lambda: attention_model(2, 6, 5),
    "regularizers": lambda: model_of(LSTM(kernel_regularizer="l2", recurrent_regularizer="l1")),
    "activity_regularizer": lambda: model_of(Dense(5, activity_regularizer="l2")),
    "kernel_constraint": lambda: model_of(LSTM(kernel_constraint="unit_norm")),
    "the decoder's rules": lambda: model_of(Decoder(**RULES)),
    "BatchNormalization": lambda: model_of(layers.BatchNormalization()),
    "LayerNormalization": lambda: model_of(layers.LayerNormalization()),
    "a second LSTM": lambda: model_of(LSTM(), LSTM(go_backwards=True)),
    "a frozen layer": lambda: model_of(Dense(5, trainable=False)),
    "a functional model": functional_model,
    "mse": lambda: model_of(loss="mse"),
    "label smoothing": lambda: model_of(loss=SMOOTHED),
    "metrics": lambda: model_of(metrics=["acc", "mse"]),
    "Adam's settings": lambda: model_of(optimizer=optimizers.Adam(0.03, 0.8, 0.9, epsilon=1e-3)),
}
LEFT_TO_KERAS = {
    "SpectralNormalization": lambda: model_of(layers.SpectralNormalization(Dense(5))),
    "a stateful LSTM": stateful_model,
    "a layer that gets no gradient": model_with_a_layer_that_gets_no_gradient,
    "an activation of one's own": lambda: model_of(Dense(5, activation=clip)),
    "a Lambda layer": lambda: model_of(layers.Lambda(lambda x: 2 * x)),
    "what XLA cannot": hashing_model,
    "a train_step of one's own": lambda: compiled(OwnStep([Dense(6)]), loss="mse"),
    "a subclassed model": lambda: compiled(Subclassed(), loss="mse", metrics=["acc"]),
    "a loss of one's own": lambda: model_of(loss=mean_difference),
    "run_eagerly": lambda: model_of(run_eagerly=True),
    "float64": lambda: model_of(Dense(5, dtype="float64")),
    "SGD": lambda: model_of(optimizer=optimizers.SGD(0.1, momentum=0.9)),
    "RMSprop": lambda: model_of(optimizer="rmsprop"),
    "AdamW": lambda: model_of(optimizer=optimizers.AdamW(0.01)),
    "clipnorm": lambda: model_of(optimizer=optimizers.Adam(0.01, clipnorm=0.01)),
    "a schedule": lambda: model_of(optimizer=optimizers.Adam(SCHEDULE)),
    "amsgrad": lambda: model_of(optimizer=optimizers.Adam(0.01, amsgrad=True)),
}
CHANGES = {**COMPILED_CHANGES, **LEFT_TO_KERAS}


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
    """Two models with the same names and the same weights, random ones, biases too."""
    models = []
    for _ in range(2):
        keras.utils.clear_session(free_memory=False)  # starts to number the names anew
        models.append(make_model())
        if not models[-1].built:
            models[-1](X[:1])
    rng = np.random.default_rng(0)
    for a, b in zip(*(model.variables for model in models)):
        if "float" in a.dtype:
            a.assign(rng.uniform(0.1, 0.6, a.shape))
        b.assign(a)
    return models


def assert_trained_as_by_keras(model, twin, X=X, y=Y):
    losses = train(model, X, y)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, by_keras(twin, X, y), rtol=1e-4)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_trained_as_keras_trains_it(change):
    model, twin = twins(CHANGES[change])
    before = model.get_weights()
    assert_trained_as_by_keras(model, twin, X[:6], Y[:6])
    assert_trained_as_by_keras(model, twin, X[6:], Y[6:])
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before)) > 5e-3
    assert (compile_updates(model, X, Y) is not None) == (change in COMPILED_CHANGES)


SPARSE = "sparse_categorical_crossentropy"
PAIRS = {
    "ids": (lambda: model_of(loss=SPARSE), X, IDS),
    "ids with a last axis of 1": (lambda: model_of(loss=SPARSE), X, IDS[..., None]),
    "lists": (model_of, X.tolist(), Y.tolist()),
    "ids for CTC": (lambda: model_of(loss=keras.losses.CTC()), X[:2], [[1, 2], [3, 1]]),
}


@pytest.mark.parametrize("pairs", PAIRS)
def test_other_kinds_of_pairs_are_trained_as_by_keras(pairs):
    make_model, X, y = PAIRS[pairs]
    model, twin = twins(make_model)
    assert_trained_as_by_keras(model, twin, X, y)
    assert compile_updates(model, np.asarray(X), np.asarray(y)) is not None


BETWEEN_TRAININGS = {
    "the learning rate": lambda model: setattr(model.optimizer, "learning_rate", 0.1),
    "a training by Keras": lambda model: by_keras(model, X, Y),
    "the value of a frozen weight": lambda model: model.layers[0].kernel.assign(np.ones((6, 5))),
    "a weight is frozen": lambda model: setattr(model.layers[1].kernel, "trainable", False),
    "compiled anew": lambda model: compiled(model, optimizers.Adam(0.1)),
}


@pytest.mark.parametrize("change", BETWEEN_TRAININGS)
def test_what_changes_between_two_trainings_is_noticed(change):
    model, twin = twins(lambda: model_of(Dense(5, trainable=False), Dense(6)))
    assert_trained_as_by_keras(model, twin)
    for one in (model, twin):
        BETWEEN_TRAININGS[change](one)
    assert_trained_as_by_keras(model, twin)


def test_a_model_without_an_input_layer_is_built_and_compiled():
    model = compiled(keras.Sequential([Dense(6, "softmax")]))
    train(model, X, Y)
    assert compile_updates(model, X, Y) is not None


def test_what_was_learned_before_ctrl_c_is_kept():
    model, twin = twins(model_of)
    with mock.patch.object(keras.utils.Progbar, "update", side_effect=[None, KeyboardInterrupt]):
        with pytest.raises(KeyboardInterrupt):
            train(model, X, Y)
    by_keras(twin, X[:4], Y[:4])
    assert_trained_as_by_keras(model, twin, X[4:], Y[4:])


def test_a_class_that_is_defined_anew_is_trained_as_it_is_then():
    """As in a notebook, whose cell is run again."""
    texts = set()
    for factor in (1.0, -3.0):

        @keras.saving.register_keras_serializable("test_train")
        class Scale(layers.Layer):
            factor_ = factor

            def call(self, x):
                return self.factor_ * x

        model, twin = twins(lambda: model_of(Scale()))  # noqa: B023
        assert_trained_as_by_keras(model, twin)
        assert compile_updates(model, X, Y) is not None
        texts.add(model.to_json())
    assert len(texts) == 1


DROPOUTS = [layers.Dropout(0.5), LSTM(dropout=0.5, recurrent_dropout=0.5), Decoder(dropout=0.5)]


@pytest.mark.parametrize("layer", DROPOUTS, ids=lambda layer: layer.name)
def test_dropout_drops_something_else_at_every_update(layer):
    model = model_of(Dense(5), layer, optimizer=optimizers.Adam(0.0))
    same = np.repeat(X[:1], 12, axis=0), np.repeat(Y[:1], 12, axis=0)
    first, second = train(model, *same), train(model, *same)
    assert len(set(first)) > 8 and list(first) != list(second)
    assert compile_updates(model, X, Y) is not None


# Bad pairs, threads, and the bar

BAD_PAIRS = {
    "no pairs": (X[:0], Y[:0], r"equally many pairs, .* got the shapes \(0, 2, 6\)"),
    "unequal numbers": (X[:4], Y[:3], r"got the shapes \(4, 2, 6\) and \(3, 2, 6\)"),
    "one pair alone": (X[0], Y[0], r"the model's shapes, \(2, 6\) and \(2, 6\)"),
    "fewer steps": (X[:, :1], Y, r"got \(1, 6\) and \(2, 6\)"),
    "steps of y": (X, Y[:, :1], r"got \(2, 6\) and \(1, 6\)"),
    "features": (X[..., :5], Y, r"got \(2, 5\) and \(2, 6\)"),
    "features of y": (X, Y[..., :5], r"got \(2, 6\) and \(2, 5\)"),
    "numbers for vectors": (X, Y[..., :1], r"got \(2, 6\) and \(2, 1\)"),
    "a number": (3, 4, r"got \(\) and \(\)"),
    "words": ([["a"]], [["b"]], "model's shapes"),
}


@pytest.mark.parametrize("pairs", BAD_PAIRS)
def test_pairs_that_do_not_fit_are_told(pairs):
    X, y, message = BAD_PAIRS[pairs]
    with pytest.raises(ValueError, match=message):
        train(model_of(), X, y)


def test_a_model_that_cannot_be_trained_is_told():
    with pytest.raises(ValueError, match="compile"):
        train(keras.Sequential([keras.Input((2, 6)), Dense(6)]), X, Y)
    inputs = [keras.Input((2, 6)), keras.Input((2, 6))]
    model = compiled(keras.Model(inputs, Dense(6)(keras.ops.add(*inputs))))
    with pytest.raises(ValueError, match="one input and one output, got the shapes"):
        train(model, X, Y)
    model = model_of(Dense(5, trainable=False))
    train(model, X, Y)
    model.layers[0].trainable = True
    # As by Keras, which says that it is to be compiled anew, but fails to say it in 3.10.
    with pytest.raises((ValueError, NotImplementedError), match="Unknown variable|numpy"):
        train(model, X, Y)


def test_threads_compile_once_for_each_architecture_and_give_what_one_thread_gives(monkeypatch):
    monkeypatch.setattr(baseline, "COMPILED", {})
    pairs = get_pairs(102, 2, 1, 6, rng=0)
    templates, functions = [model_of(Dense(width)) for width in (3, 4)], set()

    def trained(template):
        with baseline.LOCK:
            model = keras.Sequential.from_config(template.get_config())
            compiled(model, optimizers.Adam(name="adam"))
        model.set_weights(template.get_weights())
        functions.add(compile_updates(model, *pairs))
        return train(model, *pairs), *model.get_weights()

    with ThreadPoolExecutor(4) as executor:
        at_once = list(executor.map(trained, templates * 8))
    for number, template in enumerate(templates):
        alone = trained(template)
        for other in at_once[number::2]:
            for a, b in zip(alone, other, strict=True):
                np.testing.assert_array_equal(a, b)
    assert len(functions) == 2 and None not in functions


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_bar_shows_the_mean_loss_of_the_last_thousand_updates(optimizer, monkeypatch, capsys):
    model = model_of(optimizer=optimizer)
    train(model, X, Y, verbose=1)
    assert capsys.readouterr().out == ""  # it is no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    train(model, X, Y)
    assert capsys.readouterr().out == ""
    losses = train(model, *get_pairs(1100, 2, 1, 6, rng=0), verbose=1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1100/1100" in last and f"loss: {losses[-1000:].mean():.4f}" in last
