"""What a user makes of start, step and feed. The equations' tests have what they compute."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from attention_decoder import AttentionDecoder
from oracle import (
    BACKEND, SYMBOLS, as_numpy, assert_close, blocks_of_the_manual, from_the_manual, numpy_decoder,
    only_torch, random_input, random_layer,
)  # fmt: skip

if BACKEND == "tensorflow":
    import tensorflow


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16", "float64"])
def test_of_equal_outputs_argmax_feeds_the_first(dtype):
    layer, _ = random_layer(feedback="argmax", dtype=dtype)
    inf = np.inf
    y = [[0.1, 0.4, 0.1, 0.4, 0], [0, 0, 0, 0, 0], [-3, -2, -2, -5, -1], [-7, -7, -8, -7, -7]]
    y += [[inf, 0, 0, 0, inf], [-inf] * 5, [-inf, 0, 0, inf, 0], [0, np.nan, 1, 2, 0]]
    fed = as_numpy(layer.feed(ops.convert_to_tensor(y, layer.compute_dtype)))
    np.testing.assert_array_equal(fed[:7], as_numpy(layer.feed([1, 0, 4, 0, 0, 0, 3])))
    assert np.all(np.isfinite(fed))


def test_the_weights_of_a_large_vocabulary_are_not_copied(monkeypatch):
    """By a step, which would copy them anew each time, or for the outputs of targets."""
    layer, _ = random_layer(o=1000, embedding_dim=3)
    joined = []
    concatenate = ops.concatenate

    def recorded(tensors, axis=-1):
        joined.append(concatenate(tensors, axis))
        return joined[-1]

    monkeypatch.setattr(ops, "concatenate", recorded)
    start = layer.start(random_input(), None)
    y, _, _ = layer.step(*start)
    assert y.shape == layer(random_input(), np.ones((4, 1), "int32")).shape[::2] == (4, 1000)
    assert joined and max(np.prod(tensor.shape) for tensor in joined) < 7 * 1000


# The manual's functions and classes

X = SYMBOLS.astype("int32")


def random_encoder_and_decoder():
    symbols = keras.Input((None,), dtype="int32")
    encoder = keras.Model(symbols, keras.layers.Embedding(9, 6)(symbols))
    encoder.set_weights([random_input(T=9)[0]])
    decoder, _ = random_layer(embedding_dim=3)
    decoder.b_o.assign_sub([1, 0, 0, 0, 0])  # makes END less likely
    return encoder, decoder


def assert_best_until_the_end(ids, encoder, decoder, x=X):
    """END, which is 0, stands again and again after END."""
    w = {v.name: as_numpy(v) for v in decoder.weights}
    call = {"mask": x != 0, "output_length": ids.shape[1], "feedback": "argmax"}
    best = numpy_decoder(w, as_numpy(encoder(x)), **call)[0].argmax(axis=-1)
    ended = np.cumsum(best == 0, axis=1) > 0
    np.testing.assert_array_equal(ids, np.where(ended, 0, best))
    assert np.any(ended) and not np.all(ended)


def test_decoding_writes_the_best_symbols_and_nothing_behind_the_end():
    encoder, decoder = random_encoder_and_decoder()
    decode = from_the_manual(encoder=encoder, decoder=decoder)["decode"]
    assert_best_until_the_end(decode(X, steps=20), encoder, decoder)
    assert decode(X, steps=2).shape == (4, 2)
    np.testing.assert_array_equal(decode(X, 9, lambda y: np.zeros(len(y), int)), np.zeros((4, 1)))


def test_a_beam_search_of_all_beginnings_finds_the_most_probable_outputs():
    encoder, decoder = random_encoder_and_decoder()
    found = from_the_manual()["BeamSearch"](encoder, decoder, steps=3, k=25)(X)
    outputs = np.array(list(itertools.product(range(5), repeat=3)))
    after_end = np.cumsum(outputs == 0, axis=1) - (outputs == 0) > 0
    complete = np.all(outputs * after_end == 0, axis=1)  # END again and again: 85 of them
    outputs, after_end = outputs[complete], after_end[complete]
    w = {v.name: as_numpy(v) for v in decoder.weights}
    for row in range(4):
        h, mask = (np.repeat(a[[row]], 85, axis=0) for a in (as_numpy(encoder(X)), X != 0))
        y, _ = numpy_decoder(w, h, outputs, mask)
        p = np.take_along_axis(y, outputs[:, :, None], axis=2)[:, :, 0]
        p = np.where(after_end, 1, p).prod(axis=1)  # it neither extends nor punishes what ended
        best = np.argsort(-p)[:25]
        np.testing.assert_array_equal(as_numpy(found["ids"])[row], outputs[best])
        assert_close(found["log_p"][row], np.log(p[best]), atol=1e-4)


def test_a_beam_search_of_one_is_greedy_shares_weights_and_is_kept_and_served(tmp_path):
    encoder, decoder = parts = random_encoder_and_decoder()
    BeamSearch = from_the_manual()["BeamSearch"]
    model = BeamSearch(encoder, decoder, steps=20, k=1, name="mine")
    first = model.predict(X, verbose=0)["ids"][:, 0]
    assert_best_until_the_end(first, *parts)
    decoder.b_o.assign_add([0, 1, 0, 0, 0])
    second = as_numpy(model(X)["ids"])[:, 0]
    assert_best_until_the_end(second, *parts)
    assert np.any(second != first)

    model.save(tmp_path / "model.keras")
    own = {"BeamSearch": BeamSearch}
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects=own)
    np.testing.assert_array_equal(as_numpy(again(X)["ids"])[:, 0], second)
    assert again.name == "mine"
    if BACKEND == "tensorflow":
        any_shape = keras.InputSpec(shape=(None, None), dtype="int32")
        model.export(tmp_path / "served", input_signature=[any_shape], verbose=False)
        served = tensorflow.saved_model.load(tmp_path / "served")
        for x in X, X[:2, :3]:
            assert_best_until_the_end(as_numpy(served.serve(x)["ids"])[:, 0], *parts, x)


@only_torch
def test_the_manuals_onnx_block(tmp_path, monkeypatch, capsys):
    for package in "onnx", "onnxscript", "onnxruntime":
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    symbols = keras.Input((8,), dtype="int32")
    embedded = keras.layers.Embedding(12, 6)(symbols)
    encoded = keras.layers.LSTM(6, return_sequences=True, unroll=True)(embedded)
    decoder = AttentionDecoder(7, 12, unroll=True)
    model = keras.Model(symbols, decoder(encoded, mask=ops.not_equal(symbols, 0)))
    model.save("unrolled.keras")
    x = np.random.default_rng(0).integers(9, size=(5, 8), dtype="int32")
    np.savez("some.npz", x=x, expected=model.predict(x, verbose=0))
    (block,) = blocks_of_the_manual("On a phone, and ONNX", "py")
    exec(block, {})
    assert capsys.readouterr().out == blocks_of_the_manual("On a phone, and ONNX", "text")[-1]


@only_torch
def test_the_manuals_training_loop(capsys):
    names = {}
    for title in "In a Sequential model", "Padding and masks":
        exec("\n".join(blocks_of_the_manual(title, "python")), names)
    capsys.readouterr()
    (loop,) = blocks_of_the_manual("A training loop in PyTorch", "py")
    before = names["encoder"].get_weights()
    exec(loop, names)
    assert [capsys.readouterr().out] == blocks_of_the_manual("A training loop in PyTorch", "text")
    changed = [np.any(a != b) for a, b in zip(before, names["encoder"].get_weights())]
    assert len(changed) > 3 and all(changed)
