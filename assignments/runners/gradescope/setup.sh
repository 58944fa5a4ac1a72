#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image: Python, the packages, bubblewrap.
set -euo pipefail
apt-get update
apt-get install -y --no-install-recommends bubblewrap ca-certificates curl
curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh
# Some of Gradescope's images have an older Python than the 3.11 that is needed.
export UV_PYTHON_INSTALL_DIR=/autograder/python
uv venv --python 3.12 /autograder/venv
export VIRTUAL_ENV=/autograder/venv
# The packages as they are pinned here, with PyTorch's build for processors.
cd /autograder/source/dropreg
uv pip install -r pyproject.toml --extra book --extra teach --constraint requirements.txt \
  --index-strategy unsafe-best-match --extra-index-url https://download.pytorch.org/whl/cpu
