"""Is the layer a good citizen of Keras? Shapes, saving, initializers, precision, training."""

import ast
import contextlib
import doctest
import gc
import pathlib
import re
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import attention_decoder
from attention_decoder import AttentionDecoder
from oracle import (
    BACKEND, EXACT, IDS, MASK, NAMES, as_numpy, double, numpy_decoder, only_tensorflow, only_torch,
    random_input, random_layer,
)  # fmt: skip

if BACKEND == "torch":
    import torch

ROOT = pathlib.Path(__file__).parent.parent


# Shapes and masks


@pytest.mark.parametrize(
    "steps_in, steps_out, arguments",
    [
        (None, None, {}),
        (None, None, {"output_length": 3}),
        (4, None, {"unroll": True}),
        (None, "targets", {}),
        (None, 5, {"unroll": True}),  # of targets
    ],
)
def test_one_model_takes_batches_of_any_lengths(steps_in, steps_out, arguments):
    layer, w = random_layer(embedding_dim=3, **arguments)
    encoded, targets = keras.Input((steps_in, 6)), None
    if steps_out:
        targets = keras.Input((steps_out if steps_out == 5 else None,), dtype="int32")
    outputs, scores = layer(encoded, targets, return_attention_scores=True)
    known = steps_out if steps_out == 5 else arguments.get("output_length", steps_in)
    assert (outputs.shape, scores.shape) == ((None, known, 5), (None, known, steps_in))
    model = keras.Model([encoded, targets] if steps_out else [encoded], [outputs, scores])
    for T, T_out in ((steps_in or 5, 5), (steps_in or 3, 5 if known == 5 else 8)):
        x, ids = random_input(T=T), IDS[:, :T_out] if steps_out else None
        expected = numpy_decoder(w, x, ids, **arguments)
        got = model.predict([x, ids] if steps_out else [x], verbose=0)
        for array, of_numpy in zip(got, expected, strict=True):
            np.testing.assert_allclose(array, of_numpy, atol=1e-5)


def test_a_model_knows_the_shapes_that_calls_give():
    x, targets = random_input(), random_input(T=6, D=5)
    for own in None, 3:
        for called in None, 2:
            for fed in None, targets:
                layer, _ = random_layer(output_length=own)
                inputs = [a if a is None else keras.Input(a.shape[1:]) for a in (x, fed)]
                symbolic = layer(*inputs, output_length=called)
                assert symbolic.shape == (None, *layer(x, fed, output_length=called).shape[1:])


def test_scores_can_take_the_place_of_the_outputs():
    layer, w = random_layer(return_probabilities=True)
    _, expected = numpy_decoder(w, random_input())
    np.testing.assert_allclose(as_numpy(layer(random_input())), expected, atol=1e-6)
    assert layer(keras.Input((4, 6))).shape == (None, 4, 4)


