# Sourced by the scripts beside it. `environment PACKAGE==VERSION ...` makes a virtual environment with these packages in
# a temporary folder, which goes when the script ends; then `python` is its interpreter. With FINDINGS_ENVIRONMENTS=FOLDER
# environments are kept there, and scripts of the same packages share one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
environment() {
  place=$folder/environment
  if [ -n "${FINDINGS_ENVIRONMENTS:-}" ]; then place=$FINDINGS_ENVIRONMENTS/$(echo "$*" | tr ' ' '+'); fi
  if [ ! -e "$place/complete" ]; then
    python3 -m venv "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"
    touch "$place/complete"
  fi
  cd "$folder"
}
python() { "$place/bin/python" "$@"; }
