#!/usr/bin/env bash
# All weights, some of them, and weights in bf16: a run that is killed and resumed, or has less memory, leaves the same model,
# byte for byte; the model loads and talks; what is frozen is what it was.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
layers=5
tiny_model --override num_hidden_layers=$layers
backend=cpu

. "$(dirname "$0")/full.bash"
finish
