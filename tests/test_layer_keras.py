"""Is the layer a good citizen of Keras? Shapes, saving, initializers, precision, training."""

import ast
import contextlib
import doctest
import gc
import inspect
import itertools
import json
import pathlib
import pickle
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
    BACKEND, IDS, MASK, NAMES, ROOT, SYMBOLS, as_numpy, assert_close, double, numpy_decoder,
    only_torch, random_input, random_layer,
)  # fmt: skip

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
else:
    import torch

X = random_input().astype("float32")


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


# Shapes and masks


@pytest.mark.parametrize("with_targets", [False, True])
def test_one_model_takes_batches_of_any_lengths(with_targets):
    layer, w = random_layer(embedding_dim=3)
    inputs = [keras.Input((None, 6)), keras.Input((None,), dtype="int32")][: 1 + with_targets]
    model = keras.Model(inputs, layer(*inputs, return_attention_scores=True))
    assert model.output_shape == [(None, None, 5), (None, None, None)]
    for arrays in ([X, IDS], [X[:, :3], IDS[:, :5]]):
        arrays = arrays[: 1 + with_targets]
        assert_close(model.predict(arrays, verbose=0), numpy_decoder(w, *arrays))


@pytest.mark.parametrize(
    "length", [np.int64(3), np.array(3, "uint8"), ops.convert_to_tensor(3)], ids=type
)
def test_a_length_is_any_integer_whose_value_is_known(length):
    layer, w = random_layer()
    expected = numpy_decoder(w, X, output_length=3)[0]
    assert_close(layer(X, output_length=length), expected)
    inputs = keras.Input((4, 6))
    outputs = layer(inputs, output_length=length)
    assert outputs.shape == (None, 3, 5)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.decoder = layer

        def call(self, encoded):
            return self.decoder(encoded, output_length=length)

    for model in keras.Model(inputs, outputs), Subclassed():
        assert_close(model.predict(X, verbose=0), expected)
    sized = AttentionDecoder(length, length, output_length=length, embedding_dim=length)
    assert sized(X).shape == (4, 3, 3) and json.dumps(sized.get_config())


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch traces with values")
def test_a_length_that_is_traced_is_told_to_be_an_integer():
    trace = tf.function if BACKEND == "tensorflow" else jax.jit
    layer, _ = random_layer()
    with pytest.raises(ValueError, match=r"value is not known here: give int\(\.\.\.\)"):
        trace(lambda length: layer(X, output_length=length))(ops.convert_to_tensor(3))


@pytest.mark.parametrize("targets", [None, IDS[:, :5]], ids=["free running", "targets"])
@pytest.mark.parametrize("given", [False, True])
def test_padding_gets_no_score_and_every_output_step_counts_in_the_loss(given, targets):
    """The mask that is given or, where it is none, that of the layer before, which ends here."""
    symbols = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(9, 6, mask_zero=True)(symbols)
    layer, _ = random_layer(output_length=5)
    mask = ops.less(symbols, 5) if given else None
    outputs = layer(embedded, targets=targets, mask=mask, return_attention_scores=True)
    model = keras.Model(symbols, outputs)
    y, scores = as_numpy(*model(SYMBOLS))
    attended = SYMBOLS < 5 if given else MASK
    np.testing.assert_array_equal(scores > 0, np.repeat(attended[:, None], 5, axis=1))
    model = keras.Model(symbols, model.outputs[0])
    model.compile(loss="sparse_categorical_crossentropy")
    p = np.take_along_axis(y, IDS[:, :5, None], axis=2)
    loss = model.evaluate(SYMBOLS, IDS[:, :5], verbose=0)
    assert loss == pytest.approx(-np.log(p).mean(), rel=1e-4)


def test_a_subclassed_models_summary_and_weights_know_the_shapes():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.decoder = AttentionDecoder(7, 5)

        def call(self, encoded, targets=None):
            return self.decoder(encoded, targets)

    model, again, lines = Subclassed(), Subclassed(), []
    y = model(X, IDS)
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert "(4, 9, 5)" in "".join(lines)
    again.decoder.build_from_config(model.decoder.get_build_config())  # before weights are loaded
    again.decoder.set_weights(model.decoder.get_weights())
    assert_close(again(X, IDS), y)


