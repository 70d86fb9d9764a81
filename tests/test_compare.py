"""The comparison as a user runs it: printed, saved, shared, killed, resumed, interrupted."""

import csv
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
from baseline import baseline_model, evaluate, keras, train
from data_prep import get_pairs

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
    "seed": 7,
}
FLAGS = ["--n-repeats", str(REPEATS)]
for setting, number in SETTINGS.items():
    FLAGS += ["--" + setting.replace("_", "-"), str(number)]
CSV_HEADER = (
    "model,repeat,seed,accuracy,seconds,n_timesteps_in,n_timesteps_out,n_features,n_units,n_updates"
)
FILES = {".lock", "accuracy.csv", "repeats", "loss.csv", "loss.png", "accuracy.png"}
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


@pytest.fixture
def refusal(run_here):
    """The one line that compare.py says as it ends with status 2, before any training."""

    def refusal(output, *flags):
        refused = run_here(output, *flags)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("compare.py: ") and refused.stderr.count("\n") == 1
        return refused.stderr

    return refusal


def rows(output):
    with open(output / "accuracy.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(output):
    """All that the seed determines: the files without their seconds."""
    table = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(output)]
    repeats = {path.name: json.loads(path.read_text()) for path in (output / "repeats").iterdir()}
    for repeat in repeats.values():
        del repeat["seconds"]
    return table, repeats, (output / "loss.csv").read_bytes()


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)


