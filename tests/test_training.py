"""The article's two examples: training, evaluation and the scripts as a user runs them."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import attention
import baseline
import compare
from attention import attention_model, attention_weights, plot_weights
from baseline import baseline_model, evaluate, train
from data_prep import get_pairs
import keras
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
MODELS = [baseline_model, attention_model]
# The size of most models here, so that they share what is compiled.
TINY = ["--n-timesteps-in", "2", "--n-features", "6", "--n-units", "5", "--n-updates", "30"]


@pytest.mark.parametrize("make_model", MODELS)
def test_the_articles_models(make_model):
    model = make_model(5, 50)
    assert model.count_params() == {"baseline": 308_750, "attention": 363_900}[model.name]
    assert model.input_shape == model.output_shape == (None, 5, 50)
    assert model.loss == "categorical_crossentropy"
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer.get_config()["learning_rate"] == pytest.approx(0.001)
    outputs = model.predict_on_batch(get_pairs(3, 5, 2, 50)[0])
    np.testing.assert_allclose(outputs.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("make_model", MODELS)
def test_train_is_one_update_for_each_pair_in_order(make_model):
    """As many calls of train_on_batch give the same losses and weights."""
    keras.utils.set_random_seed(0)
    model, reference = make_model(4, 10, 16), make_model(4, 10, 16)
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.3, w.shape) for w in model.weights]
    model.set_weights(weights)
    reference.set_weights(weights)
    X, y = get_pairs(12, 4, 2, 10, rng)
    expected = []
    for i in range(12):
        reference.reset_metrics()
        expected.append(reference.train_on_batch(X[i : i + 1], y[i : i + 1])[0])
    losses = train(model, X, y)
    assert losses.shape == (12,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for after, new, old in zip(reference.get_weights(), model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(new, after, atol=2e-5)
        assert np.abs(new - old).max() > 5e-3  # 12 updates of about 0.001


def test_train_goes_by_the_model_s_loss_and_the_settings_of_its_adam():
    """Also when they are changed afterwards; and each call starts with a new Adam."""
    layers = keras.Input((4, 10)), keras.layers.Dense(10, "softmax")
    model = keras.Sequential(layers)
    reference = keras.models.clone_model(model)
    reference.set_weights(model.get_weights())
    X, y = get_pairs(9, 4, 2, 10, np.random.default_rng(0))
    model.compile(keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-3), "mse")
    for n_pairs, rate, loss in [(4, 0.01, "mse"), (3, 0.003, "mse"), (2, 0.003, "mae")]:
        adam = keras.optimizers.Adam(rate, beta_1=0.8, beta_2=0.9, epsilon=1e-3)
        reference.compile(adam, loss)
        if loss == "mae":
            model.compile(model.optimizer, "mae")
        model.optimizer.learning_rate = rate
        pairs = X[:n_pairs], y[:n_pairs]
        expected = [reference.train_on_batch(x[None], y_i[None]) for x, y_i in zip(*pairs)]
        np.testing.assert_allclose(train(model, *pairs), expected, rtol=1e-5)
        for after, new in zip(reference.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(new, after, atol=2e-5)


def test_threads_make_no_difference(monkeypatch):
    X, y = get_pairs(1400, 2, 1, 6, np.random.default_rng(0))
    models = [make_model(2, 6, 5) for _ in range(3) for make_model in MODELS]
    for i, model in enumerate(models):
        model.set_weights(models[i % 2].get_weights())
    one_by_one = [train(model, X, y) for model in models[:2]]
    monkeypatch.setattr(baseline, "COMPILED", {})
    with ThreadPoolExecutor(4) as executor:
        at_once = list(executor.map(lambda model: train(model, X, y), models[2:]))
    np.testing.assert_array_equal(one_by_one * 2, at_once)
    for i, model in enumerate(models):
        for a, b in zip(model.get_weights(), models[i % 2].get_weights()):
            np.testing.assert_array_equal(a, b)


def test_parts_make_no_difference(monkeypatch):
    """However many pairs a compiled call takes, all are trained on, in order, and none twice."""
    keras.utils.set_random_seed(0)
    model = baseline_model(2, 6, 5)
    weights = model.get_weights()
    X, y = get_pairs(1010, 2, 1, 6, np.random.default_rng(0))
    losses = train(model, X, y)
    after = model.get_weights()
    for n_pairs in (1010, 300):
        monkeypatch.setattr(baseline, "COMPILED", {})
        monkeypatch.setattr(baseline, "PAIRS_PER_CALL", n_pairs)
        model.set_weights(weights)
        np.testing.assert_array_equal(train(model, X, y), losses)
        for a, b in zip(model.get_weights(), after, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_article_s_loop_compiles_once_for_each_architecture(tmp_path):
    code = """
