"""compare.py as a user runs it: what it prints, keeps and draws; killed, resumed, on a cluster."""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import compare
from baseline import evaluate, train
from data_prep import get_pairs
import keras

SCRIPT = pathlib.Path(compare.__file__)
REPEATS = 4
# Small enough to compile and train in seconds; the last window of the loss curve is a short one.
SETTINGS = {
    "n_timesteps_in": 2,
    "n_timesteps_out": 1,
    "n_features": 6,
    "n_units": 5,
    "n_updates": 1990,
    "n_eval": 30,
}
FLAGS = ["--n-repeats", str(REPEATS), "--seed", "7"]
for setting, number in SETTINGS.items():
    FLAGS += ["--" + setting.replace("_", "-"), str(number)]


def start(output, *flags, **kwargs):
    """Starts the script in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, *FLAGS, "--output", output, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    )


@pytest.fixture
def run_here(capsys):
    """Runs main in this process, where all is compiled already; returns what it prints."""

    def run(output, *flags):
        capsys.readouterr()
        compare.main([*FLAGS, "--output", str(output), *map(str, flags)])
        return capsys.readouterr().out

    return run


def repeats_in(output):
    """The lines of the file of repeats, from the first to the last."""
    return [json.loads(line) for line in (output / "repeats.jsonl").read_text().splitlines()]


def numbers(output):
    """All that the seed determines: the lines without their seconds, sorted."""
    repeats = [{**repeat, "seconds": None} for repeat in repeats_in(output)]
    return sorted(repeats, key=lambda repeat: (repeat["model"], repeat["seed"]))


def without_seconds(stdout, output):
    stdout = re.sub(r"(\d{3}) +[\d.]+$", r"\1", stdout, flags=re.MULTILINE)  # behind the weights
    return stdout.replace(str(output), "OUTPUT")


def wait_for_lines(output, n, process):
    path = output / "repeats.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run by two threads: its folder and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "deep" / "results"
    process = start(output, "--jobs", "2")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return output, stdout


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of its folder, with a name that few encodings have."""
    return pathlib.Path(shutil.copytree(unbroken[0], tmp_path / "résultats"))


# What it prints, keeps and draws


def test_the_articles_lines_and_nothing_else_where_the_output_is_no_terminal(unbroken):
    output, stdout = unbroken
    blocks = stdout.split("\n\n")
    for block, (name, title) in zip(blocks, compare.TITLES.items()):
        expected = [repeat["accuracy"] for repeat in numbers(output) if repeat["model"] == name]
        accuracies = [str(round(accuracy, 2)) for accuracy in expected]
        mean = f"Mean Accuracy: {sum(expected) / REPEATS:.2f}%"
        assert block.splitlines() == [title, *accuracies, mean]
    assert blocks[2].startswith("Accuracy in %") and len(blocks) == 4
    assert blocks[3] == f"Written: {output}/repeats.jsonl, {output}/comparison.png\n"


def results_with(*accuracies):
    return [
        {"accuracy": accuracy, "n_weights": 1234, "seconds": seconds, "losses": [2.0, 1.0]}
        for seconds, accuracy in enumerate(accuracies, 1)
    ]


def test_the_statistics(capsys):
    results = {"baseline": results_with(20, 25, 18), "attention": results_with(100, 90, 98)}
    compare.print_statistics(results)
    assert capsys.readouterr().out == (
        "Accuracy in %                         mean   std  least  greatest  weights"
        "  seconds a training\n"
        "Encoder-Decoder Model                21.00  3.61  18.00     25.00    1,234"
        "                2.00\n"
        "Encoder-Decoder With Attention Model 96.00  5.29  90.00    100.00    1,234"
        "                2.00\n"
        "Difference                           75.00\n"
    )
    compare.print_statistics({"baseline": results_with(20), "attention": results_with(100)})
    assert "20.00     -  20.00     20.00" in capsys.readouterr().out


def test_the_files(unbroken):
    output, _ = unbroken
    assert {path.name for path in output.iterdir()} == {"repeats.jsonl", "comparison.png"}
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    repeats = {(repeat["model"], repeat["seed"]): repeat for repeat in repeats_in(output)}
    assert repeats.keys() == {(m, seed) for m in compare.MODELS for seed in range(7, 7 + REPEATS)}
    for name, make_model in compare.MODELS.items():
        # Seed 9 again, here, by a plain loop: its curve and accuracy are what training gives.
        keras.utils.set_random_seed(9)
        model, rng = make_model(2, 6, 5), np.random.default_rng(9)
        losses = train(model, *get_pairs(1990, 2, 1, 6, rng))
        expected = {
            "model": name,
            "seed": 9,
            "accuracy": pytest.approx(evaluate(model, 2, 1, 6, 30, rng)),
            "seconds": repeats[name, 9]["seconds"],
            "n_weights": model.count_params(),
            **SETTINGS,
            "losses": pytest.approx([losses[i : i + 50].mean() for i in range(0, 1990, 50)], 1e-4),
        }
        assert repeats[name, 9] == expected


