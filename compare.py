"""Comparison of Models: the article's section 6 (模型比较).

Trains and evaluates both models 10 times, each time with new weights and new pairs, and prints
every accuracy, in %, and their means; then how far they spread. It takes half a minute to a minute
on two cores. Each finished training is a line of repeats.jsonl in the folder OUTPUT, which grows
from run to run; comparison.png there shows the losses and the accuracies of all that is printed.

Run it with `python compare.py`; `python compare.py --help` shows what can be varied.
"""

import argparse
import contextlib
import functools
import hashlib
import inspect
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
from matplotlib.figure import Figure

from data_prep import get_pair, get_pairs_in_parts
from baseline import (
    IMPORTED,
    UPDATES_PER_CALL,
    baseline_model,
    compile_updates,
    evaluate,
    in_notebook,
    progress_bar,
    train,
)
from attention import attention_model, families_for
import keras  # after baseline, which chooses its backend
import tensorflow as tf

# What is compared. One more is one more row: a function of n_timesteps_in, n_features and n_units
# that returns a compiled model. The models of a row share what is compiled: numbers that the
# function draws or looks up by itself must be the same for all of them.
MODELS = {"baseline": baseline_model, "attention": attention_model}
# The article's names for them, and those in the picture. A model that has none goes by its row's.
TITLES = {"baseline": "Encoder-Decoder Model", "attention": "Encoder-Decoder With Attention Model"}
LABELS = {"baseline": "without attention", "attention": "with attention"}
SETTINGS = "n_timesteps_in n_timesteps_out n_features n_units n_updates n_eval".split()
WINDOW = 50  # a point of the loss curves is the mean of so many updates
SCRIPTS = [
    pathlib.Path(inspect.getfile(baseline_model)).resolve().with_name(f"{name}.py")
    for name in ("data_prep", "baseline", "attention_decoder", "attention", "compare")
]

COMPILED = {}  # {what models are made by: the updates compiled for all of them, or None}
COMPILING = {}  # {what models are made by: the lock that is held meanwhile}
MAKING = threading.Lock()  # one model at a time

IMPORTED.update({path: path.read_bytes() for path in SCRIPTS if path not in IMPORTED})
# A notebook may run this file again while the others stay what they were, or paste it into a cell.
IMPORTED[SCRIPTS[-1]] = SCRIPTS[-1].read_bytes() if "__file__" in globals() else None


def train_evaluate_model(
    model, n_timesteps_in, n_timesteps_out, n_features, n_updates=5000, n_eval=100, rng=None,
    updates=None,
):  # fmt: skip
    """Trains the compiled model on `n_updates` new pairs, one after the other, and evaluates it.

    Returns the exact-match accuracy on `n_eval` more, in %, and the loss of each update,
    (n_updates,). `updates` are those of `train`.
    """
    rng = np.random.default_rng(rng)
    losses = []
    for X, y in get_pairs_in_parts(n_updates, n_timesteps_in, n_timesteps_out, n_features, rng):
        losses.append(train(model, X, y, updates=updates))
        updates = updates or compile_updates(model)  # for all parts to come
    accuracy = evaluate(model, n_timesteps_in, n_timesteps_out, n_features, n_eval, rng)
    return accuracy, np.concatenate(losses)


@contextlib.contextmanager
def random_numbers_of(seed):
    """Within it, the seed alone determines what Keras draws for a model's first weights.

    Keras draws their seeds from random.randint. What other threads, also Dask's, draw from Python's
    random numbers meanwhile does not advance it.
    """
    randint = random.randint
    random.randint = random.Random(seed).randint
    try:
        keras.utils.set_random_seed(seed)
        yield
    finally:
        random.randint = randint


def handles_of(model, X, y):
    """Returns TensorFlow's handles of the variables that Keras knows an update to change.

    X and y are any pair, arrays (1, ...).
    """
    # Keras makes some of them with the first update, which is still to come.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model.compute_metrics(X, y, tf.zeros(model.compute_output_shape(X.shape)))
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [variable.handle for variable in variables]


