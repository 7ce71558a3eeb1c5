# shellcheck shell=bash disable=SC2154
# The stages that every corpus shares, sourced by recipe.sh, which sets the variables that stand here.

declare -A heard_anew  # the steps of hypotheses that this call has made or found done

# cuts FOLDER PART...: the cuts of these parts.
cuts() {
  local folder=$1 part
  shift
  for part; do printf '%s\n' "$folder/cuts_$part.jsonl.gz"; done
}

# setting KIND KEY: what a word of the command line, or else KIND.yaml, says of KEY; nothing where neither does.
setting() {
  local said
  mapfile -t said < <(settings "$1")
  # A file that is gone or damaged is told by the step that needs it.
  "$PYTHON" -c '
import sys, yaml
key, path, *words = sys.argv[1:]
try:
    with open(path, encoding="utf-8") as file:
        values = yaml.safe_load(file)
except (OSError, ValueError, yaml.YAMLError):
    values = None
values = dict(values if isinstance(values, dict) else {}, **dict(word.split("=", 1) for word in words if "=" in word))
if values.get(key) is not None:
    print(values[key])' "$2" "$(conf "$1.yaml")" "${said[@]}"
}

# decoded_epochs: the epoch and avg that decode.py is told, as options of what must take the same model; none where they are
# left to the scripts, so that no other setting of decode.yaml makes these run again.
decoded_epochs() {
  local key value
  for key in epoch avg; do
    value=$(setting decode "$key")
    if [[ $value ]]; then printf '%s\n' "--$key" "$value"; fi
  done
}

# training_cuts: what stage 2 leaves of the training part: its cuts, or the index of its shards where it stores these.
training_cuts() {
  if [[ $(setting fbank storage) == shar ]]; then printf '%s\n' "$fbank/shar_train.json"; else cuts "$fbank" train; fi
}

# json_value FILE KEY TYPE STAGE: the str or int of a file that STAGE makes.
json_value() {
  if [[ ! -e $1 ]]; then
    echo "error: stage $current needs $1, which stage $4 makes: $rerun --stage $4 --stop-stage $4" >&2
    return 1
  fi
  "$PYTHON" -c '
import json, sys
try:
    value = json.load(open(sys.argv[1], encoding="utf-8"))[sys.argv[2]]
except (OSError, ValueError, LookupError, TypeError):
    sys.exit(1)
if type(value).__name__ != sys.argv[3]:
    sys.exit(1)
print(value)' "$1" "$2" "$3" && return
  echo "error: $1 is damaged, stage $4 makes it anew: $rerun --stage $4 --stop-stage $4" >&2
  return 1
}

prepare_features() {  # stage 2
  local extra others
  mapfile -t extra < <(settings fbank)
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t others < <(cuts "$fbank" dev $test_sets $noise_cuts $unlabelled_cuts)
  step fbank --conf "$(conf fbank.yaml)" --from 1 "${manifests[@]}" \
    --makes "$(training_cuts)" "${others[@]}" "$fbank/fbank.json" -- \
    python "$scripts/prepare_features.py" --manifests "$data/manifests" --output "$fbank" --config "$(conf fbank.yaml)" \
    --jobs "$jobs" "${extra[@]}"
}

prepare_tokens() {  # stage 3
  local extra others
  if [[ $own_lang -ef $lang ]]; then
    echo "$lang is this run's own: it stays as it is"
    return
  fi
  mapfile -t extra < <(settings lang)
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t others < <(cuts "$data/manifests" dev $test_sets)
  step lang --conf "$(conf lang.yaml)" ${own_lang:+"$own_lang/tokens.txt" "$own_lang/bpe.model"} \
    --from 1 "$data/manifests/cuts_train.jsonl.gz" "${others[@]}" --makes "$lang/tokens.txt" "$lang/bpe.model" -- \
    python "$scripts/prepare_lang.py" --cuts "$data/manifests/cuts_train.jsonl.gz" --config "$(conf lang.yaml)" \
    --output "$lang" ${own_lang:+--take "$own_lang"} ${proposed_tokens:+--proposed "$proposed_tokens"} \
    --count-unknown "${others[@]}" -- "${extra[@]}"
}

