"""The layer where models leave Python: SavedModel, LiteRT, ONNX.

Runs on whichever backend KERAS_BACKEND names; what needs another one, or a package, is skipped.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

from attention_decoder import AttentionDecoder

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow alone")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch alone")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 6)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
FEEDBACK = [(None, None), ("softmax", None), ("argmax", None), ("argmax", 3)]


def random_decoder(**kwargs):
    """A decoder of 6 numbers a step into 5 symbols, with random weights, biases too."""
    decoder = AttentionDecoder(7, 5, **kwargs)
    decoder.build((None, None, 6))
    rng = np.random.default_rng(1)
    decoder.set_weights([rng.normal(0, 0.6, weight.shape) for weight in decoder.weights])
    return decoder


def as_numpy(*tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def assert_close(tensors, expected):
    for a, b in zip(as_numpy(*tensors), as_numpy(*expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# SavedModel


@only_tensorflow
@pytest.mark.parametrize("unroll", [False, True])
def test_saved_model_with_ids_mask_and_unknown_lengths(unroll, tmp_path):
    decoder = random_decoder(embedding_dim=3, unroll=unroll)
    encoded, mask = keras.Input((None, 6)), keras.Input((None,), dtype="bool")
    targets = keras.Input((4 if unroll else None,), dtype="int32")
    outputs = decoder(encoded, targets, mask=mask, return_attention_scores=True)
    model = keras.Model([encoded, targets, mask], outputs)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for steps_in, steps_out in ((6, 4), (3, 4 if unroll else 9)):
        ids = RNG.integers(-1, 5, size=(3, steps_out)).astype("int32")
        inputs = [X[:, :steps_in], ids, MASK[:, :steps_in]]
        assert_close(served.serve(inputs), model(inputs))


class UntilEnd(keras.Model):
    """From encoded (B, Tin, 6) and mask to ids (B, STEPS) and how many steps it took."""

    STEPS, END = 30, 0

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def call(self, inputs):
        encoded, mask = inputs
        x, s, memory = self.decoder.start(encoded, mask)
        ended = ops.zeros_like(s[:, 0], dtype="bool")
        ids = ops.zeros((ops.shape(s)[0], self.STEPS), dtype="int32") + self.END

        def goes_on(t, x, s, ended, ids):
            return ops.logical_and(t < self.STEPS, ops.logical_not(ops.all(ended)))

        def step(t, x, s, ended, ids):
            y, s, _ = self.decoder.step(x, s, memory)
            best = ops.where(ended, self.END, ops.argmax(y, axis=-1))
            ids = ops.where(ops.arange(self.STEPS) == t, best[:, None], ids)
            return t + 1, self.decoder.feed(best), s, ops.logical_or(ended, best == self.END), ids

        t, _, _, _, ids = ops.while_loop(goes_on, step, (0, x, s, ended, ids))
        return ids, t


@only_tensorflow
def test_saved_model_that_decodes_until_the_end(tmp_path):
    decoder = random_decoder(embedding_dim=3, feedback="argmax")
    decoder.cell.b_o.assign([0.8, 0, 0, 0, 0])  # makes END likelier
    model = UntilEnd(decoder)
    model([X, MASK])
    signature = [tf.TensorSpec((None, None, 6)), tf.TensorSpec((None, None), "bool")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, input_signature=[signature])
    archive.write_out(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for rows, length in ((slice(3), 6), (slice(2), 3)):
        x, mask = X[rows, :length], MASK[rows, :length]
        outputs = decoder(x, mask=mask, output_length=UntilEnd.STEPS)
        expected = np.argmax(as_numpy(outputs)[0], axis=-1)
        ended = np.cumsum(expected == UntilEnd.END, axis=1) > 0
        ids, steps = as_numpy(*served.serve([x, mask]))
        np.testing.assert_array_equal(ids, np.where(ended, UntilEnd.END, expected))
        assert steps == 1 + np.max(np.argmax(ended, axis=1)) and np.all(ended[:, -1])
        assert np.any(ids)


# LiteRT


def equal_columns(decoder):
    """Makes two symbols equally probable, and more so than all others."""
    weights = {weight.name: value for weight, value in zip(decoder.weights, decoder.get_weights())}
    for name in ("C_o", "U_o", "W_o", "b_o"):
        weights[name][..., 3] = weights[name][..., 1]
    weights["b_o"][[1, 3]] += 1.5
    decoder.set_weights(list(weights.values()))


@only_tensorflow
@pytest.mark.parametrize("feedback, embedding_dim", FEEDBACK)
def test_litert(feedback, embedding_dim, tmp_path):
    decoder = random_decoder(
        feedback=feedback, embedding_dim=embedding_dim, unroll=True, output_length=5,
        output_activation="linear" if feedback else "softmax",
    )  # fmt: skip
    if feedback == "argmax":
        equal_columns(decoder)
    inputs = keras.Input((6, 6))
    model = keras.Model(inputs, decoder(inputs, return_attention_scores=True))
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    for row in range(3):
        results = run(**{name: X[row : row + 1]})
        results = sorted(results.values(), key=lambda array: array.shape[-1])
        assert_close(results, model(X[row : row + 1]))


# ONNX


def onnx_results(model, arrays, path):
    """What onnxruntime makes of the arrays, after the model's export."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model(arrays)  # an export asks for a call before it
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@only_torch
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("feedback, embedding_dim", FEEDBACK)
def test_onnx_of_unknown_lengths(feedback, embedding_dim, masked, tmp_path):
    decoder = random_decoder(
        feedback=feedback, embedding_dim=embedding_dim,
        output_activation="linear" if feedback else "softmax",
    )  # fmt: skip
    encoded, mask = keras.Input((None, 6)), keras.Input((None,), dtype="bool")
    outputs = decoder(
        encoded, mask=mask if masked else None, output_length=5, return_attention_scores=True
    )
    model = keras.Model([encoded, mask] if masked else [encoded], outputs)
    arrays = [X, MASK] if masked else [X]
    assert_close(onnx_results(model, arrays, tmp_path / "model.onnx"), model(arrays))


@only_torch
@pytest.mark.parametrize("masked", [False, True])
def test_onnx_of_one_step(masked, tmp_path):
    decoder = random_decoder()
    x, s, memory = decoder.start(X, MASK if masked else None)
    arrays = [RNG.normal(size=(3, 5)).astype("float32"), *as_numpy(s, *memory)]
    shapes = [(5,), (7,), (None, 6), (None, 7), (None,)]
    inputs = [keras.Input(shape, dtype=a.dtype) for shape, a in zip(shapes, arrays)]
    model = keras.Model(inputs, decoder.step(inputs[0], inputs[1], tuple(inputs[2:])))
    assert_close(onnx_results(model, arrays, tmp_path / "model.onnx"), model(arrays))


@only_torch
def test_onnx_of_a_whole_model(tmp_path):
    symbols = keras.Input((None,), dtype="int32")
    encoded = layers.Dense(6, activation="tanh")(layers.Embedding(9, 6)(symbols))
    outputs = random_decoder()(encoded, mask=ops.not_equal(symbols, 0), output_length=5)
    model = keras.Model([symbols], outputs)
    arrays = [RNG.integers(1, 9, size=(3, 6)).astype("int32") * MASK]
    assert_close(onnx_results(model, arrays, tmp_path / "model.onnx"), [model(arrays)])
