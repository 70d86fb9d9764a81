"""READMEs and manuals: what they say is run, looked up beside its command, or compared."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from oracle import blocks_of_the_manual
from try_it import BLOCK, COMMAND, ROOT, change, label, questions

import compare

CHINESE = {"README.md": "docs/README.zh.md", "docs/layer.md": "docs/layer.zh.md"}
NAMES = [*CHINESE, *CHINESE.values()]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
BLOCKS = {name: BLOCK.findall(text) for name, text in TEXTS.items()}
SECTION = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
SECTIONS = {name: dict(SECTION.findall(text)) for name, text in TEXTS.items()}
# The lines under the manual's Python blocks; "..." stands for others between them.
UNDER = re.compile(
    r"^```python\n(?:(?!```).*\n)*```\n```text\n((?:(?!```).*\n)*)```$", re.MULTILINE
)
SHOWN_IN_THE_MANUAL = [
    part for block in UNDER.findall(TEXTS["docs/layer.md"]) for part in block.split("...\n") if part
]


# What runs


def python(text, kinds=("python",)):
    """Its Python blocks, one after the other."""
    return "\n".join(block for kind, block in BLOCK.findall(text) if kind in kinds)


def run(code, folder):
    """Runs code beside the layer; returns what it prints and what it warns of."""
    shutil.copy(ROOT / "attention_decoder.py", folder)
    (folder / "blocks.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "blocks.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    """Where the manual's Python blocks ran as pasted, what they printed and what they warned of."""
    folder = tmp_path_factory.mktemp("manual")
    return folder, *run(python(TEXTS["docs/layer.md"]), folder)


def test_blocks_of_the_readme_run(tmp_path):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "results").mkdir()
    compare.MODELS["attention"](5, 50).save(tmp_path / "results" / "attention.keras")
    lines = []  # of other units, of other scripts, of the same repeat before
    for n_units, scripts, seed, accuracy in (
        (150, "a", 0, 1.0), (50, "a", 0, 70.0), (50, "b", 0, 9.0), (50, "a", 1, 4.0),
        (50, "a", 1, 20.0),
    ):  # fmt: skip
        made = {"scripts": scripts, "keras": "3", "tensorflow": "2"}
        settings = {**dict.fromkeys(compare.SETTINGS, 2), "n_units": n_units}
        repeat = {"model": "mine", "seed": seed, "accuracy": accuracy, **settings, **made}
        lines.append(json.dumps(repeat) + "\n")
    (tmp_path / "results" / "repeats.jsonl").write_text("".join(lines))
    printed, _ = run(python(TEXTS["README.md"]), tmp_path)
    assert re.search(r"^\[\[\d+(?:, \d+){4}\]\]$", printed, re.MULTILINE)  # an own sequence
    assert re.search(r"^mine +2 +45\.0 ", printed, re.MULTILINE)  # the mean of 70 and 20
    first, *_, last = of_updates = re.findall(
        r"^(\d+) updates: ([\d.]+) % right$", printed, re.MULTILINE
    )
    assert [n_updates for n_updates, _ in of_updates] == [str(n) for n in range(1000, 5001, 1000)]
    assert float(first[1]) < 50 < 80 < float(last[1])


