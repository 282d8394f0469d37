#!/usr/bin/env bash
# Question:  what does nvcc -arch=sm_100a embed?
# Expected:  machine code and PTX for 10.0a only, which no other GPU runs: that is the price of the "a".
# Version:   nvidia-cuda-nvcc 13.5.37
# Behaviour: PTX of the plain compute_100 as well, compiled in a pass of its own, in which __CUDA_ARCH_FEAT_SM100_ALL
#            is not defined: such a file loads on other GPUs of 10.0 and later, without its special instructions.
# Seen:      sm_90a: elf 90a, ptx 90, ptx 90a; sm_100f: elf 100f, ptx 100, ptx 100f; sm_90: elf 90, ptx 90
. "$(dirname "$0")/environment.sh"
environment nvidia-cuda-nvcc=$(find "$place" -path '*/bin/nvcc')
echo '__global__ void k(float* p) { *p = 1.f; }' > k.cu
nvcc=$(find "$place" -path '*/bin/nvcc')
embedded() {
  "$nvcc" --dryrun -c k.cu -o k.o "-arch=$1" 2>&1 | grep -o 'kind=[a-z]*,sm=[0-9a-z]*' | sort | tr '\n' ' '
}
for architecture in sm_90a sm_100f sm_90; do echo "$architecture: $(embedded $architecture)"; done
[ "$(embedded sm_90a)" = "kind=elf,sm=90a kind=ptx,sm=90 kind=ptx,sm=90a " ]
[ "$(embedded sm_100f)" = "kind=elf,sm=100f kind=ptx,sm=100 kind=ptx,sm=100f " ]
[ "$(embedded sm_90)" = "kind=elf,sm=90 kind=ptx,sm=90 " ]
