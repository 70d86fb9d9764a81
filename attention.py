"""The article's section "Encoder-Decoder With Attention". Run it with `python attention.py`.

The same example as in baseline.py, with attention: trains on 5,000 pairs, prints the accuracy on
100 new sequences, in %, and ten of them. Then it shows where the decoder looked: the attention
weights of one new pair as text, and of a few as a picture, OUTPUT/attention.png. It takes about
fifteen seconds.
"""

from __future__ import annotations

import os

import numpy as np

from data_prep import argument_parser, get_pairs, one_hot_decode, parse_arguments
from baseline import EXAMPLE_FLAGS, UNROLL_UP_TO, check_sizes, keras, layers, run_example
from attention_decoder import AttentionDecoder

N_HEATMAPS = 4


def attention_model(n_timesteps_in: int, n_features: int, n_units: int = 150) -> keras.Model:
    """Returns the article's compiled model with attention.

    It reads and writes one-hot sequences (batch, n_timesteps_in, n_features). The encoder passes on
    its output at every step, and the decoder chooses at each of its own steps which of them to use.
    Raises ValueError if a number is below 1 or `n_features` below 2.
    """
    check_sizes(n_timesteps_in, n_features, n_units)
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential(
        [
            keras.Input((n_timesteps_in, n_features)),
            layers.LSTM(n_units, return_sequences=True, unroll=unroll),
            AttentionDecoder(n_units, n_features, unroll=unroll),
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
    for output, row in zip(outputs, weights, strict=True):
        print(f"Output {output:2d}" + "".join(f"{100 * weight:5.0f}" for weight in row))


def plot_weights(
    path: str, inputs: list[list[int]], outputs: list[list[int]], weights: np.ndarray
) -> None:
    """Writes a picture of the attention weights (pairs, T_out, T_in), a heatmap for each pair."""
    import matplotlib.pyplot as plt  # here: nothing else needs it

    size = 1.2 + 0.4 * len(inputs[0])  # inches
    figure = plt.figure(figsize=(size * len(inputs) + 0.8, size), layout="constrained")
    axes = figure.subplots(1, len(inputs), squeeze=False)
    for axis, pair_in, pair_out, weight in zip(axes[0], inputs, outputs, weights, strict=True):
        image = axis.imshow(weight, vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(pair_in)), pair_in)
        axis.set_yticks(range(len(pair_out)), pair_out)
        axis.set_xlabel("input")
    axes[0, 0].set_ylabel("output")
    figure.colorbar(image, ax=axes, label="attention weight")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argument_parser(__doc__, *EXAMPLE_FLAGS)
    parser.add_argument("--output", default="results", metavar="FOLDER",
                        help="folder for attention.png (default: results)")  # fmt: skip
    args = parse_arguments(parser)
    model, rng = run_example(attention_model, args)

    X, _ = get_pairs(N_HEATMAPS, args.n_timesteps_in, args.n_timesteps_out, args.n_features, rng)
    y, weights = attention_weights(model, X)
    inputs, outputs = one_hot_decode(X), one_hot_decode(y)
    if args.n_timesteps_in <= UNROLL_UP_TO:  # a longer table would not fit the terminal
        print_weights(inputs[0], outputs[0], weights[0])
    path = os.path.join(args.output, "attention.png")
    plot_weights(path, inputs, outputs, weights)
    print(f"Heatmaps of {N_HEATMAPS} pairs: {path}")


if __name__ == "__main__":
    main()
