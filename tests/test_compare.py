"""compare.py as a user runs it: what it prints, keeps and draws; stopped, resumed, on a cluster."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import distributed
import numpy as np
import pytest

import compare
from baseline import evaluate, train
from data_prep import get_pairs
import keras

SCRIPT = pathlib.Path(compare.__file__)
SEEDS = range(7, 11)
# Each setting: what it is without a flag, and small enough to train in seconds. The last window of
# the loss curve is a short one.
ARTICLE = {"n_timesteps_in": 5, "n_timesteps_out": 2, "n_features": 50, "n_units": 150}
ARTICLE |= {"n_updates": 5000, "n_eval": 100}
SMALL = {"n_timesteps_in": 2, "n_timesteps_out": 1, "n_features": 6, "n_units": 5}
SMALL |= {"n_updates": 1990, "n_eval": 30}
FLAGS = ["--n-repeats", str(len(SEEDS)), "--seed", str(SEEDS[0])]
for setting, number in SMALL.items():
    FLAGS += ["--" + setting.replace("_", "-"), str(number)]


def run_here(output, *flags):
    """Runs main in this process, where all is compiled already; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        compare.main([*FLAGS, "--output", str(output), *map(str, flags)])
    return stdout.getvalue()


def finish(process, line=""):
    """Sends a line, and waits; returns exit status, output and error output."""
    stdout, stderr = process.communicate(line, timeout=200)
    return process.returncode, stdout, stderr


def repeats_in(output):
    """The lines of the file of repeats: {(name, seed): repeat}."""
    lines = (output / "repeats.jsonl").read_text().splitlines()
    repeats = {(line["model"], line["seed"]): line for line in map(json.loads, lines)}
    assert len(repeats) == len(lines)
    return repeats


def determined(output, stdout):
    """What the seeds determine, all but seconds and paths: what was printed, and the lines."""
    stdout = re.sub(r"(\d{3}) +[\d.]+$", r"\1", stdout, flags=re.MULTILINE)  # behind the weights
    repeats = {key: {**repeat, "seconds": None} for key, repeat in repeats_in(output).items()}
    return stdout.replace(str(output), "OUTPUT"), repeats


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run by two threads: its folder and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "deep" / "results"
    return output, run_here(output, "--jobs", 2)


# What it prints, keeps and draws


def test_it_prints_the_articles_lines_and_nothing_else(unbroken):
    stdout, repeats = determined(*unbroken)
    *models, statistics, written = stdout.split("\n\n")
    means = []
    for lines, (name, title) in zip(models, compare.TITLES.items(), strict=True):
        accuracies = [repeats[name, seed]["accuracy"] for seed in SEEDS]
        means.append(np.mean(accuracies))
        numbers = [str(round(accuracy, 2)) for accuracy in accuracies]
        assert lines.splitlines() == [title, *numbers, f"Mean Accuracy: {means[-1]:.2f}%"]
    assert means[0] < 50 and means[1] > 90  # what attention does
    assert statistics.startswith("Accuracy in %")
    assert written == "Written: OUTPUT/repeats.jsonl, OUTPUT/comparison.png\n"


STATISTICS = """\
Accuracy in %                         mean   std  least  greatest  weights  seconds a training
Encoder-Decoder Model                21.00  3.61  18.00     25.00    1,234                2.00
Encoder-Decoder With Attention Model 97.00     -  97.00     97.00    1,234                1.00
Difference                           76.00
"""


def test_the_statistics_are_right(capsys):
    def results_with(*accuracies):
        return [
            {"accuracy": accuracy, "n_weights": 1234, "seconds": seconds}
            for accuracy, seconds in zip(accuracies, (1, 2, 9))
        ]

    results = {"baseline": results_with(20, 25, 18), "attention": results_with(97)}
    compare.print_statistics(results)
    assert capsys.readouterr().out == STATISTICS


def test_each_training_is_a_line_of_what_train_and_evaluate_give(unbroken):
    output, _ = unbroken
    assert {path.name for path in output.iterdir()} == {"repeats.jsonl", "comparison.png"}
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    repeats = repeats_in(output)
    assert repeats.keys() == {(name, seed) for name in compare.MODELS for seed in SEEDS}
    for name, make_model in compare.MODELS.items():
        keras.utils.set_random_seed(9)
        model, rng = make_model(2, 6, 5), np.random.default_rng(9)
        losses = train(model, *get_pairs(1990, 2, 1, 6, rng))
        assert repeats[name, 9] == {
            "model": name,
            "seed": 9,
            "accuracy": pytest.approx(evaluate(model, 2, 1, 6, 30, rng)),
            "seconds": repeats[name, 9]["seconds"],
            "n_weights": model.count_params(),
            **SMALL,
            "losses": pytest.approx([losses[i : i + 50].mean() for i in range(0, 1990, 50)], 1e-4),
        }


def test_a_bar_shows_the_means_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    stdout = run_here(tmp_path, "--n-repeats", 1)
    first, second = (
        f"{name}: {repeat['accuracy']:.4f}" for (name, _), repeat in repeats_in(tmp_path).items()
    )
    assert "0/2" in stdout and re.search(rf"2/2.*({first} - {second}|{second} - {first})", stdout)


