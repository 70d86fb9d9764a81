"""How fast it is, by hand: `python docs/benchmark.py`. A few minutes, on one core.

Prints, as medians, the time of an update of the article's models made in four ways, and the time
of a training step, the time to compile and the peak memory of the layer for longer sequences. Every
line of the layer's table is measured in a process of its own.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from baseline import compile_updates, train  # noqa: E402
from data_prep import get_pairs  # noqa: E402
from compare import MODELS  # noqa: E402
from attention_decoder import AttentionDecoder  # noqa: E402
import keras  # noqa: E402


def median_seconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def updates(repeats: int) -> dict:
    """Milliseconds an update of both models: the article's loop, Keras' faster ways and train."""
    X, y = get_pairs(2000, 5, 2, 50)

    def article(model):
        for i in range(20):
            model.fit(X[i : i + 1], y[i : i + 1], epochs=1, verbose=0)

    def on_batch(model):
        for i in range(200):
            model.train_on_batch(X[i : i + 1], y[i : i + 1])

    def fit_all(model):
        model.fit(X, y, batch_size=1, shuffle=False, verbose=0)

    result = {}
    for model_name, make_model in MODELS.items():
        for name, function, n in (
            ("the article's loop, model.fit on each pair", article, 20),
            ("model.train_on_batch on each pair", on_batch, 200),
            ("model.fit on all pairs, steps_per_execution=500, XLA", fit_all, 2000),
            ("train", train, 2000),
        ):
            model = make_model(5, 50)
            if function is fit_all:
                model.compile("adam", model.loss, steps_per_execution=500, jit_compile=True)
            if function is train:
                function = functools.partial(train, X=X, y=y, updates=compile_updates(model))
            function(model)  # compiles
            seconds = median_seconds(lambda f=function, m=model: f(m), repeats)
            result[f"{model_name}: {name}"] = 1000 * seconds / n
    return result


def python_loop(layer, encoded):
    """The equations in a plain Python loop over the steps, for comparison."""
    ops = keras.ops
    s = ops.tanh(ops.matmul(encoded[:, 0], layer.W_s))
    y = ops.zeros_like(ops.matmul(s, layer.U_o))
    k = ops.matmul(encoded, layer.U_a) + layer.b_a
    outputs = []
    for _ in range(encoded.shape[1]):
        e = ops.tanh(ops.matmul(s, layer.W_a)[:, None] + k)
        alpha = ops.softmax(ops.sum(e * layer.V_a, axis=-1))
        c = ops.matmul(alpha[:, None], encoded)[:, 0]

        def gate(state, W, U, C, b, y=y, c=c):
            return ops.matmul(y, W) + ops.matmul(state, U) + ops.matmul(c, C) + b

        r = ops.sigmoid(gate(s, layer.W_r, layer.U_r, layer.C_r, layer.b_r))
        z = ops.sigmoid(gate(s, layer.W_z, layer.U_z, layer.C_z, layer.b_z))
        p = ops.tanh(gate(r * s, layer.W_p, layer.U_p, layer.C_p, layer.b_p))
        y = ops.softmax(gate(s, layer.W_o, layer.U_o, layer.C_o, layer.b_o))
        s = (1 - z) * s + z * p
        outputs.append(y)
    return ops.stack(outputs, axis=1)


def layer_step(T: int, how: str, jit_compile: bool, repeats: int) -> dict:
    """One training step of the layer alone: batch 32, T steps in and out, 150 units, 50 outputs.

    Or 5,000 outputs, embedded, by teacher forcing.
    """

    class PythonLoop(AttentionDecoder):
        def call(self, encoded, targets=None, training=False):
            return python_loop(self, encoded)

    layer = PythonLoop if how == "Python loop" else AttentionDecoder
    o, m = (5000, 64) if how == "5,000 outputs" else (50, None)
    inputs, targets = keras.Input((T, 150)), keras.Input((T,), dtype="int32")
    decoder = layer(150, o, unroll=how == "unroll=True", embedding_dim=m)
    model = keras.Model([inputs, targets], decoder(inputs, targets if m else None))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    y = rng.integers(o, size=(32, T)).astype("int32")
    x = [rng.normal(size=(32, T, 150)).astype("float32"), y]

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    compile_seconds = median_seconds(lambda: model.train_on_batch(x, y), 1)
    step_seconds = median_seconds(lambda: model.train_on_batch(x, y), repeats)
    return {
        "compile": compile_seconds,
        "step": 1000 * step_seconds,
        "memory": peak() - before,
    }


def measure(*arguments) -> dict:
    """Runs one of the two functions above in a process of its own, on one core."""
    env = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, *arguments = json.loads(args.measure)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        function = {"updates": updates, "layer_step": layer_step}[name]
        print(json.dumps(function(*arguments)))
        return

    print(f"{'Updates of the models, ms each':66} {'ms':>8} {'ratio':>7}")
    for name, milliseconds in measure("updates", args.repeats).items():
        if "article" in name:
            article = milliseconds
        print(f"{name:66} {milliseconds:8.2f} {article / milliseconds:7.1f}", flush=True)

    print("\nThe layer: a training step, batch 32, T steps in and out, 150 units, 50 outputs")
    print(f"{'':13} {'XLA':>4} {'T':>4} {'compile s':>10} {'step ms':>8} {'MB':>6}")
    for jit_compile in (False, True):
        for T, how in (
            (10, "loop"), (20, "loop"), (20, "unroll=True"), (20, "Python loop"),
            (50, "loop"), (50, "Python loop"), (100, "loop"), (20, "5,000 outputs"),
        ):  # fmt: skip
            r = measure("layer_step", T, how, jit_compile, args.repeats)
            print(
                f"{how:13} {'yes' if jit_compile else 'no':>4} {T:4} "
                f"{r['compile']:10.1f} {r['step']:8.1f} {r['memory']:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
