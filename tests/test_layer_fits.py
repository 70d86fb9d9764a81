"""The layer as Keras' wrappers, containers and summaries take it, and what it refuses early.

Runs on whichever backend KERAS_BACKEND names.
"""

import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from attention_decoder import AttentionDecoder

ROOT = pathlib.Path(__file__).parent.parent
X = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
IDS = [[1, 4, 0], [2, 3, 3], [0, 0, 1]]
VECTORS = np.eye(5, dtype="float32")[IDS]
MASK = [[True, True, True, False], [True, False, True, True], [True, True, False, False]]
STATE = np.random.default_rng(1).normal(size=(3, 7)).astype("float32")


def random_decoder(output_dim=5, **kwargs):
    """A built decoder, 6 numbers a step and a state of 7, with random weights, biases too."""
    decoder = AttentionDecoder(7, output_dim, **kwargs)
    decoder.build((None, None, 6))
    rng = np.random.default_rng(2)
    decoder.set_weights([rng.normal(0, 0.6, weight.shape) for weight in decoder.weights])
    return decoder


def assert_equal(tensor, expected):
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (tensor, expected)), atol=1e-6)


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


# Shapes


@pytest.mark.parametrize(
    "made, called, expected",
    [
        ({}, {}, (2, 4, 5)),
        ({}, {"targets_shape": (2, 9)}, (2, 9, 5)),
        ({}, {"targets_shape": (2, None, 5)}, (2, None, 5)),
        ({}, {"output_length": 8}, (2, 8, 5)),
        ({"output_length": 3}, {}, (2, 3, 5)),
        ({"output_length": 3}, {"output_length": 8}, (2, 8, 5)),
        ({"output_length": 3}, {"targets_shape": (2, 9)}, (2, 9, 5)),
        ({"return_probabilities": True}, {"output_length": 8}, (2, 8, 4)),
        ({}, {"return_attention_scores": True, "output_length": 8}, ((2, 8, 5), (2, 8, 4))),
    ],
)
def test_compute_output_shape(made, called, expected):
    decoder = AttentionDecoder(7, 5, **made)
    assert decoder.compute_output_shape((2, 4, 6), **called) == expected