# parts_heard CONFIG: the parts that a teacher is to write down its hypotheses of, for students that are trained as this config,
# or the plan of several, says; an error where these cannot be made.
parts_heard() {
  local heard=$unlabelled_cuts reason='unlabelled_cuts in run.sh'
  # The labelled part is decoded, which takes long, only where a loss reads the hypotheses. It may be named in a comment.
  if grep -qs '^[^#]*nbest_rnnt' "$1"; then heard="train $heard" reason="nbest_rnnt in $1"; fi
  if [[ $heard && $(training_cuts) == *.json ]]; then
    echo "error: $reason needs the teacher's hypotheses, which are not made of shards: set fbank.storage=files" >&2
    return 1
  fi
  printf '%s\n' "$heard"
}

# nbest CONFIG TEACHER MADE_IN: where the config or the corpus wants them, let exp/TEACHER, which stage MADE_IN trains, write
# down its hypotheses; the manifests to train on come into train_cuts.
nbest() {
  local part name extra option heard config=$1 teacher=$2 current=$3 forced=$force force
  heard=$(parts_heard "$config")
  if [[ ! $heard ]]; then return; fi
  mapfile -t extra < <(settings decode)
  if [[ $heard != "train "* ]]; then train_cuts+=("$(cuts "$fbank" train)"); fi
  for part in $heard; do
    option=''
    if [[ $part != train ]]; then option=--pseudo-label; fi
    train_cuts+=("$exp/$teacher/nbest/cuts_$part.jsonl.gz")
    name=nbest-${teacher//\//-}-$part
    force=$forced
    if [[ ${heard_anew[$name]-} ]]; then force=''; fi  # several students learn from it
    heard_anew[$name]=yes
    step "$name" --conf "$(conf decode.yaml)" --from 2 "$(cuts "$fbank" "$part")" \
      --from 3 "$lang/tokens.txt" --from "$current" "$exp/$teacher/done.json" "$exp/$teacher/epoch-*.pt" \
      --makes "${train_cuts[-1]}" -- \
      python "$scripts/nbest.py" --exp "$exp/$teacher" --cuts "$(cuts "$fbank" "$part")" --lang "$lang" \
      --config "$(conf decode.yaml)" --output "${train_cuts[-1]}" $option "${extra[@]}"
  done
}

# train NAME [--conf|--from STAGE] CONFIG [TEACHER TEACHER_STAGE] [-- key=value...]: train exp/NAME with a config that
# comes with the recipe, or that an earlier stage wrote, from and towards exp/TEACHER if there is one.
train() {
  local name=$1 inputs=("$2" "$3") config=$3 options=() train_cuts=() others
  shift 3
  if [[ ${inputs[0]} == --from ]]; then inputs+=("$1") config=$1; shift; fi
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t others < <(cuts "$fbank" dev $noise_cuts)
  inputs+=(--from 2 "$(training_cuts)" "${others[@]}" --from 3 "$lang/tokens.txt")
  if (($#)) && [[ $1 != -- ]]; then
    options=(--init-from "$exp/$1" --teacher "$exp/$1" --first-teacher "$exp/teacher")
    inputs+=(--from "$2" "$exp/$1/done.json" "$exp/$1/epoch-*.pt")
    if [[ $1 != teacher ]]; then inputs+=(--from 4 "$exp/teacher/done.json" "$exp/teacher/epoch-*.pt"); fi
    if grep -qs 'distill_from: first' "$config"; then nbest "$config" teacher 4; else nbest "$config" "$1" "$2"; fi
    if ((${#train_cuts[@]})); then
      inputs+=(--from "$current" "${train_cuts[@]}") options+=(--train-cuts "${train_cuts[@]}")
    fi
    shift 2
  fi
  if (($#)); then shift; fi
  if [[ $world_size ]]; then options+=(--world-size "$world_size"); fi
  step "train-${name//\//-}" "${inputs[@]}" --aside "$exp/$name" --makes "$exp/$name/done.json" "$exp/$name/epoch-*.pt" -- \
    python "$scripts/train.py" --config "$config" --fbank "$fbank" --lang "$lang" --exp "$exp/$name" \
    "${options[@]}" "$@"
}

# decode NAME TRAINED_IN: decode the test sets with exp/NAME, which stage TRAINED_IN trains.
decode() {
  local name=$1 trained_in=$2 extra heard aligned
  mapfile -t extra < <(settings decode)
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t heard < <(cuts "$fbank" $test_sets)
  # shellcheck disable=SC2086  # the same
  mapfile -t aligned < <(cuts "$exp/teacher/align" $test_sets)
  step "decode-${name//\//-}" --conf "$(conf decode.yaml)" --from 2 "${heard[@]}" --from 3 "$lang/tokens.txt" \
    --from "$trained_in" "$exp/$name/done.json" "$exp/$name/epoch-*.pt" --from 5 "${aligned[@]}" \
    --makes "$exp/$name/decode/summary.json" -- \
    python "$scripts/decode.py" --exp "$exp/$name" --fbank "$fbank" --lang "$lang" --config "$(conf decode.yaml)" \
    --test-sets "$test_sets" --alignment "$exp/teacher/align" "${extra[@]}"
}

# teacher_config: the settings that the teacher was trained with.
teacher_config() { if [[ $own_teacher ]]; then printf '%s\n' "$own_teacher/config.yaml"; else conf teacher.yaml; fi; }

# plan_students [OPTION...]: the call of local/plan.py into the array planning. The settings of the command line go into the
# configs that the plan writes, since some follow from others.
plan_students() {
  local extra trained=()
  mapfile -t extra < <(settings train)
  # In a smoke run a teacher that is taken counts as one that trains as little as all else: no baseline could have its updates
  # in minutes.
  if [[ $own_teacher && ! $smoke ]]; then trained=(--teacher-done "$own_teacher/done.json"); fi
  planning=(python "$scripts/plan.py" --config "$(conf progressive.yaml)" --teacher-config "$(teacher_config)"
            "${trained[@]}" --lang "$lang" "$@" "${extra[@]}")
}

train_teacher() {  # stage 4
  local planning
  # Where stage 6 is to follow, students that cannot be had are refused now, not after days of training.
  if ((stop_stage >= 6)) && [[ -e $lang/tokens.txt ]] && ! ask=done get_teacher; then
    plan_students
    "$PYTHON" "${planning[@]:1}"
  fi
  get_teacher
}

get_teacher() {  # trained, or that of another run
  local extra
  if [[ $own_teacher -ef $exp/teacher ]]; then
    [[ $ask ]] || echo "$exp/teacher is this run's own: it stays as it is"
    return
  fi
  mapfile -t extra < <(settings train)
  if [[ $own_teacher ]]; then
    step take-teacher --conf "$own_teacher/done.json" "$own_teacher/config.yaml" "$own_teacher/epoch-*.pt" \
      --from 2 "$fbank/fbank.json" --from 3 "$lang/tokens.txt" --aside "$exp/teacher" \
      --makes "$exp/teacher/done.json" "$exp/teacher/epoch-*.pt" -- \
      python "$scripts/take_teacher.py" --from "$own_teacher" --fbank "$fbank" --lang "$lang" --exp "$exp/teacher"
    return
  fi
  train teacher --conf "$(conf teacher.yaml)" -- "${extra[@]}"
}

decode_teacher() {  # stage 5
  local heard aligned epochs
  mapfile -t epochs < <(decoded_epochs)
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t heard < <(cuts "$fbank" $test_sets dev)
  # shellcheck disable=SC2086  # the same
  mapfile -t aligned < <(cuts "$exp/teacher/align" $test_sets dev)
  step align --from 2 "${heard[@]}" --from 3 "$lang/tokens.txt" \
    --from 4 "$exp/teacher/done.json" "$exp/teacher/epoch-*.pt" --makes "${aligned[@]}" -- \
    python "$scripts/align.py" --exp "$exp/teacher" --fbank "$fbank" --lang "$lang" --test-sets "$test_sets dev" \
    --output "$exp/teacher/align" "${epochs[@]}"
  decode teacher 4
}

# train_chain PREFIX CONFIGS STAGES: train and decode exp/PREFIX1 and so on with CONFIGS1.yaml and so on, the first from
# the teacher, each other from the one before.
train_chain() {
  local k previous=teacher made_in=4
  for ((k = 1; k <= $3; k++)); do
    train "$1$k" --from "$current" "$2$k.yaml" "$previous" "$made_in"
    decode "$1$k" "$current"
    previous=$1$k made_in=$current
  done
}

distil() {  # stage 6
  local planning stages
  plan_students --output "$exp/conf"
  step plan --conf "$(conf progressive.yaml)" "$(teacher_config)" ${own_teacher:+"$own_teacher/done.json"} \
    --from 3 "$lang/tokens.txt" --makes "$exp/conf/plan.json" "$exp/conf/*.yaml" -- "${planning[@]}"
  stages=$(json_value "$exp/conf/plan.json" stages int 6)
  train_chain stage "$exp/conf/stage" "$stages"
}

train_baselines() {  # stage 7
  local name
  for name in scratch scratch-matched; do
    train "$name" --from 6 "$exp/conf/$name.yaml"
    decode "$name" 7
  done
  for name in single single-matched; do
    train "$name" --from 6 "$exp/conf/$name.yaml" teacher 4
    decode "$name" 7
  done
}

# find_other_words: into other, the first step of stages 4 to 7 whose result is there and was not made, to the end, with the
# words of this call and, where this call trains too, the files of now in conf/; empty where there is none. What this call runs
# itself is not asked.
find_other_words() {
  other=$(
    set -e
    # A report alone is of models that are there, whatever the files in conf/ have come to say since.
    if ((stage < 8)); then ask=conf; else ask=command; fi
    functions=([4]=get_teacher [5]=decode_teacher [6]=distil [7]=train_baselines)
    for ((current = 4; current < 8 && current < stage; current++)); do
      if ((current == 6)) && [[ ! -e $exp/conf/plan.json ]]; then break; fi
      "${functions[current]}"
    done)
  other=${other%%$'\n'*}
}

# refuse_other_words: an error where the report of this call would name words that have not made its models. It is told before
# any are trained for it.
refuse_other_words() {
  local other number conf=''
  find_other_words
  if [[ ! $other ]]; then return; fi
  number=${other#stage } number=${number%%,*}
  if ((stage < 8)); then conf=' and the files of now in conf/'; fi
  echo "error: $other was not done, or not to the end, with the words of this call$conf, which the report would name:" \
    "give those that the models were made with, or run it again from there ($rerun --stage $number)" >&2
  return 1
}

write_results() {  # stage 8
  local k path stages=1 students=() published='' exports=()
  # Published figures are of the whole corpus, unless those settings have some of their own.
  if [[ -e $(conf published.md) ]] && [[ ! $subset || $(conf published.md) == conf/*/* ]]; then
    published=$(conf published.md)
  fi
  if [[ -e $exp/conf/plan.json ]]; then stages=$(json_value "$exp/conf/plan.json" stages int 6); fi
  for ((k = 1; k <= stages; k++)); do students+=("$exp/stage$k/decode/summary.json"); done
  # What stage 9 has left, this time or before.
  for path in "$exp"/export/*/decode{,-int8}/summary.json; do
    if [[ -e $path ]]; then exports+=("$path"); fi
  done
  step results --conf "$(conf progressive.yaml)" ${published:+"$published"} --from 5 "$exp/teacher/decode/summary.json" \
    --from 6 "$exp/conf/plan.json" "${students[@]}" --from 7 "$exp"/{scratch,single}{,-matched}/decode/summary.json \
    ${exports:+--from 9 "${exports[@]}"} \
    --makes "$exp"/results/{results.json,summaries.json,table.md,wer_vs_size.png} "$report" -- \
    python "$scripts/results.py" --exp "$exp" --config "$(conf progressive.yaml)" --recipe "$recipe" \
    --output "$exp/results" --report "$report" --command "egs/$recipe/$reported" ${published:+--published "$published"}
}

# export_model NAME TRAINED_IN: exp/NAME to exp/export/NAME, and the test sets decoded from there by sherpa-onnx.
export_model() {
  local name=$1 trained_in=$2 folder=$exp/export/$1 extra epochs suffix option heard made
  mapfile -t extra < <(settings fbank)
  mapfile -t epochs < <(decoded_epochs)
  step "export-$name" --conf "$(conf fbank.yaml)" --from 3 "$lang/tokens.txt" \
    --from "$trained_in" "$exp/$name/done.json" "$exp/$name/epoch-*.pt" --makes "$folder/model.json" "$folder/*.onnx" \
    "$folder/tokens.txt" -- \
    python "$scripts/export_onnx.py" --exp "$exp/$name" --lang "$lang" --fbank-config "$(conf fbank.yaml)" \
    --output "$folder" "${epochs[@]}" "${extra[@]}"
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t heard < <(cuts "$fbank" $test_sets)
  for suffix in '' -int8; do
    option=${suffix:+--int8} made=("$folder/decode$suffix/summary.json")
    if [[ ! $suffix ]]; then made+=("$folder/test_wavs/trans.txt"); fi
    # shellcheck disable=SC2086  # no word where it is empty
    step "sherpa$suffix-$name" --from 2 "${heard[@]}" --from 9 "$folder/model.json" "$folder/*.onnx" \
      --makes "${made[@]}" -- \
      python "$scripts/decode_sherpa.py" --model "$folder" --cuts "$fbank" --test-sets "$test_sets" $option
  done
}

export_models() {  # stage 9
  local stages other
  stages=$(json_value "$exp/conf/plan.json" stages int 6)
  export_model teacher 4
  export_model "stage$stages" 6
  # The report again, with what sherpa-onnx made of these files, where this call or an earlier one has written it.
  if [[ ! -e $exp/results/results.json ]]; then return; fi
  find_other_words
  if [[ $other ]]; then
    echo "$report stays as it is: $other was not done, or not to the end, with the words of this call"
  else
    current=8 write_results
  fi
}

ablate() {  # stage 10
  local extra arms arm name stages k ablation=$exp/ablation test_sets="dev $test_sets" summaries=()
  parts_heard "$(conf ablation.yaml)" >/dev/null  # before any arm is trained
  mapfile -t extra < <(settings train)
  step ablation-plan --conf "$(conf ablation.yaml)" "$(conf progressive.yaml)" "$(teacher_config)" \
    --from 3 "$lang/tokens.txt" --makes "$ablation/arms.txt" "$ablation/conf/*.yaml" -- \
    python "$scripts/ablation.py" --do plan --config "$(conf ablation.yaml)" --progressive "$(conf progressive.yaml)" \
    --teacher-config "$(teacher_config)" --lang "$lang" --exp "$ablation" "${extra[@]}"
  mapfile -t arms <"$ablation/arms.txt"
  for arm in "${arms[@]}"; do
    read -r name stages <<<"$arm"
    train_chain "ablation/$name-stage" "$ablation/conf/$name-stage" "$stages"
    for ((k = 1; k <= stages; k++)); do summaries+=("$ablation/$name-stage$k/decode/summary.json"); done
  done
  step ablation-table --conf "$(conf ablation.yaml)" --from 5 "$exp/teacher/decode/summary.json" \
    --from 10 "$ablation/arms.txt" "${summaries[@]}" --makes "$ablation_report" -- \
    python "$scripts/ablation.py" --do table --config "$(conf ablation.yaml)" --exp "$ablation" --recipe "$recipe" \
    --teacher "$exp/teacher/decode/summary.json" --command "egs/$recipe/$reported --stage 10" --report "$ablation_report"
}
