"""local/decode.py, local/streaming_decode.py and local/align.py as commands, on a small trained model: long utterances,
and what cannot be decoded."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import MixedCut, MixTrack
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy
from made_up import BINS, make_cuts, settings, spoil
from scripts import load, refused, run_script

from kdlib.alignment import align_labels, word_frames
from kdlib.config import DecodeConfig, FbankConfig, save_config
from kdlib.cuts import load_cuts, load_samples
from kdlib.decoding import best_hypotheses
from kdlib.errors import RecipeError
from kdlib.files import write_json
from kdlib.latency import shown_at
from kdlib.scoring import read_recogs
from kdlib.training.checkpoint import load_averaged, load_checkpoint, save_checkpoint

LOCAL = Path(__file__).resolve().parents[1] / "local"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def options(corpus, teacher_folder, tmp_path):
    """Of a script, for the dev cuts as a test set; what it writes goes to a copy of the model's folder."""
    folder, lang, _, dev = corpus
    exp = tmp_path / "tiny"
    exp.mkdir()
    for path in teacher_folder.glob("*"):
        if path.is_file():
            (exp / path.name).symlink_to(path)
    save_config(settings(), exp / "config.yaml")
    dev.to_file(tmp_path / "cuts_dev.jsonl.gz")
    (tmp_path / "decode.yaml").write_text("max_sym_per_frame: 1\n")
    return {"--exp": exp, "--fbank": tmp_path, "--lang": folder / "lang", "--config": tmp_path / "decode.yaml",
            "--test-sets": "dev"}


def words_of(options, more=()):
    return [str(word) for pair in options.items() for word in pair] + list(more)


def run(name, options, *more):
    return run_script(LOCAL / f"{name}.py", *words_of(options, more))


def decode_here(monkeypatch, options, longest, *more):
    """What decode.py recognises if utterances above ``longest`` seconds are long ones, and its summary."""
    module = load(LOCAL / "decode.py")
    monkeypatch.setattr(module, "LONGEST_SECONDS", longest)
    monkeypatch.setattr(sys, "argv", ["decode.py", *words_of(options, more)])
    module.main()
    folder = options["--exp"] / "decode"
    return read_recogs(next(folder.glob("recogs-dev-*.txt"))), json.loads((folder / "summary.json").read_text())


def of_align(options):
    """The options of align.py."""
    return {"--output": options["--fbank"] / "align",
            **{key: options[key] for key in ("--exp", "--fbank", "--lang", "--test-sets")}}


def align_here(monkeypatch, options, longest):
    """What align.py makes of the dev cuts if utterances above ``longest`` seconds are too long for it."""
    module = load(LOCAL / "align.py")
    monkeypatch.setattr(module, "LONGEST_SECONDS", longest)
    monkeypatch.setattr(sys, "argv", ["align.py", *words_of(of_align(options))])
    module.main()
    return load_cuts(options["--fbank"] / "align" / "cuts_dev.jsonl.gz")


def test_long_utterances_are_decoded_in_chunks_to_the_same_words(monkeypatch, options, capsys):
    whole, summary = decode_here(monkeypatch, options, 300.0)
    printed = capsys.readouterr().out
    assert f"{summary['parameters']:,} parameters, real-time factor " in printed and summary["real_time_factor"] > 0
    in_chunks, _ = decode_here(monkeypatch, options, 0.4)
    assert in_chunks == whole
    assert sum(ref == hyp for _, ref, hyp in whole) > len(whole) / 2  # it has learned something


