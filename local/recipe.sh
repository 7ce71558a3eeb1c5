# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by each egs/<corpus>/run.sh: options, the environment, the order of the stages, and with stages.sh those that
# every corpus shares. A run.sh declares what is particular to its corpus and ends in `run_recipe "$@"`:
#
#   recipe=NAME                     for titles
#   test_sets="A B"                 names of the test cuts
#   noise_cuts="noise"              name of the noise cuts, where the corpus has any
#   unlabelled_cuts="A B"           names of cuts that a student hears its teacher's transcripts of, if there are any
#   proposed_tokens=N               a vocab_size that was proposed for the whole corpus: of less text fewer tokens are made
#   option NAME DEFAULT SMOKE TEXT  an option --NAME of its own, in the variable NAME ('-' becomes '_')
#   path_option NAME TEXT           the same for a path, which may be relative to where the user stands
#   flag NAME TEXT                  an option without a value: the variable is yes, or empty
#   stage N FUNCTION TEXT           what stage N does; its function calls `step`
#   extra_stage N FUNCTION TEXT     the same for a stage after the last, that runs when it is asked for by number
#   settle                          a function that is called, where there is one, when the options are known: it may
#                                   set test_sets, noise_cuts and settings by them (given has those of the command line
#                                   by name), add to the key=value settings in words, and with subset=yes keep
#                                   RESULTS.md, which is of the whole corpus, as it is (other_words helps to tell)
#
# In the stages stand $data, $downloads and $exp (folders), $manifests (the cuts that stage 1 makes), $jobs, $smoke and the
# recipe's own options.

set -euo pipefail
invoked_from=$PWD
CDPATH='' cd "$(dirname "${BASH_SOURCE[1]}")"  # with the user's CDPATH it could go to a folder of that name elsewhere
scripts=../../local
source ../../tools/activate.sh
source "$scripts/stages.sh"

noise_cuts='' unlabelled_cuts='' proposed_tokens=''
stage_functions=() stage_texts=() last_stage=0
option_names=() option_texts=() path_options=' ' flags=' '
declare -A option_defaults option_smoke
words=()
shared_options='stage stop-stage settings jobs world-size python data exp teacher lang'
stage='' stop_stage='' settings='' subset='' smoke='' force='' ask='' python='' data='' exp='' jobs='' world_size=''
own_teacher='' own_lang=''

usage_error() { printf 'error: %s (see run.sh --help)\n' "$1" >&2; exit 2; }

stage() { stage_functions[$1]=$2 stage_texts[$1]=$3 last_stage=$1; }
extra_stage() { stage_functions[$1]=$2 stage_texts[$1]="$3 (only with --stage $1)"; }

option() {
  option_names+=("$1") option_texts+=("$4")
  option_defaults[$1]=$2 option_smoke[$1]=$3
}

path_option() {
  option "$1" "" "" "$2"
  path_options+="$1 "
}

flag() {
  option "$1" "" "" "$2"
  flags+="$1 "
}

