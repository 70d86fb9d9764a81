"""The layer against the original's numbers, an independent NumPy decoder and its own promises.

Runs on whichever backend KERAS_BACKEND names.
"""

import doctest
import gc
import pathlib
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import attention_decoder
from attention_decoder import AttentionDecoder

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)  # lets a float64 layer be one

ROOT = pathlib.Path(__file__).parent.parent
ORIGINAL = sorted((ROOT / "tests" / "data").glob("*.npz"))
MODES = ["eager", "graph", "xla"] if BACKEND == "tensorflow" else ["eager"]
# Keras' own matmul (PyTorch) and tanh (JAX) turn float64 into float32.
EXACT = 1e-12 if BACKEND == "tensorflow" else 1e-6
NAMES = (
    "V_a W_a U_a b_a C_r U_r W_r b_r C_z U_z W_z b_z C_p U_p W_p b_p C_o U_o W_o b_o W_s".split()
)

only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow alone")


# An independent decoder, written from the equations, one sample and one input step at a time.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def numpy_decoder(w, h, steps_out, targets=None, mask=None, activation=np.tanh, output=softmax):
    """Returns outputs and attention weights for h (B, T, D), float64."""
    outputs, scores = [], []
    for sample in range(len(h)):
        kept = [j for j in range(h.shape[1]) if mask is None or mask[sample, j]]
        s = np.tanh(h[sample, kept[0]] @ w["W_s"])
        y = np.zeros(w["b_o"].shape)
        for t in range(steps_out):
            if targets is not None:
                y = targets[sample, t - 1] if t else np.zeros_like(y)
            e = [
                w["V_a"] @ np.tanh(s @ w["W_a"] + h[sample, j] @ w["U_a"] + w["b_a"]) for j in kept
            ]
            alpha = np.zeros(h.shape[1])
            alpha[kept] = softmax(np.array(e))
            c = sum(alpha[j] * h[sample, j] for j in kept)

            def gate(g, state, y=y, c=c):
                return y @ w[f"W_{g}"] + state @ w[f"U_{g}"] + c @ w[f"C_{g}"] + w[f"b_{g}"]

            r, z = sigmoid(gate("r", s)), sigmoid(gate("z", s))
            p = activation(gate("p", r * s))
            y = output(gate("o", s))
            s = (1 - z) * s + z * p
            outputs.append(y)
            scores.append(alpha)
    shape = (len(h), steps_out, -1)
    return np.reshape(outputs, shape), np.reshape(scores, shape)


def random_layer(D=6, u=7, o=5, seed=0, **kwargs):
    """Returns a built layer with random weights, biases too, and the weights by name."""
    layer = AttentionDecoder(u, o, **kwargs)
    layer.build((None, 4, D))
    rng = np.random.default_rng(seed)
    weights = {v.name: rng.normal(0, 0.6, v.shape) for v in layer.weights}
    layer.set_weights(list(weights.values()))
    return layer, weights


def random_input(B=3, T=4, D=6, seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D))


def as_numpy(*tensors):
    arrays = [ops.convert_to_numpy(ops.cast(tensor, "float64")) for tensor in tensors]
    return arrays if len(arrays) > 1 else arrays[0]


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
        value, (g_x, g_w) = jax.value_and_grad(compute, (0, 1))(jax.numpy.asarray(x), weights)
        gradients = [g_x, *g_w]
    else:
        import torch

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
        return ops.mean(keras.losses.categorical_crossentropy(data["y_true"], layer(x)))

    value, gradients = loss_and_gradients(layer, loss, data["x"], mode)
    assert value == pytest.approx(float(data["loss64"]), abs=3e-6)
    for name, gradient in zip(["x", *NAMES], gradients, strict=True):
        expected = data[f"g64_{name}"]
        np.testing.assert_allclose(
            gradient, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name
        )


