"""Comparison of Models: the article's section 6 (模型比较).

Trains and evaluates both models 10 times, each time with new weights and new
pairs, and prints every accuracy, in %, and their means; then what the means are
worth. It takes less than a minute on two cores and writes to the OUTPUT folder:

  accuracy.csv, accuracy.png   the accuracy of every repeat
  loss.csv, loss.png           the loss over the updates: mean and standard
                               deviation over the repeats
  repeats/MODEL-K.json         every finished repeat, for --resume

Run it with `python compare.py`. Repeat K uses the seed SEED + K:
`python attention.py --seed 3` trains repeat 3 once more.
"""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C ends the script at once
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which may not be installed here

import contextlib
import csv
import functools
import importlib.util
import itertools
import json
import pathlib
import sys
import time
import urllib.parse
from argparse import Namespace
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed

import numpy as np
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from data_prep import Rng, get_pairs, make_folder, parse_arguments, stop
from baseline import baseline_model, evaluate, keras, tf, train
from attention import attention_model

MODELS = {"baseline": baseline_model, "attention": attention_model}
TITLES = {
    "baseline": "Encoder-Decoder Model",
    "attention": "Encoder-Decoder With Attention Model",
}
SETTINGS = (
    "n_timesteps_in", "n_timesteps_out", "n_features", "n_units", "n_updates", "n_eval", "seed",
)  # fmt: skip
RESULT_FILES = ("accuracy.csv", "loss.csv", "loss.png", "accuracy.png", "repeats")
WINDOW = 50  # updates that a point of the loss curves is the mean of


def train_evaluate_model(
    model: keras.Model,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_updates: int = 5000,
    n_eval: int = 100,
    rng: Rng = None,
    return_losses: bool = False,
) -> float | tuple[float, np.ndarray]:
    """Trains the compiled model on `n_updates` new pairs, one after the other, and evaluates it.

    Returns the exact-match accuracy on `n_eval` more new pairs, in %; with `return_losses`, also
    the loss of every update, (n_updates,). Raises ValueError as `get_pairs` does.
    """
    rng = np.random.default_rng(rng)
    problem = (n_timesteps_in, n_timesteps_out, n_features)
    losses = train(model, *get_pairs(n_updates, *problem, rng))
    accuracy = evaluate(model, *problem, n_eval, rng)
    return (accuracy, losses) if return_losses else accuracy


def run_repeat(model: keras.Model, seed: int, problem: dict) -> dict:
    """Trains and evaluates a new model with pairs from `seed`; `problem` is as above.

    Returns its accuracy in %, the seconds it took, the number of weights and the loss, averaged
    over windows of WINDOW updates. Model and arguments determine all but the seconds.
    """
    start = time.perf_counter()
    accuracy, losses = train_evaluate_model(model, **problem, rng=seed, return_losses=True)
    return {
        "accuracy": accuracy,
        "seconds": time.perf_counter() - start,
        "n_weights": model.count_params(),
        "losses": [float(losses[i : i + WINDOW].mean()) for i in range(0, len(losses), WINDOW)],
    }


def run_repeats(args: Namespace, settings: dict, results: dict) -> None:
    """Runs the repeats that `results` lacks; saves each, adds it and prints what is known."""
    to_print = [(name, repeat) for name in MODELS for repeat in range(args.n_repeats)]
    to_run = [(name, repeat) for repeat in range(args.n_repeats) for name in MODELS]
    missing = [key for key in to_run if key not in results]
    print_known(to_print, results)
    if not missing:
        return
    executor, n_ahead = make_executor(args, len(missing))
    problem = {name: value for name, value in settings.items() if name not in ("n_units", "seed")}
    futures, to_submit = {}, iter(missing)
    for n_finished in range(len(missing)):
        show_progress(f"{n_finished} of {len(missing)} trainings")
        for name, repeat in itertools.islice(to_submit, n_ahead - len(futures)):
            # Made here, one by one: Keras has one source of random numbers for all threads.
            keras.utils.set_random_seed(args.seed + repeat)
            model = MODELS[name](args.n_timesteps_in, args.n_features, args.n_units)
            future = executor.submit(run_repeat, model, args.seed + repeat, problem)
            futures[future] = name, repeat
        future = next(as_completed(futures))
        name, repeat = futures.pop(future)
        try:
            result = future.result()
        except Exception as error:
            raise RuntimeError(f"repeat {repeat} of the {name} model failed: {error!r}") from error
        save_repeat(args.output, name, repeat, settings, result)
        results[name, repeat] = result
        show_progress("")
        print_known(to_print, results)


