"""The article's section "Comparison of Models". Run it with `python compare.py`.

Trains and evaluates both models 10 times, each time with new weights and new pairs, and prints
every accuracy, in %, and their means; then what the means are worth. It takes about a minute on two
cores and writes to the OUTPUT folder:

  accuracy.csv, accuracy.png   the accuracy of every repeat
  loss.csv, loss.png           the loss over the updates, mean and standard deviation over repeats
  repeats.csv                  the loss of every repeat, for --resume

Repeat k uses the seed SEED + k: `python attention.py --seed 3` trains repeat 3 once more.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from itertools import count
from unittest import mock

import numpy as np

from data_prep import argument_parser, get_pairs, parse_arguments

# baseline.py and attention.py load TensorFlow, so they are imported where a model is trained: in
# the processes that share the repeats. This one starts those at once and stays small.

TITLES = {
    "baseline": "Encoder-Decoder Model",
    "attention": "Encoder-Decoder With Attention Model",
}
PROBLEM = ("n_timesteps_in", "n_timesteps_out", "n_features", "n_units", "n_updates")
ACCURACY_COLUMNS = ("model", "repeat", "seed", "accuracy", "seconds", *PROBLEM)
WINDOW = 50  # updates that a point of the loss curves is the mean of
RESULT_FILES = ("accuracy.csv", "repeats.csv", "loss.csv", "loss.png", "accuracy.png")
ONE_AT_A_TIME = threading.Lock()  # a cluster's workers may have threads; they share the models


def train_evaluate_model(
    model,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_updates: int = 5000,
    n_eval: int = 100,
    rng: np.random.Generator | None = None,
    return_losses: bool = False,
):
    """Trains the compiled model on `n_updates` new pairs, one after the other, and evaluates it.

    Returns the exact-match accuracy on `n_eval` more new pairs, in %; with `return_losses`, also
    the loss of every update, (n_updates,). Raises ValueError as `get_pairs` does.
    """
    from baseline import evaluate, train

    problem = (n_timesteps_in, n_timesteps_out, n_features)
    losses = train(model, *get_pairs(n_updates, *problem, rng))
    accuracy = evaluate(model, *problem, n_eval, rng)
    return (accuracy, losses) if return_losses else accuracy


def run_repeat(
    model_name: str,
    seed: int,
    n_timesteps_in: int,
    n_timesteps_out: int,
    n_features: int,
    n_units: int,
    n_updates: int,
    n_eval: int,
) -> dict:
    """Trains and evaluates one model with weights and pairs from `seed`, in whichever process.

    Returns its accuracy in %, the seconds it took, the number of weights and the loss, averaged
    over windows of WINDOW updates. The result depends on nothing but the arguments.
    """
    with ONE_AT_A_TIME:
        from baseline import keras

        model, first_state = compiled_model(model_name, n_timesteps_in, n_features, n_units)
        keras.utils.set_random_seed(seed)
        # A cluster worker's other threads draw from `random`, from which Keras seeds initializers.
        with mock.patch("random.randint", random.Random(seed).randint):
            fresh = new_model(model_name, n_timesteps_in, n_features, n_units)
        # A new model would have to be compiled: the compiled one gets the new one's numbers.
        model.set_weights(fresh.get_weights())
        for variable, value in zip(model.optimizer.variables, first_state, strict=True):
            variable.assign(value)

        problem = (n_timesteps_in, n_timesteps_out, n_features)
        start = time.perf_counter()
        accuracy, losses = train_evaluate_model(
            model, *problem, n_updates, n_eval, np.random.default_rng(seed), return_losses=True
        )
        seconds = time.perf_counter() - start
        windows = [float(losses[i : i + WINDOW].mean()) for i in range(0, n_updates, WINDOW)]
        n_weights = model.count_params()
    return {"accuracy": accuracy, "seconds": seconds, "n_weights": n_weights, "losses": windows}


@functools.lru_cache(maxsize=2)
def compiled_model(model_name: str, n_timesteps_in: int, n_features: int, n_units: int):
    """Returns a model whose training is compiled and its optimizer's first state.

    One for each process and kind of model.
    """
    from baseline import train

    model = new_model(model_name, n_timesteps_in, n_features, n_units)
    model.optimizer.build(model.trainable_variables)
    first_state = [variable.numpy() for variable in model.optimizer.variables]
    train(model, *get_pairs(1, n_timesteps_in, 1, n_features))
    return model, first_state


def new_model(model_name: str, n_timesteps_in: int, n_features: int, n_units: int):
    from attention import attention_model
    from baseline import baseline_model

    make = {"baseline": baseline_model, "attention": attention_model}[model_name]
    return make(n_timesteps_in, n_features, n_units)


@contextlib.contextmanager
def local_processes(jobs: int) -> Iterator[Executor]:
    """Gives an executor with `jobs` processes, which end when it ends, however that comes about."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=end_with_parent) as pool:
        try:
            yield pool
        finally:
            for process in multiprocessing.active_children():
                process.terminate()


