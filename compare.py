"""Comparison of Models: the article's section 6 (模型比较).

Trains and evaluates both models 10 times, each time with new weights and new pairs, and prints
every accuracy, in %, and their means; then how far they spread. It takes about a minute on two
cores. Each finished training is a line of repeats.jsonl in the folder OUTPUT, which grows from run
to run; comparison.png there shows the losses and the accuracies of all that is printed.

Run it with `python compare.py`; `python compare.py --help` shows what can be varied.
"""

import argparse
import functools
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from unittest import mock

import numpy as np
from matplotlib.figure import Figure

from data_prep import get_pairs
from baseline import (
    UPDATES_PER_CALL,
    baseline_model,
    compile_updates,
    evaluate,
    progress_bar,
    train,
)
from attention import attention_model
import keras  # after baseline, which chooses its backend
import tensorflow as tf

MODELS = {"baseline": baseline_model, "attention": attention_model}
TITLES = {"baseline": "Encoder-Decoder Model", "attention": "Encoder-Decoder With Attention Model"}
LABELS = {"baseline": "without attention", "attention": "with attention"}  # in the picture
SETTINGS = "n_timesteps_in n_timesteps_out n_features n_units n_updates n_eval".split()
WINDOW = 50  # a point of the loss curves is the mean of so many updates

COMPILED = {}  # {what models are made by: the updates compiled for all of them}
COMPILING = {name: threading.Lock() for name in MODELS}
MAKING = threading.Lock()  # one model at a time


def train_evaluate_model(
    model, n_timesteps_in, n_timesteps_out, n_features, n_updates=5000, n_eval=100, rng=None,
    updates=None,
):  # fmt: skip
    """Trains the compiled model on `n_updates` new pairs, one after the other, and evaluates it.

    Returns the exact-match accuracy on `n_eval` more, in %, and the loss of each update,
    (n_updates,). `updates` are those of `train`.
    """
    rng = np.random.default_rng(rng)
    X, y = get_pairs(n_updates, n_timesteps_in, n_timesteps_out, n_features, rng)
    losses = train(model, X, y, updates=updates)
    accuracy = evaluate(model, n_timesteps_in, n_timesteps_out, n_features, n_eval, rng)
    return accuracy, losses


def handles_of(model):
    """Returns TensorFlow's handles of all variables that an update of the model changes."""
    # Keras makes some of them with the first update, which is still to come.
    y = tf.zeros((1, *model.output_shape[1:]))
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, y, y)
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [variable.handle for variable in variables]


def compile_shared_updates(model):
    """Returns `compile_updates(model)`, compiled, for all models that are made like this one.

    It takes the handles of a model's variables before the other arguments, and updates these. (To
    TensorFlow, the variables of the model that it traces are inputs like others.)
    """
    shapes = model.input_shape, model.output_shape
    X, y = (tf.zeros((UPDATES_PER_CALL, *shape[1:])) for shape in shapes)
    arguments = X, y, tf.constant(0)
    handles = handles_of(model)
    traced = compile_updates(model).get_concrete_function(*arguments)
    places = {id(handle): place for place, handle in enumerate(handles)}

    @tf.function(jit_compile=True)
    def updates(handles, *arguments):
        inputs = [handles[places[id(t)]] if id(t) in places else t for t in traced.captured_inputs]
        (losses,) = tf.raw_ops.StatefulPartitionedCall(
            args=[*arguments, *inputs], Tout=["float32"], f=traced
        )
        return losses

    updates(handles, *arguments)  # XLA compiles it in the first call, here for no pairs
    return updates


def run_repeat(name, seed, settings):
    """Makes, trains and evaluates a model; the arguments determine all but the seconds it takes.

    Returns its line of repeats.jsonl, a dictionary. The losses in it are means of WINDOW updates,
    the seconds those of training and evaluation.
    """
    problem = dict(settings)
    n_units = problem.pop("n_units")
    n_in, n_features = problem["n_timesteps_in"], problem["n_features"]
    # Keras draws the seeds of a model's weights from random.randint, which the other threads, also
    # Dask's, must not advance meanwhile.
    with MAKING, mock.patch("random.randint", random.Random(seed).randint):
        keras.utils.set_random_seed(seed)
        model = MODELS[name](n_in, n_features, n_units)
    # Compiling takes longer than a training: the first repeat of a model does it for all of them.
    made_by = MODELS[name], n_in, n_features, n_units
    with COMPILING[name]:
        if made_by not in COMPILED:
            COMPILED[made_by] = compile_shared_updates(model)
    updates = functools.partial(COMPILED[made_by], handles_of(model))
    start = time.perf_counter()
    accuracy, losses = train_evaluate_model(model, **problem, rng=seed, updates=updates)
    seconds = time.perf_counter() - start
    losses = [float(losses[i : i + WINDOW].mean()) for i in range(0, len(losses), WINDOW)]
    repeat = {"model": name, "seed": seed, "accuracy": accuracy, "seconds": seconds}
    return {**repeat, "n_weights": model.count_params(), **settings, "losses": losses}


