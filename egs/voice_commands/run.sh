#!/usr/bin/env bash
# Spoken commands for an on-device assistant: from nothing to a table of compressed recognisers. See --help.
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"

recipe=voice_commands
test_sets="test-clean test-other"
noise_cuts="noise"
option hours 8 0.06 "hours of training speech to make"
option test-words 4800 150 "reference words in each test set, at least"
option noise-minutes 10 1 "minutes of background sound for augmentation"

make_corpus() {
  local part lists=()
  for part in train dev $test_sets $noise_cuts; do lists+=("$data/corpus/$part/metadata.jsonl"); done
  step corpus --conf local/{espeak,grammar,render,sounds,synthesize,voices}.py ../../kdlib/audio.py \
    --makes "$data/corpus/corpus.json" "${lists[@]}" -- \
    python local/synthesize.py --output "$data/corpus" --hours "$hours" --test-words "$test_words" \
    --noise-minutes "$noise_minutes" --jobs "$jobs"
}

make_manifests() {
  local part folders=()
  for part in train dev $test_sets $noise_cuts; do folders+=("$data/corpus/$part"); done
  step manifests --from 0 "$data/corpus/corpus.json" "${folders[@]}" --makes "${manifests[@]}" -- \
    python local/prepare_manifests.py --corpus "$data/corpus" --output "$data/manifests" --jobs "$jobs"
}

stage 0 make_corpus      "speak the commands with espeak-ng"
stage 1 make_manifests   "Lhotse manifests, validated: training, dev and test cuts"
stage 2 prepare_features "fbank features"
stage 3 prepare_tokens   "tokens of the training transcripts"
stage 4 train_teacher    "train the teacher"
stage 5 decode_teacher   "decode the teacher"
stage 6 distil           "distil it stage by stage: each student starts from the one before"
stage 7 train_baselines  "baselines: from scratch and in one step, each also with as many updates"
stage 8 write_results    "the table, the plot and RESULTS.md"
stage 9 export_models    "export to ONNX, float32 and int8; sherpa-onnx decodes the test sets"

extra_stage 10 ablate      "the ablation: what each choice is worth"

run_recipe "$@"
