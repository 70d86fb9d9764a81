"""Encoder-Decoder With Attention: the article's section 5 (编码器解码器注意).

The same example as in baseline.py, with attention: trains on 5,000 pairs,
prints the accuracy on 100 new sequences, in %, and shows ten more. Then where
the decoder looked: the attention weights of one new pair as text, and of a few
as a picture, OUTPUT/attention.png. It takes about fifteen seconds.

Run it with `python attention.py`.
"""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script at once
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which may not be installed here

import sys

import numpy as np
from matplotlib.figure import Figure

from data_prep import check, get_pairs, make_folder, one_hot_decode, parse_arguments
from baseline import UNROLL_UP_TO, evaluate, keras, layers, spot_check, train
from attention_decoder import AttentionDecoder

N_HEATMAPS = 4
TABLE_UP_TO = 14  # time steps that a table of the attention weights has room for in 80 columns
LABELS_UP_TO = 20  # time steps of which each has its label, and its room, in the picture


def attention_model(n_timesteps_in: int, n_features: int, n_units: int = 150) -> keras.Model:
    """Returns the article's compiled model with attention.

    It reads and writes one-hot sequences (batch, n_timesteps_in, n_features). The encoder passes on
    its output at every step, and the decoder chooses at each of its own steps which of them to use.
    Raises ValueError if a number is below 1 or `n_features` below 2.
    """
    check(n_timesteps_in=n_timesteps_in, n_features=n_features, n_units=n_units)
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential(
        [
            keras.Input((n_timesteps_in, n_features), name="pairs"),
            layers.LSTM(n_units, return_sequences=True, unroll=unroll, name="encoder"),
            AttentionDecoder(n_units, n_features, unroll=unroll, name="decoder"),
        ],
        name="attention",
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def attention_weights(model: keras.Model, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the model's outputs (pairs, T_out, n_features) and its attention weights.

    The weights are (pairs, T_out, T_in): how much output step t used input step j. They are at
    least 0, and those of one output step sum to 1.
    """
    encoder, decoder = model.layers
    outputs, scores = decoder(encoder(X), return_attention_scores=True)
    return keras.ops.convert_to_numpy(outputs), keras.ops.convert_to_numpy(scores)


def print_weights(inputs: list[int], outputs: list[int], weights: np.ndarray) -> None:
    """Prints the attention weights (T_out, T_in) of one pair as a table, in %."""
    print("Attention weights in %: each line an output step, each column an input step")
    print("   Input:" + "".join(f"{value:5d}" for value in inputs))
    for output, row in zip(outputs, weights):
        print(f"Output {output:2d}" + "".join(f"{100 * weight:5.0f}" for weight in row))


def plot_weights(
    path: str, inputs: list[list[int]], outputs: list[list[int]], weights: np.ndarray
) -> None:
    """Writes a picture of the attention weights (pairs, T_out, T_in), a heatmap for each pair."""
    size = 1 + 0.25 * min(len(inputs[0]), LABELS_UP_TO)  # inches
    figure = Figure(figsize=(size * len(inputs) + 0.8, size), layout="constrained")
    axes = figure.subplots(1, len(inputs), squeeze=False)[0]
    for axis, pair_in, pair_out, weight in zip(axes, inputs, outputs, weights):
        image = axis.imshow(weight, vmin=0, vmax=1, cmap="Blues")
        axis.set_xlabel("input step")
        if len(pair_in) <= LABELS_UP_TO:
            axis.set_xticks(range(len(pair_in)), pair_in)
            axis.set_yticks(range(len(pair_out)), pair_out)
            axis.set_xlabel("input")
    axes[0].set_ylabel("output" if len(inputs[0]) <= LABELS_UP_TO else "output step")
    figure.colorbar(image, ax=axes, label="attention weight")
    figure.savefig(path, dpi=120)


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
        seed=0,
        output="results",
    )
    make_folder(args.output)
    problem = (args.n_timesteps_in, args.n_timesteps_out, args.n_features)
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    # The rest is as in baseline.py, but for the model.
    model = attention_model(args.n_timesteps_in, args.n_features, args.n_units)
    train(model, *get_pairs(args.n_updates, *problem, rng), verbose=int(sys.stdout.isatty()))
    accuracy = evaluate(model, *problem, args.n_eval, rng)
    print(f"Accuracy: {accuracy:.2f}%")
    spot_check(model, *get_pairs(10, *problem, rng))

    # Where the decoder looked in a few more.
    X, _ = get_pairs(N_HEATMAPS, *problem, rng)
    y, weights = attention_weights(model, X)
    inputs, outputs = one_hot_decode(X), one_hot_decode(y)
    if args.n_timesteps_in <= TABLE_UP_TO:
        print_weights(inputs[0], outputs[0], weights[0])
    path = os.path.join(args.output, "attention.png")
    plot_weights(path, inputs, outputs, weights)
    print(f"Heatmaps of {N_HEATMAPS} pairs: {path}")


if __name__ == "__main__":
    main()