def print_known(to_print: list[tuple[str, int]], results: dict) -> None:
    """Prints the article's lines as far as they are known, in its order, and forgets these."""
    while to_print and to_print[0] in results:
        name, repeat = to_print.pop(0)
        if repeat == 0:
            print(TITLES[name])
        print(round(results[name, repeat]["accuracy"], 2), flush=True)
        if (name, repeat + 1) not in to_print:
            mean = accuracies(results, name, repeat + 1).mean()
            print(f"Mean Accuracy: {mean:.2f}%\n", flush=True)


def show_progress(line: str) -> None:
    """Shows the line in place of the one before, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


def accuracies(results: dict, name: str, n_repeats: int) -> np.ndarray:
    """Returns the accuracies of the finished ones of a model's first repeats, in %."""
    keys = [(name, repeat) for repeat in range(n_repeats)]
    return np.array([results[key]["accuracy"] for key in keys if key in results])


def standard_deviation(values: np.ndarray) -> np.ndarray:
    """Returns the sample standard deviation over the first axis; of a single value, 0."""
    return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def print_statistics(results: dict, n_repeats: int) -> None:
    """Prints what the means are worth: spread, intervals, size and time."""
    rng = np.random.default_rng(0)
    print(f"{'Accuracy in %':36}  mean   std  95% interval  weights  seconds a training")
    mean, means = {}, {}
    for name, title in TITLES.items():
        values = accuracies(results, name, n_repeats)
        # Bootstrap: the means of as many accuracies, drawn again and again from those we have.
        means[name] = rng.choice(values, (10_000, n_repeats)).mean(axis=1)
        low, high = np.percentile(means[name], [2.5, 97.5])
        mean[name] = values.mean()
        n_weights = results[name, 0]["n_weights"]
        seconds = np.median([results[name, repeat]["seconds"] for repeat in range(n_repeats)])
        print(
            f"{title:36} {mean[name]:5.2f} {standard_deviation(values):5.2f} "
            f"{low:6.2f} {high:6.2f} {n_weights:8,} {seconds:19.2f}"
        )
    difference = mean["attention"] - mean["baseline"]
    low, high = np.percentile(means["attention"] - means["baseline"], [2.5, 97.5])
    print(f"{'Difference':36} {difference:5.2f}       {low:6.2f} {high:6.2f}")