from data_prep import get_pairs
from baseline import train
from compare import MODELS, train_evaluate_model
for _ in range(10):
    for make_model in MODELS.values():
        model = make_model(2, 6, 5)
        accuracy, losses = train_evaluate_model(model, 2, 1, 6, n_updates=10)
for n_pairs in (1, 1000, 1200, 7):
    train(model, *get_pairs(n_pairs, 2, 1, 6))
"""
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "XLA_FLAGS": flags}
    )
    assert len(list(tmp_path.glob("*update_on_pairs*before_optimizations.txt"))) == 2


def test_attention_learns_and_the_baseline_does_not():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    accuracy = {}
    for make_model in MODELS:
        model = make_model(5, 50)
        losses = train(model, *get_pairs(5000, 5, 2, 50, rng))
        accuracy[model.name] = evaluate(model, 5, 2, 50, 500, rng)
        assert losses[-500:].mean() < losses[:500].mean()
    assert accuracy["attention"] >= 90
    assert accuracy["baseline"] <= 35
    X, _ = get_pairs(50, 5, 2, 50, rng)
    outputs, weights = attention_weights(model, X)
    assert weights.shape == (50, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(outputs, model.predict_on_batch(X), atol=1e-5)


def test_evaluate_counts_whole_sequences():
    class Parrot(keras.layers.Layer):
        """Repeats the input up to step 2 and zeros after, but errs in step 1 of every fourth."""

        def call(self, X):
            first = tf.roll(X[:, :1], 1, axis=-1)
            fourth = (tf.range(tf.shape(X)[0]) % 4 == 0)[:, None, None]
            first = tf.where(fourth, first, X[:, :1])
            zeros = tf.one_hot(tf.zeros(tf.shape(X[:, 2:])[:2], "int32"), 50)
            return tf.concat([first, X[:, 1:2], zeros], axis=1)

    parrot = keras.Sequential([keras.Input((5, 50)), Parrot()])
    assert evaluate(parrot, 5, 2, 50, n_eval=100) == 75
    assert evaluate(parrot, 5, 2, 50, n_eval=7) == pytest.approx(100 * 5 / 7)


def test_the_picture_of_long_sequences_has_bounds(tmp_path):
    values = [list(range(150))] * 4
    weights = np.random.default_rng(0).random((4, 150, 150))
    plot_weights(tmp_path / "picture.png", values, values, weights)
    header = (tmp_path / "picture.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    assert 1000 * 1000 < width * height < 30e6


def run_script(name, *flags, **kwargs):
    return subprocess.run(
        [sys.executable, ROOT / name, *flags], capture_output=True, text=True, **kwargs
    )


@pytest.mark.parametrize("name", ["baseline.py", "attention.py"])
def test_as_a_script(name, tmp_path, run_main):
    run = run_script(name, *TINY, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # none of TensorFlow's log lines
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Accuracy: ") and lines[0].endswith("%")
    for line in lines[1:11]:
        expected, predicted = line.removeprefix("Expected: ").split(" Predicted ")
        assert len(eval(expected)) == len(eval(predicted)) == 2
    if name == "attention.py":
        assert len(lines) == 15
        for line in lines[12:14]:
            weights = [int(word) for word in line.strip(" []").split()]
            assert len(weights) == 2 and 98 <= sum(weights) <= 102
        path = tmp_path / lines[-1].split(": ")[1]
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert len(lines) == 11
    if name == "baseline.py":
        assert run_main(baseline, *TINY)[1] == run.stdout  # the same seed
        assert run_main(baseline, *TINY, "--seed", "1")[1] != run.stdout


def test_a_fatal_error_of_tensorflow_is_told(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_bogus_flag=1"}
    run = run_script("baseline.py", *TINY, cwd=tmp_path, env=env)
    assert run.returncode != 0
    assert "Unknown flag in XLA_FLAGS: --xla_bogus_flag=1" in run.stderr


def test_a_crash_at_the_import_is_told(tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os; os.abort()")
    (tmp_path / "keras.py").write_text("")
    run = run_script("baseline.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert run.returncode != 0 and "Fatal Python error: Aborted" in run.stderr
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no such thing')")
    run = run_script("baseline.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert run.returncode == 1 and run.stderr.endswith("ImportError: no such thing\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-timesteps-out", "6"], "--n-timesteps-out: must be at most 5"),
        (["--n-timesteps-in", "0"], "--n-timesteps-in: must be at least 1, got 0"),
        (["--n-timesteps-out", "0"], "--n-timesteps-out: must be at least 1, got 0"),
        (["--n-units", "0"], "--n-units: must be at least 1, got 0"),
        (["--n-updates", "-2"], "--n-updates: must be at least 1, got -2"),
        (["--n-features", "1"], "--n-features: must be at least 2, got 1"),
        (["--n-eval", "0"], "--n-eval: must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["--n-units", "many"], "--n-units: invalid integer value: 'many'"),
    ],
)
def test_bad_flags(flags, message, run_main):
    for script in (baseline, attention, compare):
        status, stdout, stderr = run_main(script, *flags)
        assert (status, stdout) == (2, "")
        assert stderr.endswith(f"\n{script.__name__}.py: error: argument {message}\n")


def test_a_bad_flag_as_a_user_sees_it():
    run = run_script("baseline.py", "--n-updates", "-2")
    usage, error = run.stderr.split("baseline.py: error: ")
    assert (run.returncode, run.stdout) == (2, "") and usage.startswith("usage: baseline.py [-h] ")
    assert error == "argument --n-updates: must be at least 1, got -2\n"


@pytest.mark.parametrize("script", [attention, compare])
def test_an_output_folder_that_cannot_be(script, tmp_path, run_main):
    (tmp_path / "file").write_text("")
    for output, reason in [
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "folder", "Not a directory"),
        ("/proc/none", "No such file or directory"),
    ]:
        status, stdout, stderr = run_main(script, "--output", output)
        assert (status, stdout) == (2, "")
        assert stderr.endswith(f".py: error: argument --output: {reason}: '{output}'\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_it_at_once_without_a_traceback(tmp_path):
    code = (
        "import sys, baseline, attention; print('ready', flush=True); "
        f"sys.argv[1:] = ['--n-updates', '{10**6}']; attention.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)  # it compiles
        assert process.poll() is None
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert time.monotonic() - before < 2 and process.returncode == -signal.SIGINT


def test_bad_arguments():
    model = baseline_model(2, 6, 5)
    X, y = get_pairs(4, 2, 1, 6)
    with pytest.raises(ValueError, match="same number of pairs, got 4 and 3"):
        train(model, X, y[:3])
    with pytest.raises(ValueError, match="n_out must be at most n_in"):
        evaluate(model, 2, 3, 6)


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        keras.optimizers.SGD(),
        keras.optimizers.AdamW(),
        keras.optimizers.Adam(amsgrad=True),
        keras.optimizers.Adam(clipnorm=1.0),
        keras.optimizers.Adam(weight_decay=0.1),
        keras.optimizers.Adam(use_ema=True),
        keras.optimizers.Adam(loss_scale_factor=8.0),
        keras.optimizers.Adam(gradient_accumulation_steps=2),
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)),
    ],
)
def test_train_refuses_what_is_not_a_plain_adam(optimizer):
    model = keras.Sequential([keras.Input((2, 6)), keras.layers.Dense(6)], name="model")
    if optimizer:
        model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="model must be compiled with a plain Adam, got "):
        train(model, *get_pairs(4, 2, 1, 6))