def test_time_distributed():
    """Its windows (batch, windows, T_in, D), each decoded by itself."""
    decoder = random_decoder()
    windows = keras.Input((2, 4, 6))
    model = keras.Model(windows, layers.TimeDistributed(decoder)(windows))
    assert model.output_shape == (None, 2, 4, 5)
    x = np.stack([X, 2 * X], axis=1)
    y = model.predict(x, verbose=0)
    for i in range(2):
        assert_equal(y[:, i], decoder(x[:, i]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.decoder = AttentionDecoder(7, 5)

    def call(self, encoded, targets=None):
        return self.decoder(encoded, targets)


@pytest.mark.parametrize("targets, shape", [(None, "(3, 4, 5)"), (VECTORS, "(3, 3, 5)")])
def test_the_summary_of_a_subclassed_model_shows_the_shape(targets, shape, tmp_path):
    model, lines = Subclassed(), []
    y = model(X, targets)
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert shape in "".join(lines)
    again = Subclassed()  # built as saved weights are loaded
    again.decoder.build_from_config(model.decoder.get_build_config())
    again.decoder.set_weights(model.decoder.get_weights())
    assert_equal(again(X, targets), y)


# What does not fit


def symbolic(array):
    return keras.Input(array.shape[1:], batch_size=len(array), dtype=array.dtype)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


REFUSED = [
    ({"targets": ones(3, 9, 6)}, "targets must have the shape (3, None, 5), got"),
    ({"targets": ones(2, 9, 5)}, "targets must have the shape (3, None, 5), got"),
    ({"targets": ones(2, 9, dtype="int32")}, "targets must have the shape (3, None), got (2, 9)"),
    ({"targets": ones(3, 9)}, "targets must be integers of rank 2 (ids) or"),
    ({"mask": ones(3, 5)}, "mask must have the shape (3, 4), got (3, 5)"),
    ({"mask": ones(2, 4)}, "mask must have the shape (3, 4), got (2, 4)"),
    ({"initial_state": ones(3, 8)}, "initial_state must have the shape (3, 7), got (3, 8)"),
    ({"initial_state": ones(2, 7)}, "initial_state must have the shape (3, 7), got (2, 7)"),
    ({"initial_state": [ones(3, 8)]}, "initial_state must have the shape (3, 7), got (3, 8)"),
    (
        {"initial_state": [ones(3, 7)] * 2},
        "initial_state must be one tensor (batch, u), or a list of one, got 2: of the states "
        "[h, c] of an LSTM, give h",
    ),
    ({"targets": [ones(3, 5)] * 2}, "targets must "),
    ({"mask": [ones(2, 4)] * 2}, "mask must "),
]


@pytest.mark.parametrize("make", [np.asarray, symbolic], ids=["call", "functional model"])
@pytest.mark.parametrize("arguments, message", REFUSED)
def test_what_does_not_fit_is_refused_by_a_call_and_by_a_functional_model(arguments, message, make):
    arguments = keras.tree.map_structure(make, arguments)
    with pytest.raises(ValueError, match=re.escape(message)):
        random_decoder()(make(X), **arguments)


@pytest.mark.parametrize("make", [np.asarray, symbolic], ids=["call", "functional model"])
def test_numbers_of_a_regression_are_no_ids(make):
    decoder = random_decoder(output_dim=1, output_activation="linear")
    message = "targets must be floats of rank 3, the last axis 1, where output_dim is 1"
    with pytest.raises(ValueError, match=re.escape(f"{message}, got int32 of shape (3, 9)")):
        decoder(make(X), make(ones(3, 9, dtype="int32")))
    with pytest.raises(ValueError, match="y must be floats of rank 2, .* got int32 of shape"):
        decoder.feed(ones(3, dtype="int32"))
    with pytest.raises(ValueError, match=re.escape(f"{message}, got float32 of shape (3, 9)")):
        decoder(make(X), make(ones(3, 9)))
    targets = np.array([[[5.0], [7], [3]]] * 3, "float32")
    assert np.abs(ops.convert_to_numpy(decoder(X, targets) - decoder(X, 10 * targets))).max() > 0.01


def test_what_does_not_fit_is_refused_step_by_step():
    decoder = random_decoder()
    for call, message in (
        (lambda: decoder.start(X[0], None), "encoded must have the shape (None, None, 6), got (4,"),
        (lambda: decoder.start(X[..., :5], None), "encoded must have the shape (None, None, 6), "),
        (lambda: AttentionDecoder(7, 5).start(X[0], None), "encoded must have the shape (None, "),
        (lambda: decoder.start(X, None, [STATE] * 2), "initial_state must be one tensor (batch, "),
        (lambda: decoder.start(X, None, STATE[:2]), "initial_state must have the shape (3, 7), "),
        (lambda: decoder.feed(ones(3, 7)), "y must have the shape (None, 5), got (3, 7)"),
        (lambda: decoder.feed(3), "y must be integers of rank 1 (ids) or floats of rank 2 "),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()


# What fits, too


def test_lists_are_taken():
    decoder = random_decoder()
    ids, mask = ops.convert_to_tensor(IDS, "int32"), np.array(MASK)
    assert_equal(decoder(X, targets=IDS, mask=MASK), decoder(X, targets=ids, mask=mask))
    assert_equal(decoder(X, initial_state=[STATE]), decoder(X, initial_state=STATE))
    assert_equal(decoder.feed([1, -1]), decoder.feed(np.array([1, -1])))
    assert_equal(decoder.feed(VECTORS[0].tolist()), VECTORS[0])
    listed = decoder.start(X.tolist(), MASK, (STATE,))
    for a, b in zip(keras.tree.flatten(listed), keras.tree.flatten(decoder.start(X, mask, STATE))):
        assert_equal(a, b)
    encoded, state = symbolic(X), symbolic(STATE)
    outputs = decoder(encoded, targets=IDS, mask=MASK, initial_state=[state])
    model = keras.Model([encoded, state], outputs)
    expected = decoder(X, targets=ids, mask=mask, initial_state=STATE)
    assert_equal(model([X, STATE]), expected)


def test_a_policy_set_later_reaches_the_cell():
    for policy in ("mixed_bfloat16", keras.dtype_policies.DTypePolicy("bfloat16")):
        decoder = AttentionDecoder(7, 5, recurrent_initializer="glorot_uniform")
        decoder.dtype_policy = policy
        x, s, memory = decoder.start(X, None)
        y, s, scores = decoder.step(x, s, memory)
        assert {dtype_of(t) for t in (y, s, scores, decoder(X))} == {"bfloat16"}
        assert decoder.cell.dtype_policy == decoder.dtype_policy
        assert {dtype_of(weight) for weight in decoder.weights} == {decoder.variable_dtype}


def test_a_policy_set_later_in_a_map_of_policies():
    """As Keras does for the layers of a container; their paths are the keys."""
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    decoder = AttentionDecoder(7, 5, dtype=policies, name="decoder")
    decoder.build((None, 4, 6))
    decoder.dtype_policy = "mixed_bfloat16"
    assert set(policies) == {decoder.path, decoder.cell.path}
    again = AttentionDecoder.from_config(decoder.get_config())
    again.build((None, 4, 6))
    for one in (decoder, again):
        assert one.compute_dtype == one.cell.compute_dtype == "bfloat16"
        assert dtype_of(one(X)) == "bfloat16"


def test_initializers_may_be_functions_without_a_config():
    decoder = AttentionDecoder(7, 5, bias_initializer=lambda shape, dtype: ops.ones(shape, dtype))
    decoder.build((None, 4, 6))
    assert_equal(decoder.cell.b_o, ones(5))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("embedding_dim", [None, 3])
def test_argmax_feeds_the_first_of_the_largest(embedding_dim, dtype, monkeypatch):
    """Without ops.argmax of floats, which models cannot be exported with."""
    argmax = ops.argmax

    def of_integers(x, **kwargs):
        assert keras.backend.is_int_dtype(x.dtype)
        return argmax(x, **kwargs)

    monkeypatch.setattr(ops, "argmax", of_integers)
    decoder = random_decoder(feedback="argmax", embedding_dim=embedding_dim, dtype=dtype)
    y = [[0.1, 0.4, 0.1, 0.4, 0], [0, 0, 0, 0, 0], [-3, -2, -2, -5, -1], [-7, -7, -8, -7, -7]]
    y += [
        [np.inf, 0, 0, 0, np.inf],
        [-np.inf] * 5,
        [-np.inf, 0, 0, np.inf, 0],
        [0, np.nan, 1, 2, 0],
    ]
    y = ops.convert_to_tensor(y, decoder.compute_dtype)
    fed, expected = (
        ops.cast(x, "float32") for x in (decoder.feed(y), decoder.feed([1, 0, 4, 0, 0, 0, 3]))
    )
    assert_equal(fed[:7], expected)
    assert np.all(np.isfinite(ops.convert_to_numpy(fed)))


# The manual's blocks, with a model whose symbols depend on the one before alone

END = 0
P = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0, 0.6, 0], [0.5, 0.5, 0, 0], [0.6, 0.4, 0, 0]])


