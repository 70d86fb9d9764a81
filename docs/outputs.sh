#!/usr/bin/env bash
# Runs every command whose figures the texts quote and shows what each prints, with its time and
# memory: one to two hours. In a new clone with the environment of the README's second command, and
# `pip install phonetisaurus`:
#   bash docs/outputs.sh | tee outputs.txt && mv outputs.txt docs/
cd "$(dirname "$0")/.." || exit

run() {
    echo "\$ ${label:-$*}"
    /usr/bin/time -f "%e s, %M KB" "$@" 2>&1 </dev/null
    echo
}

run du -sm .venv
run python compare.py
cp results/comparison.png docs/
# The commands within the texts, but for a cluster's.
commands=$(grep -ohE '`python [a-z/_]+\.py[^`]*`' README.md docs/layer.md | tr -d '`')
grep -vxE 'python compare.py|.*(HOST|WORD).*' <<<"$commands" | awk '!seen[$0]++' |
    while read -r command; do
        # shellcheck disable=SC2086 # several words
        run $command
    done
cp results/attention.png results/pronounce.png docs/
# The manual's blocks, one after the other, in a folder with the layer alone.
mkdir manual && cp attention_decoder.py manual/
sed -n '/^```python$/,/^```$/p' docs/layer.md | grep -v '^```' >manual/blocks.py
(cd manual && label="python blocks.py" run bash -c "python blocks.py 2>/dev/null")
cp manual/heat_map.png docs/
rm -r manual
# The README's, with the model that attention.py has kept.
sed -n '/^```python$/,/^```$/p' README.md | grep -v '^```' >readme_blocks.py
label="python readme_blocks.py" run bash -c "python readme_blocks.py 2>/dev/null"
rm readme_blocks.py
# The changes of "Try it", each in a copy of the scripts.
python docs/try_it.py changed |
    while IFS=$'\t' read -r folder label; do
        # shellcheck disable=SC2086 # several words
        (cd "$folder" && label=$label run ${label%% #*})
    done
rm -r changed