def test_the_readmes_notebook_shows_its_pictures_and_survives_the_stop_button(
    tmp_path, start_kernel
):
    """Pressed while `%run attention.py` trains, and `compare.main`, whose threads go on."""
    folder = tmp_path / "a reader's 文件夹"
    change(folder, [])
    make_smaller(folder)
    (cell,) = (block for kind, block in BLOCKS["README.md"] if kind == "ipython")
    flags = "compare.main(["
    assert flags in cell
    cell = cell.replace(flags, f"{flags}*{SMALLER_FLAGS.split()}, ")
    manager, kernel = start_kernel(folder)

    def run(cell):
        shown = []
        reply = kernel.execute_interactive(cell, timeout=300, output_hook=shown.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        return shown

    pictures = ["image/png" in message["content"].get("data", ()) for message in run(cell)]
    assert pictures.count(True) == 3 and (folder / "results" / "own.png").exists()

    def wait_for(pattern, seconds=100):
        shown, deadline = "", time.monotonic() + seconds
        while not re.search(pattern, shown):
            seconds = deadline - time.monotonic()
            assert seconds > 0, f"{pattern} is not in {shown}"
            shown += str(kernel.get_iopub_msg(timeout=seconds)["content"])

    def press_when(pattern):
        wait_for(pattern)
        time.sleep(0.5)  # the bar comes before the trainings of compare.main start
        manager.interrupt_kernel()
        wait_for("KeyboardInterrupt", 30)  # a training of compare.main takes longer

    def compare_with(n_updates):
        flags = f"--n-repeats 1 --n-timesteps-in 2 --n-units 70 --n-updates {n_updates}"
        return f"compare.main('{flags} --output pressed'.split())"

    script = folder / "attention.py"
    text = script.read_text(encoding="utf-8").replace("get_pairs(20,", "get_pairs(200_000,")
    script.write_text(text, encoding="utf-8")
    kernel.execute("%xmode Minimal\n%run attention.py")  # a short traceback: faster
    press_when(r"[1-9]\d*/200000")  # the bar
    run(compare_with(100))
    kernel.execute(compare_with(1_000_000), stop_on_error=False)  # or the next is dropped
    press_when("0/2")
    run(compare_with(100))
    lines = (folder / "pressed" / "repeats.jsonl").read_text().splitlines()
    repeats = [{**json.loads(line), "seconds": None} for line in lines]
    assert len(repeats) == 4 and all(repeats.count(repeat) == 2 for repeat in repeats)


def test_blocks_of_the_manual_print_what_stands_under_them(manual):
    """In this order, but for the decimals, which differ from processor to processor."""
    folder, rest, warnings = manual
    for part in SHOWN_IN_THE_MANUAL:
        pattern = re.sub(r"(?:\\ )+", r"\\s*", re.escape(part))
        found = re.search(re.sub(r"\d+\\\.\d*", r"([\\d.]+)", pattern), rest)
        assert found, f"{part!r} is not in {rest}"
        shown, printed = (
            [float(number) for number in numbers]
            for numbers in (re.findall(r"\d+\.\d*", part), found.groups())
        )
        assert printed == pytest.approx(shown, rel=0.1, abs=0.2), part
        if "ours" in part:  # on each series nearer than the naive forecasts
            lines = part.splitlines()
            errors = dict(zip(lines, np.reshape(printed, (len(lines), -1))))
            (ours,) = (errors[line] for line in lines if "ours" in line)
            assert all(np.all(ours < errors[line]) for line in lines if "last" in line), found
        rest = rest[found.end() :]
    assert "W_s" in warnings  # the manual says so
    assert (folder / "heat_map.png").read_bytes().startswith(b"\x89PNG")


def test_another_process_loads_the_beam_search_with_files_made_of_its_blocks(manual, tmp_path):
    file, *_ = blocks_of_the_manual("A beam search", "python")
    (tmp_path / "beam_search.py").write_text(file, encoding="utf-8")
    shutil.copy(manual[0] / "search.keras", tmp_path)
    (there,) = blocks_of_the_manual("A beam search", "py")
    printed, _ = run(there, tmp_path)
    assert printed == blocks_of_the_manual("A beam search", "text")[-1]


def test_a_section_of_the_manual_needs_no_names_but_of_those_that_it_names(tmp_path):
    sections = SECTIONS["docs/layer.md"]

    def blocks_for(title):
        blocks = python(sections[title], kinds=("python", "py"))
        needs = re.search(r"^\*Needs (.*?)\.\*", sections[title], re.MULTILINE)
        named = re.findall(r"\[(.*?)\]", needs[1]) if needs else []
        return "".join(map(blocks_for, named)) + blocks

    for number, title in enumerate(sections):
        blocks = python(sections["In a Sequential model"]) + blocks_for(title)
        (tmp_path / f"section_{number}.py").write_text(blocks, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", ["docs/layer.md", CHINESE["docs/layer.md"]])
def test_each_section_of_the_manual_is_found_from_its_first_table(name):
    contents, *others = SECTIONS[name]
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in others}
    links = re.compile(r"\]\(#(.*?)\)")
    assert set(links.findall(SECTIONS[name][contents])) == anchors
    assert set(links.findall(TEXTS[name])) == anchors


@pytest.mark.parametrize("name", NAMES)
def test_commands_files_flags_and_functions_exist(name):
    text = TEXTS[name]
    for command in COMMAND.findall(text):
        script = (ROOT / command.split()[1]).read_text(encoding="utf-8")
        for flag in re.findall(r"--[\w-]+", command):
            assert f'"{flag}"' in script, command
    for target in [*links(name), *re.findall(r"`([\w/]+\.py)`", text)]:
        made = f"\nimport {target.removesuffix('.py')} " in text  # by a reader, of a block
        assert target.startswith("http") or made or (ROOT / target).exists(), target
    sources = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for function in re.findall(r"`(\w+)\(\)`", text):
        assert re.search(rf"def {function}\b", sources), function


def test_manual_and_layer_claim_the_same_oldest_keras():
    layer = (ROOT / "attention_decoder.py").read_text(encoding="utf-8")
    (claim,) = re.findall(r"Keras \((3\.\d+) or later\)", layer)
    assert all(f"Keras {claim} or later" in TEXTS[name] for name in CHINESE)


TO_TRY = [(diffs, command) for diffs, commands, _ in questions() if diffs for command in commands]
assert len(TO_TRY) > 1
SMALLER = {"attention.py": {"get_pairs(5000,": "get_pairs(20,", "=150": "=5"}}
SMALLER_FLAGS = "--n-repeats 1 --n-updates 20 --n-units 5"
SMALLER["compare.py"] = {"jit_compile=True": "jit_compile=False"}
SMALLER["baseline.py"] = {**SMALLER["attention.py"], **SMALLER["compare.py"]}


def make_smaller(folder):
    for name, replacements in SMALLER.items():
        text = (folder / name).read_text(encoding="utf-8")
        for large, small in replacements.items():
            assert large in text, f"{name} has no {large} to make smaller"
            text = text.replace(large, small)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("diffs", "command"), TO_TRY, ids=[label(c, d) for d, c in TO_TRY])
