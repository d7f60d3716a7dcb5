#!/usr/bin/env bash
# make matrix: the test suite at the lower bounds of requirements-dev.txt and at the newest releases, each in an environment of its own.
# Needs two Pythons, named by OLD and NEW, about 12 GB of disk, and an hour on two cores. Prints a table; logs lie in .matrix/.
set -u
cd "$(dirname "$0")/.."
OLD=${OLD:-python3.10} NEW=${NEW:-python3.13}
mkdir -p .matrix
cat requirements.txt requirements-dev.txt | sed -E 's/#.*//; /^-r/d; s/>=/==/' >.matrix/lowest.txt
sed -E 's/==.*//' .matrix/lowest.txt >.matrix/newest.txt
failed=0
for row in lowest newest; do
    python=$([ $row = lowest ] && echo "$OLD" || echo "$NEW") env=.matrix/$row
    if [ ! -f "$env/installed" ]; then
        rm -rf "$env"
        if ! { $python -m venv "$env" && "$env/bin/python" -m pip install --quiet --disable-pip-version-check -r .matrix/$row.txt; } >.matrix/$row.log 2>&1; then
            failed=1
            continue
        fi
        touch "$env/installed"
    fi
    "$env/bin/python" -m pytest "$@" >.matrix/$row.log 2>&1 || failed=1
done
echo "| bounds | Python | torch | torchvision | numpy | result |"
echo "|---|---|---|---|---|---|"
for row in lowest newest; do
    .matrix/$row/bin/python - "$row" "$(tail -n 1 .matrix/$row.log)" <<'PY' || echo "| $row | | | | | could not be set up: see .matrix/$row.log |"
import platform, sys
import numpy, torch, torchvision
print(f"| {sys.argv[1]} | {platform.python_version()} | {torch.__version__} | {torchvision.__version__} | {numpy.__version__} | {sys.argv[2]} |")
PY
done
exit $failed
