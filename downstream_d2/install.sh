#!/usr/bin/env bash
# D2_SRC=FOLDER_OR_URL bash install.sh: builds Detectron2 into the current Python environment, in which torch and torchvision must be.
#
# D2_SRC: Detectron2's source, as a git checkout (what is committed there is built), as a plain folder, such as an unpacked archive, or
# as an address from which git clones. (It is not on PyPI, and its last release of 2021 does not build with today's torch.)
set -eu
python=${PYTHON:-python}
source=${D2_SRC:-https://github.com/facebookresearch/detectron2.git}
fail() { echo "error: $1" >&2; exit 1; }

how=clone
if [ -d "$source" ] && ! [ -e "$source/.git" ] && ! [ -d "$source/objects" ]; then  # objects: a bare repository has them
  if ! [ -f "$source/setup.py" ] || ! [ -d "$source/detectron2" ]; then
    fail "D2_SRC=$source does not hold the code of Detectron2: no setup.py and no folder detectron2. Leave D2_SRC away to clone it"
  fi
  how=copy
elif ! [ -e "$source" ]; then
  case "$source" in
    *:*) ;;  # an address
    *) fail "D2_SRC=$source does not exist: give a folder with Detectron2's source, or an address from which git clones it" ;;
  esac
fi
"$python" -c 'import torch, torchvision' || fail 'install torch and torchvision first'
"$python" -m pip install 'setuptools<81' wheel ninja
"$python" -m pip install -r "$(dirname "${BASH_SOURCE[0]}")/requirements.txt"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
if [ "$how" = copy ]; then
  mkdir "$build/detectron2"
  cp -R "$source/." "$build/detectron2"
else
  git clone --depth 1 "$source" "$build/detectron2" || fail "git cannot clone Detectron2 from D2_SRC=$source, as it says above"
fi
MAX_JOBS="${MAX_JOBS:-$(nproc)}" "$python" -m pip install --no-build-isolation "$build/detectron2"
(cd "$build" && "$python" -c 'import detectron2; print("Detectron2", detectron2.__version__, detectron2.__file__)')
