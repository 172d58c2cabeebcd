#!/usr/bin/env bash
# Writes docker/locks/*.txt: what each image installs, every version pinned (constraints.txt) and every wheel by hash.
# Needs uv (pip install uv) and a package index. Torch and the CUDA libraries that it brings stand in a lock of their
# own, so that a build can take another build of torch instead (docker/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."
locks=docker/locks
compile=(uv pip compile --quiet --generate-hashes --no-annotate --no-header --constraints constraints.txt
  --python-version 3.11 --python-platform x86_64-manylinux_2_28)
heavy='^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)=='

all=$(mktemp)
trap 'rm -f "$all"' EXIT
"${compile[@]}" pyproject.toml --extra train --output-file "$all"
mapfile -t names < <(grep -oE "$heavy" "$all" | sed 's/==//')

# Some packages (kfp) are published as source only: what builds them, and Plumbline's own wheel.
printf 'setuptools>=77\nwheel\n' | "${compile[@]}" --output-file $locks/build.txt -
"${compile[@]}" pyproject.toml --extra data --output-file $locks/light.txt
"${compile[@]}" pyproject.toml --extra review --output-file $locks/review.txt
"${compile[@]}" pyproject.toml --extra train "${names[@]/#/--no-emit-package=}" --output-file $locks/train.txt
# The lines of the full lock that the last one left out.
awk -v heavy="$heavy" '/^[^ ]/ { keep = ($0 ~ heavy) } keep' "$all" > $locks/torch-cuda.txt
