"""The article's two examples: training, evaluation and the scripts as a user runs them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import baseline
from attention import attention_model, attention_weights
from baseline import baseline_model, evaluate, keras, tf, train
from data_prep import get_pairs, one_hot_decode

ROOT = pathlib.Path(__file__).parent.parent
MODELS = [baseline_model, attention_model]
TINY = ["--n-timesteps-in", "3", "--n-features", "8", "--n-units", "6", "--n-updates", "30"]


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
    losses = np.concatenate([train(model, X[:5], y[:5]), train(model, X[5:], y[5:])])
    assert losses.shape == (12,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for after, new, old in zip(reference.get_weights(), model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(new, after, atol=2e-5)
        assert np.abs(new - old).max() > 5e-3  # 12 updates of about 0.001
    assert int(model.optimizer.iterations) == 12


def test_parts_make_no_difference():
    """However the pairs are split among calls, and these into compiled calls, they are the same."""
    assert baseline.PAIRS_PER_CALL == 500
    keras.utils.set_random_seed(0)
    model = baseline_model(2, 6, 5)
    again = keras.models.clone_model(model)
    again.compile(optimizer="adam", loss="categorical_crossentropy")
    again.set_weights(model.get_weights())
    X, y = get_pairs(510, 2, 1, 6, np.random.default_rng(0))
    losses = train(model, X, y)
    assert losses.shape == (510,)
    parts = [slice(0, 1), slice(1, 260), slice(260, 510)]
    np.testing.assert_array_equal(losses, np.concatenate([train(again, X[p], y[p]) for p in parts]))
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_is_compiled_once(tmp_path):
    code = """
from data_prep import get_pairs
from baseline import baseline_model, train
model = baseline_model(2, 6, 5)
for n_pairs in (1, 500, 600, 7):
    train(model, *get_pairs(n_pairs, 2, 1, 6))
"""
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "XLA_FLAGS": flags}
    )
    assert len(list(tmp_path.glob("*update_on_pairs*before_optimizations.txt"))) == 1


@pytest.mark.parametrize("make_model", MODELS)
def test_without_xla_training_falls_back_to_the_graph(make_model, monkeypatch, capsys):
    keras.utils.set_random_seed(0)
    model, other = make_model(2, 6, 5), make_model(2, 6, 5)
    other.set_weights(model.get_weights())
    X, y = get_pairs(20, 2, 1, 6, np.random.default_rng(0))
    expected = train(model, X, y)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tf.test, "is_built_with_xla", lambda: False)
    losses = train(other, X, y)
    assert capsys.readouterr().err.splitlines() == [
        "This TensorFlow was built without XLA: training takes longer"
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


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
    class Parrot:
        """Repeats the input up to step 2 and zeros after, but errs in step 1 of every fourth."""

        def predict_on_batch(self, X):
            y = np.zeros_like(X)
            y[:, :2] = X[:, :2]
            y[:, 2:, 0] = 1
            y[::4, 0] = np.roll(y[::4, 0], 1, axis=-1)
            return y

    assert evaluate(Parrot(), 5, 2, 50, n_eval=100) == 75
    assert evaluate(Parrot(), 5, 2, 50, n_eval=7) == pytest.approx(100 * 5 / 7)


def run_script(name, *flags, **kwargs):
    return subprocess.run(
        [sys.executable, ROOT / name, *flags], capture_output=True, text=True, **kwargs
    )


@pytest.mark.parametrize("name", ["baseline.py", "attention.py"])
def test_as_a_script(name, tmp_path):
    run = run_script(name, *TINY, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # none of TensorFlow's log lines
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Accuracy: ") and lines[0].endswith("%")
    for line in lines[1:11]:
        expected, predicted = line.removeprefix("Expected: ").split(" Predicted ")
        assert len(eval(expected)) == len(eval(predicted)) == 3
    if name == "attention.py":
        assert len(lines) == 17
        for line in lines[13:16]:
            weights = [int(word) for word in line.split()[2:]]
            assert len(weights) == 3 and 97 <= sum(weights) <= 103
        path = tmp_path / lines[-1].split(": ")[1]
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert len(lines) == 11
    assert run_script(name, *TINY, cwd=tmp_path).stdout == run.stdout  # the same seed
    assert run_script(name, *TINY, "--seed", "1", cwd=tmp_path).stdout != run.stdout


def test_who_asks_for_the_log_gets_it(tmp_path):
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    run = run_script("baseline.py", *TINY, cwd=tmp_path, env=env)
    assert run.returncode == 0 and len(run.stderr.splitlines()) > 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-timesteps-out", "6"], "n_timesteps_out must be at most n_timesteps_in (5), got 6"),
        (["--n-timesteps-in", "0"], "n_timesteps_in must be at least 1, got 0"),
        (["--n-timesteps-out", "0"], "n_timesteps_out must be at least 1, got 0"),
        (["--n-units", "0"], "n_units must be at least 1, got 0"),
        (["--n-updates", "-2"], "n_updates must be at least 1, got -2"),
        (["--n-features", "1"], "n_features must be at least 2, got 1"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--n-units", "many"], "argument --n-units: invalid int value: 'many'"),
    ],
)
def test_bad_flags(flags, message):
    # All scripts check alike; baseline.py and attention.py first take seconds to load TensorFlow.
    scripts = ["compare.py", "baseline.py", "attention.py"]
    for name in scripts if "--n-timesteps-out" in flags else scripts[:1]:
        run = run_script(name, *flags)
        assert run.returncode == 2
        assert run.stderr == f"{name}: {message}\n"


@pytest.mark.parametrize("name", ["attention.py", "compare.py"])
def test_an_output_folder_that_cannot_be(name, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "folder", "/proc/results"):
        run = run_script(name, "--output", output)
        assert run.returncode == 2
        assert run.stderr.startswith(f"{name}: output must be a folder")
        assert str(output) in run.stderr and run.stderr.count("\n") == 1


def test_bad_arguments():
    for make_model in MODELS:
        for arguments, name in [((0, 5, 5), "n_timesteps_in"), ((5, 5, 0), "n_units")]:
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
                make_model(*arguments)
        with pytest.raises(ValueError, match="n_features must be at least 2, got 1"):
            make_model(5, 1)
    model = baseline_model(2, 6, 5)
    X, y = get_pairs(4, 2, 1, 6)
    with pytest.raises(ValueError, match="same number of pairs, got 4 and 3"):
        train(model, X, y[:3])
    with pytest.raises(ValueError, match="n_pairs must be at least 1, got 0"):
        train(model, X[:0], y[:0])
    with pytest.raises(ValueError, match="model must be compiled, got 'raw'"):
        train(keras.Sequential([keras.Input((2, 6))], name="raw"), X, y)
    with pytest.raises(ValueError, match="n_out must be at most n_in"):
        evaluate(model, 2, 3, 6)
    assert one_hot_decode(y)[0][1] == 0
