"""compare.py as a user runs it: what it prints, keeps and draws; stopped, resumed, on a cluster."""

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from unittest import mock

import distributed
import numpy as np
import pandas
import pytest
from oracle import assert_readable, saved_figure

import compare
from baseline import evaluate, train
from data_prep import get_pairs
import keras
import tensorflow as tf

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
    """A run by 16 threads, which compiles each model once: its folder and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "deep" / "results"
    compare.COMPILED.clear()  # by a test before
    compile_updates = mock.Mock(wraps=compare.compile_updates)
    with mock.patch.object(compare, "compile_updates", compile_updates):
        stdout = run_here(output, "--jobs", 16)
    assert compile_updates.call_count == 2
    assert int(os.environ["TF_NUM_INTRAOP_THREADS"]) == 2 * len(SEEDS)  # no more than trainings
    return output, stdout


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


def test_with_more_models_each_ones_difference_from_the_first_is_shown(capsys):
    """A name without a title stands for itself, however long."""
    repeats = {"n_weights": 1234, "seconds": 1}
    means = {"attention": 90, "a model with a name of forty-two letters!!": 95, "third": 7.5}
    results = {name: [{**repeats, "accuracy": mean}] for name, mean in means.items()}
    compare.print_statistics(results)
    header, *rows, difference, second, third = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in (header, *rows)}) == 1
    assert [line[:42].rstrip() for line in rows] == [compare.TITLES["attention"], *[*means][1:]]
    assert difference == "Difference from Encoder-Decoder With Attention Model"
    assert second.split()[-1] == "5.00" and third.split() == ["third", "-82.50"]
    compare.print_statistics({"third": results["third"]})
    assert "Difference" not in capsys.readouterr().out


def with_a_gru(n_timesteps_in, n_features, n_units):
    """The model of a user, of a file of his."""
    model = keras.Sequential([keras.Input((n_timesteps_in, n_features))])
    model.add(keras.layers.GRU(n_units, return_sequences=True))
    model.add(keras.layers.Dense(n_features, activation="softmax"))
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def test_a_row_more_or_less_is_a_model_more_or_less(unbroken, tmp_path, monkeypatch):
    monkeypatch.setitem(compare.MODELS, "mine", with_a_gru)
    stdout, repeats = determined(tmp_path, run_here(tmp_path, "--n-repeats", 2))
    *_, (title, first, second, mean), statistics, _ = map(str.splitlines, stdout.split("\n\n"))
    accuracies = [repeats["mine", seed]["accuracy"] for seed in (7, 8)]
    assert title == "mine" and [float(first), float(second)] == np.round(accuracies, 2).tolist()
    assert mean == f"Mean Accuracy: {np.mean(accuracies):.2f}%" and "mine" in statistics[-1]
    assert repeats.pop(("mine", 7))["losses"] != repeats.pop(("mine", 8))["losses"]
    assert repeats.items() <= determined(*unbroken)[1].items()

    monkeypatch.setattr(compare, "MODELS", {"attention": compare.MODELS["attention"]})
    stdout = run_here(tmp_path, "--n-repeats", 2, "--resume")
    assert stdout.startswith(compare.TITLES["attention"]) and "Difference" not in stdout


def test_the_picture_has_room_for_five_models_with_long_names(tmp_path, monkeypatch):
    repeats = [{"losses": [3.0, 2.0, 1.0], "accuracy": accuracy} for accuracy in (10, 50, 90)]
    names = [*compare.MODELS, *("$x_$ and twenty-five more " + letter * 4 for letter in "abc")]
    arguments = tmp_path / "picture.png", dict.fromkeys(names, repeats)
    figure = saved_figure(monkeypatch, compare.plot_comparison, *arguments)
    left, right = figure.axes
    expected = [*compare.LABELS.values(), *names[2:]]
    for labels in left.get_legend().get_texts(), right.get_yticklabels():
        assert [label.get_text() for label in labels] == expected
        assert_readable(labels, figure)
    assert left.bbox.width > 300 and right.bbox.width > 150


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
            "scripts": compare.digest_of(make_model),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "losses": pytest.approx([losses[i : i + 50].mean() for i in range(0, 1990, 50)], 1e-4),
        }


def go_to_a_notebook(monkeypatch):
    """Where each call forgets what is compiled: here, the tests to come need it."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(compare, "COMPILED", {})


