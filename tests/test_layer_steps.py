"""Decoding step by step: start, step and feed, and the models that a user makes of them."""

import keras
import numpy as np
import pytest
from keras import ops

from attention_decoder import AttentionDecoder
from oracle import (
    EXACT, IDS, MASK, NAMES, as_numpy, double, numpy_decoder, random_input, random_layer,
)  # fmt: skip


def decode(layer, steps, *arguments):
    """Returns the outputs and scores of `steps` steps."""
    x, s, memory = layer.start(*arguments)
    outputs, scores = [], []
    for _ in range(steps):
        y, s, alpha = layer.step(x, s, memory)
        x = layer.feed(y)
        outputs.append(y)
        scores.append(alpha)
    return ops.stack(outputs, axis=1), ops.stack(scores, axis=1)


@pytest.mark.parametrize("mask, embedding_dim", [(None, None), (MASK, 3)])
@pytest.mark.parametrize("output_activation", ["tanh", "relu"])
@pytest.mark.parametrize("feedback", [None, "softmax", "argmax", double])
def test_steps_give_what_the_call_gives(feedback, output_activation, mask, embedding_dim):
    arguments = {"feedback": feedback, "output_activation": output_activation}
    layer, w = random_layer(**arguments, embedding_dim=embedding_dim, dtype="float64")
    if output_activation == "relu":  # all outputs are 0, and fed like any others
        w["b_o"][:] = -100
        layer.set_weights(list(w.values()))
    x, state = random_input(), random_input(T=7)[:, :, 0]
    for initial_state in None, state:
        call = {"mask": mask, "initial_state": initial_state, "output_length": 5}
        expected = numpy_decoder(w, x, **arguments, **call)
        assert np.all(expected[0] == 0) == (output_activation == "relu")
        for got in (
            decode(layer, 5, x, mask, initial_state),
            layer(x, **call, return_attention_scores=True),
        ):
            for tensor, array in zip(got, expected, strict=True):
                np.testing.assert_allclose(as_numpy(tensor), array, atol=10 * EXACT)


def test_steps_in_mixed_precision_give_what_the_call_gives():
    layer, _ = random_layer(embedding_dim=3, feedback="argmax", dtype="mixed_bfloat16")
    called = layer(random_input(), mask=MASK, return_attention_scores=True)
    for stepped, expected in zip(decode(layer, 4, random_input(), MASK), called, strict=True):
        assert stepped.dtype == expected.dtype
        np.testing.assert_allclose(as_numpy(stepped), as_numpy(expected), atol=0.05)


@pytest.mark.parametrize("mask, embedding_dim", [(None, None), (MASK, 3)])
def test_beams_in_any_order_each_go_on_with_their_own_symbols(mask, embedding_dim):
    layer, w = random_layer(embedding_dim=embedding_dim)
    x = random_input()
    symbols = np.repeat(IDS[:, :4], 2, axis=0)  # of two beams for each input
    symbols[::2] = symbols[::2, ::-1] - 1  # some are -1, which feeds zeros
    rows = np.arange(8)
    expected, _ = numpy_decoder(w, x[rows // 2], symbols, None if mask is None else mask[rows // 2])
    start = layer.start(x, mask)
    fed, s, memory = keras.tree.map_structure(lambda t: ops.repeat(t, 2, axis=0), start)
    for t in range(4):
        y, s, _ = layer.step(fed, s, memory)
        np.testing.assert_allclose(as_numpy(y), expected[rows, t], atol=1e-5)
        fed = layer.feed(symbols[rows, t])
        order = np.random.default_rng(t).permutation(8)
        rows = rows[order]
        fed, s, memory = keras.tree.map_structure(
            lambda tensor, order=order: ops.take(tensor, order, axis=0), (fed, s, memory)
        )


def test_no_call_is_needed_before_the_first_step():
    layer = AttentionDecoder(7, 5)
    assert layer.step(*layer.start(random_input(), None))[0].shape == (4, 5)


@keras.saving.register_keras_serializable("test")
class Greedy(keras.Model):
    """From encoded (B, Tin, D) and mask to ids (B, STEPS), END again and again after END."""

    STEPS, END = 6, 0

    def __init__(self, decoder, **kwargs):
        super().__init__(**kwargs)
        self.decoder = decoder

    def call(self, inputs):
        encoded, mask = inputs
        x, s, memory = self.decoder.start(encoded, mask)
        ended = ops.zeros((ops.shape(s)[0],), dtype="bool")
        ids = []
        for _ in range(self.STEPS):
            y, s, _ = self.decoder.step(x, s, memory)
            best = ops.where(ended, self.END, ops.argmax(y, axis=-1))
            x, ended = self.decoder.feed(best), ops.logical_or(ended, best == self.END)
            ids.append(best)
        return ops.stack(ids, axis=1)

    def get_config(self):
        decoder = keras.saving.serialize_keras_object(self.decoder)
        return {**super().get_config(), "decoder": decoder}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("decoder")), **config)


def test_a_model_that_decodes_until_the_end_follows_training_and_is_kept(tmp_path):
    layer, w = random_layer(feedback="argmax", embedding_dim=3)
    x, mask = random_input(B=8).astype("float32"), np.tile(MASK, (2, 1))
    model = Greedy(layer)

    def expected(w):
        y, _ = numpy_decoder(w, x, mask=mask, output_length=6, feedback="argmax")
        ids = y.argmax(axis=-1)
        return ids * (np.cumsum(ids == 0, axis=1) == 0)

    first = model.predict((x, mask), verbose=0)
    np.testing.assert_array_equal(first, expected(w))
    assert 0 < np.count_nonzero(first == 0) < first.size

    # Another model trains the layer.
    encoded, targets = keras.Input((4, 6)), keras.Input((9,), dtype="int32")
    trained = keras.Model([encoded, targets], layer(encoded, targets))
    trained.compile(keras.optimizers.SGD(10.0), "sparse_categorical_crossentropy")
    ids = np.tile(IDS, (2, 1))
    trained.train_on_batch([x, ids], ids)
    w = {v.name: as_numpy(v) for v in layer.weights}
    second = model.predict((x, mask), verbose=0)
    np.testing.assert_array_equal(second, expected(w))
    assert np.any(second != first)

    assert [v.name for v in model.weights] == [*NAMES, "E"]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict((x, mask), verbose=0), second)


def test_a_functional_model_of_one_step_has_the_weights_and_keeps_them(tmp_path):
    layer, w = random_layer()
    x, s, memory = layer.start(random_input(), MASK)
    inputs = [keras.Input(t.shape[1:], dtype=t.dtype) for t in (x, s, *memory)]
    model = keras.Model(inputs, layer.step(*inputs[:2], tuple(inputs[2:])))
    assert [v.name for v in model.weights] == NAMES
    model.set_weights([2 * value for value in w.values()])  # those of the layer
    expected = [as_numpy(tensor) for tensor in layer.step(x, s, memory)]
    model.save(tmp_path / "model.keras")
    for one in model, keras.saving.load_model(tmp_path / "model.keras"):
        for tensor, array in zip(one([x, s, *memory]), expected, strict=True):
            np.testing.assert_allclose(as_numpy(tensor), array, atol=1e-6)