def compile_shared_updates(model, X, y, jit_compile=True):
    """Returns `compile_updates(model)`, compiled, for all models that are made like this one.

    It takes the handles of a model's variables before the other arguments, and updates these. (To
    TensorFlow, the variables of the model that it traces are inputs like others.) X and y are any
    pair. Returns None if an update uses a tensor or a variable that Keras does not list: it would
    be the first model's for all of them. Plain numbers cannot be told apart.
    """
    pairs = (np.repeat(array, UPDATES_PER_CALL, axis=0) for array in (X, y))
    arguments = *map(tf.constant, pairs), tf.constant(0)
    handles = handles_of(model, X, y)
    traced = compile_updates(model, jit_compile=jit_compile).get_concrete_function(*arguments)
    # Which of the handles it takes, and in what order.
    place_of = {id(handle): place for place, handle in enumerate(handles)}
    places = [place_of.get(id(tensor)) for tensor in traced.captured_inputs]
    if None in places:
        return None

    @tf.function(jit_compile=jit_compile)
    def updates(handles, *arguments):
        # A call of `traced` with the variables of another model in place of its own.
        (losses,) = tf.raw_ops.StatefulPartitionedCall(
            args=[*arguments, *(handles[place] for place in places)], Tout=["float32"], f=traced
        )
        return losses

    updates(handles, *arguments)  # XLA compiles it in the first call, here for no pairs
    return updates


def shared_updates(function, model, n_units, n_in, n_out, n_features):
    """Returns the `updates` of `train` for a model that the function made, or None for its own.

    Compiling takes longer than a training: the first repeat of a model does it for all of them.
    """
    if not (model.compiled and hasattr(model, "output_shape")):
        return None  # Keras cannot make all its variables before the first update
    code = getattr(function, "__code__", None)  # a notebook may reload it into the same function
    made_by = function, code, n_units, n_in, n_out, n_features
    X, y = get_pair(n_in, n_out, n_features)
    with COMPILING.setdefault(made_by, threading.Lock()):
        if made_by not in COMPILED:
            COMPILED[made_by] = compile_shared_updates(model, X, y)
    if COMPILED[made_by] is None:
        return None
    return functools.partial(COMPILED[made_by], handles_of(model, X, y))


def file_of(function):
    """Returns the path of the file that a function stands in, or None (in a notebook, say)."""
    path = pathlib.Path(inspect.getfile(function)) if inspect.isfunction(function) else None
    return path.resolve() if path and path.exists() else None


def digest_of(function):
    """Returns a digest of the scripts and of the file that the function stands in.

    Returns None where it would be a guess: where there is no such file, the function was made by
    another one, or a file is not any more what was imported.
    """
    path = file_of(function)
    if path is None or function.__closure__:
        return None
    digest = hashlib.sha256()
    for path in sorted({*SCRIPTS, path}, key=lambda path: path.name):
        try:
            content = path.read_bytes()
        except OSError:  # an editor or git may be replacing it
            return None
        if IMPORTED.setdefault(path, content) != content:
            return None
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def made_with(name):
    """Returns what a model's results depend on beside the settings; its lines hold it, too."""
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    return {"scripts": digest_of(MODELS[name]), **versions}


def run_repeat(name, seed, settings):
    """Makes, trains and evaluates a model; the arguments determine all but the seconds it takes.

    Returns its line of repeats.jsonl, a dictionary. The losses in it are means of WINDOW updates,
    the seconds those of training and evaluation.
    """
    function, made = MODELS[name], made_with(name)  # both may change while it trains
    problem = dict(settings)
    n_units = problem.pop("n_units")
    n_in, n_out = problem["n_timesteps_in"], problem["n_timesteps_out"]
    n_features = problem["n_features"]
    with MAKING, random_numbers_of(seed):
        model = function(n_in, n_features, n_units)
        if not model.built:
            model(get_pair(n_in, n_out, n_features)[0])  # makes the weights
    updates = shared_updates(function, model, n_units, n_in, n_out, n_features)
    start = time.perf_counter()
    accuracy, losses = train_evaluate_model(model, **problem, rng=seed, updates=updates)
    seconds = time.perf_counter() - start
    losses = [float(losses[i : i + WINDOW].mean()) for i in range(0, len(losses), WINDOW)]
    repeat = {"model": name, "seed": seed, "accuracy": accuracy, "seconds": seconds}
    repeat["n_weights"] = model.count_params()
    return {**repeat, **settings, **made, "losses": losses}