usage() {
  local n folders
  folders=$(for n in conf/*/; do if [[ -d $n ]]; then basename "$n"; fi; done | paste -sd ' ')
  echo "usage: egs/$recipe/run.sh [options] [key=value ...]"
  echo
  echo "stages:"
  for n in "${!stage_functions[@]}"; do printf '  %s  %s\n' "$n" "${stage_texts[n]}"; done
  echo
  echo "options:"
  printf '  %-22s %s\n' \
    "--stage N" "begin with stage N (0)" \
    "--stop-stage N" "end with stage N ($last_stage)" \
    "--smoke" "the same chain in minutes, on little data and with small models, in data-smoke/ and exp-smoke/" \
    "--force" "run the stages again even where they are done" \
    "--settings NAME" "conf/NAME/ before conf/, with data-NAME/ and exp-NAME/${folders:+ (there is $folders)}" \
    "--jobs N" "processes that work side by side on data (the number of cores)" \
    "--world-size N" "processes that train a model together (the number of GPUs; on a CPU that of cores, up to 4)" \
    "--python PATH" "the Python to use, or to make tools/venv from when it lacks packages" \
    "--data DIR" "where data goes (data)" \
    "--exp DIR" "where models and results go (exp)" \
    "--teacher DIR" "a finished teacher to compress (exp/teacher of another run) in place of stage 4's; with --lang" \
    "--lang DIR" "its tokens (data/lang of that run) in place of stage 3's" \
    "--help" "this text"
  for n in "${!option_names[@]}"; do
    local default=${option_defaults[${option_names[n]}]}
    local value=VALUE
    if [[ $flags == *" ${option_names[n]} "* ]]; then value=''; fi
    printf '  %-22s %s\n' "--${option_names[n]} $value" "${option_texts[n]}${default:+ ($default)}"
  done
  echo
  echo "key=value changes a setting of the files in conf/: fbank.KEY of fbank.yaml, lang.KEY of lang.yaml, decode.KEY of"
  echo "decode.yaml; model.KEY of the teacher, and of the students what their stages do not set; any other key belongs to"
  echo "every training, for example training.num_epochs=2."
}

# A path that the user gave: a relative one starts from the folder that run.sh was called in. One below the recipe's folder
# stands in the steps' commands in one way, however it is written, since a command that has changed runs its step again;
# elsewhere a relative one stays relative, so that it may move with the checkout, and an absolute one absolute.
user_path() {
  local path=$1
  if [[ $path != /* ]]; then path=$invoked_from/$path; fi
  if [[ -L $path && ! -e $path ]]; then  # or what it leads to would be made, on another disk maybe than the one to be mounted
    echo "error: $1 is a link to $(readlink -- "$path"), which is not there: make or mount that, or name another folder" >&2
    exit 1
  fi
  if [[ /$1/ != */../* ]]; then  # with one, only the links that it goes through say where it leads
    path=$(realpath --canonicalize-missing --no-symlinks -- "$path")
    if [[ $path == "$PWD"/* ]]; then printf '%s\n' "${path#"$PWD"/}"; return; fi
  fi
  if [[ $1 == /* ]]; then
    printf '%s\n' "$path"
  else
    realpath --canonicalize-missing --relative-to=. -- "$path"
  fi
}

parse_options() {
  local name value n
  declare -A given=()
  while (($#)); do
    case $1 in
      -h|--help) usage; exit 0 ;;
      --smoke) smoke=yes; shift; continue ;;
      --force) force=yes; shift; continue ;;
      --*=*) name=${1%%=*} name=${name#--} value=${1#*=}; shift ;;
      --*)
        name=${1#--}
        case " $shared_options ${option_names[*]} " in
          *" $name "*) ;;
          *) usage_error "unknown option $1" ;;
        esac
        if [[ $flags == *" $name "* ]]; then given[$name]=yes; shift; continue; fi
        (($# > 1)) || usage_error "--$name needs a value"
        value=$2; shift 2 ;;
      [a-z]*=*) words+=("$1"); shift; continue ;;
      *) usage_error "unknown option $1" ;;
    esac
    [[ $value ]] || usage_error "--$name needs a value"
    [[ $flags != *" $name "* ]] || usage_error "--$name takes no value"
    case " $shared_options ${option_names[*]} " in
      *" $name "*) given[$name]=$value ;;
      *) usage_error "unknown option --$name" ;;
    esac
  done

  for name in stage stop-stage; do
    value=${given[$name]-0}
    if [[ ! $value =~ ^[0-9]{1,4}$ ]] || [[ ! ${stage_functions[10#$value]-} ]]; then
      local extra="${!stage_functions[*]}"
      extra=${extra#*"$last_stage"}
      usage_error "--$name $value: this recipe has the stages 0 to $last_stage${extra:+, and$extra}"
    fi
  done
  stage=$((10#${given[stage]-0}))
  stop_stage=$((10#${given[stop-stage]-$((stage > last_stage ? stage : last_stage))}))
  ((stage <= stop_stage)) || usage_error "--stage $stage comes after --stop-stage $stop_stage"
  jobs=${given[jobs]-$(usable_cores)}
  [[ $jobs =~ ^[1-9][0-9]*$ ]] || usage_error "--jobs $jobs: give the number of processes"
  world_size=${given[world-size]-}
  [[ ! $world_size || $world_size =~ ^[1-9][0-9]*$ ]] || usage_error "--world-size $world_size: give the number of processes"
  settings=${given[settings]-} settings=${settings%/}  # as a shell completes the name of a folder
  python=${given[python]-}
  # An interpreter in a virtual environment is a link, which alone knows of its packages.
  if [[ $python == */* && $python != /* ]]; then python=$invoked_from/$python; fi

  for name in "${option_names[@]}"; do
    value=${option_defaults[$name]}
    if [[ $smoke && ${option_smoke[$name]} ]]; then value=${option_smoke[$name]}; fi
    if [[ ${given[$name]+given} ]]; then
      value=${given[$name]}
      if [[ $path_options == *" $name "* ]]; then value=$(user_path "$value"); fi
    fi
    printf -v "${name//-/_}" %s "$value"
  done

  if [[ ${given[teacher]-} ]]; then
    [[ ${given[lang]-} ]] || usage_error "--teacher needs --lang, the tokens that it was trained with"
    for value in "${words[@]}"; do
      [[ $value != model[.=[]* ]] || usage_error "$value: the model of --teacher is what it is"
    done
    own_teacher=$(user_path "${given[teacher]}")
    [[ -e $own_teacher/done.json ]] || usage_error "--teacher ${given[teacher]}: no training has ended there"
  fi
  if [[ ${given[lang]-} ]]; then
    own_lang=$(user_path "${given[lang]}")
    [[ -e $own_lang/tokens.txt ]] || usage_error "--lang ${given[lang]}: there is no tokens.txt, which stage 3 makes"
  fi

  # The call that gives the same results, for the user; and for the report, where this machine's paths say nothing.
  rerun="run.sh${smoke:+ --smoke}"
  reported=$rerun
  for name in settings python data exp teacher lang "${option_names[@]}"; do
    if [[ ! ${given[$name]+given} ]]; then continue; fi
    printf -v value ' %q' "${given[$name]}"
    if [[ $flags == *" $name "* ]]; then value=''; fi
    rerun+=" --$name$value"
    case " data exp teacher lang$path_options" in *" $name "*) value=' DIR' ;; esac
    if [[ $name != python ]]; then reported+=" --$name$value"; fi
  done
  for value in "${words[@]}"; do
    printf -v value %q "$value"
    rerun+=" $value" reported+=" $value"
  done
  if declare -F settle >/dev/null; then settle; fi
  [[ ! $settings || -d conf/$settings ]] || usage_error "--settings $settings: there is no folder conf/$settings"
  local suffix=${settings:+-$settings}${smoke:+-smoke}
  data=data$suffix exp=exp$suffix
  if [[ ${given[data]-} ]]; then data=$(user_path "${given[data]}"); fi
  if [[ ${given[exp]-} ]]; then exp=$(user_path "${given[exp]}"); fi
  # What is downloaded serves all settings, and --smoke; what one of them has of its own is not downloaded again.
  downloads=data/download
  if [[ ${given[data]-} || -d $data/download ]]; then downloads=$data/download; fi
  fbank=$data/fbank lang=$data/lang
  report=$exp/RESULTS.md ablation_report=$exp/ABLATION.md
  # In exp/, too, other settings have a report of their own.
  if [[ $exp == exp && ! $suffix && ! $subset ]]; then report=RESULTS.md ablation_report=ABLATION.md; fi
  if [[ $smoke ]]; then  # the user's own settings come after, and win
    mapfile -t lines < <(grep -E '^[a-z]' "$(conf smoke.conf)")
    words=("${lines[@]}" "${words[@]}")
  fi
  # shellcheck disable=SC2086  # names without spaces, to be split
  mapfile -t manifests < <(cuts "$data/manifests" train dev $test_sets $noise_cuts $unlabelled_cuts)
}

# other_words OPTION...: whether one of these options has other words than by default, in whatever order.
other_words() {
  local name variable
  for name; do
    variable=${name//-/_}
    # shellcheck disable=SC2086  # words, to be split
    if [[ $(printf '%s\n' ${!variable} | sort) != "$(printf '%s\n' ${option_defaults[$name]} | sort)" ]]; then return 0; fi
  done
  return 1
}

# conf FILE: where that file of the settings is.
conf() {
  if [[ $settings && -e conf/$settings/$1 ]]; then printf '%s\n' "conf/$settings/$1"; else printf '%s\n' "conf/$1"; fi
}

# settings KIND: the key=value words for fbank, lang or decode, without that prefix, or for train; one a line.
settings() {
  local word kind
  for word in "${words[@]}"; do
    kind=${word%%.*}
    case $kind in
      fbank|lang|decode) word=${word#*.} ;;
      model) if [[ $own_teacher ]]; then kind=no; else kind=train; fi ;;  # of smoke.conf, which mean a teacher of its own
      *) kind=train ;;
    esac
    if [[ $kind == "$1" ]]; then printf '%s\n' "$word"; fi
  done
}

# step NAME [--conf FILE...] [--from STAGE FILE...]... [--aside FOLDER] --makes FILE... -- python SCRIPT ...: see
# stage_stamp.py. With ask=done it runs nothing, and tells whether the step is done; with ask=command it prints its title where
# what it makes is there by another command.
step() {
  local name=$1 folder=$exp reads=$data
  shift
  if ((current < 4)); then folder=$data reads=''; fi
  "$PYTHON" "$scripts/stage_stamp.py" --stamp "$folder/.stamps/stage$current-$name.json" \
    --title "stage $current, $name" --stage "$current" --rerun "$rerun" ${reads:+--reads "$reads"} \
    ${force:+--force} ${ask:+--ask "$ask"} "$@"
}

run_recipe() {
  parse_options "$@"
  activate_environment ${python:+--python "$python"}
  # What stage 6 would refuse is refused before features are made and a teacher is trained that do not serve it.
  if ((stage <= 6 && stop_stage >= 6)); then parts_heard "$(conf progressive.yaml)" >/dev/null; fi
  if ((stage <= 8 && stop_stage >= 8)); then refuse_other_words; fi
  echo "$recipe, stages $stage to $stop_stage, with $PYTHON"
  local begin=$SECONDS
  for current in "${!stage_functions[@]}"; do
    if ((current < stage || current > stop_stage)); then continue; fi
    printf '\n== stage %s: %s\n' "$current" "${stage_texts[current]}"
    "${stage_functions[current]}"
  done
  printf '\nstages %s to %s of %s: done in %s min %s s\n' "$stage" "$stop_stage" "$recipe" \
    $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
}