def end_with_parent() -> None:
    """Makes this process end as soon as its parent is gone, and leave Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """Gives an executor on the Dask cluster whose scheduler is at `address`."""
    from distributed import Client

    with Client(address, timeout="10s", set_as_default=False) as client:
        folder = os.path.dirname(os.path.abspath(__file__))
        for module in ("data_prep", "baseline", "attention_decoder", "attention", "compare"):
            client.upload_file(os.path.join(folder, f"{module}.py"))
        yield client.get_executor()


def run_repeats(args: Namespace, results: dict) -> None:
    """Runs the repeats that `results` lacks; saves and prints each, and adds it to `results`."""
    order = [(model, repeat) for model in TITLES for repeat in range(args.n_repeats)]
    missing = [key for key in order if key not in results]
    waiting = deque(order)
    print_known(waiting, results, args.n_repeats)
    if not missing:
        return
    start = time.monotonic()
    failure = None
    jobs = min(args.jobs, len(missing))
    with cluster(args.scheduler) if args.scheduler else local_processes(jobs) as executor:
        # The processes start here, deaf to Ctrl-C, which a terminal sends to all of them.
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        settings = {name: getattr(args, name) for name in (*PROBLEM, "n_eval")}
        futures = {
            executor.submit(run_repeat, model, args.seed + repeat, **settings): (model, repeat)
            for model, repeat in missing
        }
        signal.signal(signal.SIGINT, heard)
        show_progress(0, len(missing), start)
        for done, future in enumerate(as_completed(futures), 1):
            try:
                result = future.result()
            except Exception as error:  # others may have finished: save those first
                failure = failure or (futures[future], error)
                continue
            save_result(args, futures[future], result)
            results[futures[future]] = result
            show_progress(None, len(missing), start)
            print_known(waiting, results, args.n_repeats)
            show_progress(done, len(missing), start)
        show_progress(None, len(missing), start)
    if failure:
        (model, repeat), error = failure
        reason = (str(error) or repr(error)).splitlines()[0]
        raise RuntimeError(f"repeat {repeat} of the {model} model failed: {reason}")


def print_known(waiting: deque, results: dict, n_repeats: int) -> None:
    """Prints the article's lines as far as they are known, in the article's order."""
    while waiting and waiting[0] in results:
        model, repeat = waiting.popleft()
        if repeat == 0:
            print(TITLES[model])
        print(round(results[model, repeat]["accuracy"], 2), flush=True)
        if repeat == n_repeats - 1:
            mean = accuracies(results, model, n_repeats).mean()
            print(f"Mean Accuracy: {mean:.2f}%\n", flush=True)


def show_progress(done: int | None, total: int, start: float) -> None:
    """Writes the progress line on standard error, or removes it where `done` is None."""
    if sys.stderr.isatty():
        seconds = time.monotonic() - start
        line = "" if done is None else f"{done} of {total} trainings, {seconds:.0f} s"
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


def accuracies(results: dict, model: str, n_repeats: int) -> np.ndarray:
    """Returns the accuracies of the repeats that are finished, in %."""
    keys = [(model, repeat) for repeat in range(n_repeats)]
    return np.array([results[key]["accuracy"] for key in keys if key in results])


def print_statistics(results: dict, n_repeats: int) -> None:
    """Prints what the means are worth: spread, intervals, size and time."""
    rng = np.random.default_rng(0)
    print(f"{'Accuracy in %':36}  mean   std  95% interval  weights  seconds a training")
    mean, means = {}, {}
    for model, title in TITLES.items():
        values = accuracies(results, model, n_repeats)
        # Bootstrap: the means of as many accuracies, drawn again and again from those we have.
        means[model] = rng.choice(values, (10_000, n_repeats)).mean(axis=1)
        low, high = np.percentile(means[model], [2.5, 97.5])
        mean[model] = values.mean()
        n_weights = results[model, 0]["n_weights"]
        seconds = np.median([results[model, repeat]["seconds"] for repeat in range(n_repeats)])
        print(
            f"{title:36} {mean[model]:5.2f} {standard_deviation(values):5.2f} "
            f"{low:6.2f}–{high:5.2f} {n_weights:8,} {seconds:19.2f}"
        )
    difference = mean["attention"] - mean["baseline"]
    low, high = np.percentile(means["attention"] - means["baseline"], [2.5, 97.5])
    print(f"{'Difference':36} {difference:5.2f}       {low:6.2f}–{high:5.2f}")


def standard_deviation(values: np.ndarray) -> np.ndarray:
    """Returns the sample standard deviation over the first axis; of a single value, 0."""
    return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def repeats_columns(n_updates: int) -> tuple[str, ...]:
    """Returns what repeats.csv holds of each repeat, beside the columns that accuracy.csv has."""
    ends = [min(start + WINDOW, n_updates) for start in range(0, n_updates, WINDOW)]
    return ("model", "repeat", "n_eval", "n_weights", *(f"loss_{end}" for end in ends))


def table_rows(args: Namespace, results: dict) -> dict[str, list]:
    """Returns the rows of repeats.csv and accuracy.csv, in the order in which they are printed."""
    tables = {"repeats.csv": [], "accuracy.csv": []}
    for model in TITLES:
        for repeat in sorted(repeat for name, repeat in results if name == model):
            result = results[model, repeat]
            losses = (args.n_eval, result["n_weights"], *result["losses"])
            problem = (getattr(args, name) for name in PROBLEM)
            numbers = (args.seed + repeat, result["accuracy"], result["seconds"], *problem)
            tables["repeats.csv"].append((model, repeat, *losses))
            tables["accuracy.csv"].append((model, repeat, *numbers))
    return tables


def save_result(args: Namespace, key: tuple[str, int], result: dict) -> None:
    """Appends one finished repeat to the tables, accuracy.csv last: its row says it is complete."""
    for name, rows in table_rows(args, {key: result}).items():
        with open(os.path.join(args.output, name), "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
            file.flush()
            os.fsync(file.fileno())


def write_tables(args: Namespace, results: dict) -> None:
    """Writes both tables anew, sorted."""
    columns = {"repeats.csv": repeats_columns(args.n_updates), "accuracy.csv": ACCURACY_COLUMNS}
    for name, rows in table_rows(args, results).items():
        write_csv(os.path.join(args.output, name), columns[name], rows)


def write_csv(path: str, columns: tuple[str, ...], rows: list) -> None:
    """Writes a table; killed meanwhile, it leaves the old one."""
    with open(path + ".new", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    os.replace(path + ".new", path)


def read_csv(path: str, columns: tuple[str, ...]) -> list[dict]:
    """Returns the rows of a table that may end in a half-written line, or not exist.

    Raises ValueError if it is damaged.
    """
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")[:-1]  # what follows the last line's end was not finished
    rows = []
    number = 1
    try:
        for number, cells in enumerate(csv.reader(lines), 1):
            if number == 1:
                if cells != list(columns):
                    raise ValueError
                continue
            row = dict(zip(columns, cells, strict=True))
            if row["model"] not in TITLES:
                raise ValueError
            for name in columns[1:]:
                real = name in ("accuracy", "seconds") or name.startswith("loss_")
                row[name] = float(row[name]) if real else int(row[name])
            rows.append(row)
    except (ValueError, csv.Error):
        raise ValueError(f"{path} is damaged in line {number}") from None
    return rows


def read_results(args: Namespace) -> dict:
    """Returns the finished repeats in the output folder, {(model, repeat): result}.

    Raises ValueError, naming file and setting, if they are damaged or of other settings.
    """

    def check(name: str, value: int) -> None:
        if value != getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{path} was made with {flag} {value}, got {getattr(args, name)}")

    results = {}
    path = os.path.join(args.output, "accuracy.csv")
    for row in read_csv(path, ACCURACY_COLUMNS):
        check("seed", row["seed"] - row["repeat"])
        for name in PROBLEM:
            check(name, row[name])
        results[row["model"], row["repeat"]] = row
    path = os.path.join(args.output, "repeats.csv")
    losses = {}
    for row in read_csv(path, repeats_columns(args.n_updates)):
        check("n_eval", row["n_eval"])
        row["losses"] = [value for name, value in row.items() if name.startswith("loss_")]
        losses[row["model"], row["repeat"]] = row
    return {key: results[key] | losses[key] for key in results.keys() & losses.keys()}


def set_aside(folder: str) -> None:
    """Moves the results of an earlier run to a folder of their own inside `folder`."""
    files = [name for name in RESULT_FILES if os.path.exists(os.path.join(folder, name))]
    if files:
        number = next(n for n in count(1) if not os.path.exists(f"{folder}/earlier-{n}"))
        earlier = os.path.join(folder, f"earlier-{number}")
        os.mkdir(earlier)
        for name in files:
            os.rename(os.path.join(folder, name), os.path.join(earlier, name))
        print(f"The results of an earlier run are now in {earlier}", file=sys.stderr)


def write_curves(args: Namespace, results: dict) -> None:
    """Writes loss.csv, loss.png and accuracy.png."""
    import matplotlib.pyplot as plt  # here: nothing else needs it

    ends = [int(name[5:]) for name in repeats_columns(args.n_updates) if name.startswith("loss_")]
    columns, table = ["update"], [ends]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for model, title in TITLES.items():
        losses = np.array([results[model, repeat]["losses"] for repeat in range(args.n_repeats)])
        mean, std = losses.mean(axis=0), standard_deviation(losses)
        columns += [f"{model}_mean", f"{model}_std"]
        table += [mean.tolist(), std.tolist()]
        (line,) = axis.plot(ends, mean, label=title)
        axis.fill_between(ends, mean - std, mean + std, color=line.get_color(), alpha=0.2, lw=0)
    write_csv(os.path.join(args.output, "loss.csv"), tuple(columns), list(zip(*table, strict=True)))
    axis.set_xlabel("update (one pair each)")
    axis.set_ylabel(f"cross-entropy, mean of {WINDOW} updates")
    axis.set_title(f"Loss, mean ± standard deviation of {args.n_repeats} repeats")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(os.path.join(args.output, "loss.png"), dpi=120)
    plt.close(figure)

    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    for place, model in enumerate(TITLES):
        values = accuracies(results, model, args.n_repeats)
        scatter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        axis.plot(values, place + scatter, "o", alpha=0.6)
        axis.vlines(values.mean(), place - 0.3, place + 0.3, "black")
        axis.text(values.mean(), place + 0.33, f"{values.mean():.2f} %", ha="center")
    axis.set_yticks(range(len(TITLES)), [title.replace(" ", "\n", 1) for title in TITLES.values()])
    axis.set_ylim(-0.5, len(TITLES) - 0.4)
    axis.set_xlim(-3, 108)
    axis.set_xlabel("exact-match accuracy in %: a point a repeat, a line their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(os.path.join(args.output, "accuracy.png"), dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argument_parser(__doc__, *PROBLEM, "n_repeats", "n_eval", "seed", "jobs")
    add = parser.add_argument
    help = "folder for the results (default: results)"
    add("--output", default="results", metavar="FOLDER", help=help)
    help = "keep the finished repeats in the output folder, run only what is missing"
    add("--resume", action="store_true", help=help)
    help = "run the repeats on the Dask cluster whose scheduler is there, tcp://HOST:PORT"
    add("--scheduler", metavar="ADDRESS", help=help)
    args = parse_arguments(parser)
    if args.scheduler and not find_spec("distributed"):
        parser.error("--scheduler needs the package distributed: pip install distributed")
    results = {}
    try:
        if args.resume:
            results = read_results(args)
        else:
            set_aside(args.output)
        write_tables(args, results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        run_repeats(args, results)
        write_tables(args, results)
        print_statistics(results, args.n_repeats)
        write_curves(args, results)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped. {finished_so_far(args)}", file=sys.stderr)
        return 130
    except (OSError, RuntimeError) as error:
        print(f"{parser.prog}: {error}. {finished_so_far(args)}", file=sys.stderr)
        return 1
    print("\nWritten: " + ", ".join(os.path.join(args.output, name) for name in RESULT_FILES))
    return 0


def finished_so_far(args: Namespace) -> str:
    """Returns what a run that ends early has finished, by its files, in one line."""
    results = read_results(args)
    parts = []
    for model in TITLES:
        values = accuracies(results, model, args.n_repeats)
        mean = f" (mean accuracy {values.mean():.2f}%)" if len(values) else ""
        parts.append(f"{len(values)} of {args.n_repeats} {model} repeats{mean}")
    return f"Finished, in {args.output}: {', '.join(parts)}; --resume runs the others"


if __name__ == "__main__":
    from compare import main  # by its own name, under which other processes find its functions

    sys.exit(main())
