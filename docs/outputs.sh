#!/usr/bin/env bash
# Runs every command whose figures the READMEs quote and shows what each prints, with its time and
# memory: half an hour. In a new clone with the README's environment, tests/requirements.txt too:
#   bash docs/outputs.sh | tee outputs.txt && mv outputs.txt docs/
cd "$(dirname "$0")/.." || exit

run() {
    echo "\$ $*"
    /usr/bin/time -f "%e s, %M KB" "$@" 2>&1
    echo
}

run du -sm .venv
run python compare.py
run python compare.py --n-repeats 30 --resume
grep -oE '^\| `--[^`]+' README.md | cut -c4- | while read -r problem; do
    # shellcheck disable=SC2086 # several flags
    run python compare.py --n-repeats 4 $problem
done
run python tests/benchmark.py
run python docs/pronounce.py
# Not the test that compares the figures with these outputs, which are not there yet.
figures=tests/test_readme.py::test_every_figure_is_in_the_outputs_kept
run python -m pytest -q --disable-warnings --deselect "$figures"
