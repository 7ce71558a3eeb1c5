#!/usr/bin/env bash
# Strings of spoken digits, from real speech (Free Spoken Digit Dataset): from nothing to a table of compressed
# recognisers. See --help.
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"

recipe=fsdd
test_sets="test test-unseen"
path_option corpus-dir "folder of the dataset, where it is on this machine; without it stage 0 downloads it"
option hours 3.4 0.06 "hours of training strings to make"
option test-words 2100 150 "reference digits in each test set, at least"
option unseen-speaker theo "" "whom training never hears, of whom is test-unseen; or none, and there is no test-unseen"

settle() {
  if [[ $unseen_speaker == none ]]; then test_sets=test; fi
  if other_words unseen-speaker; then subset=yes; fi  # RESULTS.md and the figures of docs/ are of theo
}

get_corpus() {
  local path folder=() downloaded=("$downloads/recordings")
  if [[ $corpus_dir ]]; then downloaded=(); fi
  for path in "$corpus_dir/recordings" "$corpus_dir"; do  # not all corpora that stand beside it
    if [[ $corpus_dir && -d $path ]]; then folder=(--conf "$path"); break; fi
  done
  step corpus "${folder[@]}" --makes "$data/corpus.json" "${downloaded[@]}" -- \
    python local/get_corpus.py --download "$downloads" --output "$data/corpus.json" \
    ${corpus_dir:+--corpus-dir "$corpus_dir"}
}

make_manifests() {
  local recordings
  recordings=$(json_value "$data/corpus.json" recordings str 0)
  step manifests --from 0 "$data/corpus.json" "$recordings" --makes "${manifests[@]}" -- \
    python local/prepare_manifests.py --corpus "$data/corpus.json" --strings "$data/strings" \
    --output "$data/manifests" --hours "$hours" --test-words "$test_words" \
    --unseen-speaker "$unseen_speaker" --jobs "$jobs"
}

stage 0 get_corpus       "find the dataset, or download it"
stage 1 make_manifests   "digit strings and their Lhotse manifests, validated: training, dev and test cuts"
stage 2 prepare_features "fbank features"
stage 3 prepare_tokens   "tokens of the training transcripts"
stage 4 train_teacher    "train the teacher"
stage 5 decode_teacher   "decode the teacher"
stage 6 distil           "distil it stage by stage: each student starts from the one before"
stage 7 train_baselines  "baselines: from scratch and in one step, each also with as many updates"
stage 8 write_results    "the table, the plot and RESULTS.md"
stage 9 export_models    "export to ONNX, float32 and int8; sherpa-onnx decodes the test sets"

run_recipe "$@"