def test_seconds_are_those_of_training_not_of_compiling(monkeypatch):
    monkeypatch.setattr(compare, "COMPILED", {})
    start = time.perf_counter()
    repeat = compare.run_repeat("baseline", 3, {**SMALL, "n_updates": 1})
    assert 0 < repeat["seconds"] < (time.perf_counter() - start) / 2


def test_train_evaluate_model_as_the_article_calls_it():
    model = compare.MODELS["baseline"](2, 6, 5)
    accuracy, losses = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100 and losses.shape == (10,)


# The same by any number of threads and machines


def test_any_number_of_jobs_gives_the_same_and_compiles_each_model_once(
    unbroken, tmp_path, monkeypatch
):
    compile_updates = mock.Mock(wraps=compare.compile_updates)
    monkeypatch.setattr(compare, "compile_updates", compile_updates)
    monkeypatch.setattr(compare, "COMPILED", {})
    assert determined(tmp_path, run_here(tmp_path, "--jobs", 16)) == determined(*unbroken)
    assert int(os.environ["TF_NUM_INTRAOP_THREADS"]) == 2 * len(SEEDS)  # no more than trainings
    assert compile_updates.call_count == 2
    traced = [f.experimental_get_tracing_count() for f in compare.COMPILED.values()]
    assert traced == [1, 1]


def test_what_is_compiled_for_one_model_is_not_for_one_that_is_made_otherwise(monkeypatch):
    """As in a notebook, where a function takes the place of another of the same name."""
    alike = compare.run_repeat("baseline", 7, SMALL)["losses"]

    def baseline_model(*numbers):
        model = compare.MODELS["attention"](*numbers)
        model.compile("sgd", "mse")
        return model

    monkeypatch.setitem(compare.MODELS, "baseline", baseline_model)
    losses = compare.run_repeat("baseline", 7, SMALL)["losses"]
    keras.utils.set_random_seed(7)
    expected = train(baseline_model(2, 6, 5), *get_pairs(1990, 2, 1, 6, 7))
    assert losses[0] == pytest.approx(expected[:50].mean(), 1e-4) != alike[0]


CLUSTER = """
from distributed import LocalCluster
kwargs = {"protocol": "tcp", "dashboard_address": None, "silence_logs": 50}
with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **kwargs) as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
    print(cluster.scheduler.transition_counter)  # 0 where nothing was to do
"""


def test_a_dask_cluster_gives_the_same_to_the_script_and_to_a_notebook(unbroken, tmp_path, start):
    """A cluster whose folder is another: it is sent the scripts."""
    cluster = start("-c", CLUSTER, cwd=tmp_path)
    address = cluster.stdout.readline().strip()
    flags = [*FLAGS, "--output", tmp_path, "--scheduler", address]
    status, stdout, stderr = finish(start(SCRIPT, *flags))
    assert status == 0, stderr
    assert determined(tmp_path, stdout) == determined(*unbroken)
    run_here(tmp_path / "notebook", "--n-repeats", 1, "--scheduler", address)
    _, repeats = determined(tmp_path / "notebook", "")
    assert len(repeats) == 2 and repeats.items() <= determined(*unbroken)[1].items()
    distributed.default_client().close()
    _, transitions, _ = finish(cluster, "\n")
    assert int(transitions) > 0


# Runs that end early


def test_ctrl_c_ends_it_at_once_while_it_compiles(tmp_path, start):
    def listen_to_ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in the background

    output, deadline = tmp_path / "results", time.monotonic() + 100
    slow = ["--n-units", "300", "--n-timesteps-in", "10"]  # takes many seconds to compile
    process = start(SCRIPT, *slow, "--output", output, preexec_fn=listen_to_ctrl_c)
    while not output.exists():  # it imports
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    status, stdout, stderr = finish(process)
    assert (status, stdout) == (-signal.SIGINT, "") and "Traceback" not in stderr, stderr
    assert time.monotonic() - before < 2


def test_stopped_and_resumed_equals_unbroken(unbroken, tmp_path):
    """Resumed twice: the second time, nothing is left to do."""
    output = tmp_path / "résultats"  # few encodings have it
    path, picture = output / "repeats.jsonl", output / "comparison.png"
    output.mkdir()
    *finished, torn, _ = (unbroken[0] / path.name).read_text().splitlines(keepends=True)[:5]
    path.write_text("".join(finished) + torn[:40])  # it was killed while it wrote
    stopped = path.read_text() + "\n"
    for jobs in (1, 2):
        stdout = run_here(output, "--resume", "--jobs", jobs)
        assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"  # also where nothing is left
        lines = path.read_text()
        assert lines.startswith(stopped)  # these were not run again
        assert lines.count("\n") == 2 * len(SEEDS) + 1
        picture.unlink()  # fails if it was not drawn
    path.write_text(lines.replace(torn[:40] + "\n", ""))
    assert determined(output, stdout) == determined(*unbroken)


