"""The layer against the original's numbers, an independent NumPy decoder and its own promises.

Runs on whichever backend KERAS_BACKEND names.
"""

import ast
import doctest
import gc
import pathlib
import re
import subprocess
import sys
import warnings
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import attention_decoder
from attention_decoder import AttentionCell, AttentionDecoder

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)  # lets a float64 layer be one
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes most of the time
else:
    import torch

ROOT = pathlib.Path(__file__).parent.parent
ORIGINAL = sorted((ROOT / "tests" / "data").glob("*.npz"))
MODES = {"tensorflow": ["eager", "graph", "xla"], "jax": ["xla"], "torch": ["eager"]}[BACKEND]
# Keras' own matmul (PyTorch) and tanh (JAX) turn float64 into float32.
EXACT = 1e-12 if BACKEND == "tensorflow" else 1e-6
NAMES = (
    "V_a W_a U_a b_a C_r U_r W_r b_r C_z U_z W_z b_z C_p U_p W_p b_p C_o U_o W_o b_o W_s".split()
)

only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow alone")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch alone")


# An independent decoder, written from the equations, one sample and one input step at a time.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def numpy_decoder(
    w, h, steps_out, targets=None, mask=None, activation=np.tanh, output=softmax, feedback=None,
    initial_state=None, kept=None,
):  # fmt: skip
    """Returns outputs and attention weights for h (B, T, D), float64; targets as vectors.

    `kept` are factors of x_t (B, m) and of c_t (B, D), the same for all t.
    """
    outputs, scores = [], []
    for sample in range(len(h)):
        steps = [j for j in range(h.shape[1]) if mask is None or mask[sample, j]]
        s = np.tanh(h[sample, steps[0]] @ w["W_s"])
        s = s if initial_state is None else initial_state[sample]
        x = np.zeros(w["b_o"].shape)
        for t in range(steps_out):
            x = x @ w["E"] if "E" in w else x
            e = [
                w["V_a"] @ np.tanh(s @ w["W_a"] + h[sample, j] @ w["U_a"] + w["b_a"]) for j in steps
            ]
            alpha = np.zeros(h.shape[1])
            alpha[steps] = softmax(np.array(e))
            c = sum(alpha[j] * h[sample, j] for j in steps)
            if kept:
                x, c = x * kept[0][sample], c * kept[1][sample]

            def gate(g, state, x=x, c=c):
                return x @ w[f"W_{g}"] + state @ w[f"U_{g}"] + c @ w[f"C_{g}"] + w[f"b_{g}"]

            r, z = sigmoid(gate("r", s)), sigmoid(gate("z", s))
            p = activation(gate("p", r * s))
            y = output(gate("o", s))
            s = (1 - z) * s + z * p
            if targets is not None:
                x = targets[sample, t]
            else:
                x = feedback(y) if feedback else y
            outputs.append(y)
            scores.append(alpha)
    shape = (len(h), steps_out, -1)
    return np.reshape(outputs, shape), np.reshape(scores, shape)


def random_layer(D=6, u=7, o=5, **kwargs):
    """Returns a built layer with random weights, biases too, and the weights by name."""
    layer = AttentionDecoder(u, o, **kwargs)
    layer.build((None, 4, D))
    rng = np.random.default_rng(0)
    weights = {v.name: rng.normal(0, 0.6, v.shape) for v in layer.weights}
    layer.set_weights(list(weights.values()))
    return layer, weights


def random_input(B=3, T=4, D=6, seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D))


def as_numpy(*tensors):
    arrays = [ops.convert_to_numpy(ops.cast(tensor, "float64")) for tensor in tensors]
    return arrays if len(arrays) > 1 else arrays[0]


def run(function, mode):
    """Returns function(), as arrays, in one of the MODES."""
    if BACKEND == "tensorflow" and mode != "eager":
        function = tf.function(function, jit_compile=mode == "xla")
    elif mode == "xla":
        function = jax.jit(function)
    return as_numpy(*function())


def loss_and_gradients(layer, loss, x, mode="eager"):
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
        inputs = [x] + [v.value for v in layer.weights]
        gradients = torch.autograd.grad(value, inputs)
    return float(value), as_numpy(*gradients)


# The original's numbers


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ORIGINAL, ids=lambda path: path.stem)
def test_equals_the_original(path, mode, unroll):
    data = np.load(path)
    units, output_dim, D, T, B = data["cfg"]
    if unroll and mode == "xla" and T > 10:
        pytest.skip("takes long to compile: unrolling is for short sequences")
    layer = AttentionDecoder(units, output_dim, unroll=unroll)
    layer.build((None, T if unroll else None, D))
    assert [v.name for v in layer.weights] == NAMES
    layer.set_weights([data[f"w_{name}"] for name in NAMES])

    y, scores = as_numpy(*layer(data["x"], return_attention_scores=True))
    np.testing.assert_allclose(y, data["y64"], atol=3e-6)
    np.testing.assert_allclose(scores, data["att64"], atol=3e-6)

    def loss(layer, x):
        y = layer(x, training=True)  # as in training: the scores are computed again
        return ops.mean(keras.losses.categorical_crossentropy(data["y_true"], y))

    value, gradients = loss_and_gradients(layer, loss, data["x"], mode)
    assert value == pytest.approx(float(data["loss64"]), abs=3e-6)
    for name, gradient in zip(["x", *NAMES], gradients, strict=True):
        expected = data[f"g64_{name}"]
        np.testing.assert_allclose(
            gradient, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name
        )


# The equations


MASK = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool)
IDS = np.random.default_rng(3).integers(5, size=(3, 9))


def as_ids(array):
    """A tensor: in an eager call, Keras before 3.4 turns NumPy's integers into floats."""
    return ops.convert_to_tensor(array, dtype="int32")


