#!/usr/bin/env bash
# All weights, some of them, and weights in bf16, on a card: resident or streamed with masters and moments on the host, killed
# and resumed, a run leaves the same model, byte for byte.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
layers=12 # what rounding leaves of the smallest budget must not hold all of the frozen ones
tiny_model --override num_hidden_layers=$layers

. "$(dirname "$0")/full.bash"
finish
