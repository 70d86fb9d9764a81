"""Encoder-Decoder With Attention: the article's section 5 (编码器解码器注意).

The same example as in baseline.py, with attention: trains on 5,000 pairs, prints the accuracy on
100 new sequences, in %, and shows ten more. Then where the decoder looked: the attention weights of
one new pair as text, and of four as a picture, results/attention.png. The model is kept as
results/attention.keras. It takes less than a minute.

Run it with `python attention.py`.
"""

import argparse
import os
import unicodedata
import warnings
from operator import index

import numpy as np
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure

from data_prep import get_pairs, one_hot_decode
from baseline import UNROLL_UP_TO, evaluate, spot_check, train
from attention_decoder import AttentionDecoder  # after baseline, which chooses Keras' backend
import keras
from keras import layers


def attention_model(n_timesteps_in, n_features, n_units=150):
    """Returns the article's compiled model with attention.

    It reads one-hot sequences (batch, n_timesteps_in, n_features) and writes probabilities of that
    shape. The encoder passes on its output at every step, and the decoder chooses at each of its
    own steps which of them to use.
    """
    # Python's integers also of NumPy's, which Keras refuses.
    n_timesteps_in, n_features, n_units = map(index, (n_timesteps_in, n_features, n_units))
    unroll = n_timesteps_in <= UNROLL_UP_TO
    model = keras.Sequential()
    model.add(keras.Input((n_timesteps_in, n_features)))
    model.add(layers.LSTM(n_units, return_sequences=True, unroll=unroll))
    model.add(AttentionDecoder(n_units, n_features, unroll=unroll))
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["acc"])
    return model


def attention_weights(model, X):
    """Returns the outputs (pairs, T_out, n_features) of the article's model, and where it looked.

    That is an array (pairs, T_out, T_in): how much each output step used each input step. The
    weights of one output step sum to 1. Raises ValueError for a model that is not a Sequential one
    ending in an AttentionDecoder: the manual, docs/layer.md, has a recipe for those.
    """
    if not (isinstance(model, keras.Sequential) and isinstance(model.layers[-1], AttentionDecoder)):
        raise ValueError(
            "model must be a keras.Sequential that ends in an AttentionDecoder, got "
            f'{model!r}: for others, see "Attention weights" in docs/layer.md'
        )
    *encoder, decoder = model.layers
    encoded = X
    for layer in encoder:
        encoded = layer(encoded)
    outputs, scores = decoder(encoded, return_attention_scores=True)
    return keras.ops.convert_to_numpy(outputs), keras.ops.convert_to_numpy(scores)


def plot_weights(path, inputs, outputs, weights):
    """Writes a picture of the attention weights (pairs, T_out, T_in), a heatmap for each pair.

    The inputs' and outputs' values, numbers or words, stand on its axes. Raises ValueError, if in a
    pair nothing is read or written, or the weights are not those of as many pairs.
    """
    for name, pairs in ("inputs", inputs), ("outputs", outputs):
        if not len(pairs) or not all(map(len, pairs)):
            raise ValueError(f"{name} must have at least one value in each pair, got {pairs}")
    expected = [(len(pair_out), len(pair_in)) for pair_out, pair_in in zip(outputs, inputs)]
    shapes = None if weights is None else [np.shape(pair_weights) for pair_weights in weights]
    if shapes != expected or len(inputs) != len(outputs):
        right = f"(T_out, T_in) of each pair, {expected}"
        raise ValueError(f"weights must be attention weights of the shapes {right}, got {shapes}")
    read, written = ([value for pair in pairs for value in pair] for pairs in (inputs, outputs))
    longest_in, longest_out = (max(map(label_width, values)) for values in (read, written))
    # A word with two dollar signs is no formula.
    as_text = {"parse_math": False, "fontfamily": families_for(read + written)}
    # Inches; the labels of more than 20 steps overlap.
    width = 0.85 + 0.25 * min(len(inputs[0]), 20) + 0.08 * longest_out
    height = max(2, 0.85 + 0.25 * min(len(outputs[0]), 20) + 0.08 * longest_in)
    figure = Figure(figsize=(width * len(inputs) + 0.8, height), layout="constrained")
    axes = figure.subplots(1, len(inputs), squeeze=False)[0]
    for axis, pair_in, pair_out, pair_weights in zip(axes, inputs, outputs, weights):
        image = axis.imshow(pair_weights, vmin=0, vmax=1, cmap="Blues")
        rotation = 90 if longest_in > 2 else 0
        axis.set_xticks(range(len(pair_in)), pair_in, rotation=rotation, **as_text)
        axis.set_yticks(range(len(pair_out)), pair_out, **as_text)
        axis.set_xlabel("input")
    axes[0].set_ylabel("output")
    figure.colorbar(image, ax=axes, label="attention weight")
    figure.savefig(path, dpi=120)