def run_repeats(submit, missing, settings, path):
    """Runs the repeats (name, seed) and saves each when it has ended.

    `submit` starts `run_repeat` with its arguments and returns a future. Returns {(name, seed):
    repeat}. On a terminal or in a notebook, a bar counts them and shows the mean accuracies so far.
    An error ends it: what has not started is cancelled, and what is saved stays.
    """
    if not missing:
        return {}
    bar = progress_bar(len(missing), "training", list(MODELS))
    if bar.verbose:
        print("Compiling both models takes some seconds.")
    bar.update(0)
    futures = [submit(name, seed, settings) for name, seed in missing]
    repeats, accuracies = {}, {name: [] for name in MODELS}
    try:
        for future in as_completed(futures):
            repeat = future.result()
            save_repeat(path, repeat)
            repeats[repeat["model"], repeat["seed"]] = repeat
            accuracies[repeat["model"]].append(repeat["accuracy"])
            means = [(name, np.mean(values)) for name, values in accuracies.items() if values]
            bar.update(len(repeats), means)
    except BaseException:
        for future in futures:
            future.cancel()
        print(f"\n{len(repeats)} of {len(missing)} trainings are saved in {path}", file=sys.stderr)
        raise
    return repeats


def threads(jobs):
    """Returns the `submit` of so many threads, each of which runs one training at a time."""
    # TensorFlow runs what XLA compiled on so many threads; more than trainings make it slower. It
    # reads this when it runs its first operation, not when it is imported.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(jobs)
    return functools.partial(ThreadPoolExecutor(jobs).submit, run_repeat)


