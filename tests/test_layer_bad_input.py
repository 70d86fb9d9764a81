"""What does not fit is a ValueError that says what would: a row for each (call, message)."""

import re

import keras
import numpy as np
import pytest

from attention_decoder import AttentionDecoder
from oracle import random_input, random_layer


def layer(**kwargs):
    return AttentionDecoder(**{"units": 7, "output_dim": 5, **kwargs})


@pytest.mark.parametrize("name", ["units", "output_dim", "output_length", "embedding_dim"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "7", True, [4], np.array([3, 4])])
def test_a_size_must_be_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got "):
        layer(**{name: value})


X, SYMBOLIC = random_input(), keras.Input((4, 6))
LENGTH = "output_length must be a positive integer, got "
RATE = "dropout must be a number from 0 to below 1, got "
IDS_OR_VECTORS = "must be integers of rank {} (ids) or floats of rank {} (vectors), got {} of shape"
TARGETS, Y = f"targets {IDS_OR_VECTORS}", f"y {IDS_OR_VECTORS}"
STATE = "initial_state must have the shape (4, 7), got "
MASK = "mask must have the shape (4, 4), got "
WIDTH = "expected axis -1 of input shape to have value 6"
GIVE = "must be given tensors, not a keras.Input: write a keras.Model with a call"

# With d, a decoder (7, 5) built for inputs of width 6.
CALLS = [
    (lambda d: layer(dropout=-0.1), f"{RATE}-0.1"),
    (lambda d: layer(dropout=1), f"{RATE}1"),
    (lambda d: layer(dropout="0.5"), f"{RATE}'0.5'"),
    (lambda d: layer(dropout=None), f"{RATE}None"),
    (lambda d: layer(feedback="beam"), "beam"),
    (lambda d: layer(feedback=7), "7"),
    (lambda d: layer(feedback=["argmax"]), "argmax"),
    (lambda d: layer(feedback={"softmax": 1}), "softmax"),
    (lambda d: d(X, output_length=0), f"{LENGTH}0"),
    (lambda d: d(X, output_length=2.0), f"{LENGTH}2.0"),
    (lambda d: d(SYMBOLIC, output_length=True), f"{LENGTH}True"),
    (lambda d: d(SYMBOLIC, output_length="7"), f"{LENGTH}'7'"),
    (lambda d: d(keras.Input((6,))), "expected ndim=3, found ndim=2"),
    (lambda d: d(keras.Input((4, 8))), WIDTH),
    (lambda d: d(random_input(D=8)), WIDTH),
    (lambda d: d([X, random_input(D=5)]), "expects 1 input"),
    (lambda d: d(X, np.zeros((4, 4, 5), "int32")), TARGETS.format(2, 3, "int32")),
    (lambda d: d(X, np.zeros((4, 4), "float32")), TARGETS.format(2, 3, "float32")),
    (lambda d: d.feed(np.zeros((4, 5), "int32")), Y.format(1, 2, "int32")),
    (lambda d: d.feed(np.zeros((4,), "float32")), Y.format(1, 2, "float32")),
    (lambda d: d(X, initial_state=np.ones((7,), "float32")), f"{STATE}(7,)"),
    (lambda d: d(X, initial_state=np.ones((1, 7), "float32")), f"{STATE}(1, 7)"),
    (lambda d: d(X, initial_state=np.ones((4, 5), "float32")), f"{STATE}(4, 5)"),
    (lambda d: d(X, initial_state=np.ones((4, 7, 1), "float32")), f"{STATE}(4, 7, 1)"),
    (lambda d: d(X, mask=np.ones((4, 4, 1), bool)), f"{MASK}(4, 4, 1)"),
    (lambda d: d(X, mask=np.ones((4, 5), bool)), f"{MASK}(4, 5)"),
    (lambda d: d.start(X, np.ones((3, 4), bool)), f"{MASK}(3, 4)"),
    (lambda d: d.start(SYMBOLIC, None), f"start {GIVE}"),
    (lambda d: d.feed(keras.Input((5,))), f"feed {GIVE}"),
]


@pytest.mark.parametrize("call, message", CALLS, ids=[message for _, message in CALLS])
def test_the_message_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(random_layer()[0])


def test_a_mask_is_not_to_be_forgotten_where_decoding_starts():
    with pytest.raises(TypeError, match="mask"):
        layer().start(X)
