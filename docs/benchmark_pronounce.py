"""Phonetisaurus on the words of docs/pronounce.py, scored by the same functions, by hand.

Joint n-grams of letters and phonemes in a weighted transducer: what people use for this. Run it
with `python docs/benchmark_pronounce.py` after `pip install phonetisaurus`: a few minutes.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import pronounce  # noqa: E402


def main():
    learn, test = pronounce.load_words(10**6)
    with tempfile.TemporaryDirectory() as folder:
        lexicon = pathlib.Path(folder, "learn.txt")
        lines = (f"{word} {' '.join(said)}\n" for word in learn for said in learn[word])
        lexicon.write_text("".join(lines))
        start = time.perf_counter()

        def phonetisaurus(*arguments):
            command = ["phonetisaurus", *arguments, "--model", "model.fst"]
            print(">", *command, flush=True)
            return subprocess.run(
                command, cwd=folder, input="\n".join(test), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
            ).stdout  # fmt: skip

        phonetisaurus("train", "learn.txt")
        print(f"{time.perf_counter() - start:.0f} s")
        output = phonetisaurus("predict")
    spoken = dict.fromkeys(test, ())
    for word, *said in map(str.split, output.splitlines()):
        spoken[word] = tuple(said)
    rates = pronounce.error_rates(spoken, test)
    print("{:.2f} % of the phonemes wrong, {:.2f} % of the words".format(*rates))


if __name__ == "__main__":
    main()