def cluster(address):
    """The type of a flag that takes the address of a Dask scheduler; returns its `submit`."""
    try:
        from distributed import Client  # only clusters need it

        client = Client(address, timeout=20)
    except (ImportError, OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{address}: {error}") from None
    for name in ("data_prep", "baseline", "attention_decoder", "attention", "compare"):
        client.upload_file(str(pathlib.Path(__file__).with_name(f"{name}.py")))

    def run_there(name, seed, settings):
        from compare import run_repeat  # the file that was sent, with what it has compiled

        return run_repeat(name, seed, settings)

    return functools.partial(client.get_executor(pure=False).submit, run_there)


def save_repeat(path, repeat):
    """Adds a line to the file, and ends one that is torn: by a killed run, or a full disk."""
    line = json.dumps(repeat) + "\n"
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        line = "\n" + line
    with open(path, "a") as file:
        file.write(line)


def read_repeats(path, settings):
    """Returns {(name, seed): repeat} of the file's last repeats with these settings."""
    repeats = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            repeat = json.loads(line)
        except ValueError:  # torn
            continue
        if settings.items() <= repeat.items():
            repeats[repeat["model"], repeat["seed"]] = repeat
    return repeats


def print_statistics(results):
    """Prints how the accuracies of {name: repeats} spread, and each model's size and time."""
    print(f"{'Accuracy in %':36}  mean   std  least  greatest  weights  seconds a training")
    means = []
    for name, repeats in results.items():
        values = [repeat["accuracy"] for repeat in repeats]
        means.append(np.mean(values))
        std = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        seconds = np.median([repeat["seconds"] for repeat in repeats])
        print(
            f"{TITLES[name]:36} {means[-1]:5.2f} {std:>5} {min(values):6.2f} {max(values):9.2f} "
            f"{repeats[0]['n_weights']:8,} {seconds:19.2f}"
        )
    print(f"{'Difference':36} {means[1] - means[0]:5.2f}")


def plot_comparison(path, results):
    """Writes a picture of {name: repeats}: the losses with their spread, and the accuracies."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for i, (name, repeats) in enumerate(results.items()):
        losses = np.array([repeat["losses"] for repeat in repeats])
        mean, std = losses.mean(axis=0), losses.std(axis=0, ddof=len(losses) > 1)
        updates = WINDOW * np.arange(1, len(mean) + 1)
        left.plot(updates, mean, label=LABELS[name])
        left.fill_between(updates, mean - std, mean + std, alpha=0.2)
        accuracies = [repeat["accuracy"] for repeat in repeats]
        median = {"color": "black"}
        right.boxplot(accuracies, positions=[i], widths=0.5, showfliers=False, medianprops=median)
        # side by side, so that equal ones do not cover each other
        beside = np.linspace(-0.15, 0.15, len(accuracies))
        right.plot(i + beside, accuracies, "o", alpha=0.6)
    left.set(xlabel="update", ylabel="loss, mean and standard deviation", ylim=(0, None))
    left.legend()
    right.set_xticks(range(len(results)), [LABELS[name] for name in results])
    right.set(ylabel="exact-match accuracy in %", ylim=(-3, 103))
    figure.savefig(path, dpi=120)


def parse_arguments(argv):
    """Returns the values of the flags, and makes the folder for the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def flag(name, least, default, help):
        parser.add_argument(name, type=at_least(least), default=default, help=help)

    flag("--n-timesteps-in", 1, 5, "time steps of a sequence")
    flag("--n-timesteps-out", 1, 2, "those to repeat")
    flag("--n-features", 2, 50, "different integers")
    flag("--n-units", 1, 150, "units of each recurrent layer")
    flag("--n-updates", 1, 5000, "each on one new pair")
    flag("--n-eval", 1, 100, "new pairs for the accuracy")
    flag("--n-repeats", 1, 10, "trainings of each model")
    flag("--seed", 0, 0, "of the first repeat; the same gives the same numbers")
    flag("--jobs", 1, os.cpu_count(), "trainings at a time")
    parser.add_argument("--output", default="results", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="train only what OUTPUT lacks")
    parser.add_argument(
        "--scheduler", type=cluster, help="train on the Dask cluster at tcp://HOST:PORT"
    )
    args = parser.parse_args(argv or [])  # a notebook has a command line of its own
    if args.n_timesteps_out > args.n_timesteps_in:
        parser.error(f"argument --n-timesteps-out: must be at most {args.n_timesteps_in}")
    make_output(parser, args.output)
    return args


def make_output(parser, path):
    """Makes the folder for the results. If nothing can be written to it, the script ends."""
    try:
        os.makedirs(path, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        parser.error(f"argument --output: {error.strerror}: {path!r}")


def at_least(least):
    """Returns the type of a flag that takes an integer from `least` up."""

    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return integer


def main(argv=None):
    # Configure the problem.
    args = parse_arguments(argv)
    settings = {name: getattr(args, name) for name in SETTINGS}
    seeds = range(args.seed, args.seed + args.n_repeats)
    path = pathlib.Path(args.output, "repeats.jsonl")

    # Train what is not there yet.
    known = read_repeats(path, settings) if args.resume else {}
    missing = []
    for seed in seeds:
        for name in ("attention", "baseline"):  # the longer training first
            if (name, seed) not in known:
                missing.append((name, seed))
    submit = args.scheduler or threads(min(args.jobs, len(missing) or 1))
    repeats = known | run_repeats(submit, missing, settings, path)

    # Print the results in the article's order.
    results = {}
    for name in MODELS:
        print(TITLES[name])
        results[name] = [repeats[name, seed] for seed in seeds]
        for repeat in results[name]:
            print(round(repeat["accuracy"], 2))
        mean = np.mean([repeat["accuracy"] for repeat in results[name]])
        print(f"Mean Accuracy: {mean:.2f}%\n")

    print_statistics(results)
    plot_comparison(path.with_name("comparison.png"), results)
    print(f"\nWritten: {path}, {path.with_name('comparison.png')}")


if __name__ == "__main__":
    if hasattr(sys, "ps1"):  # %run in a notebook, whose kernel must not end with it
        main(sys.argv[1:])
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, threads and all
        try:
            main(sys.argv[1:])
        except Exception:
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)  # at once: other trainings may still run
