"""Settings: files and key=value words, and what is said of those that are wrong."""

import pytest

from kdlib.config import (DataConfig, DecodeConfig, DistillTerm, FbankConfig, LangConfig, TrainConfig, load_config,
                          merge_config)
from kdlib.errors import RecipeError
from kdlib.plan_config import ProgressiveConfig

pytestmark = pytest.mark.both


def test_configs_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {num_layer: 3}\n")
    with pytest.raises(RecipeError, match=r"a.yaml: key 'model.num_layer'.*known keys there: .*num_layers"):
        load_config(TrainConfig, path)
    path.write_text("loss: {distill: [{name: encoder_mse, temprature: 2}]}\n")
    with pytest.raises(RecipeError, match=r"key 'loss.distill\[0\].temprature'.*known keys there: name, weight, .*temperature"):
        load_config(TrainConfig, path)
    path.write_text("model: {num_layers: many}\n")
    with pytest.raises(RecipeError, match="a.yaml: key 'model.num_layers'.*many"):
        load_config(TrainConfig, path)
    path.write_text("model: {num_layers: 3}\n")
    assert load_config(TrainConfig, path, ["model.num_layers=5"]).model.num_layers == 5
    with pytest.raises(RecipeError, match="command line: key 'modle'"):
        load_config(TrainConfig, path, ["modle.num_layers=5"])
    with pytest.raises(RecipeError, match="unknown option '--frobnicate'"):
        load_config(TrainConfig, path, ["--frobnicate"])
    with pytest.raises(RecipeError, match=r"command line: data.noise_snr=\[1"):
        load_config(TrainConfig, path, ["data.noise_snr=[1"])
    with pytest.raises(RecipeError, match="command line: .*nothing"):
        load_config(TrainConfig, path, ["training.seed=${nothing}"])
    for word, wanted in (("model.head_dim=35", "even"), ("model.dropout=2", "below 1"), ("model.num_heads=0", "above 0"),
                         ("loss.rnnt_type=x", "regular or modified"), ("training.save_every_updates=0", "above 0"),
                         ("training.avg=6", "at most training.num_epochs, 5"),
                         # What else would end a training in a stack trace, or have it learn nothing without a word.
                         ("loss.lm_scale=-1", "finite"), ("loss.am_scale=.nan", "0 or more"),
                         ("loss.lm_scale=1.5", "at most 1 together with"),
                         ("loss.simple_scale=.inf", "finite"),
                         ("loss.delay_penalty=-1", "0 or more"), ("loss.ctc_weight=-1", "0 or more"),
                         ("optim.learning_rate=-1", "above 0"), ("optim.learning_rate=.inf", "finite"),
                         ("optim.clip_norm=0", "above 0"), ("optim.weight_decay=-1", "0 or more"),
                         ("optim.final_ratio=-1", "from 0 to 1"), ("optim.ema_decay=1", "below 1"),
                         ("optim.final_ratio=3", "from 0 to 1"), ("optim.warmup_updates=-5", "0 or more"),
                         ("loss.warmup_updates=-5", "0 or more"), ("loss.ctc_first_updates=-5", "0 or more"),
                         ("data.max_duration=.inf", "finite"), ("data.min_seconds=.nan", "below data.max_seconds"),
                         ("data.max_seconds=.nan", "above 0"),
                         ("data.min_seconds=50", "below data.max_seconds, 30"), ("data.max_seconds=0", "above 0"),
                         ("init.layers=[true]", "rising layer numbers"),
                         ("data.noise_probability=2", "from 0 to 1"), ("data.gain.range=[6,-20]", "in dB"),
                         ("data.gain.range=[-.inf,0]", "in dB"),
                         ("data.spec_augment.frame_mask_size=0", "above 0"),
                         ("data.spec_augment.num_feature_masks=-1", "0 or more"),
                         ("data.spec_augment.max_frames_fraction=1.5", "from 0 to 1"),
                         ("data.spec_augment.start=75", "from 0 to 1"), ("data.spec_augment.time_warp=-5", "0 or more"),
                         ("data.curriculum.updates=-3", "0 or more"), ("data.curriculum.max_words=-1", "0 or more"),
                         ("data.num_buckets=1", "at least 2"),
                         ("training.seed=20261128111500", "below 2.32"), ("training.micro_batches=0", "above 0"),
                         ("training.precision=float16", "float32 or bfloat16")):
        with pytest.raises(RecipeError, match=f"a.yaml: {word.split('=')[0]} is .*; it must be .*{wanted}"):
            load_config(TrainConfig, path, [word])
    with pytest.raises(RecipeError, match="decode.method is 'best'; it must be greedy_search, modified_beam_search or"):
        merge_config(DecodeConfig, {}, ["method=best"])
    path.write_text("model: {num_layers: [\n")
    with pytest.raises(RecipeError, match="a.yaml is not valid YAML"):
        load_config(TrainConfig, path)
    path.write_text("- a list\n")
    with pytest.raises(RecipeError, match="a.yaml holds no YAML mapping"):
        load_config(TrainConfig, path)
    with pytest.raises(RecipeError, match="b.yaml is missing"):
        load_config(TrainConfig, tmp_path / "b.yaml")
    assert load_config(TrainConfig, write(path, "loss: {distill: [{name: encoder_mse, weight: 2}]}")).loss.distill == [
        DistillTerm("encoder_mse", 2.0)]