@pytest.mark.parametrize("embedding_dim, unroll", [(None, False), (None, True), (3, False)])
@pytest.mark.parametrize("fed", [None, "vectors", "ids"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps_out", [None, 2, 9])
def test_equals_numpy(steps_out, masked, fed, embedding_dim, unroll):
    layer, w = random_layer(
        output_length=steps_out, embedding_dim=embedding_dim, unroll=unroll, dtype="float64"
    )
    x, mask = random_input(), MASK if masked else None
    vectors = targets = None
    if fed == "vectors":
        vectors = targets = random_input(T=steps_out or 4, D=5, seed=2)
    elif fed == "ids":
        targets = as_ids(IDS[:, : steps_out or 4])
        vectors = np.eye(5)[IDS[:, : steps_out or 4]]
    expected = numpy_decoder(w, x, steps_out or 4, vectors, mask)
    y, scores = as_numpy(*layer(x, targets=targets, mask=mask, return_attention_scores=True))
    np.testing.assert_allclose(y, expected[0], atol=EXACT)
    np.testing.assert_allclose(scores, expected[1], atol=EXACT)
    np.testing.assert_allclose(
        as_numpy(layer(x, targets=targets, mask=mask)), expected[0], atol=EXACT
    )


def test_both_activations_are_used():
    layer, w = random_layer(activation="relu", output_activation="sigmoid", dtype="float64")
    x = random_input()
    expected, _ = numpy_decoder(w, x, 4, activation=lambda p: np.maximum(p, 0), output=sigmoid)
    np.testing.assert_allclose(as_numpy(layer(x)), expected, atol=EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unroll, fed", [(False, None), (True, None), (False, "ids")])
def test_gradients_equal_finite_differences(fed, unroll, mode):
    kwargs = {"embedding_dim": 3, "feedback": "softmax", "output_activation": "linear"}
    layer, w = random_layer(output_length=3, unroll=unroll, dtype="float64", **kwargs)
    x, mask = random_input(), MASK
    targets = as_ids(IDS[:, :3]) if fed else None
    vectors = np.eye(5)[IDS[:, :3]] if fed else None
    factors = random_input(T=3, D=9, seed=3)  # makes the loss depend on every output and score

    def loss(layer, x):
        y, scores = layer(
            x, targets=targets, mask=mask, return_attention_scores=True, training=True
        )
        parts = ops.concatenate([y, scores], axis=-1)
        return ops.sum(parts * ops.cast(factors, parts.dtype))

    _, gradients = loss_and_gradients(layer, loss, x, mode)
    for name, gradient in zip(["x", *w], gradients, strict=True):
        direction = np.random.default_rng(4).normal(size=gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = {n: value + step * direction if n == name else value for n, value in w.items()}
            moved_x = x + step * direction if name == "x" else x
            parts = numpy_decoder(
                moved, moved_x, 3, vectors, mask, output=lambda y: y, feedback=softmax
            )
            values.append(np.sum(np.concatenate(parts, axis=-1) * factors))
        difference = (values[0] - values[1]) / 2e-5
        assert np.sum(gradient * direction) == pytest.approx(
            difference, rel=EXACT**0.5, abs=EXACT
        ), name


def test_teacher_forcing_with_its_own_outputs_is_free_running():
    layer, _ = random_layer(dtype="float64")
    x = random_input()
    y = as_numpy(layer(x))
    np.testing.assert_allclose(as_numpy(layer(x, y)), y, atol=EXACT)
    changed = np.copy(y)
    changed[:, 2] += 1  # step 3's target is first fed to step 4
    forced = as_numpy(layer(x, changed))
    np.testing.assert_allclose(forced[:, :3], y[:, :3], atol=EXACT)
    assert np.abs(forced[:, 3] - y[:, 3]).max() > 1e-3


def test_integers_are_cast_to_the_compute_dtype():
    layer, _ = random_layer()
    x = random_input().round()
    np.testing.assert_allclose(as_numpy(layer(x.astype("int32"))), as_numpy(layer(x)), atol=1e-6)


def test_no_call_keeps_its_batch_alive():
    """A cycle of references would, until Python's garbage collector happens to run."""
    layer, _ = random_layer()
    gc.collect()
    gc.disable()
    try:
        references = []
        for seed in range(3):
            x = ops.convert_to_tensor(random_input(seed=seed), dtype="float32")
            references.append(weakref.ref(x))
            if BACKEND == "torch":
                with torch.no_grad():  # its checkpoint keeps what a gradient may need
                    layer(x, return_attention_scores=True)
            else:
                layer(x, return_attention_scores=True)
        del x
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_without_remat(monkeypatch):
    """Keras before 3.9 has none; the numbers are the same."""
    layer, _ = random_layer()
    expected = as_numpy(layer(random_input(), training=True))
    monkeypatch.setattr(attention_decoder, "_remat", lambda function: function)
    np.testing.assert_allclose(as_numpy(layer(random_input(), training=True)), expected, atol=1e-6)


def test_return_probabilities():
    layer, w = random_layer(return_probabilities=True, dtype="float64")
    x = random_input()
    _, expected = numpy_decoder(w, x, 4)
    np.testing.assert_allclose(as_numpy(layer(x)), expected, atol=EXACT)
    assert layer(keras.Input((4, 6))).shape == (None, 4, 4)


@pytest.mark.parametrize("fed", [None, "ids"])
def test_initial_state(fed):
    layer, w = random_layer(dtype="float64")
    x, s_0 = random_input(), np.random.default_rng(5).normal(size=(3, 7))
    targets, vectors = (as_ids(IDS[:, :4]), np.eye(5)[IDS[:, :4]]) if fed else (None, None)
    expected, _ = numpy_decoder(w, x, 4, vectors, MASK, initial_state=s_0)
    y = layer(x, targets=targets, mask=MASK, initial_state=ops.convert_to_tensor(s_0))
    np.testing.assert_allclose(as_numpy(y), expected, atol=EXACT)
    encoded, state = keras.Input((4, 6)), keras.Input((7,))
    model = keras.Model([encoded, state], layer(encoded, initial_state=state))
    expected, _ = numpy_decoder(w, x, 4, initial_state=s_0)
    np.testing.assert_allclose(model.predict([x, s_0], verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("embedding_dim", [None, 3])
@pytest.mark.parametrize("fed", [None, "ids"])
def test_dropout_is_the_same_for_all_steps(fed, embedding_dim):
    layer, w = random_layer(dropout=0.4, seed=8, embedding_dim=embedding_dim, dtype="float64")
    x = random_input()
    targets, vectors = (as_ids(IDS[:, :4]), np.eye(5)[IDS[:, :4]]) if fed else (None, None)
    seed = keras.random.SeedGenerator(8)
    kept = [
        as_numpy(keras.random.dropout(ops.ones((3, width), dtype="float64"), 0.4, seed=seed))
        for width in (embedding_dim or 5, 6)
    ]
    assert all(len(np.unique(factors)) == 2 for factors in kept)
    expected, alpha = numpy_decoder(w, x, 4, vectors, kept=kept)
    y, scores = as_numpy(*layer(x, targets=targets, training=True, return_attention_scores=True))
    np.testing.assert_allclose(y, expected, atol=EXACT)
    np.testing.assert_allclose(scores, alpha, atol=EXACT)
    again = as_numpy(layer(x, targets=targets, training=True))  # with other ones
    assert np.abs(again - expected).max() > 1e-3
    expected, _ = numpy_decoder(w, x, 4, vectors)
    np.testing.assert_allclose(as_numpy(layer(x, targets=targets)), expected, atol=EXACT)


@only_tensorflow  # elsewhere Keras clips the probabilities of a Dense layer too
@pytest.mark.parametrize("fed", [None, "ids"])
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_for_a_target_of_tiny_probability_is_that_of_a_dense_layer(mode, fed):
    layer, w = random_layer()
    layer.cell.b_o.assign([0, 60, 0, 0, 0])
    y_true = np.eye(5)[np.zeros((3, 4), int)]

    def loss(layer, x):
        targets = as_ids(IDS[:, :4]) if fed else None
        return ops.mean(keras.losses.categorical_crossentropy(y_true, layer(x, targets=targets)))

    value, gradients = loss_and_gradients(layer, loss, random_input().astype("float32"), mode)
    assert value > 30
    gradient = dict(zip(["x", *w], gradients))["b_o"]
    assert gradient[0] == pytest.approx(-1, rel=1e-3)


# Feedback, embedding, step by step

FEEDBACK = {
    None: None,
    "softmax": softmax,
    "argmax": lambda y: np.eye(len(y))[np.argmax(y)],
    "double": lambda y: 2 * y,
}


@keras.saving.register_keras_serializable("test")
def double(y):
    return 2 * y


def feedback_layer(feedback, output_activation="linear", **kwargs):
    feedback = double if feedback == "double" else feedback
    return random_layer(feedback=feedback, output_activation=output_activation, **kwargs)


@pytest.mark.parametrize(
    "embedding_dim, unroll, mode",
    [
        (None, False, "eager"),
        (3, True, "eager"),
        *([(None, True, "xla"), (3, False, "xla")] if "xla" in MODES else []),
    ],
)
@pytest.mark.parametrize("feedback", FEEDBACK)
def test_feedback_equals_numpy(feedback, embedding_dim, unroll, mode):
    layer, w = feedback_layer(feedback, embedding_dim=embedding_dim, unroll=unroll, dtype="float64")
    x = random_input()
    outputs, scores = run(
        lambda: layer(x, mask=MASK, return_attention_scores=True, output_length=5), mode
    )
    expected = numpy_decoder(w, x, 5, mask=MASK, output=lambda y: y, feedback=FEEDBACK[feedback])
    np.testing.assert_allclose(outputs, expected[0], atol=10 * EXACT, rtol=EXACT)
    np.testing.assert_allclose(scores, expected[1], atol=10 * EXACT)
    # Targets are fed as they are.
    targets = random_input(D=5, seed=2)
    expected, _ = numpy_decoder(w, x, 4, targets, output=lambda y: y)
    np.testing.assert_allclose(as_numpy(layer(x, targets=targets)), expected, atol=EXACT)


@pytest.mark.parametrize("zero_input", [False, True])  # gives logits of exactly 0 in a new layer
def test_softmax_feedback_is_the_softmax_layer(zero_input):
    logits, probabilities = (
        AttentionDecoder(7, 5, output_activation="linear", feedback="softmax"),
        AttentionDecoder(7, 5),
    )
    x = random_input() * (not zero_input)
    logits.build(x.shape)
    probabilities(x)
    logits.set_weights(probabilities.get_weights())
    y = as_numpy(ops.softmax(logits(x, output_length=9)))
    np.testing.assert_allclose(y, as_numpy(probabilities(x, output_length=9)), atol=1e-6)


@pytest.mark.parametrize("embedding_dim", [None, 3])
def test_argmax_feedback_feeds_its_own_best_symbols(embedding_dim):
    layer, _ = feedback_layer("argmax", embedding_dim=embedding_dim)
    x = random_input()
    free = as_numpy(layer(x, output_length=9))
    targets = np.zeros((3, 9), int)
    for _ in range(9):  # each time one more step is right
        y = as_numpy(layer(x, targets=as_ids(targets)))
        targets = y.argmax(axis=-1)
    assert len(np.unique(targets)) > 1
    np.testing.assert_allclose(y, free, atol=1e-6)


def test_embedding_is_a_layer_without_whose_W_is_E_W():
    layer, w = random_layer(embedding_dim=3)
    assert [v.name for v in layer.weights] == [*NAMES, "E"]
    assert {w[name].shape for name in ("W_r", "W_z", "W_p")} == {(3, 7)}
    assert w["W_o"].shape == w["E"].T.shape == (3, 5)
    plain, _ = random_layer()
    plain.set_weights([w["E"] @ w[n] if n[:2] == "W_" and n[2] in "rzpo" else w[n] for n in NAMES])
    x = random_input()
    for targets in (None, random_input(D=5, seed=2), as_ids(IDS)):
        np.testing.assert_allclose(
            as_numpy(layer(x, targets=targets)), as_numpy(plain(x, targets=targets)), atol=1e-5
        )


@pytest.mark.parametrize("embedding_dim", [None, 3])
def test_the_id_minus_1_feeds_zeros(embedding_dim):
    layer, w = random_layer(embedding_dim=embedding_dim)
    ids = np.array(IDS[:, :4])
    ids[0, 1] = ids[2, 0] = -1
    vectors = np.eye(5)[ids] * (ids >= 0)[..., None]
    expected, _ = numpy_decoder(w, random_input(), 4, vectors)
    np.testing.assert_allclose(as_numpy(layer(random_input(), as_ids(ids))), expected, atol=1e-5)
    assert np.all(as_numpy(layer.feed(np.array([-1, 2])))[0] == 0)


def test_embedding_saves_weights():
    layer = AttentionDecoder(64, 5000, embedding_dim=32)
    layer.build((None, None, 128))
    assert layer.count_params() < 1_500_000


@pytest.mark.parametrize(
    "masked, embedding_dim, dtype",
    [(False, None, "float32"), (True, 3, "float32"), (True, None, "mixed_bfloat16")],
)
@pytest.mark.parametrize("output_activation", ["tanh", "relu"])
@pytest.mark.parametrize("feedback", FEEDBACK)
def test_stepping_gives_what_calling_gives(
    feedback, output_activation, embedding_dim, masked, dtype
):
    layer, _ = feedback_layer(feedback, output_activation, embedding_dim=embedding_dim, dtype=dtype)
    if output_activation == "relu":  # all zeros, which are fed like any other output
        layer.cell.b_o.assign([-100.0] * 5)
    x, mask = random_input(), MASK if masked else None
    initial_state = np.random.default_rng(5).normal(size=(3, 7)) if masked else None
    called = layer(
        x, mask=mask, initial_state=initial_state, return_attention_scores=True, output_length=4
    )
    assert np.all(as_numpy(called[0]) == 0) == (output_activation == "relu")
    x, s, memory = layer.start(x, mask, initial_state)
    assert np.all(as_numpy(x) == 0)
    assert len(memory) == 2 + masked and all(len(tensor) == 3 for tensor in memory)
    outputs, scores = [], []
    for _ in range(4):
        y, s, alpha = layer.step(x, s, memory)
        x = layer.feed(y)
        outputs.append(y)
        scores.append(alpha)
    tolerance = 1e-6 if dtype == "float32" else 0.05
    for expected, stepped in zip(called, (outputs, scores)):
        stepped = ops.stack(stepped, axis=1)
        assert stepped.dtype == expected.dtype
        np.testing.assert_allclose(as_numpy(stepped), as_numpy(expected), atol=tolerance)


@pytest.mark.parametrize("masked, embedding_dim", [(False, None), (True, 3)])
def test_stepping_by_ids_for_several_beams(embedding_dim, masked):
    """The best symbols by step are argmax feedback, in whatever order the rows are kept."""
    layer, _ = feedback_layer("argmax", embedding_dim=embedding_dim)
    x, mask = random_input(), MASK if masked else None
    greedy = as_numpy(layer(x, mask=mask))
    start = keras.tree.map_structure(lambda t: ops.repeat(t, 2, axis=0), layer.start(x, mask))
    x, s, memory = start
    rows = np.arange(6)  # which sample each row is of, times 2
    for t in range(4):
        y, s, _ = layer.step(x, s, memory)
        np.testing.assert_allclose(as_numpy(y), greedy[rows // 2, t], atol=1e-6)
        x = layer.feed(np.argmax(as_numpy(y), axis=-1))
        order = np.random.default_rng(t).permutation(6)
        rows = rows[order]
        x, s, memory = keras.tree.map_structure(
            lambda tensor, order=order: ops.take(tensor, order, axis=0), (x, s, memory)
        )


def test_starting_builds_the_layer():
    layer = AttentionDecoder(7, 5)
    x, s, memory = layer.start(random_input(), None)
    assert layer.step(x, s, memory)[0].shape == (3, 5)
    with pytest.raises(TypeError, match="mask"):  # not to be forgotten
        layer.start(random_input())


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
        return {"decoder": keras.saving.serialize_keras_object(self.decoder)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["decoder"]))


def test_a_model_that_decodes_until_the_end(tmp_path):
    layer, w = random_layer(feedback="argmax", embedding_dim=3)
    x, model = random_input(B=9).astype("float32"), Greedy(layer)
    mask = np.concatenate([MASK] * 3)

    def expected():
        ids = as_numpy(layer(x, mask=mask, output_length=6)).argmax(axis=-1)
        return ids * (np.cumsum(ids == 0, axis=1) == 0)

    first = model.predict((x, mask), verbose=0)
    np.testing.assert_array_equal(first, expected())
    assert 0 < np.count_nonzero(first == 0) < first.size
    assert [v.name for v in model.weights] == [v.name for v in layer.weights]
    model.set_weights([2 * value for value in w.values()])
    np.testing.assert_array_equal(model.predict((x, mask), verbose=0), expected())
    assert np.any(expected() != first)

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict((x, mask), verbose=0), expected())
    weights = []
    for decoder in layer, again.decoder:  # trained no differently after being saved and loaded
        encoded, targets = keras.Input((4, 6)), keras.Input((4,), dtype="int32")
        trained = keras.Model([encoded, targets], decoder(encoded, targets))
        trained.compile("sgd", "sparse_categorical_crossentropy")
        trained.train_on_batch([x, IDS[[0] * 9, :4]], IDS[[0] * 9, :4])
        weights.append(decoder.get_weights())
    for a, b, old in zip(*weights, w.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.any(a != 2 * old.astype("float32"))
    np.testing.assert_array_equal(model.predict((x, mask), verbose=0), expected())


def test_a_functional_model_of_one_step_has_the_weights(tmp_path):
    """And what would have none of them is refused."""
    layer, w = random_layer()
    x, s, memory = layer.start(random_input(), MASK)
    inputs = [keras.Input(t.shape[1:], dtype=t.dtype) for t in (x, s, *memory)]
    model = keras.Model(inputs, layer.step(*inputs[:2], tuple(inputs[2:])))
    assert [v.name for v in model.weights] == NAMES
    for factor in (1, 2):
        model.set_weights([factor * value for value in w.values()])
        expected = [as_numpy(tensor) for tensor in layer.step(x, s, memory)]
        model.save(tmp_path / "model.keras")
        for one in (model, keras.saving.load_model(tmp_path / "model.keras")):
            for tensor, array in zip(one([x, s, *memory]), expected, strict=True):
                np.testing.assert_allclose(as_numpy(tensor), array, atol=1e-6)
    for call in (
        lambda: layer.start(keras.Input((4, 6)), None),
        lambda: layer.feed(keras.Input((5,))),
    ):
        with pytest.raises(ValueError, match="must be given tensors, .* write a keras.Model with"):
            call()


@only_tensorflow
def test_a_step_of_many_symbols_copies_no_large_weights():
    """None is joined with others or, under mixed precision, cast but for the rows it needs."""
    o = 5000
    layer = AttentionDecoder(7, o, embedding_dim=3, dtype="mixed_bfloat16")
    encoded = ops.convert_to_tensor(random_input(), dtype="float32")
    _, s, memory = layer.start(encoded, None)

    @tf.function
    def step(ids, s):
        return layer.step(layer.feed(ids), s, memory)

    graph = step.get_concrete_function(ops.convert_to_tensor([1, 2, 3]), s).graph
    made = {
        (operation.type, *output.shape)
        for operation in graph.get_operations()
        for output in operation.outputs
        if output.shape.rank == 2
    }
    assert ("MatMul", 3, o) in made
    large = {kind for kind, *shape in made if max(filter(None, shape), default=0) >= o}
    assert "ConcatV2" not in large and ("Cast", o, 3) not in made


@pytest.mark.parametrize("fed", [None, "ids"])
def test_what_only_training_needs_is_left_out_without_it(fed, monkeypatch):
    layer, _ = random_layer()
    calls = []

    def remat(function):
        calls.append(function)
        return function

    monkeypatch.setattr(attention_decoder, "_remat", remat)
    targets = as_ids(IDS[:, :4]) if fed else None
    layer(random_input(), targets=targets)
    x, s, memory = layer.start(random_input(), None)
    layer.step(x, s, memory)
    assert not calls
    layer(random_input(), targets=targets, training=True)
    assert calls


def test_under_teacher_forcing_the_readout_is_made_once_for_all_steps(monkeypatch):
    layer, _ = random_layer()
    shapes = []
    read_out = AttentionCell.read_out

    def spy(cell, x, s, c):
        shapes.append([tuple(tensor.shape) for tensor in (x, s, c)])
        return read_out(cell, x, s, c)

    monkeypatch.setattr(AttentionCell, "read_out", spy)
    layer(random_input(), as_ids(IDS))
    assert shapes == [[(3, 9, 5), (3, 9, 7), (3, 9, 6)]]


def test_logits_decode_as_well_free_running_as_under_teacher_forcing():
    """Reversed sequences of 3 to 6 symbols, padded with 0, from a loss that takes logits."""
    keras.utils.set_random_seed(0)
    lengths = np.random.randint(3, 7, size=(4000, 1))
    x = np.where(np.arange(6) < lengths, np.random.randint(1, 8, size=(4000, 6)), 0)
    y = np.take_along_axis(x, (lengths - 1 - np.arange(6)) % 6, axis=1)
    symbols, targets = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    embedded = keras.layers.Embedding(8, 32, mask_zero=True)(symbols)
    encoded = keras.layers.LSTM(64, return_sequences=True)(embedded)
    layers = {
        feedback: AttentionDecoder(64, 8, output_activation="linear", feedback=feedback)
        for feedback in ("softmax", "argmax", None)
    }
    forced = keras.Model([symbols, targets], layers["softmax"](encoded, targets))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    forced.compile(keras.optimizers.Adam(0.01), loss)
    forced.fit([x[1000:], y[1000:]], y[1000:], batch_size=64, epochs=6, verbose=0)

    def right(model, *inputs):
        predicted = as_numpy(model([array[:1000] for array in inputs])).argmax(axis=-1)
        return np.mean(np.all(predicted == y[:1000], axis=1))

    assert right(forced, x, y) >= 0.95
    accuracy = {}
    for feedback, layer in layers.items():
        free = keras.Model(symbols, layer(encoded))
        layer.set_weights(layers["softmax"].get_weights())
        accuracy[feedback] = right(free, x)
    assert accuracy["softmax"] >= 0.95 and accuracy["argmax"] >= 0.95
    assert accuracy[None] < 0.5  # as the documentation of output_activation warns


# Masks


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [0.0, 7.0, np.nan, np.inf])
def test_padding_changes_nothing(padding, side):
    layer, _ = random_layer(dtype="float64", output_length=3)
    x = random_input(T=4)
    alone, alone_scores = as_numpy(*layer(x, return_attention_scores=True))
    width = (2, 0) if side == "left" else (0, 2)
    padded = np.pad(x, [(0, 0), width, (0, 0)], constant_values=padding)
    mask = np.pad(np.ones((3, 4), bool), [(0, 0), width])
    y, scores = as_numpy(*layer(padded, mask=mask, return_attention_scores=True))
    np.testing.assert_allclose(y, alone, atol=EXACT)
    np.testing.assert_allclose(scores[:, :, mask[0]], alone_scores, atol=EXACT)
    assert np.all(scores[:, :, ~mask[0]] == 0)

    def loss(layer, x):
        return ops.sum(layer(x, mask=mask) ** 2)

    _, (g_x, *gradients) = loss_and_gradients(layer, loss, padded)
    assert np.all(g_x[:, ~mask[0]] == 0)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_a_sample_of_padding_alone_is_finite_and_disturbs_no_other():
    layer, _ = random_layer(dtype="float64")
    x = random_input()
    expected = as_numpy(layer(x))
    mask = np.array([[1] * 4, [0] * 4, [1] * 4], bool)
    y, scores = as_numpy(*layer(x, mask=mask, return_attention_scores=True))
    assert np.all(np.isfinite(y)) and np.all(scores[1] == 0)
    np.testing.assert_allclose(y[[0, 2]], expected[[0, 2]], atol=EXACT)

    def loss(layer, x):
        return ops.sum(layer(x, mask=mask) ** 2)

    _, gradients = loss_and_gradients(layer, loss, x)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_the_mask_is_taken_and_ends_here(forced, explicit):
    """The one that is given or, where it is none, that of the layer before."""
    symbols, targets = keras.Input((None,), dtype="int32"), keras.Input((3, 5))
    mask = ops.not_equal(symbols, 0)
    if explicit:
        embedded = keras.layers.Embedding(9, 4)(symbols)
        encoded = keras.layers.GRU(6, return_sequences=True)(embedded, mask=mask)
    else:
        encoded = keras.layers.Embedding(9, 6, mask_zero=True)(symbols)
    decoder = AttentionDecoder(7, 5, output_length=3)
    outputs, scores = decoder(
        encoded,
        targets=targets if forced else None,
        mask=mask if explicit else None,
        return_attention_scores=True,
    )
    assert getattr(outputs, "_keras_mask", None) is None
    model = keras.Model([symbols, targets] if forced else [symbols], [outputs, scores])
    fed = [random_input(B=2, T=3, D=5)] if forced else []
    padded = np.array([[3, 5, 2, 0, 0], [4, 1, 6, 0, 0]])
    y, scores = as_numpy(*model([padded, *fed]))
    alone, alone_scores = as_numpy(*model([padded[:, :3], *fed]))
    np.testing.assert_allclose(y, alone, atol=1e-6)
    np.testing.assert_allclose(scores[:, :, :3], alone_scores, atol=1e-6)
    assert np.all(scores[:, :, 3:] == 0)
    # A mask that leaked to the loss would drop the last two output steps of three.
    result = decoder(keras.layers.Masking()(np.zeros((2, 3, 6))))
    assert getattr(result, "_keras_mask", None) is None


# Shapes


@pytest.mark.parametrize("output_length", [None, 3])
@pytest.mark.parametrize("T", [None, 4])
@pytest.mark.parametrize("forced", [False, True])
def test_symbolic_shapes_and_unknown_lengths(T, output_length, forced):
    layer, w = random_layer(output_length=output_length, dtype="float64")
    steps_out = 3 if forced else output_length or T
    encoded = keras.Input((T, 6), dtype="float64")
    targets = keras.Input((steps_out, 5), dtype="float64")
    outputs, scores = layer(
        encoded, targets=targets if forced else None, return_attention_scores=True
    )
    assert outputs.shape == (None, steps_out, 5)
    assert scores.shape == (None, steps_out, T)
    model = keras.Model([encoded, targets] if forced else [encoded], [outputs, scores])
    for length in {T or 2, T or 5}:
        x, fed = random_input(T=length), random_input(T=3, D=5, seed=2)
        expected = numpy_decoder(
            w, x, 3 if forced else output_length or length, fed if forced else None
        )
        y, scores = model.predict(
            [x, fed] if forced else [x], verbose=0
        )  # which casts them to float32
        np.testing.assert_allclose(y, expected[0], atol=1e-6)
        np.testing.assert_allclose(scores, expected[1], atol=1e-6)


def test_the_length_of_the_targets_or_of_the_call_then_the_layers_then_the_inputs():
    x, targets = random_input(), random_input(T=6, D=5, seed=2)
    for own, called, fed, expected in (
        (None, None, None, 4),
        (None, None, targets, 6),
        (3, None, None, 3),
        (3, None, targets, 6),
        (None, 2, None, 2),
        (3, 2, None, 2),
        (3, 2, targets, 6),
    ):
        layer, w = random_layer(output_length=own)
        y = as_numpy(layer(x, targets=fed, output_length=called))
        np.testing.assert_allclose(y, numpy_decoder(w, x, expected, fed)[0], atol=1e-5)
        symbolic = [None if array is None else keras.Input(array.shape[1:]) for array in (x, fed)]
        called = called if called is None else int(called)
        assert layer(*symbolic, output_length=called).shape == (None, expected, 5)


@pytest.mark.parametrize("unroll", [False, True])
def test_batches_padded_to_lengths_of_their_own(unroll):
    """One model trains on targets of any length, or unrolled, one layer in several models."""
    layer, w = random_layer(unroll=unroll, embedding_dim=3)
    steps = 4 if unroll else None
    encoded, targets = keras.Input((None, 6)), keras.Input((steps,), dtype="int32")
    model = keras.Model([encoded, targets], layer(encoded, targets))
    for T_in, T_out in ((5, 4), (3, 4)) if unroll else ((5, 4), (3, 7)):
        x, ids = random_input(T=T_in), IDS[:, :T_out]
        expected, _ = numpy_decoder(w, x, T_out, np.eye(5)[ids])
        np.testing.assert_allclose(model.predict([x, ids], verbose=0), expected, atol=1e-5)


# Configuration, saving, weights

EVERYTHING = {
    "units": 7,
    "output_dim": 5,
    "activation": "relu",
    "return_probabilities": True,
    "output_length": 3,
    "output_activation": "sigmoid",
    "feedback": "softmax",
    "embedding_dim": 4,
    "dropout": 0.3,
    "seed": 5,
    "unroll": True,
    "kernel_initializer": "he_normal",
    "recurrent_initializer": "lecun_uniform",
    "bias_initializer": "ones",
    "kernel_regularizer": "l1",
    "recurrent_regularizer": "l2",
    "bias_regularizer": keras.regularizers.L2(0.5),
    "kernel_constraint": "non_neg",
    "recurrent_constraint": keras.constraints.MaxNorm(3),
    "bias_constraint": "unit_norm",
    "name": "decoder",
    "dtype": "float64",
    "trainable": False,
}


def test_the_config_holds_every_argument():
    layer = AttentionDecoder(**EVERYTHING)
    config = layer.get_config()
    assert config.keys() == EVERYTHING.keys()
    default = AttentionDecoder(1, 1).get_config()
    assert all(config[key] != default[key] for key in config)
    again = AttentionDecoder.from_config(config)
    assert again.get_config() == config
    cell = again.cell
    assert cell.kernel_regularizer.l1 > 0 and cell.bias_regularizer.l2 == 0.5
    assert cell.trainable == again.trainable and cell.dtype_policy == again.dtype_policy


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_feedback_survives_the_config(feedback):
    layer, _ = feedback_layer(feedback)
    again = AttentionDecoder.from_config(layer.get_config())
    assert again.feedback == layer.feedback


def small_model(**kwargs):
    inputs = keras.Input((4, 6))
    hidden = AttentionDecoder(7, 6, **kwargs)(inputs)
    return keras.Model(inputs, AttentionDecoder(8, 5, **kwargs)(hidden))


NEW = {"feedback": "argmax", "embedding_dim": 3, "output_length": 5}


@pytest.mark.parametrize("kwargs", [{}, {"unroll": True, **NEW}], ids=["plain", "new"])
def test_two_layers_in_one_model_clone_and_load(kwargs, tmp_path):
    model = small_model(**kwargs)
    x = random_input().astype("float32")
    expected = model.predict(x, verbose=0)
    clone = keras.models.clone_model(model)
    assert np.abs(clone.predict(x, verbose=0) - expected).max() > 1e-4
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone.predict(x, verbose=0), expected, atol=1e-6)

    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import keras, numpy as np, attention_decoder\n"
        f"model = keras.saving.load_model({str(tmp_path / 'model.keras')!r}, safe_mode=True)\n"
        f"y = model.predict(np.load({str(tmp_path / 'x.npy')!r}), verbose=0)\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, y)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("seed", [None, 0, "generator"])
def test_matrices_of_one_shape_start_different(seed):
    seed = keras.random.SeedGenerator(0) if seed == "generator" else seed
    layer = AttentionDecoder(
        6,
        6,
        recurrent_initializer=keras.initializers.Orthogonal(seed=seed),
        bias_initializer=keras.initializers.RandomNormal(seed=seed),
    )
    layer.build((None, 4, 6))
    arrays = as_numpy(*layer.weights)
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            assert a.shape != b.shape or np.abs(a - b).max() > 1e-3


def test_default_initializers():
    layer = AttentionDecoder(150, 50)
    layer.build((None, 5, 150))
    w = {v.name: as_numpy(v) for v in layer.weights}
    assert layer.count_params() == 363_900 - 4 * 150 * (50 + 150 + 1)
    for name, value in w.items():
        if name.startswith("b_"):
            assert np.all(value == 0)
        elif name in ("V_a", "W_a", "U_a"):
            limit = np.sqrt(6 / (300 if value.ndim == 2 else 2 * 150))
            assert 0.9 * limit < np.abs(value).max() <= limit
        else:
            product = value @ value.T if value.shape[0] < value.shape[1] else value.T @ value
            np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)


@pytest.mark.parametrize("kind", ["kernel", "recurrent", "bias"])
def test_each_kind_has_its_own_regularizer_and_constraint(kind):
    members = {"kernel": {"V_a", "W_a", "U_a"}, "bias": {n for n in NAMES if n.startswith("b_")}}
    members["recurrent"] = set(NAMES) - members["kernel"] - members["bias"]
    layer, w = random_layer(**{f"{kind}_regularizer": keras.regularizers.L1(0.5)})
    layer(random_input())
    expected = 0.5 * sum(np.abs(w[name]).sum() for name in members[kind])
    assert float(sum(layer.losses)) == pytest.approx(expected, rel=1e-5)
    layer, _ = random_layer(**{f"{kind}_constraint": "non_neg"})
    assert {v.name for v in layer.weights if v.constraint is not None} == members[kind]


# Numbers of other precision


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("embedding_dim", [None, 3])
def test_precisions(embedding_dim, masked, dtype):
    layer, w = random_layer(embedding_dim=embedding_dim, feedback="softmax", dtype=dtype)
    x, kept = random_input(), [0, 2]
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool) if masked else None
    vectors_fed = random_input(T=4, D=5, seed=2)
    for targets, vectors in (
        (None, None), (vectors_fed, vectors_fed), (as_ids(IDS[:, :4]), np.eye(5)[IDS[:, :4]])
    ):  # fmt: skip
        y, scores = layer(x, targets=targets, mask=mask, return_attention_scores=True)
        for tensor in (y, scores):
            assert keras.backend.standardize_dtype(tensor.dtype) == layer.compute_dtype
            assert np.all(np.isfinite(as_numpy(tensor)))
        vectors, kept_mask = (a if a is None else a[kept] for a in (vectors, mask))
        expected, _ = numpy_decoder(w, x[kept], 4, vectors, kept_mask, feedback=softmax)
        tolerance = {"float64": EXACT, "mixed_bfloat16": 0.1}.get(dtype, 0.02)
        np.testing.assert_allclose(as_numpy(y)[kept], expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_any_size(dtype, masked):
    layer, w = random_layer(dtype=dtype)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool) if masked else None
    for size in (1e2, 1e6, 1e30):
        layer.cell.V_a.assign(size * w["V_a"])
        y, scores = as_numpy(*layer(random_input(), mask=mask, return_attention_scores=True))
        assert np.all(np.isfinite(y))
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-2)
        assert mask is None or np.all(scores[~np.repeat(mask[:, None], 4, axis=1)] == 0)


# Training


@pytest.mark.parametrize(
    "T, masked, unroll, new, jit_compile",
    [
        (None, True, False, False, True),
        (4, False, True, False, False),
        (None, False, False, True, True),
        (None, True, False, True, False),
        (4, True, True, True, True),
    ],
)
def test_fit(T, masked, unroll, new, jit_compile):
    jit_compile = {"tensorflow": jit_compile, "jax": True, "torch": False}[BACKEND]
    keras.utils.set_random_seed(0)
    symbols, targets = keras.Input((T,), dtype="int32"), keras.Input((T,), dtype="int32")
    encoded = keras.layers.Embedding(9, 16, mask_zero=masked)(symbols)
    kwargs = {"embedding_dim": 8, "feedback": "argmax"} if new else {}
    layer = AttentionDecoder(16, 9, output_length=4 if unroll else None, unroll=unroll, **kwargs)
    if new:
        model = keras.Model([symbols, targets], layer(encoded, targets))
    else:
        model = keras.Model(symbols, layer(encoded))
    model.compile(
        keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", jit_compile=jit_compile
    )
    x = np.random.default_rng(0).integers(1, 9, size=(64, 4))
    inputs = [x, x] if new else x
    before = layer.get_weights()
    losses = model.fit(inputs, x, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    for variable, old, new in zip(layer.weights, before, layer.get_weights()):
        assert np.any(old != new), variable.name


@only_tensorflow
@pytest.mark.parametrize(
    "policy, jit_compile", [("mixed_float16", False), ("mixed_bfloat16", True)]
)
def test_fit_with_mixed_precision(policy, jit_compile):
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, AttentionDecoder(7, 5, dtype=policy)(inputs))
    model.compile("adam", "categorical_crossentropy", jit_compile=jit_compile)
    y = np.eye(5)[np.random.default_rng(0).integers(5, size=(16, 4))]
    losses = model.fit(random_input(B=16), y, epochs=3, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_the_docstrings_examples():
    layer, _ = random_layer()
    names = {
        "keras": keras,
        "AttentionDecoder": AttentionDecoder,
        "decoder": layer,
        "encoded": random_input(),
        "mask": MASK,
        "output_length": 4,
    }
    tests = doctest.DocTestFinder().find(AttentionDecoder, "AttentionDecoder", globs=names)
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize().attempted == 10
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("unroll", [False, True])
def test_one_input_step_gives_no_warning(unroll):
    """Keras warns of a softmax of one number, and of variables without a gradient."""
    inputs = keras.Input((1, 6))
    layer = AttentionDecoder(7, 5, output_length=2, unroll=unroll)
    model = keras.Model(inputs, layer(inputs))
    model.compile("adam", "categorical_crossentropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(random_input(T=1), np.eye(5)[IDS[:, :2]], verbose=0)
        _, scores = layer(random_input(T=1), return_attention_scores=True)
    assert np.all(as_numpy(scores) == 1)


# Other ways to run it


@pytest.mark.skipif(not hasattr(keras, "RematScope"), reason="Keras before 3.9")
@pytest.mark.parametrize("unroll", [False, True])
def test_remat_scope(unroll):
    layer, w = random_layer(unroll=unroll, embedding_dim=3)
    with keras.RematScope(mode="full"):
        again, _ = random_layer(unroll=unroll, embedding_dim=3)

        def loss(layer, x):
            return ops.sum(layer(x) ** 2)

        value, gradients = loss_and_gradients(again, loss, random_input().astype("float32"))
    expected, expected_gradients = loss_and_gradients(layer, loss, random_input().astype("float32"))
    assert value == pytest.approx(expected, rel=1e-5)
    for name, a, b in zip(["x", *w], gradients, expected_gradients):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@only_torch
def test_torch_compile():
    x = random_input().astype("float32")
    inputs = keras.Input((4, 6))
    outputs = AttentionDecoder(7, 5, output_length=2)(inputs)
    losses = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.models.clone_model(keras.Model(inputs, outputs))
        model.compile("adam", "categorical_crossentropy", jit_compile=jit_compile)
        losses.append(model.fit(x, np.eye(5)[IDS[:, :2]], epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@only_torch
@pytest.mark.parametrize("kwargs", [{}, {"unroll": True, **NEW}], ids=["plain", "new"])
def test_torch_export(kwargs, tmp_path):
    model = small_model(**kwargs)
    x = random_input().astype("float32")
    model.export(tmp_path / "x.pt2", format="torch", verbose=False)
    loaded = torch.export.load(tmp_path / "x.pt2").module()
    y = loaded(torch.tensor(x[:1]))  # Keras exports for one sample
    np.testing.assert_allclose(as_numpy(y), model.predict(x[:1], verbose=0), atol=1e-6)
    any_batch = (({0: torch.export.Dim("batch")},),)
    exported = torch.export.export(model, (torch.tensor(x[:2]),), dynamic_shapes=any_batch)
    y = exported.module()(torch.tensor(x))
    np.testing.assert_allclose(as_numpy(y), model.predict(x, verbose=0), atol=1e-6)


@only_tensorflow
def test_mirrored_strategy_trains():
    code = """
import keras, numpy as np, tensorflow as tf
from attention_decoder import AttentionCell, AttentionDecoder
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, AttentionDecoder(7, 5)(inputs))
    model.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy")
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 4, 6)), np.eye(5)[rng.integers(5, size=(16, 4))]
losses = model.fit(x, y, batch_size=8, epochs=10, verbose=0).history["loss"]
assert losses[-1] < 0.95 * losses[0], losses
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@only_tensorflow
@pytest.mark.parametrize("kwargs", [{}, {"unroll": True, **NEW}], ids=["plain", "new"])
def test_export_serves_the_same_numbers(kwargs, tmp_path):
    model = small_model(**kwargs)
    x = random_input().astype("float32")
    model.export(tmp_path / "served", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(loaded.serve(x), model.predict(x, verbose=0), atol=1e-6)


def test_keras_own_layer_test():
    """A further check with a private helper of Keras: skipped if a later version moves it."""
    testing = pytest.importorskip("keras.src.testing")
    testing.TestCase().run_layer_test(
        AttentionDecoder,
        init_kwargs={"units": 7, "output_dim": 5, "output_length": 3},
        input_shape=(2, 4, 6),
        expected_output_shape=(2, 3, 5),
        expected_num_trainable_weights=21,
        supports_masking=True,
        run_mixed_precision_check=False,  # it asks for every weight to be cast; V_a is not
    )


# Bad input


def test_numpy_integers_are_integers():
    assert AttentionDecoder(np.int64(7), np.uint8(5)).get_config()["units"] == 7


@pytest.mark.parametrize("name", ["units", "output_dim", "output_length", "embedding_dim"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "7", True, [4], np.array([3, 4])])
def test_sizes_must_be_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got "):
        AttentionDecoder(**{"units": 7, "output_dim": 5, name: value})


@pytest.mark.parametrize("value", [0, 2.0, "7", True])
def test_the_calls_length_must_be_a_positive_integer(value):
    layer, _ = random_layer()
    for x in (random_input(), keras.Input((4, 6))):
        with pytest.raises(ValueError, match="output_length must be a positive integer, got "):
            layer(x, output_length=value)


@pytest.mark.parametrize("value", ["beam", 7, True, ["argmax"], {"softmax": 1}])
def test_feedback_must_be_none_argmax_or_an_activation(value):
    with pytest.raises((ValueError, TypeError)):
        AttentionDecoder(7, 5, feedback=value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, "0.5", None])
def test_dropout_must_be_a_rate(value):
    with pytest.raises(ValueError, match="dropout must be a number from 0 to below 1, got "):
        AttentionDecoder(7, 5, dropout=value)


def test_encoded_of_another_rank_or_width():
    with pytest.raises(ValueError, match="expected ndim=3, found ndim=2"):
        AttentionDecoder(7, 5)(keras.Input((6,)))
    layer, _ = random_layer()
    for x in (random_input(D=8), keras.Input((4, 8))):
        with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 6"):
            layer(x)
    with pytest.raises(ValueError, match="expects 1 input"):
        layer([random_input(), random_input(D=5)])


@pytest.mark.parametrize("shape, dtype", [((3, 4, 5), "int32"), ((3, 4), "float32")])
def test_neither_ids_nor_vectors(shape, dtype):
    message = r"must be integers of rank {} \(ids\) or floats of rank {} \(vectors\), got "
    layer, _ = random_layer()
    targets = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match="targets " + message.format(2, 3) + dtype):
        layer(random_input(), targets=targets)
    with pytest.raises(ValueError, match="^y " + message.format(1, 2) + dtype):
        layer.feed(targets[:, 0])


def test_an_initial_state_that_does_not_fit():
    layer, _ = random_layer()
    for shape in ((7,), (1, 7), (3, 5), (3, 7, 1)):
        with pytest.raises(ValueError, match=r"initial_state must have the shape \(3, 7\), got \("):
            layer(random_input(), initial_state=np.ones(shape, "float32"))


def test_a_call_takes_no_name_of_later_layers():
    keras.backend.clear_session()
    layer, _ = random_layer()
    layer(random_input())
    assert keras.layers.RNN(keras.layers.GRUCell(2)).name == "rnn"


def test_a_mask_that_does_not_fit():
    layer, _ = random_layer()
    for shape in ((3, 4, 1), (3, 5), (2, 4)):
        with pytest.raises(ValueError, match=r"mask must have the shape \(3, 4\), got \("):
            layer(random_input(), mask=np.ones(shape, bool))
        with pytest.raises(ValueError, match=r"mask must have the shape \(3, 4\), got \("):
            layer.start(random_input(), np.ones(shape, bool))


# The file itself

SOURCE = pathlib.Path(attention_decoder.__file__).read_text(encoding="utf-8")


def test_the_file_imports_keras_alone():
    imports = [line for line in SOURCE.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import numbers", "import keras", "from keras import ops"]
    assert "keras.src" not in SOURCE


def test_the_file_is_python_3_9():
    ast.parse(SOURCE, feature_version=(3, 9))
    assert "strict=" not in SOURCE  # an argument of zip since 3.10


def test_one_line_names_origin_copyright_and_licence():
    (line,) = [line for line in SOURCE.split("import keras")[0].splitlines() if "(c)" in line]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    year = re.search(r"Copyright \(c\) (\d+)", licence)[0]
    assert year in line and "MIT License" in line and "Attention, read along" in line
