#!/usr/bin/env bash
# What a machine with a GPU is asked for, in the order of NOTES.md: is it right, then how fast.
#   benchmarks/on_gpu.sh OUTPUT [install] [parity] [sanitizer] [operators] [model] [tune] [report]
# Each stage leaves its log in OUTPUT; one that fails does not stop those after it. Without stages: all of them.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:?where the logs and results go}
shift
mkdir -p "$output"
[ $# -gt 0 ] || set -- install parity sanitizer operators model tune report
failed=0

stage() { # name, command...
  local name=$1 start=$SECONDS
  shift
  if "$@" >"$output/$name.log" 2>&1; then verdict=passed; else verdict=FAILED failed=1; fi
  printf '%-28s %s in %s s: %s\n' "$name" "$verdict" "$((SECONDS - start))" "$(tail -n 1 "$output/$name.log")"
}

times() { # name, file, further options...
  local name=$1 file=$2
  shift 2
  stage "$name" python3 -m pytest "$file" --benchmark-only --benchmark-json "$output/$name.json" -q "$@"
}

for wanted in "$@"; do
  case $wanted in
    install) stage install python3 -m pip install --no-build-isolation --no-deps -e . ;;
    parity)
      stage environment python3 -m dimr_kernels
      stage parity python3 -m pytest -q -m "not slow" tests/dimr_kernels
      stage model-parity python3 -m pytest -q tests/dimr/test_fused_parity.py tests/dimr/test_inference_gpu.py
      ;;
    sanitizer)
      # Without torch's cache every tensor is an allocation of its own, so that an access just beyond it is seen.
      for tool in memcheck racecheck synccheck initcheck; do
        stage "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          python3 -m tests.abuse.every_kernel
      done
      stage memcheck-operators compute-sanitizer --tool memcheck --error-exitcode 1 \
        python3 -m pytest -q -m "not slow" tests/dimr_kernels/test_every_operator.py
      ;;
    operators)
      for file in depthwise_conv td_norm td_group_norm geglu_linear geglu shuffle_norm_add pixel_shuffle attention; do
        times "$file" "benchmarks/test_$file.py" --shapes target
      done
      ;;
    model)
      times model benchmarks/test_model.py
      for name in dimr-xl-2r dimr-xl-3r; do
        stage "profile-$name" python3 -m benchmarks.profile_model "$name" --rows 64 --output "$output/results"
      done
      ;;
    tune) stage tune python3 -m benchmarks.tune --output "$output/results" ;;
    report) stage report python3 -m benchmarks.report "$output"/*.json --output "$output/results" ;;
    *) echo "no stage is called $wanted" >&2; exit 2 ;;
  esac
done
exit $failed
