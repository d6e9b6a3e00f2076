#!/bin/sh
# Puts a real tritonserver into the folder $1 of the repository, for benchmarks/ and tests/serving/. Without the Python
# it needs, says what to install and leaves the folder out: the tests of Triton are then skipped.
set -eu
cd "$(dirname "$0")/../.."
python=/usr/bin/python3

# Triton's Python backend links against libpython, and its release here is of numpy 1's time.
usable() {
    $python - 2>/dev/null <<'PYTHON'
import ctypes, ensurepip, platform, sys
version = sys.version_info[:2]
assert platform.machine() == "x86_64" and (3, 10) <= version <= (3, 12)
ctypes.CDLL("libpython%d.%d.so.1.0" % version)
PYTHON
}

if ! usable && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-venv python3-dev || true
fi
if ! usable; then
    echo "No Triton here: it needs x86-64 and the system's Python 3.10 to 3.12: apt-get install python3-venv python3-dev" >&2
    exit 0
fi
$python -m venv --clear "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check numpy==1.26.4 onnxruntime==1.32.0 msgspec==0.22.0
# Its own dependencies are for a way to use it that nothing here takes.
"$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
# The Python backend ignores PYTHONPATH, so this is how it finds relukan_deploy: the one of this working tree.
pwd > "$("$1/bin/python" -c 'import site; print(site.getsitepackages()[0])')/relukan_deploy.pth"
touch "$1/.ready"