def test_a_bar_shows_the_means_in_a_notebook(tmp_path, monkeypatch, without_xla):
    go_to_a_notebook(monkeypatch)
    stdout = run_here(tmp_path, "--n-repeats", 1, "--n-updates", 20)
    first, second = (
        f"{name}: {repeat['accuracy']:.4f}" for (name, _), repeat in repeats_in(tmp_path).items()
    )
    assert "0/2" in stdout and re.search(rf"2/2.*({first} - {second}|{second} - {first})", stdout)


def test_in_a_notebook_what_a_function_looks_up_may_change(tmp_path, monkeypatch, without_xla):
    go_to_a_notebook(monkeypatch)

    def mine(n_timesteps_in, n_features, n_units):
        model = keras.Sequential([keras.Input((n_timesteps_in, n_features))])
        model.add(keras.layers.Dense(n_features))
        model.compile("sgd", loss)
        return model

    monkeypatch.setattr(compare, "MODELS", {"mine": mine})
    losses = []
    for loss in "mse", "mae":
        run_here(tmp_path / loss, "--n-repeats", 1, "--n-updates", 20)
        losses.append(repeats_in(tmp_path / loss)["mine", 7]["losses"])
    assert losses[0] != losses[1]


def test_other_threads_random_numbers_change_no_weights():
    """Those of Python's random module, which Dask's draw from, too."""
    randint = random.randint

    def weights(advance):
        with compare.random_numbers_of(3):
            advance()
            return compare.MODELS["attention"](2, 6, 5).get_weights()

    for a, b in zip(weights(random.random), weights(lambda: random.seed(7)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert random.randint == randint


def test_seconds_are_those_of_training_not_of_compiling(monkeypatch):
    monkeypatch.setattr(compare, "COMPILED", {})
    start = time.perf_counter()
    repeat = compare.run_repeat("baseline", 3, {**SMALL, "n_updates": 1})
    assert 0 < repeat["seconds"] < (time.perf_counter() - start) / 2


def test_train_evaluate_model_as_the_article_calls_it(without_xla):
    model = compare.MODELS["baseline"](2, 6, 5)
    accuracy, losses = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100 and losses.shape == (10,)


# Wherever its output goes


class Logger:
    """What people put in place of the standard output, to keep a log."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text


def test_without_a_bar_the_error_output_tells_each_training(tmp_path, monkeypatch, capsys):
    """Also where the standard output is no file, or there is none."""
    for number, stdout in enumerate([Logger(), None]):
        monkeypatch.setattr(sys, "stdout", stdout)
        compare.main([*FLAGS, "--n-repeats", "1", "--output", str(tmp_path / str(number))])
        told = sorted(line.split(": ")[1] for line in capsys.readouterr().err.splitlines())
        assert told == sorted(
            f"{name}, seed {seed}, {repeat['accuracy']:.2f} %"
            for (name, seed), repeat in repeats_in(tmp_path / str(number)).items()
        )
        if stdout:
            assert stdout.written.count("Mean Accuracy") == 2
    monkeypatch.setattr(sys, "stdout", Logger())
    go_to_a_notebook(monkeypatch)
    run_flags = ["--n-repeats", "1", "--resume", "--output", str(tmp_path / "0")]
    compare.main([*FLAGS, *run_flags])
    stdout, sys.stdout.written = sys.stdout.written, ""
    assert stdout.count("Mean Accuracy") == 2
    closed = io.StringIO()
    closed.close()
    for stderr in None, closed:
        monkeypatch.setattr(sys, "stderr", stderr)
        compare.tell("where there is no error output, nothing")
    assert sys.stdout.written == ""


def test_names_and_folders_are_printed_under_any_code_page(tmp_path, monkeypatch):
    """The first run trains, the others take over what it has."""
    monkeypatch.setitem(compare.TITLES, "attention", "有注意力")
    for encoding, title in ("cp1252", "\\u6709"), ("ascii", "\\u6709"), ("gbk", "有注意力"):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stdout)
        flags = ["--n-repeats", "1", "--resume", "--output", str(tmp_path / "结果")]
        compare.main([*FLAGS, *flags])
        stdout.flush()
        printed = stdout.buffer.getvalue().decode(encoding)
        assert title in printed and "Written: " in printed


# The same by any number of threads and machines


def test_what_is_compiled_for_one_model_is_not_for_one_that_is_made_otherwise(
    monkeypatch, without_xla
):
    """As in a notebook, where a function takes the place of another of the same name."""
    settings = {**SMALL, "n_updates": 50}
    (alike,) = compare.run_repeat("baseline", 7, settings)["losses"]

    def baseline_model(*numbers):
        model = compare.MODELS["attention"](*numbers)
        model.compile("sgd", "mse")
        return model

    monkeypatch.setitem(compare.MODELS, "baseline", baseline_model)
    (loss,) = compare.run_repeat("baseline", 7, settings)["losses"]
    keras.utils.set_random_seed(7)
    expected = compare.train(baseline_model(2, 6, 5), *get_pairs(50, 2, 1, 6, 7))
    assert loss == pytest.approx(expected.mean(), 1e-4) != alike


CLUSTER = """
import sys
sys.modules["keras"] = None  # where it is not installed, an import of it fails, too
from distributed import LocalCluster
kwargs = {"protocol": "tcp", "dashboard_address": None, "silence_logs": 50}
with LocalCluster(n_workers=int(sys.argv[1]), processes=False, **kwargs) as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
    print(cluster.scheduler.transition_counter)  # 0 where nothing was to do
"""
WORKER = "-m distributed.cli.dask_worker --no-nanny --no-dashboard --nthreads 2".split()


def test_a_dask_cluster_gives_the_same_to_the_script_and_to_a_notebook(unbroken, tmp_path, start):
    """A scheduler without Keras, and a worker in another folder: it is sent the scripts."""
    cluster = start("-c", CLUSTER, "0", cwd=tmp_path)
    address = cluster.stdout.readline().strip()
    start(*WORKER, address, cwd=tmp_path)
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


def test_what_a_worker_lacks_is_told_as_the_flags_error(tmp_path, start, capsys):
    address = start("-c", CLUSTER, "1", cwd=tmp_path).stdout.readline().strip()
    with pytest.raises(SystemExit) as refused:
        run_here(tmp_path / "results", "--scheduler", address)
    assert refused.value.code == 2 and not (tmp_path / "results").exists()
    *_, message = capsys.readouterr().err.splitlines()
    assert f"error: argument --scheduler: {address}: " in message and "keras" in message


def test_a_cluster_trains_no_model_that_stands_in_no_file(tmp_path, monkeypatch, capsys):
    """It would train another one of that name, or none."""
    monkeypatch.setattr(compare, "MODELS", {"mine": functools.partial(with_a_gru)})
    with pytest.raises(SystemExit) as refused:
        run_here(tmp_path / "results", "--scheduler", "tcp://127.0.0.1:1")
    assert refused.value.code == 2
    assert "models of unchanged files, 'mine' is none" in capsys.readouterr().err


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
        process.wait(1)
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    status, stdout, stderr = finish(process)
    assert (status, stdout) == (-signal.SIGINT, "") and "Traceback" not in stderr, stderr
    assert time.monotonic() - before < 2


def test_stopped_and_resumed_equals_unbroken(unbroken, tmp_path, capsys):
    """Resumed twice by fewer threads: the second time, nothing is left to do."""
    output = tmp_path / "my résultats 结果"  # few encodings have it
    path, picture = output / "repeats.jsonl", output / "comparison.png"
    output.mkdir()
    *finished, torn, _ = (unbroken[0] / path.name).read_text().splitlines(keepends=True)[:5]
    path.write_text("".join(finished) + torn[:40])  # it was killed while it wrote
    for jobs, known in (1, 3), (2, 8):
        stdout = run_here(output, "--resume", "--jobs", jobs)
        assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"  # also where nothing is left
        assert path.read_text().startswith("".join(finished))  # these were not run again
        picture.unlink()  # fails if it was not drawn
        told = capsys.readouterr().err.splitlines()
        assert f"Taken over from {path}: {known} of 8 trainings" in told
        assert (f"Cut from the end of {path}: a torn line of 40 bytes" in told) == (known == 3)
        assert told[-1].startswith("5 of 5: " if known == 3 else "Taken over")
    assert determined(output, stdout) == determined(*unbroken)
    traced = {updates.experimental_get_tracing_count() for updates in compare.COMPILED.values()}
    assert traced == {1}
    assert len(pandas.read_json(path, lines=True)) == 8


# What may stand at the end of a file: is it there after the next run?
ENDS = {
    b"": True,
    b'{"model": "baseline", "se': False,
    b"\x00\x00\x00": False,
    b'{"model": "\xe5\x8f': False,
    b'{"model": "baseline"}': True,  # it lacks its end alone
    b"[" * 100_000: False,
    b"3\n": True,
    b"torn long ago\n": True,
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: ascii(end[:30]))
def test_a_torn_end_is_cut_before_anything_is_trained_and_nothing_else(
    end, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # no other run writes meanwhile
    path = tmp_path / "repeats.jsonl"
    path.write_bytes(b'{"a": 1}\n' + end)
    compare.mend_end(path)
    assert path.read_bytes() == b'{"a": 1}\n' + (end.rstrip() + b"\n" if ENDS[end] and end else b"")
    assert ("Cut from the end of" in capsys.readouterr().err) != ENDS[end]
    failing = mock.Mock(side_effect=MemoryError)
    path.write_bytes(end)
    with mock.patch.object(compare, "run_repeats", failing), pytest.raises(MemoryError):
        run_here(tmp_path)
    assert not path.read_bytes() or ENDS[end]


def test_a_line_that_another_run_appends_meanwhile_is_not_cut(tmp_path, monkeypatch):
    """It has mended the end between this run's look and its cut."""
    path = tmp_path / "repeats.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')

    def from_json(line):
        path.write_bytes(b'{"a": 1}\n{"a whole": "line"}\n')

    monkeypatch.setattr(compare, "from_json", from_json)
    compare.mend_end(path)
    assert path.read_bytes() == b'{"a": 1}\n{"a whole": "line"}\n'


def test_whole_lines_stay_while_other_runs_start_and_end(tmp_path):
    """Of two runs that append, while others look for a torn end."""
    path = tmp_path / "repeats.jsonl"

    def append(run):
        for i in range(15):
            compare.save_repeat(path, {"run": run, "i": i, "losses": [0.1] * 20_000})

    with ThreadPoolExecutor(3) as executor:
        runs = [executor.submit(append, run) for run in "ab"]
        while not all(run.done() for run in runs):
            compare.mend_end(path)
        for run in runs:
            run.result()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted((line["run"], line["i"]) for line in lines) == [
        (run, i) for run in "ab" for i in range(15)
    ]


FOREIGN = b"""\
[]
null
3
"x"
{"model": 1}
{"model": ["baseline"], "seed": {}}
\xff\xfe
\xe5\x8f
{"model": "baseline", "se

"""


def test_foreign_lines_are_skipped(unbroken, tmp_path, capsys):
    """Also those of an older version, which lack what came later."""
    path = tmp_path / "repeats.jsonl"
    lines = (unbroken[0] / path.name).read_bytes()
    older = json.loads(lines.splitlines()[0])
    del older["n_eval"]
    path.write_bytes(FOREIGN + lines + FOREIGN + json.dumps(older).encode())
    stdout = run_here(tmp_path, "--resume")
    assert stdout == unbroken[1].replace(str(unbroken[0]), str(tmp_path))
    assert capsys.readouterr().err == f"Taken over from {path}: 8 of 8 trainings\n"


def test_what_other_scripts_or_versions_made_is_left(unbroken, tmp_path, capsys, monkeypatch):
    path = tmp_path / "repeats.jsonl"
    shutil.copy(unbroken[0] / path.name, path)
    first, *others = path.read_text().splitlines(keepends=True)
    name, seed = (json.loads(first)[key] for key in ("model", "seed"))
    for key in "scripts", "keras", "tensorflow":
        changed = json.dumps({**json.loads(first), key: "other"}) + "\n"
        path.write_text("".join([changed, *others]))
        run_here(tmp_path, "--resume")
        assert path.read_text().count("\n") == 9 and repeats_of(path)[-1][:2] == (name, seed)
        assert capsys.readouterr().err.splitlines()[:2] == [
            f"Taken over from {path}: 7 of 8 trainings",
            "Left there: 1, made by other scripts or versions, or a function that stands in no "
            "file",
        ]


def repeats_of(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["model"], line["seed"], line["scripts"]) for line in lines]


def test_a_changed_script_trains_again(unbroken, tmp_path, import_from, monkeypatch, capsys):
    for path in compare.SCRIPTS:
        shutil.copy(path, tmp_path)
    script = tmp_path / "attention.py"
    text = script.read_text(encoding="utf-8")
    assert text.count('optimizer="adam"') == 1
    script.write_text(text.replace('optimizer="adam"', 'optimizer="sgd"'), encoding="utf-8")
    shutil.copy(unbroken[0] / "repeats.jsonl", tmp_path)
    changed = import_from(tmp_path, "compare")
    plain = functools.partial(changed.compile_shared_updates, jit_compile=False)
    monkeypatch.setattr(changed, "compile_shared_updates", plain)
    changed.main([*FLAGS, "--n-repeats", "1", "--output", str(tmp_path), "--resume"])
    stdout, stderr = capsys.readouterr()
    assert stdout.count("Mean") == 2
    told = stderr.splitlines()
    assert told[0].endswith(": 0 of 2 trainings") and told[1].startswith("Left there: 2, made by")
    assert [line[:8] for line in told[2:]] == ["1 of 2: ", "2 of 2: "]
    *before, first, second = repeats_of(tmp_path / "repeats.jsonl")
    assert {first[:2], second[:2]} == {("baseline", 7), ("attention", 7)}
    assert first[2] == second[2] != before[0][2]


def test_a_digest_is_of_the_scripts_and_of_the_functions_file(tmp_path, monkeypatch):
    """It is None where it would be a guess."""
    monkeypatch.setattr(compare, "IMPORTED", dict(compare.IMPORTED))
    made = "mine = lambda *sizes: None  # NUMBER"

    def function_of(number, path):
        (tmp_path / path).write_text(made.replace("NUMBER", number))
        exec(compile(made, tmp_path / path, "exec"), names := {})
        return names["mine"]

    of_the_scripts = {compare.digest_of(function) for function in compare.MODELS.values()}
    one, two = function_of("1", "one.py"), function_of("2", "two.py")
    of_files = set(map(compare.digest_of, [one, two, with_a_gru]))
    assert len(of_the_scripts) == 1 and len(of_files) == 3 and None not in of_files
    assert not of_the_scripts & of_files

    function_of("3", "one.py")  # the file is not any more what was imported
    exec(made, typed := {})
    closing = (lambda units: lambda *sizes: units)(3)  # over what it would be with another number
    for guess in one, typed["mine"], closing, functools.partial(with_a_gru), keras.Sequential:
        assert compare.digest_of(guess) is None


def test_a_line_has_the_digest_of_before_the_training(tmp_path, monkeypatch):
    """Files change while a model trains: here, they are gone."""
    before = compare.digest_of(compare.MODELS["baseline"])

    def train_evaluate_model(*args, **kwargs):
        monkeypatch.setattr(compare, "SCRIPTS", [tmp_path / "gone.py"])
        return 0.0, np.zeros(1)

    monkeypatch.setattr(compare, "train_evaluate_model", train_evaluate_model)
    assert compare.run_repeat("baseline", 0, SMALL)["scripts"] == before
    assert compare.digest_of(compare.MODELS["baseline"]) is None


def test_resume_takes_the_last_lines_of_the_same_settings_alone(unbroken, tmp_path):
    path = tmp_path / "repeats.jsonl"
    before = (unbroken[0] / path.name).read_text()
    path.write_text(before)
    for n_repeats in (1, 2, 1):
        run_here(tmp_path, "--resume", "--n-repeats", n_repeats, "--n-eval", 29)
    added = path.read_text().removeprefix(before)
    assert added.count("\n") == added.count('"n_eval": 29') == 4
    asked = [(name, seed) for name in compare.MODELS for seed in SEEDS]
    now = {name: compare.made_with(name) for name in compare.MODELS}
    for setting in SMALL:
        assert compare.read_repeats(path, {**SMALL, setting: 99}, asked, now) == ({}, 0)

    wrong = before.replace('"accuracy": ', '"accuracy": 100')
    path.write_text(wrong)
    run_here(tmp_path, "--n-repeats", 1)  # without --resume
    assert path.read_text().removeprefix(wrong).count("\n") == 2
    repeats, _ = compare.read_repeats(path, SMALL, asked, now)
    assert len(repeats) == 8
    for (_, seed), repeat in repeats.items():
        assert (repeat["accuracy"] > 100) == (seed != 7)


# From the fifth on, trainings never end; those before learn nothing, at once. There is no standard
# output, as under pythonw.
ENDLESS = """
import itertools, resource, runpy, signal, sys, time, baseline, numpy, tensorflow
calls, plain = itertools.count(), tensorflow.function
tensorflow.function = lambda **_: plain  # without XLA, which takes longer to compile
def train(model, X, y, updates):
    if next(calls) >= 4:
        time.sleep(1000)
    return numpy.random.random(len(X))
baseline.train, sys.stdout = train, None
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
    assert "3 of 8: baseline" in stderr or "3 of 8: attention" in stderr
    assert f"\n3 of 8 trainings are saved in {path}\n" in stderr
    assert stderr.endswith("OSError: [Errno 27] File too large\n")
    compare.mend_end(path)
    assert len(path.read_text().splitlines()) == len(repeats_in(tmp_path)) == 3


def test_stopped_while_it_starts_the_trainings_it_cancels_those(tmp_path):
    futures = []

    def submit(*args):
        if len(futures) == 3:
            raise KeyboardInterrupt
        futures.append(Future())
        return futures[-1]

    missing = [("baseline", seed) for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        compare.run_repeats(submit, missing, SMALL, tmp_path / "repeats.jsonl")
    assert len(futures) == 3 and all(future.cancelled() for future in futures)


def test_a_training_that_fails_in_a_notebook_cancels_those_to_come(tmp_path, monkeypatch, capsys):
    executor, failing = ThreadPoolExecutor(1), mock.Mock(side_effect=MemoryError)
    monkeypatch.setattr(compare, "ThreadPoolExecutor", lambda jobs: executor)
    monkeypatch.setattr(compare, "train_evaluate_model", failing)
    with pytest.raises(MemoryError):
        run_here(tmp_path)
    executor.shutdown()  # when all that runs has ended
    assert failing.call_count < 4
    assert capsys.readouterr().err.startswith("0 of 8 trainings are saved")


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
    ("--seed", "4294967293", "must be at most 4294967295 in the last repeat, got 4294967296"),
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


def test_jobs_are_by_default_the_cores_that_the_process_may_use(tmp_path, monkeypatch):
    """As told by taskset or a container, not those of the machine; by Python from 3.13 on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert compare.parse_arguments([]).jobs == 2
    monkeypatch.delattr(os, "process_cpu_count")
    assert compare.parse_arguments([]).jobs == 3


def test_the_help_shows_the_default_values_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    help = capsys.readouterr().out
    assert help.isascii() and max(map(len, help.splitlines())) <= 80
    assert "Trains and evaluates" in help
    assert "units of each recurrent layer (default: 150)" in re.sub(r"\s+", " ", help)
    monkeypatch.setattr(compare, "__doc__", None)  # by python -OO
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    assert "Trains and evaluates" not in capsys.readouterr().out