def test_what_is_tried_leaves_the_recipe_s_summary_alone(monkeypatch, options, corpus):
    """Tables are made from summary.json: a step of run.sh writes it, and before that a call by hand that changes nothing."""
    folder = options["--exp"] / "decode"

    def decode(*more):
        """The names of the summaries, and what the recipe's own says."""
        decode_here(monkeypatch, options, 300.0, *more)
        return {path.name for path in folder.glob("summary*.json")}, (folder / "summary.json").read_text()

    corpus[3].to_file(options["--fbank"] / "cuts_other.jsonl.gz")
    names, own = decode()
    assert names == {"summary.json"}
    sure = "epoch-12-avg-1"
    for more, name in (
            (["--method", "modified_beam_search"], f"summary-dev-{sure}-modified_beam_search-beam-4.json"),
            (["--beam", "2", "method=modified_beam_search"], f"summary-dev-{sure}-modified_beam_search-beam-2.json"),
            (["--epoch", "11"], "summary-dev-epoch-11-avg-1-greedy_search-max-sym-1.json"),
            (["--avg", "2"], "summary-dev-epoch-12-avg-2-greedy_search-max-sym-1.json"),
            (["--test-sets", "other"], f"summary-other-{sure}-greedy_search-max-sym-1.json")):
        before = names
        names, now = decode(*more)
        assert names - before == {name} and now == own
    with monkeypatch.context() as patch:
        patch.setenv("RECIPE_STEP", "stage 5, decode")
        again, now = decode("method=modified_beam_search", "--test-sets", "dev other")
    assert again == names and list(json.loads(now)["test_sets"]) == ["dev", "other"]
    assert json.loads(now)["method"] == "modified_beam_search"
    assert (json.loads(own)["beam"], json.loads(now)["beam"]) == (None, 4)
    # By hand with another config or other data: neither shows in the options.
    (options["--fbank"] / "decode.yaml").write_text("method: modified_beam_search\nbeam: 3\n")
    names, after = decode("--test-sets", "dev other")
    assert names - again == {f"summary-dev-other-{sure}-modified_beam_search-beam-3-by-hand.json"} and after == now


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_by_hand_no_file_of_a_step_is_replaced(monkeypatch, options, corpus, script):
    """Other data may have the names of a recipe's test sets, and the settings are those of the step."""
    folder = options["--exp"] / script

    def decode():
        """What lies in the folder then, by name."""
        done = run(script, options)
        assert done.returncode == 0, done.stderr
        return {path.name: path.read_text() for path in folder.iterdir()}

    with monkeypatch.context() as patch:
        patch.setenv("RECIPE_STEP", "stage 5, decode")
        of_the_step = decode()
    assert len(of_the_step) == 4
    CutSet.from_cuts(list(corpus[3])[:5]).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    both = decode()
    assert {name: both.pop(name) for name in of_the_step} == of_the_step
    assert len(both) == 4 and all(Path(name).stem.endswith("-by-hand") for name in both)
    assert decode().keys() == {**of_the_step, **both}.keys()