def test_a_change_to_try_fits_the_script_and_runs(
    diffs, command, tmp_path, monkeypatch, import_from, capsys
):
    folder = tmp_path / "changed"
    change(folder, diffs)
    make_smaller(folder)
    monkeypatch.chdir(folder)
    script, *flags = command.split()[1:]
    main = import_from(folder, script.removesuffix(".py")).main
    main([*flags, *SMALLER_FLAGS.split()]) if script == "compare.py" else main()
    assert "Accuracy" in capsys.readouterr().out


# Figures

OUTPUTS = (ROOT / "docs" / "outputs.txt").read_text(encoding="utf-8")
# {command: (what it printed, its seconds)}
RUNS = {
    command: (printed, float(seconds))
    for command, printed, seconds in re.findall(
        r"^\$ (.*)\n((?:(?!\$ ).*\n)*?)([\d.]+) s, \d+ KB$", OUTPUTS, re.MULTILINE
    )
}
# What no command here prints: versions, papers, and what others measured.
ELSEWHERE = set(
    "0.10 2.0.8 2.0.9 2.13 2.21 3.0 3.10 3.13 3.15 3.16 2,000 5,000 1409.0473 1506.00196 "
    "1710.08969 2026.11 23.10 95.70 21.3 97.4 33.89 23.55".split()
)
FIGURE = re.compile(r"\d+(?:[.,]\d+)+")


