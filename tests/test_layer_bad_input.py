"""What does not fit is a ValueError that says what would: a row for each (call, message)."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from attention_decoder import AttentionDecoder
from oracle import IDS, MASK, assert_close, random_input, random_layer


def layer(**kwargs):
    return AttentionDecoder(**{"units": 7, "output_dim": 5, **kwargs})


NO_SIZES = [0, -3, 2.5, "7", True, [4], np.int64(0), np.float32(2), np.True_, np.array([3])]
NO_SIZES += [np.str_("7"), np.array(3, dtype=object)]
NO_SIZES += [ops.convert_to_tensor(value) for value in (-3, 2.0, True, [4])]


@pytest.mark.parametrize("name", ["units", "output_dim", "output_length", "embedding_dim"])
@pytest.mark.parametrize("value", NO_SIZES)
def test_a_size_must_be_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got "):
        layer(**{name: value})


@pytest.mark.parametrize("targets", [None, IDS], ids=["free running", "targets"])
@pytest.mark.parametrize("value", NO_SIZES)
def test_so_must_the_length_that_a_call_is_given(value, targets):
    with pytest.raises(ValueError, match="^output_length must be a positive integer, got "):
        random_layer()[0](random_input(), targets, output_length=value)


def one():
    return layer(output_dim=1)


def array(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def symbolic(*shape, dtype="float32"):
    return keras.Input(batch_shape=shape, dtype=dtype)


RATE = "dropout must be a number from 0 to below 1, got "
SEQUENCES = "the recurrent layer before it needs return_sequences=True"
STEPS = "must have at least 1 time step, got the shape "
SHAPE = "must have the shape "
ENCODED = f"encoded {SHAPE}(None, None, "
IDS_OR_VECTORS = "must be integers of rank {} (ids) or floats of rank {} (vectors), got {} of shape"
TARGETS, Y = f"targets {IDS_OR_VECTORS}", f"y {IDS_OR_VECTORS}"
OF_ONE = "{} must be floats of rank {}, the last axis 1, where output_dim is 1, got "
MASK_SHAPE = f"mask {SHAPE}(4, 4), got "
STATE = f"initial_state {SHAPE}(4, 7), got "
STATES = "initial_state must be one tensor (batch, u), or a list of one, got 2: of the states ["
TRACED = "whose value is not known here: give int(...), or give it to the layer"
GIVE = "start, step and feed must be given tensors, not a keras.Input: write a keras.Model with a "
START = "The layer has no weights yet: call start, which makes them"

# With d, a decoder (7, 5) built for inputs of width 6, and x of shape (4, 4, 6). It and all that
# `make` makes are arrays or are the inputs of a functional model.
BAD_CALLS = [
    (lambda d, x, make: layer(dropout=-0.1), f"{RATE}-0.1"),
    (lambda d, x, make: layer(dropout=1), f"{RATE}1"),
    (lambda d, x, make: layer(dropout="0.5"), f"{RATE}'0.5'"),
    (lambda d, x, make: layer(feedback="beam"), "beam"),
    (lambda d, x, make: d(make(4, 6)), f"{ENCODED}6), got (4, 6): {SEQUENCES}"),
    (lambda d, x, make: layer()(keras.layers.LSTM(8)(x)), f"), got (4, 8): {SEQUENCES}"),
    (lambda d, x, make: keras.layers.Bidirectional(layer()), "cannot go backwards: put the enc"),
    (lambda d, x, make: d(make(4, 4, 8)), f"{ENCODED}6), got (4, 4, 8)"),
    (lambda d, x, make: layer()([x, make(4, 4, 5)]), "expects 1 input"),
    (lambda d, x, make: layer()(make(4, 0, 6)), f"encoded {STEPS}(4, 0, 6)"),
    (lambda d, x, make: d.start(make(4, 0, 6), None), f"encoded {STEPS}(4, 0, 6)"),
    (lambda d, x, make: d(x, make(4, 0, dtype="int32")), f"targets {STEPS}(4, 0)"),
    (lambda d, x, make: d(x, make(4, 0, 5)), f"targets {STEPS}(4, 0, 5)"),
    (lambda d, x, make: d(x, output_length=symbolic(dtype="int32")), TRACED),
    (lambda d, x, make: d(x, make(4, 4)), TARGETS.format(2, 3, "float32")),
    (lambda d, x, make: d(x, make(4, 4, 5, dtype="int32")), TARGETS.format(2, 3, "int32")),
    (lambda d, x, make: d(x, make(4, 9, 6)), f"targets {SHAPE}(4, None, 5), got"),
    (lambda d, x, make: d(x, make(2, 9, dtype="int32")), f"targets {SHAPE}(4, "),
    (lambda d, x, make: d(x, [make(4, 5), make(4, 5)]), "targets must "),
    (lambda d, x, make: one()(x, make(4, 9)), OF_ONE.format("targets", 3)),
    (lambda d, x, make: one()(x, make(4, 9, dtype="int32")), OF_ONE.format("targets", 3)),
    (lambda d, x, make: d(x, mask=make(4, 4, 1)), f"{MASK_SHAPE}(4, 4, 1)"),
    (lambda d, x, make: d(x, mask=make(2, 4)), f"{MASK_SHAPE}(2, 4)"),
    (lambda d, x, make: d(x, mask=[make(2, 4), make(2, 4)]), "mask must "),
    (lambda d, x, make: d(x, initial_state=make(1, 7)), f"{STATE}(1, 7)"),
    (lambda d, x, make: d(x, initial_state=[make(4, 5)]), f"{STATE}(4, 5)"),
    (lambda d, x, make: d(x, initial_state=[make(4, 7), make(4, 7)]), STATES),
    (lambda d, x, make: d.start(make(4, 4, 5), None), f"{ENCODED}6), got (4, 4, 5)"),
    (lambda d, x, make: d.start(symbolic(4, 4, 6), None), GIVE),
    (lambda d, x, make: d.start(array(4, 4, 6), symbolic(4, 4)), GIVE),
    (lambda d, x, make: d.step(symbolic(4, 5), array(4, 7), ()), GIVE),
    (lambda d, x, make: d.step(array(4, 5), array(4, 7), [symbolic(4, 4, 6)]), GIVE),
    (lambda d, x, make: d.feed(symbolic(4, 5)), GIVE),
    (lambda d, x, make: layer().step(array(4, 5), array(4, 7), ()), START),
    (lambda d, x, make: layer(embedding_dim=3).feed(array(4, 5)), START),
    (lambda d, x, make: d.step(array(4, 7), array(4, 7), ()), f"x {SHAPE}(None, 5), got (4, 7)"),
    (lambda d, x, make: d.step(array(4, 5), array(4, 5), ()), f"s {SHAPE}(None, 7), got (4, 5)"),
    (lambda d, x, make: d.feed(array(4, 7)), f"y {SHAPE}(None, 5), got (4, 7)"),
    (lambda d, x, make: d.feed(array(4, 5, dtype="int32")), Y.format(1, 2, "int32")),
    (lambda d, x, make: d.feed(array(4)), Y.format(1, 2, "float32")),
    (lambda d, x, make: one().feed(array(4, dtype="int32")), OF_ONE.format("y", 2)),
]


@pytest.mark.parametrize("make", [array, symbolic])
@pytest.mark.parametrize("call, message", BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_what_does_not_fit_the_layer_is_told(call, message, make):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(random_layer()[0], make(4, 4, 6), make)


def test_a_mask_is_not_to_be_forgotten_where_decoding_starts():
    with pytest.raises(TypeError, match="mask"):
        layer().start(random_input())


def test_lists_are_taken_wherever_arrays_are():
    d, _ = random_layer()
    x, state = random_input(), random_input(T=7)[:, :, 0]
    ids, mask = IDS.tolist(), MASK.tolist()
    inputs = [symbolic(4, 4, 6), symbolic(4, 7)]
    outputs = d(inputs[0], targets=ids, mask=mask, initial_state=[inputs[1]])
    for listed, of_arrays in (
        (keras.Model(inputs, outputs)([x, state]), d(x, IDS, mask=MASK, initial_state=state)),
        (d.start(x.tolist(), mask, (state,)), d.start(x, MASK, state)),
        (d.feed(x[0, :, :5].tolist()), d.feed(x[0, :, :5])),
        (d.feed([1, -1]), d.feed(np.array([1, -1]))),
    ):
        assert_close(listed, of_arrays)
