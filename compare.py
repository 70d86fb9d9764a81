"""Comparison of Models: the article's section 6 (模型比较).

Trains and evaluates both models 10 times, each time with new weights and new pairs, and prints
every accuracy, in %, and their means; then what the means are worth. It takes less than a minute on
two cores. Each finished training is a line of OUTPUT/repeats.jsonl, which grows from run to run;
OUTPUT/comparison.png shows how the models of this one learned and how often they were right.

Run it with `python compare.py`. `python attention.py --seed 3` trains its fourth repeat once more.
"""

import argparse
import json
import os
import pathlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
from matplotlib.figure import Figure

from data_prep import at_least, get_pairs, parse_arguments
import baseline
from baseline import baseline_model, evaluate, train
from attention import FLAGS as OUTPUT_FLAGS, attention_model
import keras  # after baseline, which chooses its backend

MODELS = {"baseline": baseline_model, "attention": attention_model}
TITLES = {"baseline": "Encoder-Decoder Model", "attention": "Encoder-Decoder With Attention Model"}
SETTINGS = "n_timesteps_in n_timesteps_out n_features n_units n_updates n_eval".split()
WINDOW = 50  # updates that a point of the loss curves is the mean of


def train_evaluate_model(
    model, n_timesteps_in, n_timesteps_out, n_features, n_updates=5000, n_eval=100, rng=None
):
    """Trains the compiled model on `n_updates` new pairs, one after the other, and evaluates it.

    Returns the exact-match accuracy on `n_eval` more, in %, and the losses of all, (n_updates,).
    """
    rng = np.random.default_rng(rng)
    problem = n_timesteps_in, n_timesteps_out, n_features
    losses = train(model, *get_pairs(n_updates, *problem, rng))
    return evaluate(model, *problem, n_eval, rng), losses


def run_repeat(name, seed, settings):
    """Makes, trains and evaluates a model; the arguments determine all but the seconds it takes.

    Returns its line of repeats.jsonl, a dictionary. The losses in it are means of WINDOW updates.
    """
    problem = dict(settings)
    n_units = problem.pop("n_units")
    randint = random.Random(seed).randint  # Keras draws seeds by it, and Dask's threads numbers
    with baseline.LOCK, mock.patch("random.randint", randint):
        keras.utils.set_random_seed(seed)
        model = MODELS[name](problem["n_timesteps_in"], problem["n_features"], n_units)
    start = time.perf_counter()
    accuracy, losses = train_evaluate_model(model, **problem, rng=seed)
    seconds = time.perf_counter() - start
    losses = [float(losses[i : i + WINDOW].mean()) for i in range(0, len(losses), WINDOW)]
    repeat = {"model": name, "seed": seed, "accuracy": accuracy, "seconds": seconds}
    return {**repeat, "n_weights": model.count_params(), **settings, "losses": losses}


def make_executor(jobs, scheduler):
    """Returns what runs the repeats: threads of this process, or a Dask cluster."""
    if not scheduler:
        # TensorFlow runs what XLA compiled on so many threads; with more than repeats it is slower.
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(jobs)
        return ThreadPoolExecutor(jobs)
    from distributed import Client  # only clusters need it

    client = Client(scheduler)
    for name in ("data_prep", "baseline", "attention_decoder", "attention"):
        client.upload_file(str(pathlib.Path(__file__).with_name(f"{name}.py")))
    return client.get_executor(pure=False)


def save_repeat(path, repeat):
    """Adds a line to the file in one write, and ends one that a killed run left torn."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a") as file:
        file.write("\n" * torn + json.dumps(repeat) + "\n")


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
    """Prints what the means of {name: repeats} are worth: spread, intervals, size and time."""
    rng = np.random.default_rng(0)
    print(f"{'Accuracy in %':36}  mean   std  95% interval  weights  seconds a training")
    mean, means = {}, {}
    for name, repeats in results.items():
        values = [repeat["accuracy"] for repeat in repeats]
        mean[name], std = np.mean(values), np.std(values, ddof=len(values) > 1)
        # Bootstrap: the means of as many accuracies, drawn again and again from those we have.
        means[name] = rng.choice(values, (10_000, len(values))).mean(axis=1)
        low, high = np.percentile(means[name], [2.5, 97.5])
        seconds = np.median([repeat["seconds"] for repeat in repeats])
        print(
            f"{TITLES[name]:36} {mean[name]:5.2f} {std:5.2f} {low:6.2f} {high:6.2f} "
            f"{repeats[0]['n_weights']:8,} {seconds:19.2f}"
        )
    low, high = np.percentile(means["attention"] - means["baseline"], [2.5, 97.5])
    difference = mean["attention"] - mean["baseline"]
    print(f"{'Difference':36} {difference:5.2f}       {low:6.2f} {high:6.2f}")


def plot_comparison(path, results):
    """Writes a picture of {name: repeats}: the losses with their spread, and the accuracies."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, repeats in results.items():
        losses = [repeat["losses"] for repeat in repeats]
        mean, std = np.mean(losses, axis=0), np.std(losses, axis=0, ddof=len(losses) > 1)
        updates = WINDOW * np.arange(1, len(mean) + 1)
        left.plot(updates, mean, label=TITLES[name])
        left.fill_between(updates, mean - std, mean + std, alpha=0.2)
    left.set(xlabel="update", ylabel="loss, mean and standard deviation", ylim=(0, None))
    left.legend()
    values = [[repeat["accuracy"] for repeat in repeats] for repeats in results.values()]
    right.boxplot(values, tick_labels=[TITLES[name].replace(" ", "\n", 1) for name in results])
    right.set(ylabel="exact-match accuracy in %", ylim=(-3, 103))
    figure.savefig(path, dpi=120)


FLAGS = argparse.ArgumentParser(add_help=False, parents=[OUTPUT_FLAGS])
FLAGS.add_argument("--n-repeats", type=at_least(1), default=10, help="trainings of each model")
FLAGS.add_argument("--jobs", type=at_least(1), default=os.cpu_count(), help="trainings at a time")
FLAGS.add_argument("--resume", action="store_true", help="train only what OUTPUT lacks")
FLAGS.add_argument("--scheduler", help="train on the Dask cluster at tcp://HOST:PORT")


def main():
    # Configure the problem.
    args = parse_arguments(__doc__, FLAGS)
    settings = {name: getattr(args, name) for name in SETTINGS}
    seeds = range(args.seed, args.seed + args.n_repeats)
    path = pathlib.Path(args.output, "repeats.jsonl")

    # Start the repeats that are missing.
    known = read_repeats(path, settings) if args.resume else {}
    keys = [(name, seed) for seed in seeds for name in reversed(MODELS)]  # the longer ones first
    missing = [key for key in keys if key not in known]
    executor = make_executor(min(args.jobs, len(missing) or 1), args.scheduler)
    futures = {key: executor.submit(run_repeat, *key, settings) for key in missing}
    for future in futures.values():
        future.add_done_callback(lambda future: save_repeat(path, future.result()))

    # Print the results in the article's order, as they become known.
    results = {name: [] for name in MODELS}
    for name, repeats in results.items():
        print(TITLES[name])
        for seed in seeds:
            repeats.append(known.get((name, seed)) or futures[name, seed].result())
            print(round(repeats[-1]["accuracy"], 2), flush=True)
        mean = np.mean([repeat["accuracy"] for repeat in repeats])
        print(f"Mean Accuracy: {mean:.2f}%\n", flush=True)

    print_statistics(results)
    plot_comparison(path.with_name("comparison.png"), results)
    print(f"\nWritten: {path}, {path.with_name('comparison.png')}")


if __name__ == "__main__":
    main()
