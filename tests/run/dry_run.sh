#!/usr/bin/env bash
# A dry run of 2B answers within 0.3 s, from headers alone and the first records of large data sets; it loads and writes nothing.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
tiny_model
cd "$work" || exit 1

# A checkpoint of 4 GB with the shapes of 2B: a header, and a file that holds nothing else.
mkdir big
sed -e 's/"hidden_size": 64/"hidden_size": 2048/; s/"intermediate_size": 128/"intermediate_size": 8192/; s/"num_hidden_layers": 2/"num_hidden_layers": 24/' \
    -e 's/"num_attention_heads": 4/"num_attention_heads": 32/; s/"vocab_size": [0-9]*/"vocab_size": 135040/' m/config.json >big/config.json
if [[ $shared ]]; then cp "$shared/data/yuan2-tokenizer/tokenizer.model" big/; else cp m/tokenizer.model big/; fi
awk 'BEGIN {
    D = 2048; F = 8192; V = 135040
    printf "{\"__metadata__\":{\"format\":\"pt\"}"
    tensor("model.embed_tokens.weight", V "," D)
    for (l = 0; l < 24; l++) {
        p = "model.layers." l "."; s = p "self_attn."; g = s "lf_gate."
        for (i = 1; i <= 4; i++) tensor(s substr("qkvo", i, 1) "_proj.weight", D "," D)
        tensor(p "mlp.gate_proj.weight", F "," D); tensor(p "mlp.up_proj.weight", F "," D); tensor(p "mlp.down_proj.weight", D "," F)
        tensor(g "conv1.weight", D / 2 "," D ",2,1"); tensor(g "conv1.bias", D / 2); tensor(g "conv2.weight", D "," D / 2 ",2,1"); tensor(g "conv2.bias", D)
        tensor(p "input_layernorm.weight", D); tensor(g "output_layernorm.weight", D); tensor(p "post_attention_layernorm.weight", D)
    }
    tensor("model.norm.weight", D)
    printf "}"
}
function tensor(name, shape,    n, i, part, count) {
    n = split(shape, part, ","); count = 2
    for (i = 1; i <= n; i++) count *= part[i]
    printf ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%.0f,%.0f]}", name, shape, at, at + count
    at += count
}' >header
bytes=$(grep -o '[0-9]*\]}}$' header | tr -dc 0-9)
length=$(stat -c %s header)
{
    for i in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $((length >> i & 255)))"; done
    cat header
} >big/model.safetensors
truncate -s $((8 + length + bytes)) big/model.safetensors

# Data of 14 MB, and of a few records
sed '1d;$d; s/},$/}/' data/questions.json >few.jsonl
for ((i = 0; i < 400; i++)); do cat few.jsonl; done >many.jsonl
records=$(wc -l <many.jsonl)
run=(train --do_train --model_name_or_path big --template yuan --lora_target all --quantization_bit 4 --compat new --cutoff_len 64 --per_device_train_batch_size 4
    --gradient_accumulation_steps 4 --output_dir o --backend cpu --dry_run)

# The best of ten, or where others leave no processor free, what of it was computing. A sanitizer's start-up is not ours.
quick() {
    local best=1000 took TIMEFORMAT='%R %U %S' real user sys
    for _ in {1..10}; do
        { time "$QLORA" "${run[@]}" "$@" >said 2>&1 || return 1; } 2>took
        read -r real user sys <took
        took=$((10#${real/./})) computing=$((10#${user/./} + 10#${sys/./}))
        ((took > 300 && computing < 200)) && took=$computing
        ((took < best)) && best=$took
    done
    echo "$best ms"
    ((best < 300))
}
if grep -q __asan_init "$QLORA"; then skip "timing under a sanitizer"; else
    ok "2B over a few records within 0.3 s" quick --dataset few.jsonl --dataset_dir .
    ok "2B over 14 MB of records within 0.3 s" quick --dataset many.jsonl --dataset_dir .
fi
ok "a dry run over many records" bash -c '"$@" >out 2>said' - "$QLORA" "${run[@]}" --dataset many.jsonl --dataset_dir .
ok "says what it looked at" grep -q "^dry run: the first .* records of each data set stand for all of about" said
number() { sed -n "s/^$1 *about \([0-9,]*\).*/\1/p" said | tr -d ,; }
within() { echo "$1 for $2"; (($1 * 100 > $2 * 97 && $1 * 100 < $2 * 103)); }
ok "sequences within three in a hundred" within "$(number data:)" "$records"
ok "steps likewise" within "$(number steps:)" $(((records + 15) / 16 * 3))
tokens=$(sed -n 's/^steps: .*, about \([0-9,]*\) tokens.*/\1/p' said | tr -d ,)
"$QLORA" "${run[@]}" --dataset few.jsonl --dataset_dir . >out 2>said
exact=$(sed -n 's/^steps: .*, \([0-9,]*\) tokens.*/\1/p' said | tr -d ,)
ok "tokens likewise" within "$tokens" $((exact * 400))
ok "few records are counted: no about" bash -c '! grep -q "about.*sequences\|^dry run: the first" said && grep -q "^data: $(wc -l <few.jsonl) sequences\|^data: [0-9,]* sequences" said'
for line in "plan: chunks of" "  total  " "^disk: " "^time: about" "^dry run: nothing was loaded or written"; do ok "it says $line" grep -q "$line" said; done
ok "settings on standard output" grep -q '^learning_rate: ' out
ok "nothing was written" test ! -e o
ok "max_samples bounds the estimate" bash -c '"$@" >out 2>said && grep -q "^data: about 5,000 sequences" said' - "$QLORA" "${run[@]}" --dataset many.jsonl --dataset_dir . --max_samples 5000
ok "what max_samples leaves is counted" bash -c '"$@" >out 2>said && grep -q "^data: 50 sequences" said' - "$QLORA" "${run[@]}" --dataset many.jsonl --dataset_dir . --max_samples 50
ok "packed" bash -c '"$@" >out 2>said && grep -q "^steps: about" said' - "$QLORA" "${run[@]}" --dataset many.jsonl --dataset_dir . --packing true
finish