def test_resume_takes_the_last_lines_of_the_same_settings_alone(unbroken, tmp_path):
    path = tmp_path / "repeats.jsonl"
    before = (unbroken[0] / path.name).read_text()
    path.write_text(before)
    for n_repeats in (1, 2, 1):
        run_here(tmp_path, "--resume", "--n-repeats", n_repeats, "--n-eval", 29)
    added = path.read_text().removeprefix(before)
    assert added.count("\n") == added.count('"n_eval": 29') == 4
    for setting in SMALL:
        assert compare.read_repeats(path, {**SMALL, setting: 99}) == {}

    wrong = before.replace('"accuracy": ', '"accuracy": 100')
    path.write_text(wrong)
    run_here(tmp_path, "--n-repeats", 1)  # without --resume
    assert path.read_text().removeprefix(wrong).count("\n") == 2
    for (_, seed), repeat in compare.read_repeats(path, SMALL).items():
        assert (repeat["accuracy"] > 100) == (seed != 7)


# From the fifth on, trainings never end; those before learn nothing, at once.
ENDLESS = """
import itertools, resource, runpy, signal, sys, time, baseline, numpy
calls = itertools.count()
def train(model, X, y, updates):
    if next(calls) >= 4:
        time.sleep(1000)
    return numpy.random.random(len(X))
baseline.train = train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, [int(sys.argv.pop(1))] * 2)
runpy.run_path("compare.py", run_name="__main__")
"""


def test_what_cannot_be_saved_ends_the_script_with_status_1_and_is_told_once(
    unbroken, tmp_path, start
):
    """A full disk, here a limit on the size of a file: the lines before stay whole."""
    path = tmp_path / "repeats.jsonl"
    limit = 3.5 * max(map(len, (unbroken[0] / path.name).read_text().splitlines()))
    flags = [*FLAGS, "--jobs", "2", "--output", tmp_path]
    process = start("-c", ENDLESS, str(int(limit)), *flags, cwd=SCRIPT.parent)
    status, stdout, stderr = finish(process)
    assert (status, stdout, stderr.count("Traceback")) == (1, "", 1), stderr
    assert f"\n3 of 8 trainings are saved in {path}" in stderr
    assert stderr.endswith("OSError: [Errno 27] File too large\n")
    assert len(compare.read_repeats(path, SMALL)) == 3


def test_a_training_that_fails_in_a_notebook_cancels_those_to_come(tmp_path, monkeypatch, capsys):
    executor, failing = ThreadPoolExecutor(1), mock.Mock(side_effect=MemoryError)
    monkeypatch.setattr(compare, "ThreadPoolExecutor", lambda jobs: executor)
    monkeypatch.setattr(compare, "train_evaluate_model", failing)
    with pytest.raises(MemoryError):
        run_here(tmp_path)
    executor.shutdown()  # when all that runs has ended
    assert failing.call_count < 4
    assert "\n0 of 8 trainings are saved" in capsys.readouterr().err


# Flags

BAD_FLAGS = [
    ("--n-timesteps-out", "3", "must be at most 2"),
    ("--n-timesteps-out", "0", "must be at least 1, got 0"),
    ("--n-timesteps-in", "0", "must be at least 1, got 0"),
    ("--n-features", "1", "must be at least 2, got 1"),
    ("--n-units", "0", "must be at least 1, got 0"),
    ("--n-updates", "-2", "must be at least 1, got -2"),
    ("--n-eval", "0", "must be at least 1, got 0"),
    ("--n-repeats", "0", "must be at least 1, got 0"),
    ("--seed", "-1", "must be at least 0, got -1"),
    ("--jobs", "x", "invalid integer value: 'x'"),
    ("--scheduler", "nonsense://1", "nonsense://1: unknown address scheme 'nonsense'"),
    ("--output", "file", "File exists: 'file'"),
    ("--output", "/proc", "No such file or directory: '/proc'"),
]


@pytest.mark.parametrize(("flag", "value", "message"), BAD_FLAGS)
def test_a_bad_flag_is_told_and_leaves_no_folder(
    flag, value, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("")
    with pytest.raises(SystemExit) as refused:
        compare.main([*FLAGS, flag, value])
    stdout, stderr = capsys.readouterr()
    assert (refused.value.code, stdout) == (2, "")
    assert f": error: argument {flag}: {message}" in stderr and stderr.count("error:") == 1
    assert os.listdir() == ["file"]


def test_a_call_without_flags_is_the_articles_experiment(tmp_path, monkeypatch):
    """Whatever stands in the command line of a notebook's kernel."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)
    args = vars(compare.parse_arguments(None))
    assert [*SMALL] == compare.SETTINGS
    assert {setting: args[setting] for setting in SMALL} == ARTICLE
    assert (args["n_repeats"], args["seed"], args["output"]) == (10, 0, "results")


def test_the_help_shows_the_default_values_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    help = capsys.readouterr().out
    assert help.isascii() and max(map(len, help.splitlines())) <= 80
    assert "units of each recurrent layer (default: 150)" in re.sub(r"\s+", " ", help)