def test_a_step_writes_a_damaged_summary_anew(monkeypatch, options):
    (options["--exp"] / "decode").mkdir()
    (options["--exp"] / "decode" / "summary.json").write_text("{")
    with pytest.raises(RecipeError, match="summary.json is not valid JSON"):
        decode_here(monkeypatch, options, 300.0)
    monkeypatch.setenv("RECIPE_STEP", "stage 5, decode")
    assert decode_here(monkeypatch, options, 300.0)[1]["step"] == "stage 5, decode"


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_more_tokens_a_frame_only_where_they_were_learnt(options, script):
    """A model trained for one token a frame would repeat it."""
    more = "max_sym_per_frame=3"
    line = refused(run(script, options, more))
    assert "max_sym_per_frame is 3" in line and "rnnt_type modified" in line and "at 1" in line
    path = options["--exp"] / "epoch-12.pt"
    content = load_checkpoint(path, "")
    config = json.loads(content["config"])
    config["loss"]["rnnt_type"] = "regular"
    path.unlink()
    save_checkpoint(path, {**content, "config": json.dumps(config)})
    ended = run(script, options, more)
    assert ended.returncode == 0, ended.stderr
    assert list((options["--exp"] / script).glob("summary-dev-epoch-12-avg-1-*max-sym-3*.json"))


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_another_chunk_is_heard_and_timed(options, corpus, teacher_folder, script):
    """Of a frame, with one before it: the words, when the first of them can be shown, and what the summary says."""
    lang, cuts = corpus[1], []
    for cut in corpus[3]:
        cuts.append(cut.with_id(cut.id))
        cuts[-1].supervisions = [cut.supervisions[0].with_alignment(
            "word", [AlignmentItem(word, 0.0, 0.2) for word in cut.supervisions[0].text.split()])]
    (options["--fbank"] / "align").mkdir()
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "align" / "cuts_dev.jsonl.gz")
    done = run(script, options, "--chunk-size", "1", "--left-context", "1", "--alignment", options["--fbank"] / "align")
    assert done.returncode == 0, done.stderr
    model = load_averaged(teacher_folder)[0]

    @torch.no_grad()
    def heard(*context):
        """The best hypothesis of each cut, by its id."""
        found = {}
        for cut in cuts:
            features = torch.from_numpy(cut.load_features())
            encoded, lengths, _ = model.encoder(features[None], torch.tensor([len(features)]), *context)
            found[cut.id], = best_hypotheses(model, encoded, lengths, DecodeConfig())
        return found

    folder, own = options["--exp"] / script, heard(1, 1)
    words = {id_: lang.decode(list(hypothesis.tokens)).split() for id_, hypothesis in own.items()}
    assert {id_: found for id_, _, found in read_recogs(next(folder.glob("recogs-*")))} == words
    assert words != {id_: lang.decode(list(hypothesis.tokens)).split() for id_, hypothesis in heard().items()}
    summary = json.loads(next(folder.glob("summary-*.json")).read_text())
    assert (summary["chunk_ms"], summary["left_context_ms"]) == (40, 40)
    test = summary["test_sets"]["dev"]
    first = [shown_at(own[cut.id].frames[0], 1, cut.duration) for cut in cuts if own[cut.id].frames]
    assert test["latency"]["first_token_ms"] == pytest.approx(1000 * np.mean(first), abs=0.1)
    assert test["latency"]["words"] == test["words"] - test["del"] - test["sub"] > 0


def test_the_first_token_waits_for_the_silence_after_the_audio(finished, tmp_path):
    """In a chunk that is longer than the audio, of a second."""
    folder, _, _, cuts = finished
    cut = cuts[1].with_id(cuts[1].id)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts_noise.jsonl.gz")
    (tmp_path / "align").mkdir()
    cut.supervisions = [cut.supervisions[0].with_alignment("word", [AlignmentItem("UP", 0.0, 0.4)])]
    CutSet.from_cuts([cut]).to_file(tmp_path / "align" / "cuts_noise.jsonl.gz")
    for tail, shown in (("0", 1000.0), ("0.2", 1200.0), ("30", 1310.0), ("sherpa-onnx", 1310.0)):
        done = run("streaming_decode", {
            "--exp": folder / "exp" / "tiny", "--fbank": tmp_path, "--lang": folder / "lang",
            "--config": folder / "decode.yaml", "--test-sets": "noise", "--alignment": tmp_path / "align",
            "--fbank-config": folder / "fbank.yaml", "--chunk-size": 32, "--tail": tail})
        assert done.returncode == 0, done.stderr
        summary, = (folder / "exp" / "tiny" / "streaming_decode").glob(f"summary-noise-*-tail-{tail}.json")
        assert json.loads(summary.read_text())["test_sets"]["noise"]["latency"]["first_token_ms"] == shown


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_a_model_has_its_folder_s_name_where_the_user_stands_in_it(options, script):
    words = words_of({**options, "--exp": "."})
    done = run_script(LOCAL / f"{script}.py", *words, cwd=options["--exp"])
    assert done.returncode == 0, done.stderr
    assert json.loads((options["--exp"] / script / "summary.json").read_text())["model"] == "tiny"
    assert "\ntiny: " in done.stdout


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_what_is_missing_is_said_before_anything_is_decoded(options, script, corpus):
    corpus[3].to_file(options["--fbank"] / "cuts_other.jsonl.gz")
    (options["--fbank"] / "align").mkdir()
    corpus[3].to_file(options["--fbank"] / "align" / "cuts_dev.jsonl.gz")
    for more, said in ((["--test-sets", "dev gone"], "cuts_gone.jsonl.gz is missing"),
                       (["--test-sets", "dev other", "--alignment", options["--fbank"] / "align"],
                        "align/cuts_other.jsonl.gz is missing: make it with local/align.py")):
        done = run(script, options, *map(str, more))
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
        assert not list((options["--exp"] / script).glob("*"))


