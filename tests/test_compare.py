"""The comparison as a user runs it: printed, saved, shared, killed, resumed, interrupted."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import compare
from attention import attention_model
from baseline import baseline_model, evaluate, train
from data_prep import get_pairs
import keras

ROOT = pathlib.Path(__file__).parent.parent
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
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def command(output, *flags):
    return [sys.executable, str(ROOT / "compare.py"), *FLAGS, "--output", str(output), *flags]


def run(output, *flags, **kwargs):
    return subprocess.run(command(output, *flags), capture_output=True, text=True, **kwargs)


def start(*arguments):
    """Starts a script in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )


@pytest.fixture
def run_here(run_main):
    """As `run`, but in this process, where all models of SETTINGS are compiled once."""

    def run(output, *flags):
        status, stdout, stderr = run_main(compare, *command(output, *flags)[2:])
        return subprocess.CompletedProcess("compare.py", status, stdout, stderr)

    return run


def lines(output):
    """The lines of the file of repeats, from the first to the last."""
    text = (output / "repeats.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def numbers(output):
    """All that the seed determines: the lines without their seconds, sorted."""
    repeats = [{**line, "seconds": None} for line in lines(output)]
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
    finished = run(output, "--jobs", "2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # no log lines
    return output, finished.stdout


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of its folder, with a name that few encodings have."""
    return pathlib.Path(shutil.copytree(unbroken[0], tmp_path / "résultats"))


def test_prints_the_articles_lines(unbroken):
    output, stdout = unbroken
    printed = stdout.splitlines()
    for i, (name, title) in enumerate(compare.TITLES.items()):
        block = printed[i * (REPEATS + 3) :][: REPEATS + 3]
        assert block[0] == title
        accuracies = [float(line) for line in block[1 : REPEATS + 1]]
        expected = [line["accuracy"] for line in numbers(output) if line["model"] == name]
        np.testing.assert_allclose(accuracies, expected, atol=0.005)
        mean = sum(expected) / REPEATS
        assert block[REPEATS + 1] == f"Mean Accuracy: {mean:.2f}%"
    statistics = printed[2 * (REPEATS + 3) :]
    for title, name in (("Encoder-Decoder Model", "baseline"), ("With Attention", "attention")):
        values = [line["accuracy"] for line in lines(output) if line["model"] == name]
        (line,) = [line for line in statistics if title in line]
        mean, std, low, high, weights, seconds = re.findall(r"[\d.,]+", line)
        assert float(mean) == pytest.approx(np.mean(values), abs=0.006)
        assert float(std) == pytest.approx(np.std(values, ddof=1), abs=0.006)
        assert min(values) <= float(low) <= float(mean) <= float(high) <= max(values)
        assert int(weights.replace(",", "")) == {"baseline": 496, "attention": 682}[name]
        assert 0 < float(seconds) < 60
    (line,) = [line for line in statistics if line.startswith("Difference")]
    difference, low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", line))
    assert low <= difference <= high


def test_the_files(unbroken):
    output, stdout = unbroken
    assert {path.name for path in output.iterdir()} == {"repeats.jsonl", "comparison.png"}
    assert stdout.splitlines()[-1] == f"Written: {output}/repeats.jsonl, {output}/comparison.png"
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    repeats = lines(output)
    assert {(repeat["model"], repeat["seed"]) for repeat in repeats} == {
        (name, seed) for name in compare.MODELS for seed in range(7, 7 + REPEATS)
    }
    assert len(repeats) == 2 * REPEATS
    names = {"model", "seed", "accuracy", "seconds", "n_weights", "losses", *SETTINGS}
    for repeat in repeats:
        assert repeat.keys() == names and SETTINGS.items() <= repeat.items()
    for make_model in (baseline_model, attention_model):
        # Seed 9 again, here, by a plain loop: its curve and accuracy are what training gives.
        keras.utils.set_random_seed(9)
        model, rng = make_model(2, 6, 5), np.random.default_rng(9)
        loss = train(model, *get_pairs(1990, 2, 1, 6, rng))
        (repeat,) = [r for r in repeats if (r["model"], r["seed"]) == (model.name, 9)]
        windows = [loss[i : i + 50].mean() for i in range(0, 1990, 50)]
        np.testing.assert_allclose(repeat["losses"], windows, rtol=1e-4)
        assert repeat["accuracy"] == pytest.approx(evaluate(model, 2, 1, 6, 30, rng))
        assert repeat["n_weights"] == model.count_params()


@pytest.mark.parametrize("jobs", ["1", "16"])
def test_any_number_of_jobs_gives_the_same(jobs, unbroken, tmp_path, run_here):
    finished = run_here(tmp_path, "--jobs", jobs)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert numbers(tmp_path) == numbers(unbroken[0])
    assert without_seconds(finished.stdout, tmp_path) == without_seconds(unbroken[1], unbroken[0])


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
    (tmp_path / "cluster.py").write_text(CLUSTER)  # knows nothing of this folder's modules
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
        finished = run(output, "--scheduler", address, timeout=120)
        assert (finished.returncode, finished.stderr) == (0, "")
        assert numbers(output) == numbers(unbroken[0])
        assert without_seconds(finished.stdout, output) == without_seconds(unbroken[1], unbroken[0])
        cluster.communicate("\n", timeout=60)


# Runs that end early, and others beside them


@posix
def test_killed_and_resumed_equals_unbroken(unbroken, tmp_path, run_here):
    output = tmp_path / "results"
    process = start(*command(output, "--jobs", "2"))
    wait_for_lines(output, 3, process)
    process.kill()
    process.communicate()
    path = output / "repeats.jsonl"
    finished = path.read_text()
    assert 3 <= finished.count("\n") < 2 * REPEATS
    torn = '{"model": "baseline", "seed": 7, "accu'
    path.write_text(finished + torn)  # killed while writing

    resumed = run_here(output, "--resume", "--jobs", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert without_seconds(resumed.stdout, output) == without_seconds(unbroken[1], unbroken[0])
    assert path.read_text().startswith(finished + torn + "\n")  # these were not run again
    path.write_text(path.read_text().replace(torn + "\n", ""))
    assert numbers(output) == numbers(unbroken[0])


@posix
@pytest.mark.parametrize("n_finished", [0, 2])
def test_ctrl_c(n_finished, tmp_path):
    """While compiling, which takes seconds, and while training: gone at once, without a word."""
    output = tmp_path / "results"
    size = [] if n_finished else ["--n-units", "100", "--n-timesteps-in", "10"]
    process = start(*command(output, "--jobs", "2", *size))
    if n_finished:
        wait_for_lines(output, n_finished, process)
    else:
        while not output.exists():  # after the imports
            time.sleep(0.01)
        time.sleep(3)
        assert process.poll() is None
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - before < 2
    assert (process.returncode, stderr) == (-signal.SIGINT, "")
    if n_finished:
        assert n_finished <= len(lines(output)) < 2 * REPEATS


@posix
def test_two_runs_at_once_in_one_folder(unbroken, tmp_path):
    others = ["--seed", str(7 + REPEATS)]
    runs = [start(*command(tmp_path)), start(*command(tmp_path, *others))]
    for process in runs:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    repeats = lines(tmp_path)
    assert len(repeats) == 4 * REPEATS
    assert {repeat["seed"] for repeat in repeats} == set(range(7, 7 + 2 * REPEATS))
    first = [repeat for repeat in numbers(tmp_path) if repeat["seed"] < 7 + REPEATS]
    assert first == numbers(unbroken[0])


def test_what_fails_is_told_and_loses_nothing(tmp_path, monkeypatch, run_here):
    def fail_for_seed_8(*args, rng, **kwargs):
        if rng == 8:
            raise MemoryError("full")
        return original(*args, rng=rng, **kwargs)

    original = compare.train_evaluate_model
    monkeypatch.setattr(compare, "train_evaluate_model", fail_for_seed_8)
    with pytest.raises(MemoryError, match="full"):
        run_here(tmp_path, "--n-updates", "20", "--jobs", "1")
    deadline = time.monotonic() + 60
    while len(lines(tmp_path)) < 2 * REPEATS - 2 and time.monotonic() < deadline:
        time.sleep(0.1)  # the other trainings go on
    assert {repeat["seed"] for repeat in lines(tmp_path)} == {7, 9, 10}


# Resuming


def test_resume_with_nothing_left_to_do(unbroken, copied, run_here):
    (copied / "comparison.png").unlink()
    before = (copied / "repeats.jsonl").read_bytes()
    again = run_here(copied, "--resume")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[:-1] == unbroken[1].splitlines()[:-1]
    assert (copied / "repeats.jsonl").read_bytes() == before
    assert (copied / "comparison.png").exists()


def test_other_settings_stand_beside(copied, run_here):
    before = (copied / "repeats.jsonl").read_text()
    assert run_here(copied, "--resume", "--n-repeats", "1", "--n-eval", "29").returncode == 0
    assert (copied / "repeats.jsonl").read_text().startswith(before)
    assert [repeat["n_eval"] for repeat in lines(copied)] == [30] * 2 * REPEATS + [29] * 2
    for setting in SETTINGS:
        other = {**SETTINGS, setting: 99}
        assert compare.read_repeats(copied / "repeats.jsonl", other) == {}
    assert len(compare.read_repeats(copied / "repeats.jsonl", SETTINGS)) == 2 * REPEATS


def test_resume_where_there_is_nothing_and_then_more_repeats(unbroken, tmp_path, run_here):
    for n_repeats in (1, 2, 1):
        finished = run_here(tmp_path, "--resume", "--n-repeats", str(n_repeats))
        assert (finished.returncode, finished.stderr) == (0, "")
    expected = [repeat for repeat in numbers(unbroken[0]) if repeat["seed"] < 9]
    assert numbers(tmp_path) == expected


def test_without_resume_all_is_trained_and_the_later_line_counts(copied, run_here):
    before = (copied / "repeats.jsonl").read_text()
    wrong = before.replace('"accuracy": ', '"accuracy": 100')
    (copied / "repeats.jsonl").write_text(wrong)
    assert run_here(copied, "--n-repeats", "1").returncode == 0
    assert (copied / "repeats.jsonl").read_text().startswith(wrong)
    assert len(lines(copied)) == 2 * REPEATS + 2
    repeats = compare.read_repeats(copied / "repeats.jsonl", SETTINGS)
    assert len(repeats) == 2 * REPEATS
    for (_, seed), repeat in repeats.items():
        assert (repeat["accuracy"] > 100) == (seed != 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "0"], "--jobs: must be at least 1, got 0"),
        (["--jobs", "x"], "--jobs: invalid integer value: 'x'"),
        (["--n-repeats", "0"], "--n-repeats: must be at least 1, got 0"),
        (["--n-timesteps-out", "9"], "--n-timesteps-out: must be at most 2"),
    ],
)
def test_bad_flags(flags, message, tmp_path, run_here):
    refused = run_here(tmp_path, *flags)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith(f"\ncompare.py: error: argument {message}\n")
    assert not (tmp_path / "repeats.jsonl").exists()


# Its functions


def test_train_evaluate_model():
    model = baseline_model(2, 6, 5)
    accuracy, losses = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100 and losses.shape == (10,)
    with pytest.raises(ValueError, match=r"n_out must be at most n_in \(2\), got 3"):
        compare.train_evaluate_model(model, 2, 3, 6)


def test_a_repeat_depends_on_its_arguments_alone():
    run = functools.partial(compare.run_repeat, "baseline", settings={**SETTINGS, "n_updates": 90})
    first, other, again = (run(seed) | {"seconds": None} for seed in (3, 4, 3))
    assert first == again and first["losses"] != other["losses"]