def missing(text, commands):
    """The figures of a text that none of the commands printed."""
    printed = "\n".join(RUNS[command][0] for command in commands if command in RUNS)
    figures = set(FIGURE.findall(text)) - ELSEWHERE - set(FIGURE.findall(printed))
    for mean, std in re.findall(r"([\d.]+) ± ([\d.]+)", text):
        if not re.search(rf" {mean} +{std} ", printed):
            figures.add(f"{mean} ± {std}")
    return figures


def test_every_figure_was_printed_by_the_command_beside_it():
    """That of its line or table; else those of its section, else the README's first."""
    text = TEXTS["README.md"] + TEXTS["docs/layer.md"]
    assert "in half a minute to a minute" in text and 25 < RUNS["python compare.py"][1] < 70
    disk = f"{int(RUNS['du -sm .venv'][0].split()[0]) * 2**20 / 1e9:.1f} GB"
    assert disk in text
    text = text.replace(disk, "")
    text = re.sub(r"^## Try it\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    for section in re.split(r"^## ", BLOCK.sub("", text), flags=re.MULTILINE):
        of_section = COMMAND.findall(section) or ["python compare.py"]
        for table in section.split("\n\n"):
            header, *_ = table.splitlines() or [""]
            for line in table.splitlines():
                commands = COMMAND.findall(line) or COMMAND.findall(header) or of_section
                assert not missing(line, commands), line


def test_every_answer_was_printed_by_the_commands_of_its_question():
    """By those of several trainings: what one of them gives, another seed may reverse."""
    for diffs, commands, answer in questions():
        changed = [label(command, diffs) for command in commands]
        assert changed and RUNS.keys() >= set(changed), "see docs/outputs.sh"
        several = [command for command in [*changed, *commands] if "--n-repeats" in command]
        assert not missing(answer, several), answer


def assert_in_order(parts, printed):
    for part in filter(None, parts):
        _, found, printed = printed.partition(part)
        assert found, part


def test_every_output_shown_was_printed_by_the_command_before_it():
    command, shown = None, []
    both = re.compile(f"{COMMAND.pattern}|{BLOCK.pattern}", BLOCK.flags)
    for inline, kind, block in both.findall(TEXTS["README.md"]):
        if kind == "text":
            shown.append(command)
            assert_in_order(block.split("...\n"), RUNS[command][0])
        elif kind == "bash":
            command = block.strip().split(" && ")[-1]
        elif kind == "python":
            command = "python readme_blocks.py"
        command = inline or command
    assert shown == [
        f"python {name}.py" for name in "compare baseline attention readme_blocks".split()
    ]


def test_what_stands_under_the_manuals_blocks_was_printed_by_them():
    assert len(SHOWN_IN_THE_MANUAL) > 10
    assert_in_order(SHOWN_IN_THE_MANUAL, RUNS["python blocks.py"][0])


# Two languages


def links(name):
    """The targets of a text's links, from the root, in order."""
    targets = re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", TEXTS[name]))
    folder = (ROOT / name).parent
    return [
        target
        if target.startswith("http")
        else (folder / target).resolve().relative_to(ROOT).as_posix()
        for target in targets
    ]


@pytest.mark.parametrize("names", CHINESE.items())
def test_both_languages_have_the_same_blocks_links_numbers_code_words_and_rows(names):
    for number, (a, b) in enumerate(zip(*(BLOCKS[name] for name in names), strict=True), 1):
        assert a == b, f"code block {number} differs"
    (to_chinese, *english), (to_english, *chinese) = map(links, names)
    assert names == (to_english, to_chinese)
    assert [CHINESE.get(target, target) for target in english] == chinese
    texts = [re.sub(r"\]\([^)]*\)", "]", BLOCK.sub("", TEXTS[name])) for name in names]
    sections = [re.split(r"^## .*$", text, flags=re.MULTILINE) for text in texts]
    for number, pair in enumerate(zip(*sections, strict=True)):
        for pattern in (r"\d+(?:[.,]\d+)*", r"`[^`]+`", r"^\||\|$"):
            a, b = (sorted(re.findall(pattern, section, re.MULTILINE)) for section in pair)
            assert a == b, f"section {number}: {set(a) ^ set(b)}"