# The equations


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps_out", [None, 2, 9])
def test_equals_numpy(steps_out, masked, forced, unroll):
    layer, w = random_layer(output_length=steps_out, unroll=unroll, dtype="float64")
    x = random_input()
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool) if masked else None
    targets = random_input(T=steps_out or 4, D=5, seed=2) if forced else None
    expected = numpy_decoder(w, x, steps_out or 4, targets, mask)
    y, scores = as_numpy(*layer(x, targets, mask=mask, return_attention_scores=True))
    np.testing.assert_allclose(y, expected[0], atol=EXACT)
    np.testing.assert_allclose(scores, expected[1], atol=EXACT)
    np.testing.assert_allclose(as_numpy(layer(x, targets, mask=mask)), expected[0], atol=EXACT)


def test_both_activations_are_used():
    layer, w = random_layer(activation="relu", output_activation="sigmoid", dtype="float64")
    x = random_input()
    expected, _ = numpy_decoder(w, x, 4, activation=lambda p: np.maximum(p, 0), output=sigmoid)
    np.testing.assert_allclose(as_numpy(layer(x)), expected, atol=EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_finite_differences(masked, forced, mode):
    layer, w = random_layer(output_length=3, dtype="float64")
    x = random_input()
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], bool) if masked else None
    targets = random_input(T=3, D=5, seed=2) if forced else None
    factors = random_input(T=3, D=9, seed=3)  # makes the loss depend on every output and score

    def loss(layer, x):
        y, scores = layer(x, targets, mask=mask, return_attention_scores=True)
        parts = ops.concatenate([y, scores], axis=-1)
        return ops.sum(parts * ops.cast(factors, parts.dtype))

    _, gradients = loss_and_gradients(layer, loss, x, mode)
    for name, gradient in zip(["x", *w], gradients, strict=True):
        direction = np.random.default_rng(4).normal(size=gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = {n: value + step * direction if n == name else value for n, value in w.items()}
            moved_x = x + step * direction if name == "x" else x
            parts = numpy_decoder(moved, moved_x, 3, targets, mask)
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
    targets = random_input(D=5, seed=2).round()
    expected = as_numpy(layer(x, targets))
    y = layer(x.astype("int32"), targets.astype("int8"))
    np.testing.assert_allclose(as_numpy(y), expected, atol=1e-6)


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
                import torch

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
    expected = as_numpy(layer(random_input()))
    monkeypatch.setattr(attention_decoder, "_remat", lambda function: function)
    np.testing.assert_allclose(as_numpy(layer(random_input())), expected, atol=1e-6)


def test_return_probabilities():
    layer, w = random_layer(return_probabilities=True, dtype="float64")
    x = random_input()
    _, expected = numpy_decoder(w, x, 4)
    np.testing.assert_allclose(as_numpy(layer(x)), expected, atol=EXACT)
    assert layer.compute_output_shape((None, 4, 6)) == (None, 4, 4)


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


@pytest.mark.parametrize("forced", [False, True])
def test_the_mask_of_the_embedding_arrives_and_ends_here(forced):
    symbols, targets = keras.Input((None,), dtype="int32"), keras.Input((3, 5))
    embedded = keras.layers.Embedding(9, 4, mask_zero=True)(symbols)
    encoded = keras.layers.GRU(6, return_sequences=True)(embedded)
    decoder = AttentionDecoder(7, 5, output_length=3)
    outputs, scores = decoder(encoded, targets if forced else None, return_attention_scores=True)
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
    steps_out = output_length or T
    encoded = keras.Input((T, 6), dtype="float64")
    targets = keras.Input((steps_out, 5), dtype="float64")
    outputs, scores = layer(encoded, targets if forced else None, return_attention_scores=True)
    assert outputs.shape == (None, steps_out, 5)
    assert scores.shape == (None, steps_out, T)
    assert layer.compute_output_shape((None, T, 6)) == (None, steps_out, 5)
    model = keras.Model([encoded, targets] if forced else [encoded], [outputs, scores])
    for length in {T or 2, T or 5}:
        x, fed = random_input(T=length), random_input(T=output_length or length, D=5, seed=2)
        expected = numpy_decoder(w, x, output_length or length, fed if forced else None)
        y, scores = model.predict(
            [x, fed] if forced else [x], verbose=0
        )  # which casts them to float32
        np.testing.assert_allclose(y, expected[0], atol=1e-6)
        np.testing.assert_allclose(scores, expected[1], atol=1e-6)


@only_tensorflow
@pytest.mark.parametrize("unroll", [False, True])
def test_output_length_holds_for_targets_of_unknown_length(unroll):
    layer, w = random_layer(output_length=3, unroll=unroll)

    @tf.function(input_signature=[tf.TensorSpec((None, None, n)) for n in (6, 5)])
    def forced(x, targets):
        return layer(x, targets)

    x, targets = random_input(), random_input(T=5, D=5, seed=2)
    expected, _ = numpy_decoder(w, x, 3, targets)
    np.testing.assert_allclose(as_numpy(forced(x, targets)), expected, atol=1e-6)


# Configuration, saving, weights

EVERYTHING = {
    "units": 7,
    "output_dim": 5,
    "activation": "relu",
    "return_probabilities": True,
    "output_length": 3,
    "output_activation": "sigmoid",
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
    assert again.kernel_regularizer.l1 > 0 and again.bias_regularizer.l2 == 0.5


def small_model(**kwargs):
    inputs = keras.Input((4, 6))
    hidden = AttentionDecoder(7, 6, **kwargs)(inputs)
    return keras.Model(inputs, AttentionDecoder(8, 5, **kwargs)(hidden))


@pytest.mark.parametrize("unroll", [False, True])
def test_two_layers_in_one_model_clone_and_load(unroll, tmp_path):
    model = small_model(unroll=unroll)
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


def test_matrices_of_one_shape_start_different():
    layer = AttentionDecoder(
        6,
        6,
        recurrent_initializer=keras.initializers.Orthogonal(),
        bias_initializer="random_normal",
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
def test_precisions(dtype, masked):
    layer, w = random_layer(dtype=dtype)
    x = random_input()
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool) if masked else None
    for targets in (None, random_input(T=4, D=5, seed=2)):
        y, scores = layer(x, targets, mask=mask, return_attention_scores=True)
        for tensor in (y, scores):
            assert keras.backend.standardize_dtype(tensor.dtype) == layer.compute_dtype
            assert np.all(np.isfinite(as_numpy(tensor)))
        kept = [0, 2]
        expected, _ = numpy_decoder(
            w, x[kept], 4, None if targets is None else targets[kept],
            None if mask is None else mask[kept],
        )  # fmt: skip
        tolerance = {"float64": EXACT, "mixed_bfloat16": 0.1}.get(dtype, 0.02)
        np.testing.assert_allclose(as_numpy(y)[kept], expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_any_size(dtype, masked):
    layer, w = random_layer(dtype=dtype)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool) if masked else None
    for size in (1e2, 1e6, 1e30):
        layer.V_a.assign(size * w["V_a"])
        y, scores = as_numpy(*layer(random_input(), mask=mask, return_attention_scores=True))
        assert np.all(np.isfinite(y))
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-2)
        assert mask is None or np.all(scores[~np.repeat(mask[:, None], 4, axis=1)] == 0)


# Training


@pytest.mark.parametrize(
    "jit_compile", {"tensorflow": [False, True], "jax": [True], "torch": [False]}[BACKEND]
)
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("T", [None, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_fit(masked, T, unroll, jit_compile):
    keras.utils.set_random_seed(0)
    symbols = keras.Input((T,), dtype="int32")
    encoded = keras.layers.Embedding(9, 16, mask_zero=masked)(symbols)
    outputs = AttentionDecoder(16, 9, output_length=4 if unroll else None, unroll=unroll)(encoded)
    model = keras.Model(symbols, outputs)
    model.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy", jit_compile=jit_compile)
    x = np.random.default_rng(0).integers(1, 9, size=(64, 4))
    y = keras.utils.to_categorical(x, 9)
    losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    before = model.layers[-1].get_weights()
    model.fit(x, y, epochs=1, verbose=0)
    for name, old, new in zip(NAMES, before, model.layers[-1].get_weights(), strict=True):
        assert np.any(old != new), name


@only_tensorflow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_with_mixed_precision(policy, jit_compile):
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, AttentionDecoder(7, 5, dtype=policy)(inputs))
    model.compile("adam", "categorical_crossentropy", jit_compile=jit_compile)
    y = np.eye(5)[np.random.default_rng(0).integers(5, size=(16, 4))]
    losses = model.fit(random_input(B=16), y, epochs=3, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_the_docstring_example_reverses_sequences():
    """Teacher forcing in training, free-running after it, padding, another output length."""
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(AttentionDecoder, "AttentionDecoder"):
        runner.run(test)
    assert runner.summarize().attempted > 10
    assert runner.summarize().failed == 0


@only_tensorflow
def test_mirrored_strategy_trains():
    code = """
import keras, numpy as np, tensorflow as tf
from attention_decoder import AttentionDecoder
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
@pytest.mark.parametrize("unroll", [False, True])
def test_export_serves_the_same_numbers(unroll, tmp_path):
    model = small_model(unroll=unroll)
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


@pytest.mark.parametrize("name", ["units", "output_dim", "output_length"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "7", True, [4], np.array([3, 4])])
def test_sizes_must_be_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got "):
        AttentionDecoder(**{"units": 7, "output_dim": 5, name: value})


@pytest.mark.parametrize("shape", [(3, 6), (3, 4, 6, 1), (3, 4, None)])
def test_wrong_input_shapes(shape):
    layer = AttentionDecoder(7, 5)
    with pytest.raises(ValueError, match="encoded must have the shape .* got "):
        layer.build(shape)
    with pytest.raises(ValueError, match="encoded must have the shape .* got "):
        AttentionDecoder(7, 5)(keras.KerasTensor(shape))


def test_another_width_than_built_for():
    layer, _ = random_layer()
    with pytest.raises(ValueError, match=r"encoded must have the 6 features .* got \(3, 4, 8\)"):
        layer(random_input(D=8))


@pytest.mark.parametrize("shape", [(3, 3, 5), (3, 4, 6), (3, 4), (3, 5, 5)])
def test_targets_that_do_not_fit(shape):
    message = r"targets must have the shape \(3, 4, 5\), got \(3, "
    layer, _ = random_layer()
    with pytest.raises(ValueError, match=message):
        layer(random_input(), np.zeros(shape))
    with pytest.raises(ValueError, match=message):
        AttentionDecoder(7, 5)(random_input(), np.zeros(shape))
    with pytest.raises(ValueError, match=message.replace("(3", "(None")):
        AttentionDecoder(7, 5)(keras.Input((4, 6)), keras.Input(shape[1:]))


def test_a_mask_that_does_not_fit():
    layer, _ = random_layer()
    for shape in ((3, 4, 1), (3, 5)):
        with pytest.raises(ValueError, match=r"mask must have the shape .*\(3, 4\), got \(3, "):
            layer(random_input(), mask=np.ones(shape, bool))
    with pytest.raises(ValueError, match=r"mask must have the shape \(None, 4\), got \(None, 5\)"):
        layer(keras.Input((4, 6)), mask=keras.Input((5,), dtype="bool"))


def test_unroll_needs_a_known_length():
    message = "unroll=True needs a known number of output steps"
    with pytest.raises(ValueError, match=message):
        AttentionDecoder(7, 5, unroll=True)(keras.Input((None, 6)))
    with pytest.raises(ValueError, match=message):
        AttentionDecoder(7, 5, unroll=True).build((None, None, 6))
    AttentionDecoder(7, 5, unroll=True, output_length=3)(keras.Input((None, 6)))


def test_the_file_imports_keras_alone():
    source = pathlib.Path(attention_decoder.__file__).read_text(encoding="utf-8")
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import keras", "from keras import ops"]
    assert "keras.src" not in source
