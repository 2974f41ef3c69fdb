# tests/run/full.bash - sourced behind tiny.bash, a tiny_model of $layers layers and $backend: the checks of train_full.sh and gpu_full.sh.
last=$((layers - 1))
lora="${lora%--lora_target*} --max_samples 32"
same() { cmp "$1/model.safetensors" "$2/model.safetensors"; }
talks() { [[ -n $("$QLORA" score --model_name_or_path "$1" --text "What colour is the bafi?" --backend "$backend" --quiet) ]]; }
loss() { sed -n 's/.*"train_loss": \([0-9.e-]*\).*/\1/p' "$1/train_results.json"; }

# The smallest budget in KiB with which the run begins, as it says itself.
least() { # FLAGS..
    train "$work/dry" --backend "$backend" "$@" --dry_run --vram 1KiB
    awk '/needs at least/ { x = $7; if ($8 == "MiB") x *= 1024; printf "%d\n", x * 1.006 + 1 }' "$work/dry.log"
}

# kind NAME FLAGS..: undisturbed; with the least memory; killed in a save and resumed
kind() {
    local name=$1 budget
    shift
    ok "$name" train "$work/$name" --backend "$backend" "$@"
    ok "$name: the model loads and scores" talks "$work/$name"
    budget=$(least "$@" --chunk_tokens 64)
    ok "$name: chunks of the same size without a budget" train "$work/$name-c" --backend "$backend" "$@" --chunk_tokens 64
    ok "$name in ${budget}KiB" train "$work/$name-v" --backend "$backend" "$@" --chunk_tokens 64 --vram "${budget}KiB"
    ok "$name: weights are streamed" grep -q 'layers streamed' "$work/$name-v.log"
    ok "$name: same model in ${budget}KiB" same "$work/$name-c" "$work/$name-v"
    (QLORA_FAULT="wsnum:60:KILL" train "$work/$name-k" --backend "$backend" "$@") 2>/dev/null
    ok "$name: after a kill" train "$work/$name-k" --backend "$backend" "$@"
    ok "$name: same model after a kill" same "$work/$name" "$work/$name-k"
    ok "$name: same loss after a kill" test "$(loss "$work/$name")" = "$(loss "$work/$name-k")"
}

full="--finetuning_type full --learning_rate 1e-3"
freeze="--finetuning_type freeze --freeze_trainable_layers 1 --learning_rate 1e-3"
# shellcheck disable=SC2086
{
    kind full $full --optim adamw_torch
    kind pure $full --pure_bf16 --optim paged_adamw_8bit
    kind freeze $freeze --freeze_trainable_modules mlp,self_attn --freeze_extra_modules norm
    ok "pure_bf16: what is lost is said once" test "$(grep -c 'is lost in rounding' "$work/pure.log")" = 1
    ok "the optimizer's state may be paged whatever its name" grep -q 'the optimizer state is paged' "$work/full-v.log"
    ok "freeze: says which" grep -q "^Set trainable layers: .$last.mlp,.$last.self_attn,norm\$" "$work/freeze.log"
}
# Runs that differ in what they train leave different models; old names and defaults are those of v0.5.0.
ok "full and freeze differ" bash -c '! cmp -s "$0/full/model.safetensors" "$0/freeze/model.safetensors"' "$work"
# shellcheck disable=SC2086
ok "old names" train "$work/old" --backend "$backend" --finetuning_type freeze --num_layer_trainable 1 --name_module_trainable mlp --dry_run
ok "they mean the same" grep -q "^Set trainable layers: .$last.mlp\$" "$work/old.log"
