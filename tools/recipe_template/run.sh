#!/usr/bin/env bash
# @name@: from the corpus to a table of compressed recognisers. Written by tools/new_recipe.py. See --help.
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"

recipe=@name@ proposed_tokens=@vocab_size@
test_sets="@test_sets@"
path_option @option@ "the corpus, if it has moved since this recipe was written"
option hours 0 0.1 "hours of training speech to use, and a quarter as many of each dev and test set of the corpus; 0 for all"
settle() { if [[ $hours != 0 ]]; then subset=yes; fi; }  # RESULTS.md is of the whole corpus

get_corpus() {
  local source=${@variable@:-@source@}
  @import@ @arguments@ --output "$data/corpus" --jobs "$jobs"
}

make_manifests() {
  local extra; mapfile -t extra < <(settings fbank | grep '^sampling_rate=')  # of the others stage 1 knows nothing
  step manifests --conf local/prepare_manifests.py "$(conf fbank.yaml)" --from 0 "$data/corpus/*" \
    --makes "${manifests[@]}" -- python local/prepare_manifests.py --corpus "$data/corpus" \
    --output "$data/manifests" --config "$(conf fbank.yaml)" --hours "$hours" --jobs "$jobs" "${extra[@]}"
}

stage 0 get_corpus       "find the corpus and describe it"
stage 1 make_manifests   "checked training, dev and test cuts"
stage 2 prepare_features "fbank features"
stage 3 prepare_tokens   "tokens of the training transcripts"
stage 4 train_teacher    "train the teacher"
stage 5 decode_teacher   "decode the teacher"
stage 6 distil           "distil it stage by stage: each student starts from the one before"
stage 7 train_baselines  "baselines: from scratch and in one step, each also with as many updates"
stage 8 write_results    "the table, the plot and RESULTS.md"
stage 9 export_models    "export to ONNX, float32 and int8; sherpa-onnx decodes the test sets"

run_recipe "$@"