def label_width(value):
    """Returns how many letters wide it is: Chinese ones count twice."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "FW") for letter in str(value))


def missing_in(path, letters):
    """Returns those of a set of letters that a font's file lacks."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # it is gone, or is no font
        return letters
    if font.get_char_index(0x10FFFF) or not font.scalable:  # a box for whatever is no letter
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}


def families_for(words):
    """Returns the families of fonts that draw these words: Matplotlib's own, and maybe one more.

    Its own has no Chinese, Japanese or Korean. The other is the installed font that has most of the
    letters that are missing. Warns, if some are in none.
    """
    families = list(rcParams["font.family"])
    missing = {letter for word in words for letter in str(word) if letter.isprintable()}
    for family in families:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]))
        missing = missing_in(path, missing)
    if missing:
        known = {font.fname for font in font_manager.fontManager.ttflist}
        paths = sorted(known | {*font_manager.findSystemFonts()})
        lacking = {path: missing_in(path, missing) for path in paths}
        # Of equally good ones a regular one, neither black nor light.
        best = min(paths, key=lambda path: (len(lacking[path]), "Regular" not in path))
        if lacking[best] != missing:
            if best not in known:  # installed since Matplotlib made its list
                font_manager.fontManager.addfont(best)
            families.append(font_manager.get_font(best).family_name)
            missing = lacking[best]
    if missing:
        letters = "".join(sorted(missing))
        message = f"no font has {letters}: install one that has. Chinese, Japanese and Korean: "
        message += "on Debian or Ubuntu, sudo apt install fonts-noto-cjk"
        warnings.warn(message, stacklevel=3)
    return families


def main():
    # Configure the problem.
    n_features = 50
    n_timesteps_in = 5
    n_timesteps_out = 2
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    os.makedirs("results", exist_ok=True)

    # As in baseline.py, with the other model.
    model = attention_model(n_timesteps_in, n_features)
    X, y = get_pairs(5000, n_timesteps_in, n_timesteps_out, n_features, rng)
    train(model, X, y, verbose=1)
    model.save("results/attention.keras")
    accuracy = evaluate(model, n_timesteps_in, n_timesteps_out, n_features, 100, rng)
    print(f"Accuracy: {accuracy:.2f}%")
    X, y = get_pairs(10, n_timesteps_in, n_timesteps_out, n_features, rng)
    spot_check(model, X, y)

    # Where the decoder looked in four more.
    X, y = get_pairs(4, n_timesteps_in, n_timesteps_out, n_features, rng)
    outputs, weights = attention_weights(model, X)
    inputs, outputs = one_hot_decode(X), one_hot_decode(outputs)
    print(f"Attention weights in %, input {inputs[0]} across, output {outputs[0]} down:")
    print(np.round(100 * weights[0]).astype(int))
    plot_weights("results/attention.png", inputs, outputs, weights)
    print("Written: results/attention.keras, results/attention.png")


if __name__ == "__main__":
    # It takes no arguments. Its help leaves out the title, as not all code pages have Chinese.
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2]).parse_args()
    main()