def test_a_long_utterance_cannot_be_heard_whole(monkeypatch, options):
    with pytest.raises(RecipeError, match="dev-.* is longer than 0.4 s, too long to be heard whole: give --chunk-size"):
        decode_here(monkeypatch, options, 0.4, "--chunk-size", "0", "--left-context", "-1")


def test_a_long_utterance_is_not_aligned_and_stays(monkeypatch, options, corpus, capsys):
    aligned = align_here(monkeypatch, options, 0.5)
    long = [cut.id for cut in corpus[3] if cut.duration > 0.5]
    assert 0 < len(long) < len(corpus[3]) == len(aligned)
    assert [cut.id for cut in aligned if not cut.supervisions[0].alignment] == long
    printed = capsys.readouterr().out
    assert f"skipped {len(long)} utterances (longer than 0.5 s): {long[0]}" in printed
    assert f"{len(aligned) - len(long)} of {len(aligned)} utterances aligned" in printed


def test_an_earlier_alignment_goes_where_none_takes_its_place(monkeypatch, options, corpus, capsys):
    """Of three words, which are too long here; and of two, which have no best path by a model that gives all of them the same
    probability."""
    content = load_checkpoint(options["--exp"] / "epoch-12.pt", "")
    for name in ("joiner.out.weight", "joiner.out.bias"):
        content["average"][name] = torch.zeros_like(content["average"][name])
    (options["--exp"] / "epoch-12.pt").unlink()
    save_checkpoint(options["--exp"] / "epoch-12.pt", content)
    cuts = [cut.with_id(cut.id) for cut in corpus[3] if len(cut.supervisions[0].text.split()) > 1]
    for cut in cuts:
        earlier = {kind: [AlignmentItem("A", 100.0, 0.1)] for kind in ("word", "phone")}
        cut.supervisions = [fastcopy(cut.supervisions[0], alignment=earlier)]
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    aligned = align_here(monkeypatch, options, 0.7)
    assert [list(cut.supervisions[0].alignment) for cut in aligned] == [["phone"]] * len(cuts)
    printed, long = capsys.readouterr().out, [cut.id for cut in cuts if cut.duration > 0.7]
    assert f"skipped {len(long)} utterances (longer than 0.7 s)" in printed
    assert f"skipped {len(cuts) - len(long)} utterances (no single best path)" in printed and 0 < len(long) < len(cuts)


@pytest.mark.parametrize("epoch", [1, 12])
def test_words_end_where_a_model_that_hears_the_whole_utterance_emits_them(options, corpus, teacher_folder, epoch):
    lang = corpus[1]
    done = run("align", of_align(options), *(("--epoch", "1", "--avg", "1") if epoch == 1 else ()))
    assert done.returncode == 0, done.stderr
    model = load_averaged(teacher_folder, epoch, 1)[0]

    def words(cut, *context):
        """(word, begin, end) of each, in seconds."""
        features, labels = torch.from_numpy(cut.load_features()), lang.encode(cut.supervisions[0].text)
        encoded, lengths, _ = model.encoder(features[None], torch.tensor([len(features)]), *context)
        path, = align_labels(model, encoded, lengths, torch.tensor([labels]), torch.tensor([len(labels)]), "modified")
        return [(word, round(0.04 * first, 3), round(0.04 * (last + 1), 3)) for word, first, last in
                word_frames(lang, labels, path)]

    aligned = {cut.id: [(item.symbol, item.start, round(item.end, 3)) for item in cut.supervisions[0].alignment["word"]]
               for cut in load_cuts(options["--fbank"] / "align" / "cuts_dev.jsonl.gz")}
    assert aligned == {cut.id: words(cut, 0, -1) for cut in corpus[3]} != {cut.id: words(cut) for cut in corpus[3]}


