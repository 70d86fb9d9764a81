"""The article's two examples: training, evaluation and the scripts as a user runs them."""

import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import attention
import baseline
import compare
from attention import attention_model, attention_weights, plot_weights
from baseline import baseline_model, evaluate, keras, predict, tf, train
from data_prep import get_pairs, one_hot_decode

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
    losses = np.concatenate([train(model, X[:5], y[:5]), train(model, X[5:], y[5:])])
    assert losses.shape == (12,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for after, new, old in zip(reference.get_weights(), model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(new, after, atol=2e-5)
        assert np.abs(new - old).max() > 5e-3  # 12 updates of about 0.001
    assert int(model.optimizer.iterations) == 12


def test_train_as_keras_does_with_all_that_a_model_may_have():
    """Regularizers, constraints, losses of layers, weights not trained, rate and loss."""
    layers = keras.layers
    models = [
        keras.Sequential(
            [
                keras.Input((4, 10)),
                layers.LSTM(6, return_sequences=True, kernel_regularizer="l2"),
                layers.BatchNormalization(),
                layers.Dense(7, "relu", kernel_constraint="non_neg", activity_regularizer="l2"),
                layers.Dense(7, "relu", trainable=False),
                layers.Dense(10),
            ]
        )
        for _ in range(2)
    ]
    models[1].set_weights(models[0].get_weights())
    X, y = get_pairs(9, 4, 2, 10, np.random.default_rng(0))
    for model in models:
        model.compile(keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-3), "mse")
    expected = [models[0].train_on_batch(X[i : i + 1], y[i : i + 1]) for i in range(4)]
    losses = list(train(models[1], X[:4], y[:4]))
    for model in models:  # another rate, then another loss, with the moments of before
        model.optimizer.learning_rate = 0.003
    expected += [models[0].train_on_batch(X[i : i + 1], y[i : i + 1]) for i in (4, 5)]
    losses += list(train(models[1], X[4:6], y[4:6]))
    for model in models:
        model.compile(model.optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    expected += [models[0].train_on_batch(X[i : i + 1], y[i : i + 1]) for i in (6, 7)]
    losses += list(train(models[1], X[6:8], y[6:8]))
    losses.append(models[1].train_on_batch(X[8:], y[8:]))  # Keras goes on where train stopped
    expected.append(models[0].train_on_batch(X[8:], y[8:]))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for variables in zip(models[0].variables, models[1].variables):
        if "seed" not in variables[0].path:
            np.testing.assert_allclose(*variables, atol=2e-5, err_msg=variables[0].path)
    np.testing.assert_allclose(predict(models[1], X), models[1].predict_on_batch(X), atol=1e-6)


def test_threads_make_no_difference(monkeypatch):
    X, y = get_pairs(700, 2, 1, 6, np.random.default_rng(0))
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
        np.testing.assert_array_equal(predict(model, X), predict(models[i % 2], X))


def test_what_is_compiled_is_that_of_the_models_settings_now():
    """Whatever other models of its architecture, or a function of its name, were before."""
    keras.utils.set_random_seed(0)
    X, y = get_pairs(3, 2, 1, 6, np.random.default_rng(0))

    def first_loss(model, loss):
        model.compile("adam", loss)
        expected = model.evaluate(X[:1], y[:1], verbose=0, return_dict=True)["loss"]
        assert train(model, X[:1], y[:1])[0] == pytest.approx(expected, rel=1e-5)
        return expected

    first, second = baseline_model(2, 6, 5), baseline_model(2, 6, 5)
    first.compile("adam", "mse")
    predict(first, X)  # the first model stands for its architecture ...
    first.compile("adam", "mae")  # ... and then does not
    first_loss(second, "mse")
    first_loss(first, "mae")

    def loss(y, outputs):
        return keras.ops.sum(outputs**2)

    a = first_loss(first, loss)

    def loss(y, outputs):
        return keras.ops.sum(2 * outputs**2)

    assert first_loss(first, loss) == pytest.approx(2 * a, rel=0.1)

    def with_activation(relu):  # a name that Keras has, too
        dense = keras.layers.Dense(6, relu, name="dense")
        wrapped = keras.layers.TimeDistributed(dense, name="wrapped")
        return keras.Sequential([keras.Input((2, 6), name="pairs"), wrapped], name="model")

    def relu(x):
        return 3 * x + 1

    for model in (with_activation("relu"), with_activation(relu)):
        first_loss(model, "mse")


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


def test_the_article_s_loop_compiles_once(tmp_path):
    code = """
from data_prep import get_pairs
from baseline import baseline_model, train
from compare import train_evaluate_model
for _ in range(20):
    model = baseline_model(2, 6, 5)
    accuracy = train_evaluate_model(model, 2, 1, 6, n_updates=10)
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
    monkeypatch.setattr(baseline, "COMPILED", {})
    losses = train(other, X, y)
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
    sizes = []
    for n_steps in (20, 400):
        values = [list(range(n_steps))] * 4
        weights = np.random.default_rng(0).random((4, n_steps, n_steps))
        plot_weights(tmp_path / "picture.png", values, values, weights)
        header = (tmp_path / "picture.png").read_bytes()[16:24]
        sizes.append([int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")])
    assert sizes[0] == sizes[1] and max(sizes[0]) < 5000


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
        assert len(lines) == 16
        for line in lines[13:15]:
            weights = [int(word) for word in line.split()[2:]]
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


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
@pytest.mark.parametrize(
    "name, closed",
    [("data_prep.py", ">&-"), ("data_prep.py", "2>&-"), ("attention.py", ">&- 2>&-")],
)
def test_closed_streams(closed, name, tmp_path):
    flags = TINY if name == "attention.py" else []
    shell = " ".join([sys.executable, f"'{ROOT / name}'", *flags, closed])
    env = {**os.environ, "PYTHONIOENCODING": "cp932"}
    run = subprocess.run(shell, shell=True, capture_output=True, cwd=tmp_path, env=env)
    assert run.returncode == 0 and not run.stderr
    assert (tmp_path / "results" / "attention.png").exists() == (name == "attention.py")


def test_who_asks_for_the_log_gets_it():
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    run = run_script("baseline.py", "--help", env=env)
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
def test_bad_flags(flags, message, run_main):
    for script in (baseline, attention, compare):
        assert run_main(script, *flags) == (2, "", f"{script.__name__}.py: {message}\n")


def test_a_bad_flag_as_a_user_sees_it():
    run = run_script("baseline.py", "--n-updates", "-2")
    message = "baseline.py: n_updates must be at least 1, got -2\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message)


@pytest.mark.parametrize("script", [attention, compare])
def test_an_output_folder_that_cannot_be(script, tmp_path, run_main):
    (tmp_path / "file").write_text("")
    for output in (str(tmp_path / "file"), str(tmp_path / "file" / "folder"), "/proc/results"):
        status, stdout, error = run_main(script, "--output", output)
        start = f"{script.__name__}.py: output must be a folder that can be written to, got "
        assert (status, stdout) == (2, "")
        assert error.startswith(start + repr(output)) and error.count("\n") == 1


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
    raw = keras.Sequential([keras.Input((2, 6)), keras.layers.Dense(6)], name="raw")
    with pytest.raises(ValueError, match="compiled with Adam, got 'raw' with no optimizer"):
        train(raw, X, y)
    with pytest.raises(ValueError, match="n_out must be at most n_in"):
        evaluate(model, 2, 3, 6)
    assert one_hot_decode(y)[0][1] == 0


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.SGD, "Adam, got 'model' with SGD"),
        (keras.optimizers.AdamW, "Adam, got 'model' with AdamW"),
        (lambda: keras.optimizers.Adam(amsgrad=True), "a plain Adam, got amsgrad=True"),
        (lambda: keras.optimizers.Adam(clipnorm=1.0), "a plain Adam, got clipnorm=1.0"),
        (lambda: keras.optimizers.Adam(weight_decay=0.1), "a plain Adam, got weight_decay=0.1"),
        (lambda: keras.optimizers.Adam(use_ema=True), "a plain Adam, got use_ema=True"),
        (lambda: keras.optimizers.Adam(loss_scale_factor=8.0), "got loss_scale_factor=8.0"),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
            "got gradient_accumulation_steps=2",
        ),
        (
            lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)),
            "a plain Adam, got learning_rate=",
        ),
    ],
)
def test_train_refuses_what_it_cannot_do_as_keras(optimizer, message):
    model = keras.Sequential([keras.Input((2, 6)), keras.layers.Dense(6)], name="model")
    model.compile(optimizer(), "mse")
    with pytest.raises(ValueError, match=message):
        train(model, *get_pairs(4, 2, 1, 6))
    assert not model.optimizer.built


def test_train_refuses_other_precisions_other_steps_and_other_weights():
    X, y = get_pairs(4, 2, 1, 6)
    for dtype in ("float64", "mixed_float16", "mixed_bfloat16"):
        layer = keras.layers.Dense(6, dtype=dtype, name="dense")
        model = keras.Sequential([keras.Input((2, 6)), layer])
        model.compile("adam", "mse")
        compute = layer.compute_dtype
        with pytest.raises(ValueError, match=f"float32, got 'dense' in {compute}"):
            train(model, X, y)

    class Model(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = Model([keras.Input((2, 6)), keras.layers.Dense(6)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="Keras' own train_step, got that of .*Model"):
        train(model, X, y)

    layer = keras.layers.Dense(6)
    model = keras.Sequential([keras.Input((2, 6)), keras.layers.Dense(6), layer])
    model.compile("adam", "mse")
    train(model, X, y)
    layer.trainable = False
    with pytest.raises(ValueError, match="model must be compiled again"):
        train(model, X, y)
    again = keras.models.clone_model(model)
    layer.trainable = True
    again.compile(model.optimizer, "mse")
    with pytest.raises(ValueError, match="model must be compiled again"):
        train(again, X, y)

    model = keras.Sequential([keras.layers.Dense(6)], name="unbuilt")
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="model must be built, .* got 'unbuilt'"):
        train(model, X, y)
