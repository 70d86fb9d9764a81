"""The README's "Try it": questions, each with commands to run and an answer; or first with changes.

```diff
# attention.py
-    an old line, which the script has once
+    what to put in its place
```

`python docs/try_it.py FOLDER` makes each of the changes in a copy of the scripts, and prints where,
and for which command.
"""

import argparse
import pathlib
import re
import shutil

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"`(python [a-z/_]+\.py[^`]*)`")


def questions():
    """Returns [(diff blocks, commands, answer)]."""
    section = re.search(r"^## Try it\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)[1]
    found = []
    for part in section.split("</details>")[:-1]:
        question, answer = part.split("<details>")
        diffs = [block for kind, block in BLOCK.findall(question) if kind == "diff"]
        found.append((diffs, COMMAND.findall(BLOCK.sub("", question)), answer))
    return found


def change(folder, diffs):
    """Copies the scripts to a new folder and makes the changes there."""
    folder.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for diff in diffs:
        path = folder / diff.splitlines()[0].removeprefix("# ")
        text = path.read_text(encoding="utf-8")
        for pair in re.findall(r"^((?:-.*\n)+)((?:\+.*\n)*)", diff, re.MULTILINE):
            old, new = (re.sub(r"^[-+]", "", lines, flags=re.MULTILINE) for lines in pair)
            assert text.count(old) == 1, f"{path.name} must have this once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def label(command, diffs):
    """What stands for a command in docs/outputs.txt: itself, and the lines that were put in."""
    lines = [line for diff in diffs for line in re.findall(r"^\+ *(.*)", diff, re.MULTILINE)]
    return " # ".join([command, *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the README's changes in copies.")
    parser.add_argument("folder", type=pathlib.Path, help="a new one")
    new = parser.parse_args().folder
    for number, (diffs, commands, _) in enumerate(questions()):
        if diffs:
            folder = new / str(number)
            change(folder, diffs)
            for command in commands:
                print(folder, label(command, diffs), sep="\t")