def write_curves(output: pathlib.Path, results: dict, n_repeats: int, n_updates: int) -> None:
    """Writes loss.csv, loss.png and accuracy.png."""
    updates = [min(start + WINDOW, n_updates) for start in range(0, n_updates, WINDOW)]
    table = {"update": updates}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, title in TITLES.items():
        losses = np.array([results[name, repeat]["losses"] for repeat in range(n_repeats)])
        mean, std = losses.mean(axis=0), standard_deviation(losses)
        table |= {f"{name}_mean": mean.tolist(), f"{name}_std": std.tolist()}
        (line,) = axis.plot(updates, mean, label=title)
        axis.fill_between(updates, mean - std, mean + std, color=line.get_color(), alpha=0.2, lw=0)
    write_csv(output / "loss.csv", [table, *zip(*table.values())])
    axis.set_xlabel("update (one pair each)")
    axis.set_ylabel(f"cross-entropy, mean of {WINDOW} updates")
    axis.set_title(f"Loss, mean ± standard deviation of {n_repeats} repeats")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(output / "loss.png", dpi=120)

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(TITLES):
        values = accuracies(results, name, n_repeats)
        scatter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        axis.plot(values, place + scatter, "o", alpha=0.6)
        axis.vlines(values.mean(), place - 0.3, place + 0.3, "black")
        axis.text(values.mean(), place + 0.33, f"{values.mean():.2f} %", ha="center")
    axis.set_yticks(range(len(TITLES)), [title.replace(" ", "\n", 1) for title in TITLES.values()])
    axis.set_ylim(-0.5, len(TITLES) - 0.4)
    axis.set_xlim(-3, 108)
    axis.set_xlabel("exact-match accuracy in %: a point a repeat, a line their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(output / "accuracy.png", dpi=120)


# From here on: where the repeats run, and how none is lost.


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_executor(args: Namespace, n_trainings: int) -> tuple[Executor, int]:
    """Returns what runs the trainings, threads of this process or a Dask cluster.

    Also returns how many trainings it is to have ahead.
    """
    if not args.scheduler:
        jobs = min(args.jobs, n_trainings)
        with contextlib.suppress(RuntimeError):  # in a process where TensorFlow was in use before
            tf.config.threading.set_intra_op_parallelism_threads(jobs)  # one for each training
        return ThreadPoolExecutor(jobs), jobs + 1
    from distributed import Client  # only clusters need it

    client = Client(args.scheduler, timeout="10s", set_as_default=False)
    for name in ("data_prep", "baseline", "attention_decoder", "attention"):
        client.upload_file(str(pathlib.Path(__file__).with_name(f"{name}.py")))
    if not client.scheduler_info()["workers"]:
        print(f"Waiting for workers of {args.scheduler}", file=sys.stderr)
    return client.get_executor(pure=False), 100


def check_scheduler(address: str) -> None:
    """Raises ValueError unless the address can be a Dask scheduler's and distributed is there."""
    try:
        parts = urllib.parse.urlsplit(address)
        valid = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:  # a port that is no number
        valid = False
    if not valid:
        raise ValueError(f"scheduler must be tcp://HOST:PORT, got {address!r}")
    if not importlib.util.find_spec("distributed"):
        raise ValueError("scheduler needs the package distributed: pip install distributed")


def save_repeat(output: pathlib.Path, name: str, repeat: int, settings: dict, result: dict) -> None:
    """Writes OUTPUT/repeats/MODEL-K.json, as a whole or not at all."""
    unfinished = output / "unfinished.json"
    unfinished.write_text(json.dumps({"settings": settings, **result}), encoding="utf-8")
    (output / "repeats").mkdir(exist_ok=True)
    os.replace(unfinished, output / "repeats" / f"{name}-{repeat}.json")


def read_repeats(output: pathlib.Path, settings: dict) -> dict:
    """Returns the finished repeats in the output folder, {(model, repeat): result}.

    Raises ValueError, naming file and setting, if one is damaged or was made with other settings.
    """
    results = {}
    n_windows = len(range(0, settings["n_updates"], WINDOW))
    for path in sorted((output / "repeats").glob("*.json")):
        try:
            name, repeat = path.stem.split("-")
            result = json.loads(path.read_text(encoding="utf-8"))
            made_with = result.pop("settings")
            others = [setting for setting in settings if made_with[setting] != settings[setting]]
            numbers = [result[key] for key in ("accuracy", "seconds", "n_weights")]
            whole = np.isfinite(numbers).all() and name in MODELS
            if not others and not (whole and np.shape(np.abs(result["losses"])) == (n_windows,)):
                raise ValueError
            results[name, int(repeat)] = result
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged") from None
        for setting in others:
            flag = "--" + setting.replace("_", "-")
            raise ValueError(
                f"{path} was made with {flag} {made_with[setting]}, got {settings[setting]}"
            )
    return results


def set_aside(output: pathlib.Path) -> None:
    """Moves the results of an earlier run to a folder of their own inside the output folder."""
    files = [path for name in RESULT_FILES if (path := output / name).exists()]
    if files:
        number = next(n for n in itertools.count(1) if not (output / f"earlier-{n}").exists())
        earlier = output / f"earlier-{number}"
        earlier.mkdir()
        for path in files:
            path.rename(earlier / path.name)
        print(f"The results of an earlier run are now in {earlier}", file=sys.stderr)


def write_accuracies(output: pathlib.Path, settings: dict, results: dict) -> None:
    """Writes accuracy.csv, a line for each finished repeat."""
    problem = {name: value for name, value in settings.items() if name not in ("n_eval", "seed")}
    rows = [("model", "repeat", "seed", "accuracy", "seconds", *problem)]
    for name, repeat in sorted(results, key=lambda key: (list(MODELS).index(key[0]), key[1])):
        result = results[name, repeat]
        numbers = (settings["seed"] + repeat, result["accuracy"], result["seconds"])
        rows.append((name, repeat, *numbers, *problem.values()))
    write_csv(output / "accuracy.csv", rows)


def write_csv(path: pathlib.Path, rows: list) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def end_early(args: Namespace, settings: dict, results: dict, reason: str, status: int) -> None:
    """Writes accuracy.csv, says in one line what is finished, and ends the script."""
    finished = []
    for name in MODELS:
        values = accuracies(results, name, args.n_repeats)
        mean = f" (mean accuracy {values.mean():.2f}%)" if len(values) else ""
        finished.append(f"{len(values)} of {args.n_repeats} {name} repeats{mean}")
    missing = any((name, k) not in results for name in MODELS for k in range(args.n_repeats))
    hint = "; --resume runs the others" if missing else ""
    with contextlib.suppress(OSError):  # which may be the reason
        if results:
            write_accuracies(args.output, settings, results)
    line = "\r\033[K" if sys.stderr.isatty() else ""
    line += f"compare.py: {reason}. Finished, in {args.output}: {', '.join(finished)}{hint}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))
    os._exit(status)  # the trainings' threads cannot be stopped in any other way


def main() -> None:
    # Configure the problem.
    args = parse_arguments(
        __doc__,
        n_timesteps_in=5,
        n_timesteps_out=2,
        n_features=50,
        n_units=150,
        n_updates=5000,
        n_eval=100,
        n_repeats=10,
        seed=0,
        jobs=available_cores(),
        output="results",
        resume=False,
        scheduler=None,
    )
    settings = {name: getattr(args, name) for name in SETTINGS}
    results = {}

    # Prepare the output folder.
    try:
        if args.scheduler is not None:
            check_scheduler(args.scheduler)
        make_folder(args.output)
        args.output = pathlib.Path(args.output)
        lock = FileLock(args.output / ".lock", timeout=0)
        lock.acquire()  # released when this process ends, however it ends
        if args.resume:
            results = read_repeats(args.output, settings)
        if not results:
            set_aside(args.output)
    except Timeout:
        stop(f"output must be a folder that no other run is using, got {str(args.output)!r}")
    except (OSError, ValueError) as error:
        stop(str(error))

    # Run the repeats. Whatever ends this early, those finished are kept.
    end = functools.partial(end_early, args, settings, results)
    signal.signal(signal.SIGINT, lambda *_: end("stopped", status=130))
    try:
        run_repeats(args, settings, results)
        write_accuracies(args.output, settings, results)
        write_curves(args.output, results, args.n_repeats, args.n_updates)
    except Exception as error:
        end((str(error) or repr(error)).splitlines()[0].rstrip("."), status=1)
    print_statistics(results, args.n_repeats)
    print("\nWritten: " + ", ".join(str(args.output / name) for name in RESULT_FILES))


if __name__ == "__main__":
    main()
