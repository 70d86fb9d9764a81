"""Does the layer compute what it says? Against the original's numbers and the decoder in NumPy."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from oracle import (
    BACKEND, EXACT, IDS, MASK, NAMES, ROOT, as_numpy, assert_close, double, numpy_decoder,
    only_tensorflow, random_input, random_layer,
)  # fmt: skip

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
else:
    import torch

MODES = {"tensorflow": ["eager", "graph", "xla"], "jax": ["xla"], "torch": ["eager"]}[BACKEND]


def loss_and_gradients(layer, loss, x, mode=MODES[0]):
    """Returns loss(layer, x) and its gradients by x and by each weight, as arrays."""
    if BACKEND == "tensorflow":

        def compute(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(layer, x)
            return value, tape.gradient(value, [x] + [v.value for v in layer.weights])

        if mode != "eager":
            compute = tf.function(compute, jit_compile=mode == "xla")
        value, gradients = compute(tf.constant(x))
    elif BACKEND == "jax":

        def compute(x, weights):
            with keras.StatelessScope(zip(layer.weights, weights, strict=True)):
                return loss(layer, x)

        weights = [v.value for v in layer.weights]
        compute = jax.jit(jax.value_and_grad(compute, (0, 1)))
        value, (g_x, g_w) = compute(jax.numpy.asarray(x), weights)
        gradients = [g_x, *g_w]
    else:
        x = torch.tensor(x, requires_grad=True)
        value = loss(layer, x)
        gradients = torch.autograd.grad(value, [x] + [v.value for v in layer.weights])
    return float(value), as_numpy(*gradients)


# The original's numbers


@pytest.mark.parametrize(
    "name, unroll, mode",
    [
        ("u4_o3_d5_t6_b2", True, MODES[0]),
        ("u7_o11_d13_t9_b5", False, MODES[0]),
        ("u16_o5_d12_t40_b2", False, MODES[-1]),
    ],
)
def test_weights_of_the_original_give_its_numbers_and_gradients(name, unroll, mode):
    data = np.load(ROOT / "tests" / "data" / f"decoder_{name}.npz")
    units, output_dim, D, T, B = data["cfg"]
    layer, _ = random_layer(D, units, output_dim, unroll=unroll)
    layer.set_weights([data[f"w_{name}"] for name in NAMES])
    assert [variable.name for variable in layer.variables] == NAMES

    def loss(layer, x):
        y = layer(x, training=True)  # as in training: the scores are computed again
        return ops.mean(keras.losses.categorical_crossentropy(data["y_true"], y))

    called = layer(data["x"], return_attention_scores=True)
    assert_close(called, (data["y64"], data["att64"]), atol=3e-6)
    value, gradients = loss_and_gradients(layer, loss, data["x"], mode)
    assert value == pytest.approx(float(data["loss64"]), abs=3e-6)
    for name, gradient in zip(["x", *NAMES], gradients, strict=True):
        expected = data[f"g64_{name}"]
        tolerance = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=tolerance, err_msg=name)


# The decoder in NumPy

VECTORS, STATE = random_input(T=6, D=5, seed=2), random_input(T=7, seed=5)[:, :, 0]
HIDDEN = np.where(IDS == IDS[:, :1], -1, IDS)  # the first symbol of each row, wherever it stands
LOGITS = {"output_activation": "linear"}
DROPOUT = {"dropout": 0.4, "seed": 8}
# What a user does: the arguments of the layer, those of the call. A new one is a row here, and an
# argument of numpy_decoder.
CASES = {
    "as many steps as it reads": ({}, {}),
    "more steps": ({"output_length": 9}, {}),
    "fewer steps": ({"output_length": 2}, {}),
    "the call's length before the layer's": ({"output_length": 3}, {"output_length": 2}),
    "the targets' length before both": ({"output_length": 3}, {"output_length": 2, "targets": IDS}),
    "one input step": ({"output_length": 3}, {"encoded": random_input(T=1)}),
    "integers as input": ({}, {"encoded": random_input().round().astype("int32")}),
    "the scores in place of the outputs": ({"return_probabilities": True}, {"targets": IDS}),
    "vectors as targets": ({}, {"targets": VECTORS}),
    "ids as targets": ({}, {"targets": IDS}),
    "ids of eight bits": ({}, {"targets": IDS.astype("uint8")}),
    "some ids hidden by -1": ({}, {"targets": HIDDEN}),
    "another first state": ({}, {"initial_state": STATE}),
    "another first state, and targets": ({}, {"initial_state": STATE, "targets": IDS}),
    "other activations": ({"activation": "relu", "output_activation": "sigmoid"}, {}),
    "logits, fed as probabilities": ({**LOGITS, "feedback": "softmax"}, {}),
    "logits, the best one fed": ({**LOGITS, "feedback": "argmax"}, {}),
    "a feedback of the user's own": ({"feedback": double}, {}),
    "a regression": ({**LOGITS, "o": 1}, {}),
    "a regression, and targets": ({**LOGITS, "o": 1}, {"targets": VECTORS[:, :, :1]}),
    "targets, which no feedback changes": ({"feedback": "argmax"}, {"targets": VECTORS}),
    "dropout": (DROPOUT, {"training": True}),
    "dropout, and targets": (DROPOUT, {"training": True, "targets": IDS}),
    "dropout, but no training": (DROPOUT, {"targets": VECTORS}),
}


def decoded_step_by_step(layer, steps, x, s, memory, targets=None):
    outputs, scores = [], []
    for t in range(steps):
        y, s, alpha = layer.step(x, s, memory)
        x = layer.feed(y if targets is None else targets[:, t])
        outputs.append(y)
        scores.append(alpha)
    return ops.stack(outputs, axis=1), ops.stack(scores, axis=1)


@pytest.mark.filterwarnings("error::UserWarning")  # Keras' softmax warns of one input step
@pytest.mark.parametrize(
    "how, masked",
    [({}, False), ({}, True), ({"embedding_dim": 3, "unroll": True}, True)],
    ids=["plain", "masked", "masked, embedded and unrolled"],
)
@pytest.mark.parametrize("case", CASES)
def test_calls_and_steps_give_the_outputs_and_scores_of_the_equations(case, how, masked):
    arguments, call = CASES[case]
    layer, w = random_layer(**arguments, **how, dtype="float64")
    call = {"encoded": random_input(), **call}
    if masked:  # NaN as padding: whatever stands there changes nothing
        mask = MASK[:, : call["encoded"].shape[1]]
        call |= {"mask": mask, "encoded": np.where(mask[:, :, None], call["encoded"], np.nan)}
    kept = None
    if arguments.get("dropout") and call.get("training"):
        seed = keras.random.SeedGenerator(arguments["seed"])
        ones = (ops.ones((4, n), "float64") for n in (how.get("embedding_dim", 5), 6))
        rate = arguments["dropout"]
        kept = [as_numpy(keras.random.dropout(one, rate, seed=seed)) for one in ones]
        assert all(len(np.unique(factors)) == 2 for factors in kept)

    encoded = call.pop("encoded")
    expected = numpy_decoder(w, encoded, **{**arguments, **call}, kept=kept)
    y, scores = layer(encoded, **call, return_attention_scores=True)
    assert_close((y, scores), expected, atol=10 * EXACT)
    targets, length = call.get("targets"), call.get("output_length")
    targets_shape = None if targets is None else targets.shape
    assert layer.compute_output_shape(encoded.shape, targets_shape, False, length) == y.shape
    again = layer(encoded, **call)
    if kept:
        assert np.any(as_numpy(again) != as_numpy(y))  # another call drops other entries
        return
    assert_close(again, expected[0], atol=10 * EXACT)
    if targets is None or not arguments:
        start = layer.start(encoded, call.get("mask"), call.get("initial_state"))
        stepped = decoded_step_by_step(layer, y.shape[1], *start, targets)
        assert_close(stepped, expected, atol=10 * EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "arguments, targets, mask",
    [
        ({"embedding_dim": 3, "feedback": "softmax", "output_length": 3}, None, MASK),
        ({"feedback": "argmax", "output_length": 3, "unroll": True}, None, None),
        ({"embedding_dim": 3}, HIDDEN[:, :3], MASK),
        ({}, IDS[:, :3], None),
        ({"embedding_dim": 3, "unroll": True}, VECTORS[:, :3], None),
        ({}, VECTORS[:, :3], MASK),
    ],
)
def test_training_follows_the_gradient_of_the_equations(arguments, targets, mask, mode):
    """Under keras.remat, a tensor that is closed over would silently have a wrong one."""
    arguments = {**arguments, "output_activation": "linear"}
    layer, w = random_layer(**arguments, dtype="float64")
    x = random_input() if mask is None else np.where(mask[:, :, None], random_input(), np.nan)
    factors = random_input(T=3, D=9, seed=3)  # makes the loss depend on every output and score
    call = {"targets": targets, "mask": mask}

    def loss(layer, x):
        parts = layer(x, **call, return_attention_scores=True, training=True)
        parts = ops.concatenate(parts, axis=-1)
        return ops.sum(parts * ops.cast(factors, parts.dtype))

    def expected(w, x):
        parts = numpy_decoder(w, x, **{**arguments, **call})
        return np.sum(np.concatenate(parts, axis=-1) * factors)

    value, gradients = loss_and_gradients(layer, loss, x, mode)
    assert value == pytest.approx(expected(w, x), rel=10 * EXACT)
    by_name = dict(zip(["x", *w], gradients, strict=True))
    assert mask is None or np.all(by_name["x"][~mask] == 0)  # of padding
    rng, ends = np.random.default_rng(4), []
    directions = {name: rng.normal(size=gradient.shape) for name, gradient in by_name.items()}
    for step in (1e-5, -1e-5):
        moved = {name: w[name] + step * directions[name] for name in w}
        ends.append(expected(moved, x + step * directions["x"]))
    slope = sum(np.sum(by_name[name] * direction) for name, direction in directions.items())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=10 * EXACT**0.5)


@only_tensorflow  # elsewhere Keras clips the probabilities of a Dense layer too
@pytest.mark.parametrize("targets", [None, IDS[:, :4]], ids=["free running", "targets"])
def test_a_target_of_tiny_probability_is_still_learned(targets):
    """As from a Dense layer: Keras finds the softmax's logits, so that nothing is clipped."""
    layer, _ = random_layer()
    layer.b_o.assign([0, 60, 0, 0, 0])
    y = layer(random_input(), targets)
    assert np.all(as_numpy(keras.losses.sparse_categorical_crossentropy(0 * IDS[:, :4], y)) > 30)


