"""The decoder once more, in NumPy, and what else the tests share.

They run on whichever backend KERAS_BACKEND names.
"""

import itertools
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops

from attention_decoder import AttentionDecoder

ROOT = pathlib.Path(__file__).parent.parent
BACKEND = keras.backend.backend()
if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)  # lets a float64 layer be one
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes most of the time

# Keras' own matmul (PyTorch) and tanh (JAX) turn float64 into float32.
EXACT = 1e-12 if BACKEND == "tensorflow" else 1e-6
NAMES = (
    "V_a W_a U_a b_a C_r U_r W_r b_r C_z U_z W_z b_z C_p U_p W_p b_p C_o U_o W_o b_o W_s".split()
)
# Padding on the right, in between, everywhere and nowhere.
MASK = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
SYMBOLS = np.random.default_rng(6).integers(1, 9, size=(4, 4)) * MASK
IDS = np.random.default_rng(3).integers(5, size=(4, 9))

only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow alone")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch alone")


def softmax(x):
    e = np.exp(x - np.max(x, initial=-np.inf))
    return e / e.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    None: lambda y: y, "linear": lambda x: x, "tanh": np.tanh, "sigmoid": sigmoid,
    "softmax": softmax, "relu": lambda x: np.maximum(x, 0),
    "argmax": lambda y: np.eye(len(y))[np.argmax(y)],
}  # fmt: skip


@keras.saving.register_keras_serializable("test")
def double(y):
    """A feedback that a user wrote."""
    return 2 * y


def numpy_decoder(
    w, h, targets=None, mask=None, output_length=None, initial_state=None, activation="tanh",
    output_activation="softmax", feedback=None, return_probabilities=False, kept=None,
    o=None, embedding_dim=None, unroll=False, dropout=0.0, seed=None, training=False,
):  # fmt: skip
    """Returns outputs and scores for h (B, Tin, D) and weights w, with what layer and call take.

    Written from the equations alone, one sample and one input step at a time, in float64. `kept`,
    in place of dropout, are factors of x_t (B, m) and of c_t (B, D). `o` and the arguments behind
    it are not used, as w and `kept` hold what they change; one that changes more goes before them.
    """
    f = {name: FUNCTIONS.get(name, name) for name in (activation, output_activation, feedback)}
    B, T_in, D = h.shape
    o = len(w["b_o"])
    if targets is not None and targets.ndim == 2:  # ids
        targets = np.equal(targets[..., None], np.arange(o)).astype("float64")
    T_out = (output_length or T_in) if targets is None else targets.shape[1]
    outputs, scores = np.zeros((B, T_out, o)), np.zeros((B, T_out, T_in))
    for b in range(B):
        steps = np.arange(T_in) if mask is None else np.flatnonzero(mask[b])
        s = np.tanh((h[b, steps[0]] if len(steps) else np.zeros(D)) @ w["W_s"])
        s = s if initial_state is None else initial_state[b]
        x = np.zeros(o)
        for t in range(T_out):
            x = x @ w["E"] if "E" in w else x
            e = [w["V_a"] @ np.tanh(s @ w["W_a"] + h[b, j] @ w["U_a"] + w["b_a"]) for j in steps]
            scores[b, t, steps] = softmax(np.array(e))
            c = scores[b, t, steps] @ h[b, steps]
            if kept is not None:
                x, c = x * kept[0][b], c * kept[1][b]

            def gate(g, state, x=x, c=c):
                return x @ w[f"W_{g}"] + state @ w[f"U_{g}"] + c @ w[f"C_{g}"] + w[f"b_{g}"]

            r, z = sigmoid(gate("r", s)), sigmoid(gate("z", s))
            p = f[activation](gate("p", r * s))
            y = outputs[b, t] = f[output_activation](gate("o", s))
            s = (1 - z) * s + z * p
            x = f[feedback](y) if targets is None else targets[b, t]
    return scores if return_probabilities else outputs, scores


def random_layer(D=6, u=7, o=5, **kwargs):
    """Returns a built layer with random weights, biases too, and the weights by name."""
    layer = AttentionDecoder(u, o, **kwargs)
    layer.build((None, 4, D))
    rng = np.random.default_rng(0)
    weights = {v.name: rng.normal(0, 0.6, v.shape) for v in layer.weights}
    layer.set_weights(list(weights.values()))
    return layer, weights


def random_input(B=4, T=4, D=6, seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D))


def as_numpy(*tensors):
    arrays = [ops.convert_to_numpy(ops.cast(tensor, "float64")) for tensor in tensors]
    return arrays if len(arrays) > 1 else arrays[0]


def assert_close(got, expected, atol=1e-5):
    """For two tensors or arrays, or two structures of them."""
    for a, b in zip(keras.tree.flatten(got), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(*as_numpy(a, b), atol=atol)


def from_the_manual(**names):
    """Its functions and classes, by their names. They use `names`."""
    text = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    names |= {"keras": keras, "np": np, "ops": ops, "END": 0, "__name__": "manual"}
    for code in re.findall(r"^((?:@[^\n]*\n)?(?:def|class) .*?)(?=^\S)", text, re.M | re.S):
        exec(code, names)
    return names


def blocks_of_the_manual(title, kind):
    """The blocks of a kind in its section of this title."""
    text = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {title}\n(.*?)(?=^## )", text, re.M | re.S)[1]
    return re.findall(rf"^```{kind}\n(.*?)^```", section, re.M | re.S)


def saved_figure(monkeypatch, draw, *args):
    """Returns the figure of Matplotlib that a function draws and would save."""
    from matplotlib.figure import Figure  # not where the layer alone is tested

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw(*args)
    (figure,) = figures
    figure.draw_without_rendering()
    return figure


def assert_readable(labels, figure):
    """No label touches another, and all are in the picture."""
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)
