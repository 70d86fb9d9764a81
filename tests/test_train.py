"""`train` is Keras' `train_on_batch` on each pair, whatever a reader changes in a model."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import baseline
from attention import attention_model
from attention_decoder import AttentionDecoder
from baseline import baseline_model, compile_updates, train
from data_prep import get_pairs
import keras
from keras import constraints, layers, optimizers, regularizers
from keras.layers import Dense

MODELS = [baseline_model, attention_model]
X, Y = get_pairs(12, 2, 1, 6, rng=0)


def LSTM(**kwargs):
    return layers.LSTM(4, return_sequences=True, unroll=True, **kwargs)


def Decoder(**kwargs):
    return AttentionDecoder(4, 6, unroll=True, **kwargs)


def model_of(*changed, optimizer="adam", loss="categorical_crossentropy", **kwargs):
    """A compiled model of the changed layers and a dense one."""
    model = keras.Sequential([keras.Input((2, 6)), *changed, Dense(6, "softmax")])
    model.compile(optimizer, loss, **kwargs)
    return model


def stateful_model():
    lstm = layers.LSTM(6, stateful=True, return_sequences=True, activation="softmax")
    model = keras.Sequential([keras.Input(batch_shape=(1, 2, 6)), lstm])
    model.compile("adam", "categorical_crossentropy")
    return model


def frozen_model():
    model = model_of(Dense(5, name="frozen"))
    model.get_layer("frozen").trainable = False
    model.compile("adam", "categorical_crossentropy")
    return model


def functional_model():
    x = keras.Input((2, 6))
    h = layers.Bidirectional(LSTM())(x)
    h = layers.Concatenate()([h, Dense(3)(x)])
    model = keras.Model(x, layers.TimeDistributed(Dense(6, "softmax"))(h))
    model.compile("adam", "categorical_crossentropy", loss_weights=[0.3])
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = Dense(6, "softmax")

    def call(self, x):
        return self.dense(x)


def subclassed_model():
    model = Subclassed()
    model.compile("adam", "mse", metrics=["acc"])
    return model


def clip(x):  # of a function, a model's JSON knows the name alone
    return keras.ops.clip(x, -0.1, 0.1)


def mean_difference(y, y_pred):
    return keras.ops.mean(abs(y - y_pred))


SMOOTHED = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
SCHEDULE = optimizers.schedules.ExponentialDecay(0.1, decay_steps=4, decay_rate=0.5)
# {what a reader changes: (the changed model, whether its updates are then compiled)}
CHANGES = {
    "kernel_regularizer": (lambda: model_of(LSTM(kernel_regularizer="l2")), True),
    "recurrent_regularizer": (lambda: model_of(LSTM(recurrent_regularizer="l1")), True),
    "the decoder's regularizer": (lambda: model_of(Decoder(kernel_regularizer="l2")), True),
    "bias_regularizer": (lambda: model_of(Decoder(bias_regularizer="l2")), True),
    "activity_regularizer": (
        lambda: model_of(LSTM(activity_regularizer=regularizers.L2(0.1))), True,
    ),
    "kernel_constraint": (lambda: model_of(LSTM(kernel_constraint="unit_norm")), True),
    "the decoder's constraint": (
        lambda: model_of(Decoder(recurrent_constraint=constraints.MaxNorm(0.3))), True,
    ),
    "BatchNormalization": (lambda: model_of(layers.BatchNormalization()), True),
    "LayerNormalization": (lambda: model_of(layers.LayerNormalization()), True),
    "SpectralNormalization": (lambda: model_of(layers.SpectralNormalization(Dense(5))), False),
    "a second LSTM": (lambda: model_of(LSTM(), LSTM(go_backwards=True)), True),
    "a stateful LSTM": (stateful_model, False),
    "an activation of one's own": (lambda: model_of(Dense(5, activation=clip)), False),
    "a Lambda layer": (lambda: model_of(layers.Lambda(lambda x: 2 * x)), False),
    "a frozen layer": (frozen_model, True),
    "a functional model": (functional_model, True),
    "a subclassed model": (subclassed_model, False),
    "mse": (lambda: model_of(loss="mse"), True),
    "label smoothing": (lambda: model_of(loss=SMOOTHED), True),
    "a loss of one's own": (lambda: model_of(loss=mean_difference), False),
    "metrics": (lambda: model_of(metrics=["acc", "mse"]), True),
    "run_eagerly": (lambda: model_of(run_eagerly=True), False),
    "float64": (lambda: model_of(Dense(5, dtype="float64")), False),
    "Adam's settings": (
        lambda: model_of(optimizer=optimizers.Adam(0.03, 0.8, 0.9, epsilon=1e-3)), True,
    ),
    "SGD": (lambda: model_of(optimizer=optimizers.SGD(0.1, momentum=0.9)), False),
    "RMSprop": (lambda: model_of(optimizer="rmsprop"), False),
    "AdamW": (lambda: model_of(optimizer=optimizers.AdamW(0.01)), False),
    "clipnorm": (lambda: model_of(optimizer=optimizers.Adam(0.01, clipnorm=0.01)), False),
    "a schedule": (lambda: model_of(optimizer=optimizers.Adam(SCHEDULE)), False),
    "amsgrad": (lambda: model_of(optimizer=optimizers.Adam(0.01, amsgrad=True)), False),
}  # fmt: skip


def by_keras(model, X, y):
    """The losses of the two lines that `train` stands for."""
    losses = []
    for X_i, y_i in zip(X, y):
        model.reset_metrics()
        losses.append(model.train_on_batch(X_i[None], y_i[None], return_dict=True)["loss"])
    return losses


def twins(make_model):
    """Two models with the same weights, random ones, biases too."""
    model, twin = make_model(), make_model()
    rng = np.random.default_rng(0)
    for one in (model, twin):
        if not one.built:
            one(X[:1])
    for a, b in zip(model.variables, twin.variables):
        if "float" in a.dtype:
            a.assign(rng.uniform(0.1, 0.6, a.shape))
        b.assign(a)
    return model, twin


def assert_equal_weights(model, twin, atol=2e-5):
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_trained_as_keras_trains_it(change):
    make_model, compiled = CHANGES[change]
    model, twin = twins(make_model)
    before = model.get_weights()
    losses = np.concatenate([train(model, X[:7], Y[:7]), train(model, X[7:], Y[7:])])
    np.testing.assert_allclose(losses, by_keras(twin, X, Y), rtol=1e-4)
    assert_equal_weights(model, twin, 1e-4)
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before)) > 5e-3
    assert (compile_updates(model, X, Y) is not None) == compiled


DROPOUTS = {
    "Dropout": lambda: model_of(layers.Dropout(0.5)),
    "the LSTM's dropout": lambda: model_of(LSTM(dropout=0.5, recurrent_dropout=0.5)),
    "the decoder's dropout": lambda: model_of(Decoder(dropout=0.5)),
}


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_drops_something_else_at_every_update(dropout):
    keras.utils.set_random_seed(0)
    model = DROPOUTS[dropout]()
    model.optimizer.learning_rate = 0.0
    same = np.repeat(X[:1], 12, axis=0), np.repeat(Y[:1], 12, axis=0)
    first, second = train(model, *same), train(model, *same)
    assert len(set(first)) > 2 and list(first) != list(second)
    assert compile_updates(model, X, Y) is not None


@pytest.mark.parametrize("make_model", MODELS)
def test_the_articles_models(make_model):
    """Compiled, and trained further by another call, by Keras in between, at another rate."""
    model, twin = twins(lambda: make_model(2, 6, 5))
    for part in (slice(0, 5), slice(5, 9), slice(9, 12)):
        assert compile_updates(model, X, Y) is not None
        losses = train(model, X[part], Y[part])
        assert losses.dtype == np.float32
        np.testing.assert_allclose(losses, by_keras(twin, X[part], Y[part]), rtol=1e-5)
        by_keras(model, X[part], Y[part])
        by_keras(twin, X[part], Y[part])
        for one in (model, twin):
            one.optimizer.learning_rate *= 2
    assert_equal_weights(model, twin)


def test_the_rate_of_an_optimizer_that_was_given_by_name():
    model, twin = twins(model_of)
    for rate in (0.001, 0.1):
        model.optimizer.learning_rate = twin.optimizer.learning_rate = rate
        train(model, X, Y)
        by_keras(twin, X, Y)
        assert_equal_weights(model, twin)


def test_models_with_other_frozen_weights_are_each_their_own():
    models = [twins(frozen_model) for _ in range(2)]
    for number, (model, twin) in enumerate(models):
        for one in (model, twin):
            one.layers[0].set_weights([w + number for w in one.layers[0].get_weights()])
    for model, twin in models:
        np.testing.assert_allclose(train(model, X, Y), by_keras(twin, X, Y), rtol=1e-5)
        assert_equal_weights(model, twin)


def test_layers_frozen_after_a_training_stay_as_they_are():
    model, twin = twins(lambda: model_of(Dense(5)))
    train(model, X, Y)
    by_keras(twin, X, Y)
    for one in (model, twin):
        one.layers[0].trainable = False
        one.compile("adam", "categorical_crossentropy")
    np.testing.assert_allclose(train(model, X, Y), by_keras(twin, X, Y), rtol=1e-5)
    assert_equal_weights(model, twin)


def test_a_class_that_is_defined_anew_is_trained_as_it_is_then():
    """As in a notebook, whose cell is run again."""
    texts = set()
    for factor in (1.0, -3.0):

        @keras.saving.register_keras_serializable("test_train")
        class Scale(layers.Layer):
            factor_ = factor

            def call(self, x):
                return self.factor_ * x

        keras.utils.clear_session()  # so that all names are the same, and with them the JSON
        model, twin = twins(lambda: model_of(Scale(name="scale")))  # noqa: B023
        texts.add(model.to_json())
        np.testing.assert_allclose(train(model, X, Y), by_keras(twin, X, Y), rtol=1e-5)
        assert compile_updates(model, X, Y) is not None
    assert len(texts) == 1


def test_what_xla_cannot_compile_is_trained_by_keras():
    ids = np.array([[1, 2], [3, 1], [2, 4]])
    model, twin = twins(lambda: model_of(loss=keras.losses.CTC()))
    wide = np.repeat(X[:3], 3, axis=1)[:, :2]
    np.testing.assert_allclose(train(model, wide, ids), by_keras(twin, wide, ids), rtol=1e-4)


def test_ids_with_a_sparse_loss():
    for ids in (Y.argmax(axis=-1), Y.argmax(axis=-1)[..., None]):
        model, twin = twins(lambda: model_of(Dense(5), loss="sparse_categorical_crossentropy"))
        np.testing.assert_allclose(train(model, X, ids), by_keras(twin, X, ids), rtol=1e-5)
        assert_equal_weights(model, twin)


def test_lists_are_arrays():
    model, twin = twins(model_of)
    np.testing.assert_allclose(
        train(model, X.tolist(), Y.tolist()), by_keras(twin, X, Y), rtol=1e-5
    )


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


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("pairs", BAD_PAIRS)
def test_what_cannot_be_trained_is_told(pairs, optimizer):
    X, y, message = BAD_PAIRS[pairs]
    model = model_of(optimizer=optimizer)
    weights = model.get_weights()
    with pytest.raises(ValueError, match=message):
        train(model, X, y)
    for a, b in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_cannot_be_trained_is_told():
    with pytest.raises(ValueError, match="compile"):
        train(keras.Sequential([keras.Input((2, 6)), Dense(6)]), X, Y)
    a, b = keras.Input((2, 6)), keras.Input((2, 6))
    model = keras.Model([a, b], Dense(6)(keras.ops.add(a, b)))
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="one input and one output, got the shapes"):
        train(model, X, Y)


def test_twenty_models_of_two_architectures_are_compiled_twice(monkeypatch):
    """And threads train them to the bits that one after another gives, in parts as at once."""
    X, y = get_pairs(1010, 2, 1, 6, rng=0)
    weights = [make_model(2, 6, 5).get_weights() for make_model in MODELS]

    def trained(kind):
        with baseline.LOCK:
            model = MODELS[kind](2, 6, 5)
        model.set_weights(weights[kind])
        return train(model, X, y), *model.get_weights()

    monkeypatch.setattr(baseline, "COMPILED", {})
    with ThreadPoolExecutor(4) as executor:
        at_once = list(executor.map(trained, [0, 1] * 8))
    one_by_one = [trained(0), trained(1)]
    assert len(baseline.COMPILED) == 2 and None not in baseline.COMPILED.values()
    monkeypatch.setattr(baseline, "COMPILED", {})
    monkeypatch.setattr(baseline, "PAIRS_PER_CALL", 300)
    in_parts = [trained(0), trained(1)]
    for kind in (0, 1):
        for other in (*at_once[kind::2], in_parts[kind]):
            for a, b in zip(one_by_one[kind], other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_bar_shows_the_mean_loss_of_the_last_thousand_updates(optimizer, monkeypatch, capsys):
    X, y = get_pairs(1500, 2, 1, 6, rng=0)
    model = model_of(optimizer=optimizer)
    losses = train(model, X, y, verbose=1)
    assert capsys.readouterr().out == ""  # it is no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    losses = train(model, X, y, verbose=1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1500/1500" in last and f"loss: {losses[-1000:].mean():.4f}" in last
    train(model, X, y)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("frozen", [0, 1])
def test_single_weights_that_are_frozen(frozen):
    """Of two with the same shape; the model's JSON does not tell which."""
    keras.utils.clear_session()
    model, twin = twins(lambda: model_of(Dense(6), Dense(6)))
    for one in (model, twin):
        one.layers[frozen].kernel.trainable = False
    np.testing.assert_allclose(train(model, X, Y), by_keras(twin, X, Y), rtol=1e-5)
    assert_equal_weights(model, twin)