class Chain:
    """Three methods as those of AttentionDecoder; the first step is fed the first symbol of x."""

    def start(self, encoded, mask):
        return np.asarray(encoded)[:, 0], np.zeros((len(encoded), 1)), (np.asarray(mask),)

    def step(self, fed, s, memory):
        return ops.convert_to_tensor(P[ops.convert_to_numpy(fed)]), s, None

    def feed(self, ids):
        return ids


def from_the_manual(name, **names):
    """What the manual's block of a function or class makes, up to where it is used."""
    text = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"^((?:@.*\n)?(?:def|class) {name}\b.*?)^\S", text, re.M | re.S)
    names = {"np": np, "keras": keras, "ops": ops, "END": END, "__name__": "manual", **names}
    exec(code, names)
    return names[name]


def test_the_manuals_greedy_writes_nothing_behind_the_end():
    greedy = from_the_manual("greedy", decoder=Chain(), encoder=lambda x: x)
    np.testing.assert_array_equal(greedy(np.array([[3, 3], [1, 1]])), [[0, 0], [2, 0]])
    np.testing.assert_array_equal(greedy(np.array([[1, 1]]), steps=1), [[2]])


def test_the_manuals_beam_search_neither_extends_nor_punishes_what_has_ended():
    beam_search = from_the_manual("beam_search", decoder=Chain(), encoder=lambda x: x)
    outputs, scores = beam_search(np.array([1, 1, 1, 1]), k=4)
    np.testing.assert_array_equal(outputs[:3], [[0, 0, 0, 0], [2, 0, 0, 0], [2, 1, 0, 0]])
    np.testing.assert_allclose(np.exp(scores[:3]), [0.4, 0.6 * 0.5, 0.6 * 0.5 * 0.4])


def small_reverser(**kwargs):
    symbols = keras.Input((8,), dtype="int32")
    encoder = keras.Model(symbols, layers.Embedding(5, 6)(symbols))
    return from_the_manual("Reverser")(encoder, random_decoder(), **kwargs)


SYMBOLS = np.random.default_rng(3).integers(1, 5, size=(3, 8)).astype("int32")


def test_the_manuals_reverser_keeps_its_name_and_takes_its_parts_by_name():
    reverser = small_reverser(name="mine")
    expected = reverser(SYMBOLS)
    config = reverser.get_config()
    again = type(reverser).from_config(dict(sorted(config.items(), reverse=True)))
    assert again.name == "mine" and isinstance(again.decoder, AttentionDecoder)
    again(SYMBOLS)
    again.set_weights(reverser.get_weights())
    assert_equal(again(SYMBOLS), expected)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow alone")
def test_the_manuals_reverser_in_litert(tmp_path):
    import tensorflow as tf

    reverser = small_reverser()
    expected = reverser(SYMBOLS[:1])
    reverser.export(tmp_path / "reverser.tflite", format="litert", verbose=False)
    run = tf.lite.Interpreter(str(tmp_path / "reverser.tflite")).get_signature_runner()
    (name,) = run.get_input_details()
    (ids,) = run(**{name: SYMBOLS[:1].astype("float32")}).values()  # as Keras exports it
    np.testing.assert_array_equal(ids, expected)
