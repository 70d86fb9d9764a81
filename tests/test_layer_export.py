"""The layer where models leave Python: SavedModel, LiteRT, ONNX. The manual has it in int8."""

import keras
import pytest
from keras import layers, ops

from oracle import (
    BACKEND, IDS, MASK, SYMBOLS, assert_close, from_the_manual, only_tensorflow, only_torch,
    random_input, random_layer,
)  # fmt: skip

if BACKEND == "tensorflow":
    import tensorflow as tf

X = random_input().astype("float32")
FEEDBACK = [(None, None), ("softmax", None), ("argmax", None), ("argmax", 3)]


def decoded_in_each_way(encoded, mask=None, **kwargs):
    """The outputs and scores of a decoder for each way to feed: one export for all of them."""
    outputs = []
    for feedback, embedding_dim in FEEDBACK:
        activation = "linear" if feedback else "softmax"
        kwargs |= {"feedback": feedback, "embedding_dim": embedding_dim}
        decoder, _ = random_layer(output_length=3, output_activation=activation, **kwargs)
        outputs += decoder(encoded, mask=mask, return_attention_scores=True)
    return outputs


@only_tensorflow
def test_a_server_takes_ids_and_a_mask_of_unknown_lengths(tmp_path):
    decoder, _ = random_layer(embedding_dim=3)
    encoded, mask = keras.Input((None, 6)), keras.Input((None,), dtype="bool")
    targets = keras.Input((None,), dtype="int32")
    outputs = decoder(encoded, targets, mask=mask, return_attention_scores=True)
    model = keras.Model([encoded, targets, mask], outputs)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for steps_in, steps_out in ((4, 5), (3, 9)):
        inputs = [X[:, :steps_in], IDS[:, :steps_out].astype("int32") - 1, MASK[:, :steps_in]]
        assert_close(served.serve(inputs), model(inputs))


@only_tensorflow
@pytest.mark.parametrize("masked", [False, True])
def test_a_phone_decodes_as_the_layer_does(masked, tmp_path):
    inputs = keras.Input((4, 6))
    mask = inputs[:, :, 0] > 0 if masked else None
    model = keras.Model(inputs, decoded_in_each_way(inputs, mask, unroll=True))
    model.export(tmp_path, verbose=False)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert()
    run = tf.lite.Interpreter(model_content=converted).get_signature_runner()
    (name,) = run.get_input_details()
    for row in range(3):
        results = run(**{name: X[row : row + 1]})
        assert_close([results[key] for key in sorted(results)], model(X[row : row + 1]))


def assert_onnx_gives_the_same(model, path, *batches, **kwargs):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    expected = [model(arrays) for arrays in batches]  # an export asks for a call before it
    model.export(path, format="onnx", verbose=False, **kwargs)
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    for arrays, of_model in zip(batches, expected):
        assert_close(session.run(None, dict(zip(names, arrays, strict=True))), of_model)


@only_torch
@pytest.mark.parametrize("masked", [False, True])
def test_onnx_of_a_whole_model_takes_any_length(masked, tmp_path):
    symbols = keras.Input((None,), dtype="int32")
    encoded = layers.Dense(6, activation="tanh")(layers.Embedding(9, 6)(symbols))
    mask = ops.not_equal(symbols, 0) if masked else None
    model = keras.Model([symbols], decoded_in_each_way(encoded, mask))
    x = SYMBOLS.astype("int32")
    assert_onnx_gives_the_same(model, tmp_path / "model.onnx", [x], [x[:2, :3]])


def one_step(masked, steps_in=4):
    """A model of one step, arrays for it, and their signature: any batch and length."""
    decoder, _ = random_layer()
    _, s, memory = decoder.start(X[:, :steps_in], MASK[:, :steps_in] if masked else None)
    arrays = [X[:, 0, :5], *map(ops.convert_to_numpy, (s, *memory))]
    shapes = [(None, 5), (None, 7), (None, None, 6), (None, None, 7), (None, None)]
    inputs = [keras.InputSpec(shape=shape, dtype=a.dtype) for shape, a in zip(shapes, arrays)]
    return from_the_manual()["OneStep"](decoder), arrays, [inputs]


@only_tensorflow
@pytest.mark.parametrize("masked", [False, True])
def test_a_server_of_one_step_takes_a_memory_of_any_length(masked, tmp_path):
    model, arrays, signature = one_step(masked)
    model(arrays)
    model.export(tmp_path / "served", input_signature=signature, verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for steps_in in 4, 2:
        _, arrays, _ = one_step(masked, steps_in)
        assert_close(served.serve(arrays), model(arrays))


@only_torch
@pytest.mark.parametrize("masked", [False, True])
def test_onnx_of_one_step(masked, tmp_path):
    model, arrays, signature = one_step(masked)
    others = one_step(masked, 2)[1]
    assert_onnx_gives_the_same(
        model, tmp_path / "model.onnx", arrays, others, input_signature=signature
    )


@only_torch
@pytest.mark.parametrize("forced", [False, True], ids=["as many steps as it reads", "targets"])
def test_onnx_of_an_unknown_number_of_output_steps_is_refused(forced, tmp_path):
    """PyTorch's loop would stay as short as it is traced: one step."""
    pytest.importorskip("onnxscript")
    inputs = [keras.Input((None, 6))] + [keras.Input((None,), dtype="int32")] * forced
    model = keras.Model(inputs, random_layer()[0](*inputs))
    model([X, IDS] if forced else [X])
    with pytest.raises(ValueError, match="output_length must be given in an export from PyTorch"):
        model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