@pytest.mark.parametrize("explicit", [False, True])
def test_padding_gets_no_score_and_every_output_step_counts_in_the_loss(explicit):
    """The mask that is given or, where it is none, that of the layer before, which ends here."""
    symbols = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(9, 6, mask_zero=not explicit)(symbols)
    mask = ops.not_equal(symbols, 0) if explicit else None
    layer, _ = random_layer(output_length=5)
    outputs, scores = layer(embedded, mask=mask, return_attention_scores=True)
    padded, y_true = np.array([[3, 5, 2, 0, 0], [4, 1, 6, 0, 0]]), IDS[:2, :5]
    model = keras.Model(symbols, [outputs, scores])
    y, scores = as_numpy(*model(padded))
    alone, alone_scores = as_numpy(*model(padded[:, :3]))
    np.testing.assert_allclose(y, alone, atol=1e-6)
    np.testing.assert_allclose(scores[:, :, :3], alone_scores, atol=1e-6)
    assert np.all(scores[:, :, 3:] == 0)
    model = keras.Model(symbols, outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    p = np.take_along_axis(y, y_true[:, :, None], axis=2)
    loss = model.evaluate(padded, y_true, verbose=0)
    assert loss == pytest.approx(-np.log(p).mean(), rel=1e-4)


# Configuration, saving, weights

EVERYTHING = {
    "units": 7, "output_dim": 5, "activation": "relu", "return_probabilities": True,
    "output_length": 3, "output_activation": "sigmoid", "feedback": double, "embedding_dim": 4,
    "dropout": 0.3, "seed": 5, "unroll": True, "kernel_initializer": "he_normal",
    "recurrent_initializer": "lecun_uniform", "bias_initializer": "ones",
    "kernel_regularizer": "l1", "recurrent_regularizer": "l2",
    "bias_regularizer": keras.regularizers.L2(0.5), "kernel_constraint": "non_neg",
    "recurrent_constraint": keras.constraints.MaxNorm(3), "bias_constraint": "unit_norm",
    "name": "decoder", "dtype": "float64", "trainable": False,
}  # fmt: skip


def test_no_argument_is_lost_when_a_layer_is_saved():
    config = AttentionDecoder(**EVERYTHING).get_config()
    assert config.keys() == EVERYTHING.keys()
    default = AttentionDecoder(np.int64(1), np.uint8(1)).get_config()
    assert all(config[key] != default[key] for key in config)
    again = AttentionDecoder.from_config(config)
    assert again.get_config() == config and again.feedback is double
    cell = again.cell
    assert cell.kernel_regularizer.l1 > 0 and cell.bias_regularizer.l2 == 0.5
    assert cell.trainable == again.trainable and cell.dtype_policy == again.dtype_policy


NEW = {"unroll": True, "feedback": "argmax", "embedding_dim": 3, "output_length": 5}


@pytest.mark.parametrize("arguments", [{}, NEW], ids=["plain", "new"])
def test_a_model_of_two_layers_is_cloned_and_loaded_as_it_was(arguments, tmp_path):
    inputs = keras.Input((4, 6))
    hidden = AttentionDecoder(7, 6, **arguments)(inputs)
    model = keras.Model(inputs, AttentionDecoder(8, 5, **arguments)(hidden))
    x = random_input().astype("float32")
    expected = as_numpy(model(x))
    clone = keras.models.clone_model(model)
    assert np.abs(as_numpy(clone(x)) - expected).max() > 1e-4
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(as_numpy(clone(x)), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_weights_have_the_originals_order_and_the_papers_initial_values():
    layer = AttentionDecoder(150, 50, embedding_dim=20)
    layer.build((None, 5, 150))
    w = {v.name: as_numpy(v) for v in layer.weights}
    assert list(w) == [*NAMES, "E"] and w["E"].shape == (50, 20)
    for name, value in w.items():
        if name.startswith("b_"):
            assert np.all(value == 0)
        elif name in ("V_a", "W_a", "U_a", "E"):
            limit = np.sqrt(6 / (sum(value.shape) if value.ndim == 2 else 2 * 150))
            assert 0.9 * limit < np.abs(value).max() <= limit
        else:
            product = value @ value.T if value.shape[0] < value.shape[1] else value.T @ value
            np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)


@pytest.mark.parametrize("seed", [None, 0, "generator"])
def test_matrices_of_one_shape_start_different(seed):
    seed = keras.random.SeedGenerator(0) if seed == "generator" else seed
    orthogonal = keras.initializers.Orthogonal(seed=seed)
    normal = keras.initializers.RandomNormal(seed=seed)
    layer = AttentionDecoder(6, 6, recurrent_initializer=orthogonal, bias_initializer=normal)
    layer.build((None, 4, 6))
    arrays = as_numpy(*layer.weights)
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            assert a.shape != b.shape or np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("kind", ["kernel", "recurrent", "bias"])
def test_each_kind_of_weights_has_its_own_regularizer_and_constraint(kind):
    members = {"kernel": {"V_a", "W_a", "U_a"}, "bias": {n for n in NAMES if n.startswith("b_")}}
    members["recurrent"] = set(NAMES) - members["kernel"] - members["bias"]
    layer, w = random_layer(**{f"{kind}_regularizer": keras.regularizers.L1(0.5)})
    layer(random_input())
    expected = 0.5 * sum(np.abs(w[name]).sum() for name in members[kind])
    assert float(sum(layer.losses)) == pytest.approx(expected, rel=1e-5)
    layer, _ = random_layer(**{f"{kind}_constraint": "non_neg"})
    assert {v.name for v in layer.weights if v.constraint is not None} == members[kind]


def test_a_call_takes_no_name_of_later_layers():
    keras.backend.clear_session()
    layer, _ = random_layer()
    layer(random_input())
    assert keras.layers.RNN(keras.layers.GRUCell(2)).name == "rnn"


# Numbers of other precision


@pytest.mark.parametrize("targets", [None, random_input(D=5), IDS], ids=["free", "vectors", "ids"])
@pytest.mark.parametrize("embedding_dim", [None, 3])
@pytest.mark.parametrize(
    "dtype, tolerance", [("mixed_float16", 0.02), ("mixed_bfloat16", 0.1), ("float64", EXACT)]
)
def test_each_precision_gives_the_numbers_that_it_can(dtype, tolerance, embedding_dim, targets):
    layer, w = random_layer(embedding_dim=embedding_dim, feedback="softmax", dtype=dtype)
    x, call = random_input(), {"targets": targets, "mask": MASK}
    expected = numpy_decoder(w, x, **call, feedback="softmax")
    for tensor, array in zip(layer(x, **call, return_attention_scores=True), expected):
        assert keras.backend.standardize_dtype(tensor.dtype) == layer.compute_dtype
        np.testing.assert_allclose(as_numpy(tensor), array, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("mask", [None, MASK[[0, 1, 3, 3]]], ids=["plain", "masked"])
def test_scores_of_any_size_overflow_nowhere(mask, dtype):
    layer, w = random_layer(dtype=dtype)
    for size in (1e2, 1e6, 1e30):
        layer.cell.V_a.assign(size * w["V_a"])
        y, scores = as_numpy(*layer(random_input(), mask=mask, return_attention_scores=True))
        assert np.all(np.isfinite(y))
        np.testing.assert_allclose(scores.sum(axis=-1), 1, atol=1e-2)
        assert mask is None or np.all(scores[~np.repeat(mask[:, None], 4, axis=1)] == 0)


def test_integers_are_read_as_numbers():
    layer, w = random_layer()
    x = random_input().round()
    expected, _ = numpy_decoder(w, x)
    np.testing.assert_allclose(as_numpy(layer(x.astype("int32"))), expected, atol=1e-5)


# Training


@pytest.mark.filterwarnings("error::UserWarning")  # Keras warns of weights without a gradient
@pytest.mark.parametrize(
    "arguments, forced, jit_compile",
    [
        ({}, False, True),
        ({"unroll": True, "embedding_dim": 8}, True, False),
        ({"dtype": "mixed_float16", "feedback": "argmax", "embedding_dim": 8}, True, False),
        ({"dtype": "mixed_bfloat16"}, False, True),
    ],
    ids=["free running, XLA", "unrolled, by targets", "float16, by targets", "bfloat16, XLA"],
)
def test_fit_learns_with_every_weight(arguments, forced, jit_compile):
    jit_compile = {"tensorflow": jit_compile, "jax": True, "torch": False}[BACKEND]
    keras.utils.set_random_seed(0)
    symbols, targets = keras.Input((None,), dtype="int32"), keras.Input((4,), dtype="int32")
    mask = ops.not_equal(symbols, 0)
    encoded = keras.layers.Embedding(9, 16)(symbols)
    layer = AttentionDecoder(16, 9, **arguments)
    outputs = layer(encoded, targets if forced else None, mask=mask)
    model = keras.Model([symbols, targets] if forced else symbols, outputs)
    adam = keras.optimizers.Adam(0.02)
    model.compile(adam, "sparse_categorical_crossentropy", jit_compile=jit_compile)
    y = np.random.default_rng(0).integers(1, 9, size=(64, 4))
    x = np.where(np.arange(4) < 3, y, 0)
    before = layer.get_weights()
    losses = model.fit([x, y] if forced else x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    for variable, old, new in zip(layer.weights, before, layer.get_weights(), strict=True):
        assert np.any(old != new), variable.name


def in_a_process_of_its_own(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch keeps more than half as much of itself")
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_training_does_not_keep_each_tanh_in_memory():
    """Of all pairs of steps, B Tout Tin u numbers: here 469 MB."""
    in_a_process_of_its_own("""
import re
import keras, numpy as np
from attention_decoder import AttentionDecoder
inputs = keras.Input((300, 8))
model = keras.Model(inputs, AttentionDecoder(128, 5, output_length=100)(inputs))
model.compile("sgd", "mse", jit_compile=False)
def peak(B):
    model.train_on_batch(np.ones((B, 300, 8)), np.ones((B, 100, 5)))
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak(1)
assert peak(32) - before < 280
""")


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
            with torch.no_grad() if BACKEND == "torch" else contextlib.nullcontext():
                layer(x, return_attention_scores=True)
        del x
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


@only_torch
def test_compiled_by_torch_it_trains_as_without():
    inputs = keras.Input((4, 6))
    outputs = AttentionDecoder(7, 5, output_length=2)(inputs)
    losses = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.models.clone_model(keras.Model(inputs, outputs))
        model.compile("adam", "categorical_crossentropy", jit_compile=jit_compile)
        y = np.eye(5)[IDS[:, :2]]
        losses.append(model.fit(random_input(), y, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@only_tensorflow
def test_it_trains_on_two_devices():
    in_a_process_of_its_own("""
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
""")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"embedding_dim": 3, "unroll": True}, {"dropout": 0.5}, {"feedback": "argmax"}],
)
def test_keras_own_check_of_a_layer(arguments):
    """A module of Keras that is not public: if a version moves it, mend the import."""
    from keras.src.testing import TestCase

    TestCase().run_layer_test(
        AttentionDecoder,
        init_kwargs={"units": 7, "output_dim": 5, "output_length": 3, **arguments},
        input_shape=(2, 4, 6),
        expected_output_shape=(2, 3, 5),
        expected_num_trainable_weights=21 + ("embedding_dim" in arguments),
        expected_num_seed_generators=int("dropout" in arguments),
        supports_masking=True,
        run_mixed_precision_check=True,
    )


# The file that people copy

SOURCE = pathlib.Path(attention_decoder.__file__).read_text(encoding="utf-8")


def test_the_file_needs_keras_alone_and_python_3_9():
    imports = [line for line in SOURCE.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import numbers", "import keras", "from keras import ops"]
    assert "keras.src" not in SOURCE
    ast.parse(SOURCE, feature_version=(3, 9))
    assert "strict=" not in SOURCE  # an argument of zip since 3.10


def test_the_file_names_its_origin_and_licence():
    (line,) = [line for line in SOURCE.split("import keras")[0].splitlines() if "(c)" in line]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    year = re.search(r"Copyright \(c\) (\d+)", licence)[0]
    assert year in line and "MIT License" in line and "Attention, read along" in line


def test_the_docstrings_examples_run():
    layer, _ = random_layer()
    names = {"keras": keras, "AttentionDecoder": AttentionDecoder, "decoder": layer}
    names |= {"encoded": random_input(), "mask": MASK, "output_length": 4}
    tests = doctest.DocTestFinder().find(AttentionDecoder, "AttentionDecoder", globs=names)
    tests = {test.name: test for test in tests if test.examples}
    assert {"AttentionDecoder", "AttentionDecoder.step"} <= tests.keys()
    for test in tests.values():
        assert doctest.DocTestRunner().run(test).failed == 0