def test_cuts_too_short_for_a_frame_are_not_aligned(options, corpus):
    """In a batch of their own, which has no frame at all; and no name of a test set is no test set."""
    cuts = [cut.truncate(duration=0.05, preserve_id=True) for cut in list(corpus[3])[:2]]
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run("align", of_align(options))
    assert done.returncode == 0, done.stderr
    assert "0 of 2 utterances aligned" in done.stdout and "skipped 2 utterances (more labels than frames)" in done.stdout
    done = run("align", {**of_align(options), "--test-sets": " "})
    assert done.returncode == 1 and "--test-sets names none" in done.stderr


@pytest.mark.parametrize("name, more, said", [
    ("decode", ["--test-sets", " "], "--test-sets names none"),
    ("decode", ["--chunk-size", "-3"], "--chunk-size -3: give frames of 40 ms"),
    ("decode", ["--beam", "0"], "error: command line: decode.beam is 0; it must be above 0"),
    ("decode", ["--beam", "8"], "error: --beam 8 is of modified_beam_search, and this search is greedy_search: give --method"),
    ("decode", ["--method", "greedy"], "error: command line: decode.method is 'greedy'; it must be greedy_search"),
    ("streaming_decode", ["--tail", "-1", "--fbank-config", "fbank.yaml"], "--tail -1: give seconds of silence, from 0 to"),
    ("streaming_decode", ["--tail", "nan", "--fbank-config", "fbank.yaml"], "--tail nan: give seconds of silence"),
    ("streaming_decode", ["--tail", "1e9", "--fbank-config", "fbank.yaml"], "--tail 1e9: give seconds of silence"),
    ("streaming_decode", ["--carry-labels", "method=fast_beam_search"], "a search of k2's begins without labels"),
    ("streaming_decode", ["--tail", "long", "--fbank-config", "fbank.yaml"], "--tail long: give seconds of silence"),
])
def test_options_that_mean_nothing_are_refused(options, name, more, said):
    done = run(name, options, *more)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_streams_that_go_on_begin_with_the_labels_before_them(monkeypatch, options, corpus):
    _, lang, _, dev = corpus
    module, begun = load(LOCAL / "streaming_decode.py"), []
    create = module.StreamingRecogniser.create_stream
    monkeypatch.setattr(module.StreamingRecogniser, "create_stream",
                        lambda self, before=(): begun.append(before) or create(self, before))
    for more, want in (((), [()] * len(dev)), (["--carry-labels"], [(), *(tuple(lang.encode(cut.supervisions[0].text))
                                                                         for cut in list(dev)[:-1])])):
        begun.clear()
        monkeypatch.setattr(sys, "argv", ["streaming_decode.py", *words_of(options, more)])
        module.main()
        assert begun == want
    names = {path.name for path in (options["--exp"] / "streaming_decode").glob("summary*.json")}
    assert len(names) == 2 and "summary.json" in names and min(names).endswith("-carried-labels.json")


