#!/bin/sh
# Style, formatting and types, each named as it runs.
set -eu
cd "$(dirname "$0")/.."
echo "ruff check" && .venv/bin/ruff check --quiet .
echo "ruff format --check" && .venv/bin/ruff format --check --quiet .
if .venv/bin/pyright --version >/dev/null 2>&1; then
  echo "pyright" && .venv/bin/pyright
else
  echo "pyright: left out, it needs node (apt-get install nodejs)"
fi