def run_repeats(submit, missing, settings, path):
    """Runs the repeats (name, seed) and saves each when it has ended.

    `submit` starts `run_repeat` with its arguments and returns a future. Returns {(name, seed):
    repeat}. On a terminal or in a notebook, a bar counts them and shows the mean accuracies so far;
    elsewhere, the error output has a line for each. An error ends it: what has not started is
    cancelled, and what is saved stays.
    """
    if not missing:
        return {}
    bar = progress_bar(len(missing), "training", list(MODELS))
    if bar.verbose:
        print("Compiling takes some seconds.")
    bar.update(0)
    futures, repeats, accuracies = [], {}, {name: [] for name in MODELS}
    try:
        for name, seed in missing:
            futures.append(submit(name, seed, settings))
        for future in as_completed(futures):
            repeat = future.result()
            save_repeat(path, repeat)
            name, seed, accuracy = repeat["model"], repeat["seed"], repeat["accuracy"]
            repeats[name, seed] = repeat
            accuracies[name].append(accuracy)
            means = [(name, np.mean(values)) for name, values in accuracies.items() if values]
            bar.update(len(repeats), means)
            if not bar.verbose:
                tell(f"{len(repeats)} of {len(missing)}: {name}, seed {seed}, {accuracy:.2f} %")
    except BaseException:
        for future in futures:
            future.cancel()
        if bar.verbose:
            tell("")  # leaves its line
        tell(f"{len(repeats)} of {len(missing)} trainings are saved in {path}")
        raise
    return repeats


def tell(text):
    """Prints a line on the error output, where there is one."""
    if sys.stderr is not None:  # print would write to standard output
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile: no reason to end
            print(text, file=sys.stderr)


def threads(jobs):
    """Returns the `submit` of so many threads, each of which runs one training at a time."""
    # TensorFlow runs what XLA compiled on so many threads; more than trainings make it slower. It
    # reads this when it runs its first operation, not when it is imported.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(jobs)
    return functools.partial(ThreadPoolExecutor(jobs).submit, run_repeat)


def cluster(address):
    """Returns the `submit` of the Dask cluster with this scheduler, which is sent the scripts."""
    from distributed import Client  # only clusters need it
    from distributed.diagnostics.plugin import UploadFile

    *others, compare = SCRIPTS
    ours = {}
    for name, function in MODELS.items():
        path, digest = file_of(function), digest_of(function)
        if digest is None:
            raise ValueError(f"a cluster trains models of unchanged files, {name!r} is none")
        ours[name] = digest, function.__qualname__
        if path.stem == function.__module__ and path not in SCRIPTS:
            others.append(path)  # compare.py imports it
    client = Client(address, timeout=20)
    try:
        # In the order in which they import each other. The scheduler itself needs none of them.
        for path in [*others, compare]:
            client.register_plugin(UploadFile(str(path)), name=path.name)
    except BaseException:
        client.close()
        raise

    def run_there(name, seed, settings):
        from compare import MODELS, digest_of, run_repeat  # the file that was sent

        function = MODELS.get(name)
        if (digest_of(function), getattr(function, "__qualname__", None)) != ours[name]:
            raise ValueError(f"a cluster trains the MODELS of compare.py, {name!r} is none of them")
        return run_repeat(name, seed, settings)

    return functools.partial(client.get_executor(pure=False).submit, run_there)