@pytest.mark.parametrize("seconds, said", [(0.19, "shorter than 0.2 s"), (0.2, None), (30.0, None),
                                           (30.01, "longer than 30 s"), (float("nan"), "shorter than 0.2 s")])
def test_utterances_of_a_wrong_length(seconds, said):
    assert DataConfig().wrong_length(seconds) == said


@pytest.mark.parametrize("content, words, said", [
    ({"loss": {"distill": {"name": "encoder_mse"}}}, [], "conf: key 'loss.distill' is a mapping, .*; it must be a list"),
    ({"loss": [1]}, [], r"conf: key 'loss' is a list, \[1\]; it must be a mapping"),
    ({"model": 3}, [], "conf: key 'model' is a value, 3; it must be a mapping"),
    ({}, ["training.chunk_sizes=8,16"],
     r"command line: key 'training.chunk_sizes' is a value, 8,16; it must be a list, given whole, such as \[a, b\]"),
    ({"data": {"noise_snr": 5}}, [], "conf: key 'data.noise_snr' is a value, 5; it must be a list"),
    ({"training": {"left_contexts": None}}, [], "conf: key 'training.left_contexts' is a value, None; it must be a list"),
    ({"loss": {"distill": "encoder_mse"}}, [], "conf: key 'loss.distill' is a value, encoder_mse; it must be a list"),
    ({"loss": {"distill": [{"name": "encoder_mse"}, "encoder_l1"]}}, [],
     r"conf: key 'loss.distill\[1\]' is a value, encoder_l1; it must be a mapping"),
    ({"data": {"noise_snr": {"low": 1}}}, [], "conf: key 'data.noise_snr' is a mapping"),
    (3, [], "conf: all of it is a value, 3; it must be a mapping"),
    ({}, ["loss.distill.0.weight=3"], "command line: key 'loss.distill' is a mapping, .*; it must be a list, given whole"),
    ({}, ["model=[1]"], "command line: key 'model' is a list"),
    ([{"loss": {"distill": [{"name": "encoder_mse"}]}}, {"loss": {"distill": {"name": "encoder_l1"}}}], [],
     "conf: key 'loss.distill' is a mapping"),
])
def test_lists_and_mappings_that_stand_in_each_others_place(content, words, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(TrainConfig, content, words, source="conf")


@pytest.mark.parametrize("content, said", [
    ({"stages": {"a": 1}}, "conf: key 'stages' is a mapping, {'a': 1}; it must be a list"),
    ({"student": [1]}, "conf: key 'student' is a list"),
    ({"stages": 3}, "conf: key 'stages' is a value, 3; it must be a list"),
    ({"stages": [{}, 3]}, r"conf: key 'stages\[1\]' is a value, 3; it must be a mapping"),
    ({"student": 3}, "conf: key 'student' is a value, 3; it must be a mapping"),
    ({"plan": 3}, "conf: key 'plan' is a value, 3; it must be a mapping"),
    ({"plan": {"parts": 0.4}}, "conf: key 'plan.parts' is a value, 0.4; it must be a list"),
    ({"plan": {"parts": {"a": 1}}}, "conf: key 'plan.parts' is a mapping, {'a': 1}; it must be a list"),
    ([{"student": {"loss": {"distill": []}}}, {"student": {"loss": {"distill": {"name": "x"}}}}],
     "conf: key 'student.loss.distill' is a mapping"),
])
def test_chains_with_lists_and_mappings_in_each_others_place(content, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(ProgressiveConfig, content, source="conf")


@pytest.mark.parametrize("schema, content, said", [
    (TrainConfig, {"loss": {"distill": [{"name": "encoder_mse"}, {"name": "encoder_l1", "wieght": 1}]}},
     r"conf: key 'loss.distill\[1\].wieght': .*known keys there: name, weight"),
    (TrainConfig, {"loss": {"distill": [{"name": "encoder_mse"}, {"name": "encoder_l1", "weight": "two"}]}},
     r"conf: key 'loss.distill\[1\].weight': .*two"),
    (TrainConfig, {"training": {"chunk_sizes": [8, "a"]}}, r"conf: key 'training.chunk_sizes\[1\]': .*'a'"),
    (TrainConfig, {"model": {"num_layers": [4]}}, "conf: key 'model.num_layers': .*converted to Integer"),
    (TrainConfig, {"modle": {"num_layers": 4}}, "conf: key 'modle': .*known keys there: model, loss"),
    (TrainConfig, {"init": {"layers": "${nothing}"}}, "conf: key 'init.layers': .*nothing"),
    (ProgressiveConfig, {"stages": [{}, {"modell": 3}]}, r"conf: key 'stages\[1\].modell': .*known keys there: model"),
])
def test_the_place_of_what_is_wrong(schema, content, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(schema, content, source="conf")


@pytest.mark.parametrize("schema, word, said", [
    (FbankConfig, "speed_factors=[.inf]", "a list of numbers from 0.1 to 10, such as 0.9"),
    (FbankConfig, "speed_factors=[90,110]", "a list of numbers from 0.1 to 10, such as 0.9"),
    (FbankConfig, "speed_factors=[0.0001]", "a list of numbers from 0.1 to 10, such as 0.9"),
    (LangConfig, "type=BPE", "bpe, unigram or char"),
    (LangConfig, "vocab_size=-3", "at least 5"),
    (LangConfig, "vocab_size=4", "at least 5"),
])
def test_features_and_tokens_that_cannot_be(schema, word, said):
    with pytest.raises(RecipeError, match=f"{word.split('=')[0]} is .*; it must be {said}"):
        merge_config(schema, {}, [word])


@pytest.mark.parametrize("settings, said", [
    (dict(layers=[[1, True]]), "layers is .*; it must be last, matched or a list of pairs"),
])
def test_terms_that_mean_nothing(settings, said):
    with pytest.raises(RecipeError, match=f"loss.distill, encoder_mse, {said}"):
        DistillTerm("encoder_mse", **settings)


@pytest.mark.parametrize("content, said", [
    ({"plan": {"stages": 0}}, "plan.stages is 0; it must be at least 1"),
    ({"plan": {"stages": 2, "parts": [0.7, 0.5]}}, "plan.parts is .*; it must be one for each stage but the last"),
    ({"plan": {"stages": 3, "parts": [0.7, 0.7]}}, "plan.parts is .*; it must be falling, from below 1"),
    ({"plan": {"stages": 2, "parts": [1.0]}}, "plan.parts is .*; it must be falling, from below 1"),
    ({"plan": {"proportions": {"num_layers": -0.5}}}, "plan.proportions is .*; it must be 0 or more each"),
    ({"target_compression": 0}, "target_compression is 0.0; it must be between 0 and 100 per cent"),
    ({"scratch": {"model": {}}}, "scratch.model is {}; it must be left out"),
])
def test_plans_that_mean_nothing(content, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(ProgressiveConfig, content)


def write(path, text):
    path.write_text(text)
    return path