def test_features_that_are_gone_are_named(options):
    cuts = list(load_cuts(options["--fbank"] / "cuts_dev.jsonl.gz"))
    cuts[1].features.storage_path = str(options["--fbank"] / "gone")
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run("streaming_decode", options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"the features of {cuts[1].id} cannot be read, since there is no {options['--fbank'] / 'gone'}: " in done.stderr
    assert "again (this run's run.sh with --stage 2 --stop-stage 2 --force)" in done.stderr


@pytest.mark.parametrize("script", ["decode", "streaming_decode"])
def test_features_that_hold_nan_are_named(options, tmp_path, script):
    cuts = make_cuts(tmp_path, "noisy", 3, 5)
    spoil(cuts[1], np.nan)
    cuts.to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run(script, options)
    assert done.returncode == 0, done.stderr
    assert ("\nwarning: the features of noisy-1 hold nan or infinity, so what is heard there tells nothing: mend their "
            "audio, and run stage 2 again") in "\n" + done.stdout


def test_features_that_hold_nan_are_not_aligned(options, tmp_path):
    cuts = make_cuts(tmp_path, "noisy", 3, 5)
    spoil(cuts[1], np.nan)
    cuts.to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run("align", of_align(options))
    assert done.returncode == 0, done.stderr
    assert "(features that hold nan or infinity): noisy-1\n" in done.stdout


def test_a_cut_without_transcript_is_decoded(options, corpus):
    cuts = [cut.drop_supervisions() if number == 0 else cut for number, cut in enumerate(corpus[3])]
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run("streaming_decode", options)
    assert done.returncode == 0, done.stderr
    results = read_recogs(next((options["--exp"] / "streaming_decode").glob("recogs-dev-*.txt")))
    assert len(results) == len(cuts) and [ref for id_, ref, _ in results if id_ == cuts[0].id] == [[]]


@pytest.mark.parametrize("script", ["decode", "streaming_decode", "align"])
def test_a_cut_of_several_utterances_is_not_scored_by_its_first(options, corpus, script):
    cuts = [cut.with_id(cut.id) for cut in corpus[3]]
    cuts[3].supervisions = [cuts[3].supervisions[0], fastcopy(cuts[3].supervisions[0], id="second", text="B")]
    CutSet.from_cuts(cuts).to_file(options["--fbank"] / "cuts_dev.jsonl.gz")
    done = run(script, of_align(options) if script == "align" else options)
    assert done.returncode == 1 and f"error: cut {cuts[3].id} has 2 supervisions" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["decode", "streaming_decode", "align", "nbest"])
def test_features_of_other_settings_are_refused(options, corpus, script):
    """As far as is known: of those that stage 2 has not made, the number of bins."""
    cuts, made_as = options["--fbank"] / "cuts_dev.jsonl.gz", options["--fbank"] / "fbank.json"
    given = {"align": of_align(options), "nbest": {
        "--cuts": cuts, "--output": options["--fbank"] / "align" / "cuts_dev.jsonl.gz",
        **{key: options[key] for key in ("--exp", "--lang", "--config")}}}.get(script, options)
    heard = FbankConfig(num_filters=BINS).heard()
    write_json(options["--exp"] / "run.json", {"features": heard})
    write_json(made_as, {**heard, "high_freq": 3800.0})
    assert refused(run(script, given)) == (f"error: {made_as} says high_freq 3800.0, and {options['--exp']} was trained with "
                                           f"{heard['high_freq']}: give the fbank settings of its stage 2")
    others = list(load_cuts(cuts))
    others[1].features.num_features = 40
    CutSet.from_cuts(others).to_file(cuts)
    for made in (heard, None):  # such as a test set of the user's own, beside those of stage 2 or without these
        if made is None:
            made_as.unlink()
        else:
            write_json(made_as, made)
        assert f"cut {others[1].id} in {options['--fbank']} has 40 feature bins" in refused(run(script, given))
    assert not any((options[key] / name).exists() for key, name in (("--exp", script), ("--fbank", "align")))
    corpus[3].to_file(cuts)
    for made in (None, heard):
        if made is not None:
            write_json(made_as, made)
        done = run(script, given)
        assert done.returncode == 0, done.stderr


def test_audio_that_cannot_be_used_is_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(16000), 16000)
    recording = Recording.from_file(tmp_path / "a.wav")
    cut = MonoCut("u1", 0, 1, 0, [SupervisionSegment("u1", recording.id, 0, 1, text="A")], recording=recording)
    assert load_samples(cut, 16000).shape == (1, 16000) and load_samples(cut, 16000).dtype == np.float32
    with pytest.raises(RecipeError, match="u1 has audio of 16000 Hz and the model hears 8000 Hz"):
        load_samples(cut, 8000)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"the audio of u1 cannot be read \(.*\): mend the file, or run stages 1 and 2 again"):
        load_samples(cut, 16000)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(RecipeError, match="the audio of u1 cannot be read, since there is no /.*/a.wav: mend the file, or run"):
        load_samples(cut, 16000)
    recording.sources[0].source = "data/a.wav"
    for one in (cut, MixedCut("u1", [MixTrack(cut)])):
        with pytest.raises(RecipeError, match="since there is no data/a.wav: run this in the recipe's folder, where that path"):
            load_samples(one, 16000)
