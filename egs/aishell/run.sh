#!/usr/bin/env bash
# Mandarin read aloud (AISHELL-1), in characters: from nothing to a table of compressed recognisers. See --help.
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"

recipe=aishell
test_sets="test"
path_option corpus-dir "folder that holds data_aishell, where it is on this machine; without it stage 0 downloads 15 GB"
flag partial "take a corpus whose speakers are not all there as it is"
option hours 0 0.1 "hours of training speech to use, chosen evenly; 0 for all"
option test-hours 0 0.04 "the same of dev and of test"

settle() {  # RESULTS.md is of the whole corpus
  if [[ $partial || $hours != 0 || $test_hours != 0 ]]; then subset=yes; fi
}

get_corpus() {
  local path folder=() downloaded=("$downloads/aishell/data_aishell/.completed")
  if [[ $corpus_dir ]]; then downloaded=(); fi
  for path in "$corpus_dir/data_aishell" "$corpus_dir"; do  # not all corpora that stand beside it
    if [[ $corpus_dir && -d $path ]]; then folder=(--conf "$path"); break; fi
  done
  step corpus "${folder[@]}" --makes "$data/corpus.json" "${downloaded[@]}" -- \
    python local/get_corpus.py --download "$downloads" --output "$data/corpus.json" \
    ${partial:+--partial} ${corpus_dir:+--corpus-dir "$corpus_dir"}
}

make_manifests() {
  local folder
  folder=$(json_value "$data/corpus.json" data_aishell str 0)
  step manifests --from 0 "$data/corpus.json" "$folder/transcript" "$folder/wav" --makes "${manifests[@]}" -- \
    python local/prepare_manifests.py --corpus "$data/corpus.json" --output "$data/manifests" --hours "$hours" \
    --test-hours "$test_hours" --jobs "$jobs"
}

stage 0 get_corpus       "find the corpus, or download it"
stage 1 make_manifests   "Lhotse manifests, validated: training, dev and test cuts"
stage 2 prepare_features "fbank features"
stage 3 prepare_tokens   "tokens: the characters of the training transcripts"
stage 4 train_teacher    "train the teacher"
stage 5 decode_teacher   "decode the teacher"
stage 6 distil           "distil it stage by stage: each student starts from the one before"
stage 7 train_baselines  "baselines: from scratch and in one step, each also with as many updates"
stage 8 write_results    "the table, the plot and RESULTS.md"
stage 9 export_models    "export to ONNX, float32 and int8; sherpa-onnx decodes the test sets"

run_recipe "$@"