def save_repeat(path, repeat):
    """Adds a line to the file, whose end another run may have torn meanwhile."""
    mend_end(path)
    with open(path, "ab") as file:
        file.write(json.dumps(repeat).encode() + b"\n")


def mend_end(path):
    """Cuts a torn line from the file's end, which a killed run or a full disk has left."""
    while is_torn(path):
        content = path.read_bytes()
        time.sleep(0.5)
        if path.read_bytes() != content:  # another run was just writing it
            continue
        line = content[content.rfind(b"\n") + 1 :]
        if from_json(line) is not None:  # it lacks its end alone
            with open(path, "ab") as file:
                file.write(b"\n")
        elif path.stat().st_size == len(content):  # else another run has mended it
            os.truncate(path, len(content) - len(line))
            tell(f"Cut from the end of {path}: a torn line of {len(line)} bytes")


def is_torn(path):
    """Returns whether there is such a file, and it does not end with a line's end."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        return file.read() not in (b"\n", b"")


def from_json(line):
    """Returns the value that a line of bytes holds, or None, if it is torn."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # also if it is not in UTF-8
        return None


def read_repeats(path, settings, asked, made_now):
    """Returns {(name, seed): repeat} of what can be taken over, and how many others are there.

    The former are the last lines of these settings, and of what {name: made_with(name)} is now; the
    others, of these settings, were made by other scripts or versions alone.
    """
    made_otherwise, repeats = set(), {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        repeat = from_json(line)
        if not (isinstance(repeat, dict) and settings.items() <= repeat.items()):
            continue
        key = repeat.get("model"), repeat.get("seed")
        if key in asked:
            made = made_now[key[0]]
            if made["scripts"] and made.items() <= repeat.items():
                repeats[key] = repeat
            else:
                made_otherwise.add(key)
    return repeats, len(made_otherwise - repeats.keys())


def print_statistics(results):
    """Prints how the accuracies of {name: repeats} spread, and each model's size and time.

    Then how much the means of the others differ from the first one's.
    """
    titles = [TITLES.get(name, name) for name in results]
    width = max(36, *map(len, titles))
    print(f"{'Accuracy in %':{width}}  mean   std  least  greatest  weights  seconds a training")
    means = []
    for title, repeats in zip(titles, results.values()):
        values = [repeat["accuracy"] for repeat in repeats]
        means.append(np.mean(values))
        std = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        seconds = np.median([repeat["seconds"] for repeat in repeats])
        print(
            f"{title:{width}} {means[-1]:5.2f} {std:>5} {min(values):6.2f} {max(values):9.2f} "
            f"{repeats[0]['n_weights']:8,} {seconds:19.2f}"
        )
    if len(titles) == 2:
        titles[1] = "Difference"
    elif len(titles) > 2:
        print(f"Difference from {titles[0]}")
    for title, mean in zip(titles[1:], means[1:]):
        print(f"{title:{width}} {mean - means[0]:5.2f}")


def plot_comparison(path, results):
    """Writes a picture of {name: repeats}: the losses with their spread, and the accuracies."""
    labels = [LABELS.get(name, name) for name in results]
    families = families_for(labels)
    # The boxes lie: so there is room for long names, and for many.
    figure = Figure(figsize=(10, max(4, 0.4 * len(labels))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for i, repeats in enumerate(results.values()):
        losses = np.array([repeat["losses"] for repeat in repeats])
        mean, std = losses.mean(axis=0), losses.std(axis=0, ddof=len(losses) > 1)
        updates = WINDOW * np.arange(1, len(mean) + 1)
        left.plot(updates, mean)
        left.fill_between(updates, mean - std, mean + std, alpha=0.2)
        accuracies = [repeat["accuracy"] for repeat in repeats]
        right.boxplot(
            accuracies, positions=[i], widths=0.5, orientation="horizontal", showfliers=False,
            medianprops={"color": "black"},
        )  # fmt: skip
        # side by side, so that equal ones do not cover each other
        beside = np.linspace(-0.15, 0.15, len(accuracies))
        right.plot(accuracies, i + beside, "o", alpha=0.6)
    left.set(xlabel="update", ylabel="loss, mean and standard deviation", ylim=(0, None))
    right.set_yticks(range(len(labels)), labels)
    # A name with two dollar signs is no formula, and one may be in Chinese.
    for text in (*left.legend(left.lines, labels).get_texts(), *right.get_yticklabels()):
        text.set(parse_math=False, fontfamily=families)
    right.set(xlabel="exact-match accuracy in %", xlim=(-3, 103))
    right.invert_yaxis()  # from top to bottom, as in the legend
    figure.savefig(path, dpi=120)


def parse_arguments(argv):
    """Returns the values of the flags, makes the folder for the results, and joins the cluster."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[2],
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
    flag("--jobs", 1, n_cores(), "trainings at a time")
    parser.add_argument("--output", default="results", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="train only what OUTPUT lacks")
    parser.add_argument("--scheduler", help="train on the Dask cluster at tcp://HOST:PORT")
    args = parser.parse_args(argv or [])  # a notebook has a command line of its own
    if args.n_timesteps_out > args.n_timesteps_in:
        parser.error(f"argument --n-timesteps-out: must be at most {args.n_timesteps_in}")
    if args.seed + args.n_repeats > 2**32:  # Keras takes 32 bits
        last = args.seed + args.n_repeats - 1
        parser.error(f"argument --seed: must be at most {2**32 - 1} in the last repeat, got {last}")
    args.submit = None
    if args.scheduler:
        try:
            args.submit = cluster(args.scheduler)
        except Exception as error:  # of the address, the network, or of what a worker lacks
            parser.error(f"argument --scheduler: {args.scheduler}: {error}")
    make_output(parser, args.output)
    return args


def n_cores():
    """Returns how many cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count()
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def escape_unknown_letters():
    """Lets print escape what the output's code page lacks of a name or a folder, not end in it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv=None):
    escape_unknown_letters()

    # Configure the problem.
    args = parse_arguments(argv)
    settings = {name: getattr(args, name) for name in SETTINGS}
    seeds = range(args.seed, args.seed + args.n_repeats)
    path = pathlib.Path(args.output, "repeats.jsonl")

    # Train what is not there yet.
    if in_notebook():
        COMPILED.clear()  # what a function looks up may have changed
    made_now = {name: made_with(name) for name in MODELS}  # before a file can change
    mend_end(path)
    missing = asked = [(name, seed) for seed in seeds for name in MODELS]
    repeats = {}
    if args.resume:
        repeats, n_left = read_repeats(path, settings, asked, made_now)
        tell(f"Taken over from {path}: {len(repeats)} of {len(asked)} trainings")
        if n_left:
            others = "other scripts or versions, or a function that stands in no file"
            tell(f"Left there: {n_left}, made by {others}")
        missing = [key for key in asked if key not in repeats]
    submit = args.submit or threads(min(args.jobs, len(missing) or 1))
    repeats |= run_repeats(submit, missing, settings, path)

    # Print the results in the article's order.
    results = {}
    for name in MODELS:
        print(TITLES.get(name, name))
        results[name] = [repeats[name, seed] for seed in seeds]
        for repeat in results[name]:
            print(round(repeat["accuracy"], 2))
        mean = np.mean([repeat["accuracy"] for repeat in results[name]])
        print(f"Mean Accuracy: {mean:.2f}%\n")

    print_statistics(results)
    plot_comparison(path.with_name("comparison.png"), results)
    print(f"\nWritten: {path}, {path.with_name('comparison.png')}")


if __name__ == "__main__":
    if in_notebook():  # whose kernel must not end with it
        main(sys.argv[1:])
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, threads and all
        try:
            main(sys.argv[1:])
        except Exception:
            sys.excepthook(*sys.exc_info())
            for stream in sys.stdout, sys.stderr:
                with contextlib.suppress(Exception):  # of None, say, or a closed pipe
                    stream.flush()
            os._exit(1)  # at once: Python would wait for other trainings