def test_a_bar_shows_the_means_on_a_terminal(tmp_path, run_here, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    stdout = run_here(tmp_path, "--n-repeats", 1)
    accuracy = {repeat["model"]: repeat["accuracy"] for repeat in repeats_in(tmp_path)}
    shown = " - ".join(f"{name}: {value:.4f}" for name, value in accuracy.items())
    reverse = " - ".join(f"{name}: {value:.4f}" for name, value in reversed(accuracy.items()))
    assert "0/2" in stdout and re.search(rf"2/2.*({shown}|{reverse})", stdout)


# The same by any number of threads and machines


@pytest.mark.parametrize("jobs", [1, 16])
def test_any_number_of_jobs_gives_the_same(jobs, unbroken, tmp_path, run_here):
    stdout = run_here(tmp_path, "--jobs", jobs)
    assert numbers(tmp_path) == numbers(unbroken[0])
    assert without_seconds(stdout, tmp_path) == without_seconds(unbroken[1], unbroken[0])


CLUSTER = """
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


def test_a_dask_cluster_gives_the_same(unbroken, tmp_path):
    (tmp_path / "cluster.py").write_text(CLUSTER)  # knows nothing of the scripts' folder
    with subprocess.Popen(
        [sys.executable, "cluster.py"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        address = cluster.stdout.readline().strip()
        output = tmp_path / "results"
        process = start(output, "--scheduler", address)
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        assert numbers(output) == numbers(unbroken[0])
        assert without_seconds(stdout, output) == without_seconds(unbroken[1], unbroken[0])
        cluster.communicate("\n", timeout=60)


def test_a_repeat_depends_on_its_arguments_alone():
    settings = {**SETTINGS, "n_updates": 90}
    first, other, again = (
        compare.run_repeat("baseline", seed, settings) | {"seconds": None} for seed in (3, 4, 3)
    )
    assert first == again and first["losses"] != other["losses"]


def test_seconds_are_those_of_training(monkeypatch):
    """Neither of waiting for other threads nor of compiling."""

    def compile_slowly(*args):
        time.sleep(1)
        return compile_updates(*args)

    compile_updates = compare.compile_updates
    monkeypatch.setattr(compare, "compile_updates", compile_slowly)
    monkeypatch.setattr(compare.baseline, "COMPILED", {})
    repeat = compare.run_repeat("baseline", 3, {**SETTINGS, "n_updates": 1})
    assert 0 < repeat["seconds"] < 1


def test_train_evaluate_model_as_the_article_calls_it():
    model = compare.MODELS["baseline"](2, 6, 5)
    accuracy, losses = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100 and losses.shape == (10,)


# Runs that end early, and others beside them


def test_killed_and_resumed_equals_unbroken(unbroken, tmp_path, run_here):
    process = start(tmp_path, "--jobs", "2")
    wait_for_lines(tmp_path, 3, process)
    process.kill()
    process.communicate()
    path = tmp_path / "repeats.jsonl"
    finished = path.read_text()
    assert 3 <= finished.count("\n") < 2 * REPEATS
    torn = '{"model": "baseline", "seed": 7, "accu'
    path.write_text(finished + torn)  # killed while writing

    stdout = run_here(tmp_path, "--resume", "--jobs", 1)
    assert without_seconds(stdout, tmp_path) == without_seconds(unbroken[1], unbroken[0])
    assert path.read_text().startswith(finished + torn + "\n")  # these were not run again
    path.write_text(path.read_text().replace(torn + "\n", ""))
    assert numbers(tmp_path) == numbers(unbroken[0])


@pytest.mark.parametrize("compiling", [True, False])
def test_ctrl_c_ends_it_at_once_without_a_traceback(compiling, tmp_path):
    # These sizes take many seconds to compile.
    flags = ["--n-units", "300", "--n-timesteps-in", "10"] if compiling else []
    process = start(
        tmp_path / "results",
        *flags,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )
    if compiling:
        deadline = time.monotonic() + 60
        while not (tmp_path / "results").exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # it imports
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    else:
        wait_for_lines(tmp_path / "results", 2, process)
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - before < 2
    assert (process.returncode, stderr) == (-signal.SIGINT, "")


def test_two_runs_at_once_in_one_folder(unbroken, tmp_path):
    for process in [start(tmp_path), start(tmp_path, "--seed", str(7 + REPEATS))]:
        assert process.wait(timeout=200) == 0
    repeats = numbers(tmp_path)
    assert len(repeats) == 4 * REPEATS
    assert [repeat for repeat in repeats if repeat["seed"] < 7 + REPEATS] == numbers(unbroken[0])


def test_what_cannot_be_saved_ends_the_run_with_status_1(unbroken, tmp_path):
    """A full disk, here a limit on the size of a file: the lines before stay whole."""
    line = len((unbroken[0] / "repeats.jsonl").read_text()) // (2 * REPEATS)
    limit = 3 * line + line // 2
    process = start(
        tmp_path,
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        ),
    )
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (1, "")
    assert f"3 of {2 * REPEATS} trainings are saved in {tmp_path}/repeats.jsonl" in stderr
    assert stderr.endswith("OSError: [Errno 27] File too large\n")
    assert stderr.count("Traceback") == 1
    assert len(compare.read_repeats(tmp_path / "repeats.jsonl", SETTINGS)) == 3


def test_a_training_that_fails_ends_the_run_and_loses_nothing(tmp_path):
    """At once and told once, though others would train for minutes."""
    code = f"""
import runpy, sys, baseline
evaluate = baseline.evaluate
def fail(model, *args):
    if model.name == "attention":
        raise MemoryError("full")
    return evaluate(model, *args)
baseline.evaluate = fail
sys.argv[1:] = {[*FLAGS, "--n-updates", "20", "--output", str(tmp_path), "--jobs", "1"]}
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("MemoryError: full") == 1
    assert f"0 of {2 * REPEATS} trainings are saved" in run.stderr


# Resuming


def test_resume_with_nothing_left_to_do(unbroken, copied, run_here):
    (copied / "comparison.png").unlink()
    before = (copied / "repeats.jsonl").read_bytes()
    stdout = run_here(copied, "--resume")
    assert stdout.splitlines()[:-1] == unbroken[1].splitlines()[:-1]
    assert (copied / "repeats.jsonl").read_bytes() == before
    assert (copied / "comparison.png").exists()


def test_resume_with_other_settings_and_numbers_of_repeats(unbroken, copied, run_here):
    before = (copied / "repeats.jsonl").read_text()
    for n_repeats in (1, 2, 1):
        run_here(copied, "--resume", "--n-repeats", n_repeats, "--n-eval", 29)
    assert (copied / "repeats.jsonl").read_text().startswith(before)
    assert [repeat["n_eval"] for repeat in repeats_in(copied)] == [30] * 2 * REPEATS + [29] * 4
    for setting in SETTINGS:
        other = {**SETTINGS, setting: 99}
        assert compare.read_repeats(copied / "repeats.jsonl", other) == {}


def test_without_resume_all_is_trained_and_the_later_line_counts(copied, run_here):
    path = copied / "repeats.jsonl"
    wrong = path.read_text().replace('"accuracy": ', '"accuracy": 100')
    path.write_text(wrong)
    run_here(copied, "--n-repeats", 1)
    assert path.read_text().startswith(wrong) and len(repeats_in(copied)) == 2 * REPEATS + 2
    for (_, seed), repeat in compare.read_repeats(path, SETTINGS).items():
        assert (repeat["accuracy"] > 100) == (seed != 7)


# Flags


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
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
    ],
)
def test_bad_flags(flag, value, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        compare.main([*FLAGS, "--output", str(tmp_path / "new"), flag, value])
    stdout, stderr = capsys.readouterr()
    assert (refused.value.code, stdout) == (2, "")
    assert f": error: argument {flag}: {message}" in stderr and len(stderr.split("error:")) == 2
    assert not (tmp_path / "new").exists()


def test_an_output_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output, reason in [
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "folder", "Not a directory"),
        ("/proc/none", "No such file or directory"),
    ]:
        with pytest.raises(SystemExit) as refused:
            compare.main(["--output", str(output)])
        assert refused.value.code == 2
        assert f"error: argument --output: {reason}: '{output}'\n" in capsys.readouterr().err


def test_a_call_without_flags_is_the_articles_experiment(tmp_path, monkeypatch):
    """Whatever stands in the command line of a notebook's kernel."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)
    args = compare.parse_arguments(None)
    assert (args.n_repeats, args.n_updates, args.seed, args.output) == (10, 5000, 0, "results")


def test_the_help_shows_the_articles_values_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    stdout = capsys.readouterr().out
    assert stdout.isascii() and max(map(len, stdout.splitlines())) <= 80
    help = re.sub(r"\s+", " ", stdout)
    for name, value in {
        "timesteps-in": 5,
        "timesteps-out": 2,
        "features": 50,
        "units": 150,
    }.items():
        assert re.search(rf"--n-{name} N_\w+ [^-]*\(default: {value}\)", help), name
