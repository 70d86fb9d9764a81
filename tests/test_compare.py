"""The comparison as a user runs it: printed, saved, shared, killed, resumed, interrupted."""

import csv
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import compare
from data_prep import get_pairs

ROOT = pathlib.Path(__file__).parent.parent
REPEATS = 6
# Small enough to compile and train in seconds; the last window of the loss curve is a short one.
FLAGS = (
    f"--n-timesteps-in 2 --n-timesteps-out 1 --n-features 6 --n-units 5 --n-updates 1990 "
    f"--n-repeats {REPEATS} --n-eval 30 --seed 7"
).split()
CSV_HEADER = (
    "model,repeat,seed,accuracy,seconds,n_timesteps_in,n_timesteps_out,n_features,n_units,n_updates"
)
FILES = {"accuracy.csv", "repeats.csv", "loss.csv", "loss.png", "accuracy.png"}


def command(output, *flags):
    return [sys.executable, str(ROOT / "compare.py"), *FLAGS, "--output", str(output), *flags]


def run(output, *flags, **kwargs):
    return subprocess.run(command(output, *flags), capture_output=True, text=True, **kwargs)


def start(output, *flags):
    """Starts a comparison in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        command(output, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )


def rows(output):
    with open(output / "accuracy.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(output):
    """All that the seed determines: the accuracies' rows without their seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(output)]


