#!/usr/bin/env bash
# bash install.sh: installs MMDetection 3.3 into the current Python environment, in which torch and torchvision must be.
#
# mmcv 2.1.0, which MMDetection 3.3.0 needs, is built from source: five minutes or so on two cores without a GPU. Its setup.py asks for
# C++17, and the headers of newer torch for C++20: the compiler is called through a wrapper that says so (mmcv issue 3341).
set -eu
python=${PYTHON:-python}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
printf '#!/usr/bin/env bash\nexec g++ "${@/#-std=c++1[47]/-std=c++20}"\n' > "$build/cxx20"
chmod +x "$build/cxx20"
"$python" -c 'import torch, torchvision' || { echo 'error: install torch and torchvision first' >&2; exit 1; }
"$python" -m pip install 'setuptools<81' wheel ninja psutil  # mmcv's setup.py imports pkg_resources
CFLAGS="${CFLAGS:--g0 -O1}" CXX="$build/cxx20" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
    "$python" -m pip wheel --no-deps --no-build-isolation -w "$build" mmcv==2.1.0
"$python" -m pip install -r "$(dirname "${BASH_SOURCE[0]}")/requirements.txt"
"$python" -m pip install --no-deps "$build"/mmcv-2.1.0-*.whl
"$python" -c 'import mmcv.ops, mmdet; print(f"mmcv {mmcv.__version__} with its operators, mmdet {mmdet.__version__}")'
