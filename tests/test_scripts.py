"""baseline.py and attention.py as a reader runs them: in a terminal, in a notebook, by mistake."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from attention import attention_model, attention_weights, plot_weights
from baseline import baseline_model, evaluate, train
from data_prep import get_pairs, one_hot_decode
import keras

ROOT = pathlib.Path(__file__).parent.parent


# The models


@pytest.mark.parametrize(
    ("make_model", "n_weights"), [(baseline_model, 308_750), (attention_model, 363_900)]
)
def test_the_articles_models_have_its_sizes_and_settings(make_model, n_weights):
    model = make_model(5, 50)
    assert model.count_params() == n_weights
    assert model.input_shape == model.output_shape == (None, 5, 50)
    assert model.loss == "categorical_crossentropy"
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer.get_config()["learning_rate"] == pytest.approx(0.001)
    outputs = model(get_pairs(3, 5, 2, 50)[0])
    np.testing.assert_allclose(np.sum(outputs, axis=-1), 1, atol=1e-5)


def test_attention_learns_and_the_baseline_does_not():
    keras.utils.set_random_seed(0)
    pairs = get_pairs(5000, 5, 2, 50, rng=0)
    accuracy = {}
    for make_model in (baseline_model, attention_model):
        model = make_model(5, 50)
        losses = train(model, *pairs)
        assert losses[-500:].mean() < losses[:500].mean()
        accuracy[model.name] = evaluate(model, 5, 2, 50, 500, rng=1)
    assert accuracy["attention"] >= 90 and accuracy["baseline"] <= 35


def test_evaluate_counts_whole_sequences():
    def parrot(X):
        """Repeats the input up to step 2 and zeros after, but errs in step 1 of every fourth."""
        y = np.zeros_like(X)
        y[:, :2] = X[:, :2]
        y[:, 2:, 0] = 1
        y[::4, 0] = np.roll(y[::4, 0], 1, axis=-1)
        return y

    assert evaluate(parrot, 5, 2, 50, n_eval=100) == 75
    assert evaluate(parrot, 5, 2, 50, n_eval=7) == pytest.approx(100 * 5 / 7)
    with pytest.raises(ValueError, match="n_pairs must be at least 1, got 0"):
        evaluate(parrot, 5, 2, 50, n_eval=0)


def test_the_picture_of_long_sequences_has_bounds(tmp_path):
    values = [list(range(100))] * 4
    plot_weights(tmp_path / "picture.png", values, values, np.ones((4, 100, 100)))
    header = (tmp_path / "picture.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    assert 1000 * 1000 < width * height < 30e6


# The scripts


def small(name, folder, n_pairs=30):
    """Copies a script with smaller numbers, and what it imports, to a folder."""
    for path in ROOT.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    text = (ROOT / name).read_text()
    for old, new in {
        "n_features = 50": "n_features = 6",
        "n_timesteps_in = 5": "n_timesteps_in = 3",
        "get_pairs(5000,": f"get_pairs({n_pairs},",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / name).write_text(text)


def printed_by(name, folder):
    small(name, folder)
    run = subprocess.run([sys.executable, name], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracy, *lines = run.stdout.splitlines()
    assert re.fullmatch(r"Accuracy: \d+\.\d\d%", accuracy)
    return lines


def test_baseline_prints_the_accuracy_and_ten_sequences(tmp_path):
    lines = printed_by("baseline.py", tmp_path)
    three = r"\[\d, \d, \d\]"
    assert len(lines) == 10
    assert all(re.fullmatch(f"Expected: {three} Predicted {three}", line) for line in lines)


def test_attention_keeps_the_model_whose_outputs_and_weights_it_shows(tmp_path):
    lines = printed_by("attention.py", tmp_path)
    results = tmp_path / "results"
    assert (results / "attention.png").read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(results / "attention.keras")
    rng = np.random.default_rng(0)
    get_pairs(30, 3, 2, 6, rng), get_pairs(100, 3, 2, 6, rng)  # to train on, to evaluate
    X, y = get_pairs(10, 3, 2, 6, rng)
    expected = zip(one_hot_decode(y), one_hot_decode(model(X)))
    assert lines[:10] == [f"Expected: {a} Predicted {b}" for a, b in expected]
    X, _ = get_pairs(4, 3, 2, 6, rng)
    outputs, weights = attention_weights(model, X)
    np.testing.assert_allclose(outputs, model(X), atol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    values_in, values_out = one_hot_decode(X[0]), one_hot_decode(outputs[0])
    assert f"input {values_in} across, output {values_out} down" in lines[10]
    shown = [line.strip(" []").split() for line in lines[11:14]]
    np.testing.assert_allclose(np.array(shown, int), 100 * weights[0], atol=0.6)
    assert lines[14:] == ["Written: results/attention.keras, results/attention.png"]


@pytest.mark.parametrize("name", ["data_prep.py", "baseline.py", "attention.py"])
def test_the_small_scripts_refuse_every_flag(name):
    run = subprocess.run(
        [sys.executable, ROOT / name, "--n-units=9"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "unrecognized arguments: --n-units=9" in run.stderr


def test_keras_on_another_backend_is_told_in_one_sentence(tmp_path):
    (tmp_path / "keras.py").write_text(
        "class backend:\n    @staticmethod\n    def backend():\n        return 'jax'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", "import keras, attention"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ImportError: these scripts need Keras on TensorFlow, but it already runs on jax: "
        "set KERAS_BACKEND=tensorflow before it is imported"
    )


def test_a_notebook_survives_the_stop_button(tmp_path):
    """While `%run attention.py` trains; then it runs `compare.main` in a cell."""
    client = pytest.importorskip("jupyter_client")
    small("attention.py", tmp_path, n_pairs=1_000_000)
    manager, kernel = client.manager.start_new_kernel(cwd=str(tmp_path))

    def wait_for(pattern):
        shown = ""
        while not re.search(pattern, shown):
            shown += str(kernel.get_iopub_msg(timeout=100)["content"])

    try:
        kernel.execute("kept = 7\n%run attention.py")
        wait_for(r"[1-9]\d*/1000000")  # the bar
        manager.interrupt_kernel()
        wait_for("KeyboardInterrupt")
        cell = (
            "import compare, os; "
            "compare.main('--n-repeats 1 --n-updates 3 --n-units 5 --n-timesteps-in 2'.split()); "
            "assert kept == 7 and os.path.exists('results/comparison.png')"
        )
        assert kernel.execute_interactive(cell, timeout=200)["content"]["status"] == "ok"
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