def wait_for_repeats(output, n, process):
    wait_for(lambda: len(list((output / "repeats").glob("*.json"))) >= n, process)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run by two threads: its folder and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "deep" / "results"
    finished = run(output, "--jobs", "2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # no log lines, and no progress line where nobody watches
    return output, finished.stdout


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of its folder, with a name that few encodings have."""
    return pathlib.Path(shutil.copytree(unbroken[0], tmp_path / "résultats"))


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
        assert 0 < float(seconds) < 60
    (line,) = [line for line in statistics if line.startswith("Difference")]
    difference, low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", line))
    assert low <= difference <= high


def test_the_files(unbroken):
    output, stdout = unbroken
    assert {path.name for path in output.iterdir()} == FILES
    assert all(name in stdout.splitlines()[-1] for name in FILES - {".lock"})
    lines = (output / "accuracy.csv").read_text().splitlines()
    assert lines[0] == CSV_HEADER
    assert len(lines) == 1 + 2 * REPEATS
    for i, row in enumerate(rows(output)):
        assert row["model"] == ("baseline", "attention")[i // REPEATS]
        assert int(row["repeat"]) == i % REPEATS and int(row["seed"]) == 7 + i % REPEATS
        assert list(row.values())[5:] == ["2", "1", "6", "5", "1990"]
    for name in ("loss.png", "accuracy.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (output / "repeats").iterdir()} == {
        f"{name}-{k}.json" for name in ("baseline", "attention") for k in range(REPEATS)
    }
    with open(output / "loss.csv", newline="") as file:
        table = np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    assert table[:, 0].tolist() == [*range(50, 1990, 50), 1990]
    for column, make_model in enumerate((baseline_model, attention_model)):
        # Repeat 2 again, here, by a plain loop: its curve and accuracy are what training gives.
        keras.utils.set_random_seed(7 + 2)
        model, rng = make_model(2, 6, 5), np.random.default_rng(7 + 2)
        loss = train(model, *get_pairs(1990, 2, 1, 6, rng))
        repeats = [
            json.loads((output / "repeats" / f"{model.name}-{k}.json").read_text())
            for k in range(REPEATS)
        ]
        assert all(repeat["settings"] == SETTINGS for repeat in repeats)
        windows = [loss[i : i + 50].mean() for i in range(0, 1990, 50)]
        np.testing.assert_allclose(repeats[2]["losses"], windows, rtol=1e-4)
        assert repeats[2]["accuracy"] == pytest.approx(evaluate(model, 2, 1, 6, 30, rng))
        (row,) = [r for r in rows(output) if (r["model"], r["repeat"]) == (model.name, "2")]
        assert float(row["accuracy"]) == repeats[2]["accuracy"]
        losses = np.array([repeat["losses"] for repeat in repeats])
        np.testing.assert_allclose(table[:, 1 + 2 * column], losses.mean(axis=0))
        np.testing.assert_allclose(table[:, 2 + 2 * column], losses.std(axis=0, ddof=1))


def test_any_number_of_jobs_gives_the_same(unbroken, tmp_path, run_here):
    finished = run_here(tmp_path / "results", "--jobs", "16")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert numbers(tmp_path / "results") == numbers(unbroken[0])


# Clusters

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=int(sys.argv[1]), threads_per_worker=2, dashboard_address=None, silence_logs=50
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


@pytest.mark.parametrize("n_workers", [2, 0])
def test_a_dask_cluster_gives_the_same_or_is_waited_for(n_workers, unbroken, tmp_path):
    (tmp_path / "cluster.py").write_text(CLUSTER)  # knows nothing of this folder's modules
    with subprocess.Popen(
        [sys.executable, "cluster.py", str(n_workers)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        address = cluster.stdout.readline().strip()
        process = start(*command(tmp_path / "results", "--scheduler", address))
        if n_workers:
            _, stderr = process.communicate(timeout=120)
            assert (process.returncode, stderr) == (0, "")
            assert numbers(tmp_path / "results") == numbers(unbroken[0])
        else:
            assert process.stderr.readline() == f"Waiting for workers of {address}\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20)[1].startswith("compare.py: stopped.")
        cluster.communicate("\n", timeout=60)


def test_a_scheduler_that_cannot_be_reached(tmp_path):
    before = time.monotonic()
    finished = run(tmp_path / "results", "--scheduler", "tcp://127.0.0.1:9")
    assert time.monotonic() - before < 15 + 5  # the five are for starting Python on a busy machine
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "tcp://127.0.0.1:9" in finished.stderr


@pytest.mark.parametrize(
    "address",
    ["", "tcp://host", "http://host:1", "tls://host:1", "host:1", "tcp://:1", "tcp://host:port"],
)
def test_addresses_that_cannot_be(address, tmp_path, refusal):
    error = refusal(tmp_path / "results", "--scheduler", address)
    assert "scheduler must be tcp://HOST:PORT, got " in error
    assert error.endswith(f"{address!r}\n") and not (tmp_path / "results").exists()


def test_without_distributed(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    assert "pip install distributed" in refusal(tmp_path, "--scheduler", "tcp://x:1")


# Runs that end early


@posix
def test_killed_and_resumed_equals_unbroken(unbroken, tmp_path, run_here):
    output = tmp_path / "results"
    process = start(*command(output, "--jobs", "2"))
    wait_for_repeats(output, 3, process)
    process.kill()
    process.communicate()
    finished = content(output / "repeats")
    assert 3 <= len(finished) < 2 * REPEATS
    (output / "unfinished.json").write_text('{"settings": {')  # killed while writing

    resumed = run_here(output, "--resume", "--jobs", "1")
    assert resumed.returncode == 0, resumed.stderr
    assert numbers(output) == numbers(unbroken[0])
    articles_part = 2 * (REPEATS + 3)
    assert resumed.stdout.splitlines()[:articles_part] == unbroken[1].splitlines()[:articles_part]
    after = content(output / "repeats")
    assert {path: after[path] for path in finished} == finished  # these were not run again


@posix
@pytest.mark.parametrize("n_finished", [0, 2])
def test_ctrl_c(n_finished, tmp_path):
    output = tmp_path / "results"
    # Without a repeat to wait for: while compiling, which takes seconds.
    size = [] if n_finished else ["--n-units", "100", "--n-timesteps-in", "10"]
    process = start(*command(output, "--jobs", "2", *size))
    if n_finished:
        wait_for_repeats(output, n_finished, process)
    else:
        wait_for(lambda: (output / ".lock").exists(), process)
        time.sleep(3)
        assert process.poll() is None
    before = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - before < 2
    assert process.returncode == 130
    assert stderr.count("\n") == 1 and stderr.startswith("compare.py: stopped. Finished, in ")
    repeats = list((output / "repeats").glob("*.json"))
    assert n_finished <= len(repeats) < 2 * REPEATS
    assert (output / "accuracy.csv").exists() == bool(repeats)
    assert len(repeats) == (len(rows(output)) if repeats else 0)
    counts = [int(count) for count in re.findall(rf"(\d+) of {REPEATS}", stderr)]
    assert len(counts) == 2 and sum(counts) == len(repeats)
    assert stderr.endswith("; --resume runs the others\n")


@posix
@pytest.mark.parametrize("script", ["data_prep.py", "baseline.py", "attention.py", "compare.py"])
def test_an_early_ctrl_c_prints_no_traceback(script, tmp_path):
    for seconds in (0.1, 0.7):
        process = start(sys.executable, "-X", "importtime", str(ROOT / script))
        for line in process.stderr:
            if line.rstrip().endswith(" site"):
                break  # Python itself has started, and reads the script
        time.sleep(seconds)
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, stderr = process.communicate(timeout=20)
        assert "Traceback" not in stderr and "KeyboardInterrupt" not in stderr
        assert script == "data_prep.py" or process.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    ("function", "error", "line"),
    [
        (
            "train_evaluate_model",
            MemoryError("full"),
            r"repeat \d of the .* model failed: MemoryError\('full'\)",
        ),
        ("save_repeat", OSError(28, "No space left"), r"\[Errno 28\] No space left"),
    ],
)
def test_what_fails_ends_the_run_with_one_line(
    function, error, line, tmp_path, monkeypatch, run_here
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(compare, function, fail)
    finished = run_here(tmp_path, "--n-updates", "20")
    assert finished.returncode == 1
    assert re.fullmatch(
        rf"compare.py: {line}\. Finished, in .*; --resume runs the others\n", finished.stderr
    )


@posix
def test_a_second_run_in_the_same_folder_is_refused(tmp_path, refusal):
    output = tmp_path / "results"
    first = start(*command(output))
    wait_for(lambda: (output / ".lock").exists(), first)
    error = refusal(output)
    assert first.poll() is None, "the first run was too short to tell"
    assert "no other run is using" in error
    assert first.communicate(timeout=120)[1] == "" and first.returncode == 0
    assert len(rows(output)) == 2 * REPEATS and not (output / "earlier-1").exists()


# Resuming


def test_resume_with_nothing_left_to_do_in_any_encoding(unbroken, copied):
    before = content(copied)
    env = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    again = subprocess.run(command(copied, "--resume"), capture_output=True, env=env)
    assert (again.returncode, again.stderr) == (0, b"")
    assert again.stdout.decode("ascii").splitlines()[:-1] == unbroken[1].splitlines()[:-1]
    assert content(copied) == before


@posix
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, copied):
    shell = " ".join(f"'{word}'" for word in command(copied, "--resume"))
    (copied / "loss.png").unlink()
    finished = subprocess.run(f"{shell} {closed}", shell=True, capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stderr == ""
    assert (copied / "loss.png").exists()


@pytest.mark.parametrize("setting", SETTINGS)
def test_resume_with_other_settings(setting, copied, refusal):
    flag = "--" + setting.replace("_", "-")
    old = SETTINGS[setting]
    new = 2 if old == 1 else old + 1
    before = content(copied)
    error = refusal(copied, "--resume", flag, str(new))
    assert error.endswith(f"attention-0.json was made with {flag} {old}, got {new}\n")
    assert content(copied) == before


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"\x00\xff", "no losses", "short", "words", "text", "name", "folder"],
)
def test_resume_with_a_damaged_file(damaged, copied, refusal):
    path = copied / "repeats" / "baseline-1.json"
    result = json.loads(path.read_text())
    if damaged == "no losses":
        del result["losses"]
    elif damaged == "short":
        result["losses"].pop()
    elif damaged == "words":
        result["losses"][3] = "low"
    elif damaged == "text":
        result["accuracy"] = "50"
    elif damaged == "name":
        path = path.rename(path.with_name("bassline-1.json"))
    if damaged == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            damaged if isinstance(damaged, bytes) else json.dumps(result).encode("utf-8")
        )
    before = content(copied)
    error = refusal(copied, "--resume")
    what = "cannot be read: Is a directory" if damaged == "folder" else "is damaged"
    assert error == f"compare.py: {path} {what}\n"
    assert content(copied) == before


def test_resume_where_there_is_nothing_and_then_more_repeats(unbroken, tmp_path, run_here):
    first = run_here(tmp_path, "--resume", "--n-repeats", "1")
    assert first.returncode == 0 and len(rows(tmp_path)) == 2
    (tmp_path / "accuracy.csv").unlink()  # what is lost or empty here costs nothing
    (tmp_path / "loss.csv").write_text("")
    more = run_here(tmp_path, "--resume", "--n-repeats", "2")
    assert (more.returncode, more.stderr) == (0, "")
    expected = [row for row in numbers(unbroken[0])[0] if int(row["repeat"]) < 2]
    assert numbers(tmp_path)[0] == expected
    fewer = run_here(tmp_path, "--resume", "--n-repeats", "1")
    assert (fewer.returncode, fewer.stderr) == (0, "")
    assert numbers(tmp_path)[0] == expected  # no result is removed


def test_a_new_run_loses_no_earlier_results(unbroken, copied, run_here):
    finished = run_here(copied, "--n-repeats", "1", "--seed", "3", "--n-updates", "20")
    assert finished.returncode == 0 and len(rows(copied)) == 2
    assert finished.stderr == f"The results of an earlier run are now in {copied / 'earlier-1'}\n"
    for path, before in content(unbroken[0]).items():
        if path.name != ".lock":
            moved = copied / "earlier-1" / path.relative_to(unbroken[0])
            assert moved.read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("--jobs", "0", "jobs must be at least 1, got 0"),
        ("--n-eval", "0", "n_eval must be at least 1, got 0"),
        ("--n-repeats", "-1", "n_repeats must be at least 1, got -1"),
        ("--seed", str(2**32 - 3), f"must be at most {2**32 - 1}, got {2**32 - 3 + REPEATS - 1}"),
    ],
)
def test_bad_flags(flag, value, rule, tmp_path, refusal):
    assert refusal(tmp_path / "results", flag, value).endswith(f"{rule}\n")
    assert not (tmp_path / "results").exists()


# Its functions


def test_train_evaluate_model():
    model = baseline_model(2, 6, 5)
    accuracy = compare.train_evaluate_model(model, 2, 1, 6, n_updates=10)
    assert 0 <= accuracy <= 100
    _, losses = compare.train_evaluate_model(
        model, 2, 1, 6, n_updates=10, rng=0, return_losses=True
    )
    assert losses.shape == (10,) and int(model.optimizer.iterations) == 20
    with pytest.raises(ValueError, match=r"n_out must be at most n_in \(2\), got 3"):
        compare.train_evaluate_model(model, 2, 3, 6)


def test_a_repeat_depends_on_its_arguments_alone():
    problem = {name: SETTINGS[name] for name in SETTINGS if name not in ("n_units", "seed")}
    first, again, other = (baseline_model(2, 6, 5) for _ in range(3))
    for model in (again, other):
        model.set_weights(first.get_weights())
    results = [compare.run_repeat(first, 3, problem), compare.run_repeat(again, 3, problem)]
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert compare.run_repeat(other, 4, problem)["losses"] != results[0]["losses"]
