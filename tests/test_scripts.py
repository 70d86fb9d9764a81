"""baseline.py and attention.py as a reader runs them: in a terminal, in a notebook, by mistake."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from attention import attention_model, attention_weights, plot_weights
from baseline import baseline_model, evaluate, train
from data_prep import get_pairs, one_hot_decode
import keras

ROOT = pathlib.Path(__file__).parent.parent
MODELS = [baseline_model, attention_model]


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
    values = [list(range(150))] * 4
    weights = np.random.default_rng(0).random((4, 150, 150))
    plot_weights(tmp_path / "picture.png", values, values, weights)
    header = (tmp_path / "picture.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    assert 1000 * 1000 < width * height < 30e6


def small(name, folder):
    """Copies a script with smaller numbers, and what it imports, to a folder."""
    for path in ROOT.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    text = (ROOT / name).read_text()
    for old, new in {
        "n_features = 50": "n_features = 6",
        "n_timesteps_in = 5": "n_timesteps_in = 3",
        "get_pairs(5000,": "get_pairs(30,",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return [sys.executable, name]


@pytest.mark.parametrize("name", ["baseline.py", "attention.py"])
def test_as_a_script(name, tmp_path):
    run = subprocess.run(small(name, tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Accuracy: ") and lines[0].endswith("%")
    for line in lines[1:11]:
        expected, predicted = line.removeprefix("Expected: ").split(" Predicted ")
        assert len(eval(expected)) == len(eval(predicted)) == 3
    if name == "baseline.py":
        assert len(lines) == 11
        return
    rows = [[int(word) for word in line.strip(" []").split()] for line in lines[12:15]]
    assert all(len(row) == 3 and 98 <= sum(row) <= 102 for row in rows)
    assert lines[15:] == ["Written: results/attention.keras, results/attention.png"]
    assert (tmp_path / "results" / "attention.png").read_bytes().startswith(b"\x89PNG")
    # The model that is kept is the one whose outputs were shown.
    model = keras.models.load_model(tmp_path / "results" / "attention.keras")
    rng = np.random.default_rng(0)
    get_pairs(30, 3, 2, 6, rng), get_pairs(100, 3, 2, 6, rng)
    X, y = get_pairs(10, 3, 2, 6, rng)
    expected = zip(one_hot_decode(y), one_hot_decode(model(X)))
    assert lines[1:11] == [f"Expected: {a} Predicted {b}" for a, b in expected]


def test_keras_on_another_backend_is_told_in_one_sentence(tmp_path):
    (tmp_path / "keras.py").write_text(
        "class backend:\n    @staticmethod\n    def backend():\n        return 'jax'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", "import keras, attention"],
        cwd=ROOT,
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
    """While `%run attention.py` trains, and then runs `compare.main` in a cell."""
    client = pytest.importorskip("jupyter_client")
    small("attention.py", tmp_path)
    script = tmp_path / "attention.py"
    script.write_text(script.read_text().replace("get_pairs(30,", "get_pairs(1_000_000,"))
    manager, kernel = client.manager.start_new_kernel(cwd=str(tmp_path))
    try:
        kernel.execute_interactive("kept = 7; import baseline", timeout=120)
        kernel.execute("%run attention.py")
        deadline = time.monotonic() + 60
        while not (tmp_path / "results").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(5)
        manager.interrupt_kernel()
        shown = ""
        while "KeyboardInterrupt" not in shown:
            shown += str(kernel.get_iopub_msg(timeout=60)["content"])
        cell = (
            "import compare, os; compare.main(['--n-repeats', '1', '--n-updates', '3']); "
            "assert kept == 7 and os.path.exists('results/comparison.png')"
        )
        assert kernel.execute_interactive(cell, timeout=200)["content"]["status"] == "ok"
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