# Configuration, saving, weights

KINDS = "kernel", "recurrent", "bias"
EVERYTHING = {  # all arguments of the layer, none with its default
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
    arguments = inspect.signature(AttentionDecoder).parameters.keys() - {"kwargs"}
    assert EVERYTHING.keys() >= arguments
    config = AttentionDecoder(**EVERYTHING).get_config()
    assert config.keys() == EVERYTHING.keys() and json.loads(json.dumps(config)) == config
    plain = {key: value for key, value in EVERYTHING.items() if isinstance(value, (int, float))}
    assert plain.items() <= config.items()
    default = AttentionDecoder(np.int64(1), np.uint8(1)).get_config()
    assert all(config[key] != default[key] for key in config) and json.dumps(default)
    initializers = [default[f"{kind}_initializer"]["class_name"] for kind in KINDS]
    assert initializers == ["GlorotUniform", "Orthogonal", "Zeros"]  # as in the paper
    again = AttentionDecoder.from_config(config)
    assert again.get_config() == config and again.feedback is double
    assert again.kernel_regularizer.l1 > 0 and again.bias_regularizer.l2 == 0.5


def test_a_layer_that_is_forced_and_free_in_one_model_stays_one_layer(tmp_path):
    symbols, targets = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    mask, encoded = ops.not_equal(symbols, 0), keras.layers.Embedding(9, 6)(symbols)
    layer, _ = random_layer(embedding_dim=3, feedback="argmax")
    forced = layer(encoded, targets, mask=mask, return_attention_scores=True)
    free = layer(encoded, mask=mask, output_length=5, return_attention_scores=True)
    model = keras.Model([symbols, targets], [*forced, *free])
    call = [SYMBOLS.astype("int32"), IDS.astype("int32")]
    expected = [as_numpy(output) for output in model(call)]
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one in clone, loaded, pickle.loads(pickle.dumps(model)):
        assert len(one.weights) == len(model.weights) and len(one.layers) == len(model.layers)
        assert_close(one(call), expected)
        one.get_layer(layer.name).b_o.assign([99, 0, 0, 0, 0])
        forced, _, free, _ = one(call)
        assert all(np.all(as_numpy(y)[..., 0] > 0.999) for y in (forced, free))
    assert_close(model(call), expected)


@pytest.mark.parametrize("seed", [None, 0, "generator"])
def test_matrices_of_one_shape_start_different(seed):
    seed = keras.random.SeedGenerator(0) if seed == "generator" else seed
    orthogonal = keras.initializers.Orthogonal(seed=seed)
    normal = keras.initializers.RandomNormal(seed=seed)
    initializers = {"recurrent_initializer": orthogonal}
    initializers |= {"kernel_initializer": normal, "bias_initializer": normal}
    arrays = []
    for _ in range(2):
        layer = AttentionDecoder(6, 6, **initializers)
        layer.build((None, 4, 6))
        arrays.append(as_numpy(*layer.weights))
    for i, (a, again) in enumerate(zip(*arrays, strict=True)):
        for b in arrays[0][:i]:
            assert a.shape != b.shape or np.abs(a - b).max() > 1e-3
        assert np.all(a == again) == (seed == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_weights_has_its_own_initializer_regularizer_and_constraint(kind):
    members = {"kernel": {"V_a", "W_a", "U_a"}, "bias": {n for n in NAMES if n.startswith("b_")}}
    members["recurrent"] = set(NAMES) - members["kernel"] - members["bias"]
    rules = {"regularizer": keras.regularizers.L1(0.5), "constraint": "non_neg"}
    rules["initializer"] = lambda shape, dtype: ops.full(shape, 3.0, dtype)  # without a config
    layer = AttentionDecoder(7, 5, **{f"{kind}_{rule}": value for rule, value in rules.items()})
    layer(X)
    assert {v.name for v in layer.weights if np.all(as_numpy(v) == 3)} == members[kind]
    assert {v.name for v in layer.weights if v.constraint is not None} == members[kind]
    size = sum(np.prod(v.shape) for v in layer.weights if v.name in members[kind])
    assert float(sum(layer.losses)) == pytest.approx(0.5 * 3 * size)


def test_a_call_leaves_the_names_of_later_layers_as_they_were():
    keras.backend.clear_session()
    random_layer()[0](X)
    assert keras.layers.RNN(keras.layers.GRUCell(2)).name == "rnn"


# Numbers of other precision


@pytest.mark.parametrize(
    "embedding_dim, targets",
    [(None, None), (3, None), (None, IDS), (3, IDS), (3, random_input(D=5))],
)
@pytest.mark.parametrize("dtype, tolerance", [("mixed_float16", 0.02), ("mixed_bfloat16", 0.1)])
def test_mixed_precision_gives_the_numbers_that_it_can(dtype, tolerance, embedding_dim, targets):
    layer, w = random_layer(embedding_dim=embedding_dim, feedback="softmax", dtype=dtype)
    expected = numpy_decoder(w, X, targets, MASK, feedback="softmax")
    called = layer(X, targets, MASK, return_attention_scores=True)
    symbolic = layer(keras.Input((4, 6)), targets, return_attention_scores=True)
    assert [dtype_of(tensor) for tensor in (*called, *symbolic)] == [layer.compute_dtype] * 4
    assert_close(called, expected, atol=tolerance)


@pytest.mark.parametrize("targets", [None, IDS, random_input(D=5)], ids=["free", "ids", "vectors"])
def test_without_autocast_the_numbers_have_the_type_that_a_summary_tells(targets):
    """Inside of a model: a layer by itself has its weights cast all the same."""

    class Mixed(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.decoder, _ = random_layer(dtype="mixed_float16", autocast=False)

        def call(self, encoded):
            return self.decoder(encoded, targets)

    model = Mixed()
    symbolic = model.decoder(keras.Input((4, 6)), targets)
    assert dtype_of(model(X)) == dtype_of(symbolic) == "float16"


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_scores_of_any_size_overflow_nowhere(dtype):
    layer, w = random_layer(dtype=dtype)
    for size, mask in itertools.product((1e2, 1e6, 1e30, -1e30), (MASK, np.eye(4, dtype=bool))):
        layer.V_a.assign(size * w["V_a"])
        y, scores = as_numpy(*layer(X, mask=mask, return_attention_scores=True))
        assert np.all(np.isfinite(y)) and np.all(scores * ~mask[:, None] == 0)
        total = 1.0 * mask.any(axis=1)[:, None]  # 0 where all is padding
        assert np.all(np.abs(scores.sum(axis=-1) - total) < 0.01)


@pytest.mark.parametrize("dtype", ["float32", keras.dtype_policies.DTypePolicyMap("float32")])
def test_a_policy_set_later_reaches_every_tensor_and_is_saved(dtype):
    """As Keras sets it for the layers of a container, maybe by a map from their paths."""
    layer = AttentionDecoder(7, 5, dtype=dtype, recurrent_initializer="glorot_uniform")
    layer.build((None, 4, 6))
    layer.dtype_policy = "mixed_bfloat16"
    for one in layer, AttentionDecoder.from_config(layer.get_config()):
        starts = [one.start(X, None, s_0) for s_0 in (None, np.ones((4, 7)))]  # without a call
        x, s, *memory = [ops.cast(t, "float32") for t in keras.tree.flatten(starts[0])]
        tensors = [starts, one.step(*starts[0]), one.step(x, s, memory), one(X)]
        tensors = keras.tree.flatten(tensors)
        assert {dtype_of(tensor) for tensor in tensors} == {"bfloat16"}
        assert {dtype_of(weight) for weight in one.weights} == {"float32"}


# Training


@pytest.mark.filterwarnings("error::UserWarning")  # Keras warns of weights without a gradient
@pytest.mark.parametrize(
    "arguments, jit_compile",
    [
        ({}, True),
        ({"dtype": "mixed_bfloat16"}, False),
        ({"dtype": "mixed_float16", "unroll": True, "embedding_dim": 8}, False),
    ],
)
def test_fit_learns_with_every_weight(arguments, jit_compile):
    keras.utils.set_random_seed(0)
    y = np.random.default_rng(0).integers(1, 9, size=(64, 4))
    x = np.where(np.arange(4) < 3, y, 0)
    symbols, targets = keras.Input((None,), dtype="int32"), keras.Input((4,), dtype="int32")
    encoded = keras.layers.Embedding(9, 16)(symbols)
    layer = AttentionDecoder(16, 9, **arguments)
    outputs = layer(encoded, targets, mask=ops.not_equal(symbols, 0))
    model = keras.Model([symbols, targets], outputs)
    sgd = keras.optimizers.SGD(1.0)
    jit_compile = {"tensorflow": jit_compile, "jax": True, "torch": False}[BACKEND]
    model.compile(sgd, "sparse_categorical_crossentropy", jit_compile=jit_compile)
    before = layer.get_weights()
    losses = model.fit([x, y], y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    for variable, old, new in zip(layer.weights, before, layer.get_weights(), strict=True):
        assert np.any(old != new), variable.name


@only_torch
def test_compiled_by_torch_it_trains_as_without():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, AttentionDecoder(7, 5, output_length=1)(inputs))
    weights, losses = model.get_weights(), []
    for jit_compile in True, False:
        model.set_weights(weights)
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit_compile)
        losses.append(model.fit(X, IDS[:, :1], epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


# The memory of one pair and, after it, of 32 at once, in KB.
PEAKS = """
import re
import keras, numpy as np
from attention_decoder import AttentionDecoder
inputs = keras.Input((300, 8))
model = keras.Model(inputs, AttentionDecoder(128, 5, output_length=100)(inputs))
model.compile("sgd", "mse", jit_compile=False)
for B in 1, 32:
    model.train_on_batch(np.ones((B, 300, 8)), np.ones((B, 100, 5)))
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch keeps more than half as much of itself")
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_training_does_not_keep_each_tanh_in_memory():
    """Of all pairs of steps, B Tout Tin u numbers: here 469 MB."""
    command = [sys.executable, "-c", PEAKS]
    printed = subprocess.check_output(command, cwd=ROOT, text=True, timeout=300)
    before, after = map(int, printed.split()[-2:])
    assert after - before < 280 * 1024


def test_no_call_keeps_its_batch_alive():
    """A cycle of references would, until Python's garbage collector happens to run."""
    layer, _ = random_layer()
    gc.collect()
    gc.disable()
    try:
        x = ops.convert_to_tensor(X)
        reference = weakref.ref(x)
        with torch.no_grad() if BACKEND == "torch" else contextlib.nullcontext():
            layer(x, return_attention_scores=True)
        del x
        assert reference() is None
    finally:
        gc.enable()


# The file that people copy

SOURCE = pathlib.Path(attention_decoder.__file__).read_text(encoding="utf-8")


def test_the_file_needs_keras_alone_and_python_3_9_and_names_its_licence_and_version():
    imports = [line for line in SOURCE.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import numbers", "import operator", "import keras", "from keras import ops"]
    assert "keras.src" not in SOURCE
    ast.parse(SOURCE, feature_version=(3, 9))
    assert "strict=" not in SOURCE  # an argument of zip since 3.10
    year = (ROOT / "LICENSE").read_text(encoding="utf-8").split()[4]
    origin = f'# Part of "Attention, read along". Copyright (c) {year} the authors'
    assert origin in SOURCE and "MIT License" in SOURCE
    assert SOURCE.count("\n# SPDX-License-Identifier: MIT\n") == 1
    for manual in "layer.md", "layer.zh.md":  # what is new in it
        text = (ROOT / "docs" / manual).read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if "`attention_decoder.__version__`" in line)
        assert attention_decoder.__version__ in line


def test_the_docstrings_examples_run():
    names = {"keras": keras, "AttentionDecoder": AttentionDecoder, "decoder": random_layer()[0]}
    names |= {"encoded": X, "mask": MASK, "output_length": 4}
    tests = doctest.DocTestFinder().find(AttentionDecoder, "AttentionDecoder", globs=names)
    tests = {test.name: test for test in tests if test.examples}
    assert {"AttentionDecoder", "AttentionDecoder.step"} <= tests.keys()
    for test in tests.values():
        assert doctest.DocTestRunner().run(test).failed == 0