def wait_for_rows(output, n):
    deadline = time.monotonic() + 120
    while not (output / "accuracy.csv").exists() or len(rows(output)) < n:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(group):
    """Returns the processes of a group that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


def all_gone(group, seconds=10):
    deadline = time.monotonic() + seconds
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(group)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run by two processes: its folder and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "deep" / "results"
    finished = run(output, "--jobs", "2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # no log lines, and no progress line where nobody watches
    return output, finished.stdout


def test_prints_the_articles_lines(unbroken):
    output, stdout = unbroken
    lines = stdout.splitlines()
    saved = rows(output)
    for i, (name, title) in enumerate(compare.TITLES.items()):
        block = lines[i * (REPEATS + 3) :][: REPEATS + 3]
        assert block[0] == title
        accuracies = [float(line) for line in block[1 : REPEATS + 1]]
        expected = [float(row["accuracy"]) for row in saved if row["model"] == name]
        np.testing.assert_allclose(accuracies, expected, atol=0.005)
        mean = sum(expected) / REPEATS
        assert block[REPEATS + 1] == f"Mean Accuracy: {mean:.2f}%"
    statistics = lines[2 * (REPEATS + 3) :]
    for title, name in (("Encoder-Decoder Model", "baseline"), ("With Attention", "attention")):
        values = [float(row["accuracy"]) for row in saved if row["model"] == name]
        (line,) = [line for line in statistics if title in line]
        mean, std, low, high, weights, seconds = re.findall(r"[\d.,]+", line)
        assert float(mean) == pytest.approx(np.mean(values), abs=0.006)
        assert float(std) == pytest.approx(np.std(values, ddof=1), abs=0.006)
        assert min(values) <= float(low) <= float(mean) <= float(high) <= max(values)
        assert int(weights.replace(",", "")) == {"baseline": 496, "attention": 682}[name]
        assert 0 < float(seconds) < 30
    (line,) = [line for line in statistics if line.startswith("Difference")]
    difference, low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", line))
    assert low <= difference <= high


def test_the_files(unbroken):
    output, stdout = unbroken
    assert {path.name for path in output.iterdir()} == FILES
    assert all(name in stdout.splitlines()[-1] for name in FILES)
    lines = (output / "accuracy.csv").read_text().splitlines()
    assert lines[0] == CSV_HEADER
    assert len(lines) == 1 + 2 * REPEATS
    for i, row in enumerate(rows(output)):
        assert row["model"] == ("baseline", "attention")[i // REPEATS]
        assert int(row["repeat"]) == i % REPEATS and int(row["seed"]) == 7 + i % REPEATS
        assert [row[name] for name in compare.PROBLEM] == ["2", "1", "6", "5", "1990"]
    for name in ("loss.png", "accuracy.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    with open(output / "loss.csv", newline="") as file:
        table = np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    assert table[:, 0].tolist() == [*range(50, 1990, 50), 1990]
    # Repeat 2 again, here, by a plain loop: its curve and accuracy are what training gives.
    from attention import attention_model
    from baseline import baseline_model, evaluate, keras, train

    with open(output / "repeats.csv", newline="") as file:
        repeats = list(csv.DictReader(file))
    models = {"baseline": baseline_model, "attention": attention_model}
    for column, (name, make_model) in enumerate(models.items()):
        losses = np.array(
            [
                [float(value) for key, value in row.items() if key.startswith("loss_")]
                for row in repeats
                if row["model"] == name
            ]
        )
        np.testing.assert_allclose(table[:, 1 + 2 * column], losses.mean(axis=0))
        np.testing.assert_allclose(table[:, 2 + 2 * column], losses.std(axis=0, ddof=1))
        keras.utils.set_random_seed(7 + 2)
        model, rng = make_model(2, 6, 5), np.random.default_rng(7 + 2)
        loss = train(model, *get_pairs(1990, 2, 1, 6, rng))
        windows = [loss[i : i + 50].mean() for i in range(0, 1990, 50)]
        np.testing.assert_allclose(losses[2], windows, rtol=1e-4)
        (row,) = [r for r in rows(output) if (r["model"], r["repeat"]) == (name, "2")]
        assert float(row["accuracy"]) == pytest.approx(evaluate(model, 2, 1, 6, 30, rng))


def test_one_job_gives_the_same(unbroken, tmp_path):
    finished = run(tmp_path / "results", "--jobs", "1")
    assert finished.returncode == 0
    assert numbers(tmp_path / "results") == numbers(unbroken[0])
    same = (tmp_path / "results" / "loss.csv").read_bytes()
    assert same == (unbroken[0] / "loss.csv").read_bytes()


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
        finished = run(tmp_path / "results", "--scheduler", address)
        cluster.communicate("\n", timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert numbers(tmp_path / "results") == numbers(unbroken[0])
    same = (tmp_path / "results" / "loss.csv").read_bytes()
    assert same == (unbroken[0] / "loss.csv").read_bytes()


def test_a_scheduler_that_cannot_be_reached(tmp_path):
    before = time.monotonic()
    finished = run(tmp_path / "results", "--scheduler", "tcp://127.0.0.1:9")
    assert time.monotonic() - before < 15 + 5  # the five are for starting Python on a busy machine
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "tcp://127.0.0.1:9" in finished.stderr


def test_without_distributed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    arguments = ["compare.py", "--scheduler", "tcp://x:1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "pip install distributed" in error and error.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_and_resumed_equals_unbroken(unbroken, tmp_path):
    output = tmp_path / "results"
    process = start(output, "--jobs", "2")
    wait_for_rows(output, 3)
    process.kill()
    process.communicate()
    assert all_gone(process.pid)
    finished = rows(output)
    assert 3 <= len(finished) < 2 * REPEATS
    with open(output / "accuracy.csv", "a") as file:
        file.write("attention,5,12,9")  # power went while this was written
    with open(output / "repeats.csv", "a") as file:
        file.write("attention,5,30,628,1.7")

    resumed = run(output, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert numbers(output) == numbers(unbroken[0])
    assert (output / "loss.csv").read_bytes() == (unbroken[0] / "loss.csv").read_bytes()
    articles_part = 2 * (REPEATS + 3)
    assert resumed.stdout.splitlines()[:articles_part] == unbroken[1].splitlines()[:articles_part]
    kept = {(row["model"], row["repeat"]): row["seconds"] for row in finished}
    for row in rows(output):  # what was finished was not run again
        assert kept.get((row["model"], row["repeat"]), row["seconds"]) == row["seconds"]

    # Nothing is left to do: no process is started, the numbers stay.
    before = time.monotonic()
    again = run(output, "--resume")
    assert time.monotonic() - before < 10
    assert again.stdout == resumed.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("n_rows", [0, 2])
def test_ctrl_c(n_rows, tmp_path):
    output = tmp_path / "results"
    # Without a row to wait for: in the midst of trainings that take far longer than the time-out.
    process = start(output, "--jobs", "2", *([] if n_rows else ["--n-updates", "2000000"]))
    wait_for_rows(output, n_rows)
    time.sleep(0 if n_rows else 8)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert all_gone(process.pid)
    assert "Traceback" not in stderr
    n_finished = len(rows(output))
    assert n_rows <= n_finished < 2 * REPEATS
    counts = [int(count) for count in re.findall(rf"(\d+) of {REPEATS}", stderr)]
    assert len(counts) == 2 and sum(counts) == n_finished
    assert "--resume" in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_worker_that_dies(tmp_path):
    output = tmp_path / "results"
    process = start(output, "--jobs", "2")
    wait_for_rows(output, 1)
    workers = [
        p for p in psutil.Process(process.pid).children() if "spawn_main" in str(p.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert stderr.count("\n") == 1 and " failed: " in stderr
    assert rows(output)
    assert all_gone(process.pid)


@pytest.mark.parametrize(
    ("flag", "value", "old"),
    [
        ("--seed", "8", "7"),
        ("--n-eval", "31", "30"),
        ("--n-updates", "2000", "1990"),
        ("--n-units", "6", "5"),
        ("--n-features", "7", "6"),
        ("--n-timesteps-in", "3", "2"),
    ],
)
def test_resume_with_other_settings(flag, value, old, unbroken):
    before = {path: path.read_bytes() for path in unbroken[0].iterdir()}
    finished = run(unbroken[0], "--resume", flag, value)
    assert finished.returncode == 2
    assert f"was made with {flag} {old}, got {value}" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in unbroken[0].iterdir()} == before


@pytest.mark.parametrize("name", ["accuracy.csv", "repeats.csv"])
@pytest.mark.parametrize("damage", ["header", "cell", "short line", "binary"])
def test_resume_with_a_damaged_file(damage, name, unbroken, tmp_path):
    for file in FILES:
        (tmp_path / file).write_bytes((unbroken[0] / file).read_bytes())
    lines = (tmp_path / name).read_bytes().split(b"\n")
    if damage == "header":
        lines[0] = lines[0].replace(b"repeat", b"again")
    elif damage == "cell":
        lines[2] = lines[2].replace(b"baseline,1", b"baseline,one")
    elif damage == "short line":
        lines[3] = lines[3][:20]
    else:
        lines[2] = b"\x00\xff" + lines[2]
    damaged = b"\n".join(lines)
    (tmp_path / name).write_bytes(damaged)
    finished = run(tmp_path, "--resume")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert f"{name} is damaged in line " in finished.stderr
    assert (tmp_path / name).read_bytes() == damaged


@pytest.mark.parametrize("name", ["accuracy.csv", "repeats.csv"])
def test_resume_with_a_file_that_cannot_be_read(name, tmp_path):
    (tmp_path / name).mkdir()
    finished = run(tmp_path, "--resume")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1 and str(tmp_path / name) in finished.stderr


def test_resume_where_there_is_nothing_and_then_more_repeats(unbroken, tmp_path):
    first = run(tmp_path, "--resume", "--n-repeats", "1")
    assert first.returncode == 0 and len(rows(tmp_path)) == 2
    more = run(tmp_path, "--resume", "--n-repeats", "2")
    assert more.returncode == 0, more.stderr
    expected = [row for row in numbers(unbroken[0]) if int(row["repeat"]) < 2]
    assert numbers(tmp_path) == expected


def test_a_new_run_loses_no_earlier_results(unbroken, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((unbroken[0] / name).read_bytes())
    finished = run(tmp_path, "--n-repeats", "1", "--seed", "3")
    assert finished.returncode == 0 and len(rows(tmp_path)) == 2
    assert "earlier-1" in finished.stderr
    for name in FILES:
        assert (tmp_path / "earlier-1" / name).read_bytes() == (unbroken[0] / name).read_bytes()


@pytest.mark.parametrize("flag", ["--jobs", "--n-eval", "--n-repeats"])
def test_bad_flags(flag, tmp_path):
    finished = run(tmp_path, flag, "0")
    assert finished.returncode == 2
    name = flag[2:].replace("-", "_")
    assert finished.stderr == f"compare.py: {name} must be at least 1, got 0\n"


def test_train_evaluate_model():
    from baseline import baseline_model

    model = baseline_model(2, 6, 5)
    accuracy = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100
    rng = np.random.default_rng(0)
    _, losses = compare.train_evaluate_model(
        model, 2, 1, 6, n_updates=10, rng=rng, return_losses=True
    )
    assert losses.shape == (10,) and int(model.optimizer.iterations) == 20
    with pytest.raises(ValueError, match=r"n_out must be at most n_in \(2\), got 3"):
        compare.train_evaluate_model(model, 2, 3, 6)


def test_a_repeat_depends_on_its_arguments_alone():
    """Weights and optimizer of the compiled model start anew, whatever it was used for before."""
    settings = (2, 1, 6, 5, 100, 50)
    first = compare.run_repeat("attention", 3, *settings)
    other = compare.run_repeat("attention", 4, *settings)
    again = compare.run_repeat("attention", 3, *settings)
    assert first["losses"] == again["losses"] != other["losses"]
    assert first["accuracy"] == again["accuracy"]
