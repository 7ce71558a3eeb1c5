#!/usr/bin/env bash
# LibriSpeech, the corpus of the method's paper: from nothing to a table of compressed recognisers. See --help.
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"

recipe=librispeech
path_option corpus-dir "folder of LibriSpeech, where it is on this machine; without it stage 0 downloads the parts"
path_option musan-dir "folder of MUSAN, whose sounds training mixes in; without it training goes on without noise"
flag musan "stage 0 downloads MUSAN (11 GB)"
option parts "train-clean-100 train-clean-360 train-other-500" "" \
  "parts to train on; with train-clean-100 alone --settings 100h where no others are given"
option dev-parts "dev-clean dev-other" "" "parts for the dev loss; or held-out, a twentieth of the training speech"
option test-sets "test-clean test-other" "" "parts to test on"
flag mini "mini LibriSpeech: train-clean-5, dev-clean-2 and --settings small where no others are given"
flag partial "take parts of --corpus-dir that are half there as they are"
option max-utterances 0 80 "utterances to take of each part, evenly spaced; 0 for all"

settle() {
  # Models for 960 h learn nothing from 5: their learning rate would still be rising at the end.
  if [[ $mini ]]; then
    parts=${given[parts]-train-clean-5} settings=${settings:-small}
    # With mini LibriSpeech alone, which has no test set, dev-clean-2 may be that.
    if [[ " $test_sets " == *" dev-clean-2 "* ]]; then dev_parts=held-out; else dev_parts=dev-clean-2; fi
    dev_parts=${given[dev-parts]-$dev_parts}
  elif [[ $parts == train-clean-100 ]]; then
    settings=${settings:-100h}
  fi
  # RESULTS.md and the published figures beside it are of all utterances of all parts.
  if [[ $partial || $max_utterances != 0 ]] || other_words parts dev-parts test-sets; then subset=yes; fi
  if [[ $musan || $musan_dir ]]; then noise_cuts=noise; else words=(data.noise_probability=0 "${words[@]}"); fi
}

get_corpus() {
  local name path inputs=() downloaded=() wanted="$parts ${dev_parts/#held-out/} $test_sets"
  for name in $wanted CHAPTERS.TXT; do
    for path in "$corpus_dir/$name" "$corpus_dir/LibriSpeech/$name"; do
      if [[ $corpus_dir && -e $path ]]; then inputs+=("$path"); fi
    done
  done
  if [[ ! $corpus_dir ]]; then
    for name in $wanted; do downloaded+=("$downloads/LibriSpeech/$name/.completed"); done
  fi
  if [[ $musan && ! $musan_dir ]]; then downloaded+=("$downloads/musan"); fi
  if [[ -d $musan_dir ]]; then inputs+=("$musan_dir"); fi
  step corpus ${inputs:+--conf "${inputs[@]}"} --makes "$data/corpus.json" "${downloaded[@]}" -- \
    python local/get_corpus.py --parts "$wanted" --download "$downloads" ${musan:+--musan} \
    ${partial:+--partial} --output "$data/corpus.json" ${corpus_dir:+--corpus-dir "$corpus_dir"} \
    ${musan_dir:+--musan-dir "$musan_dir"}
}

make_manifests() {
  local part librispeech musan folders=()
  librispeech=$(json_value "$data/corpus.json" librispeech str 0)
  musan=$(json_value "$data/corpus.json" musan str 0)
  for part in $parts ${dev_parts/#held-out/} $test_sets; do folders+=("$librispeech/$part"); done
  step manifests --from 0 "$data/corpus.json" "${folders[@]}" ${musan:+"$musan"} --makes "${manifests[@]}" -- \
    python local/prepare_manifests.py --corpus "$data/corpus.json" --train-parts "$parts" --dev-parts "$dev_parts" \
    --test-sets "$test_sets" --max-utterances "$max_utterances" --output "$data/manifests" --jobs "$jobs"
}

stage 0 get_corpus       "find the parts of the corpus, or download them"
stage 1 make_manifests   "Lhotse manifests, validated: training, dev and test cuts"
stage 2 prepare_features "fbank features, the training part also at other speeds"
stage 3 prepare_tokens   "tokens of the training transcripts"
stage 4 train_teacher    "train the teacher"
stage 5 decode_teacher   "decode the teacher"
stage 6 distil           "distil it stage by stage: each student starts from the one before"
stage 7 train_baselines  "baselines: from scratch and in one step, each also with as many updates"
stage 8 write_results    "the table, the plot and RESULTS.md"
stage 9 export_models    "export to ONNX, float32 and int8; sherpa-onnx decodes the test sets"

run_recipe "$@"
