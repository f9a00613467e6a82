#!/usr/bin/env bash
# D2_SRC=FOLDER_OR_URL bash install.sh: builds Detectron2 into the current Python environment, in which torch and torchvision must be.
#
# D2_SRC: a checkout of Detectron2, or where git finds one. (It is not on PyPI, and its last release of 2021 does not build with
# today's torch.)
set -eu
python=${PYTHON:-python}
source=${D2_SRC:-https://github.com/facebookresearch/detectron2.git}
"$python" -c 'import torch, torchvision' || { echo 'error: install torch and torchvision first' >&2; exit 1; }
"$python" -m pip install 'setuptools<81' wheel ninja
"$python" -m pip install -r "$(dirname "${BASH_SOURCE[0]}")/requirements.txt"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
git clone --depth 1 "$source" "$build/detectron2"
MAX_JOBS="${MAX_JOBS:-$(nproc)}" "$python" -m pip install --no-build-isolation "$build/detectron2"
(cd "$build" && "$python" -c 'import detectron2; print("Detectron2", detectron2.__version__, detectron2.__file__)')