@pytest.mark.parametrize("unroll", [False, True])
def test_in_a_remat_scope_the_gradients_are_the_same(unroll):
    results = []
    for scope in contextlib.nullcontext(), keras.RematScope(mode="full"):
        with scope:
            layer, _ = random_layer(unroll=unroll, embedding_dim=3)
            x = random_input().astype("float32")
            value, gradients = loss_and_gradients(layer, lambda layer, x: ops.sum(layer(x) ** 2), x)
            results.append([value, *gradients])
    assert_close(*results)


@pytest.mark.parametrize("feedback", [None, "argmax"])
@pytest.mark.parametrize("targets", [None, IDS[:0], VECTORS[:0]], ids=["free", "ids", "vectors"])
@pytest.mark.parametrize("masked", [False, True])
def test_of_no_samples_there_are_no_outputs(masked, targets, feedback):
    layer, _ = random_layer(feedback=feedback, output_length=6)
    x, mask = random_input(B=0), MASK[:0] if masked else None
    parts = list(layer(x, targets, mask=mask, return_attention_scores=True))
    parts += decoded_step_by_step(layer, 6, *layer.start(x, mask))
    steps = 6 if targets is None else targets.shape[1]
    assert [part.shape for part in parts] == [(0, steps, 5), (0, steps, 4), (0, 6, 5), (0, 6, 4)]


@only_tensorflow
def test_a_prediction_has_second_derivatives():
    """Only in training is a tanh computed again, which has none on TensorFlow."""
    layer, _ = random_layer()
    x = tf.constant(random_input())
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = ops.sum(layer(x) ** 2)
        slope = inner.gradient(loss, x)
    assert np.any(as_numpy(outer.gradient(slope, x)))
