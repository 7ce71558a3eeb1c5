"""Sizes of models and plans of stages: against counts of the models themselves, and against every smaller size."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.compression import init_from_teacher
from kdlib.config import DistillTerm, LossConfig, ModelConfig, TrainConfig, load_config
from kdlib.errors import RecipeError
from kdlib.export import export_onnx, quantise
from kdlib.plan_config import PlanConfig, ProgressiveConfig
from kdlib.planning import (GRAINS, check_student, measure_model, parse_target, plan_stages, shrink, size_table,
                            stage_configs)
from kdlib.sherpa import PARTS
from kdlib.transducer import Transducer

TEACHER = ModelConfig(encoder_dim=64, num_layers=6, num_heads=4, head_dim=16, feedforward_dim=256, predictor_dim=48,
                      joiner_dim=48)
VOCAB = 60
EGS = Path(__file__).resolve().parents[1] / "egs"
WIDER = {"num_layers": 0.5, "num_heads": 0.5, "feedforward_dim": 1.0, "predictor_dim": 0.5, "joiner_dim": 0.5,
         "encoder_dim": 0.5}


def test_sizes_are_those_of_the_model():
    model, size = Transducer(TEACHER, VOCAB), measure_model(TEACHER, VOCAB)
    assert dict(size.parameters) == {name: count for name, count in model.parameter_counts().items() if name != "total"}
    assert size.total == model.parameter_counts()["total"]


@pytest.mark.parametrize("changes", [{}, dict(num_layers=1, head_dim=8, left_context=8), dict(
    encoder_dim=160, feedforward_dim=560, subsampling_channels=24, kernel_size=15, joiner_dim=96, chunk_size=8)])
def test_planned_bytes_are_those_of_the_exported_files(changes, tmp_path):
    """They fit, and by little."""
    config = replace(TEACHER, **changes)
    size, model = measure_model(config, VOCAB), Transducer(config, VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as trained: the exporter keeps one of equal parameters
            parameter.normal_(0, 0.1)
    export_onnx(model, tmp_path, config.chunk_size, config.left_context)
    quantise(tmp_path)
    for suffix, planned in (("", size.float32_bytes), (".int8", size.int8_bytes)):
        written = sum((tmp_path / f"{part}{suffix}.onnx").stat().st_size for part in PARTS)
        assert written <= planned <= written + 3000


def test_multiply_adds_of_a_second():
    """One linear layer more, on 25 frames a second, is seen to the last multiplication; more context costs attention."""
    size = measure_model(TEACHER, VOCAB)
    wider = ModelConfig(**{**vars(TEACHER), "feedforward_dim": 256 + 8})
    frames = (1000 - 3) // 4
    assert measure_model(wider, VOCAB).multiply_adds - size.multiply_adds == pytest.approx(
        6 * 2 * 2 * 64 * 8 * frames / 10, abs=1)
    longer = ModelConfig(**{**vars(TEACHER), "left_context": TEACHER.left_context + 10})
    assert measure_model(longer, VOCAB).multiply_adds - size.multiply_adds == pytest.approx(
        2 * 6 * 10 * 64 * frames / 10, abs=1)


def test_multiply_adds_written_out():
    config = ModelConfig(num_features=16, subsampling_channels=4, encoder_dim=24, num_layers=2, num_heads=2, head_dim=8,
                         feedforward_dim=32, kernel_size=5, chunk_size=4, left_context=8, predictor_dim=20, joiner_dim=18)
    halved, frames = 499, 249  # of 1000 frames with 16 bins: after one convolution with 7 bins, after two with 3
    subsampling = halved * 7 * 4 * 9 + frames * 3 * 4 * 4 * 9 + frames * (4 * 3) * 24
    attention = 24 * 3 * 16 + 2 * (4 + 8) * 16 + 16 * 24
    convolution = 24 * 2 * 24 + 24 * 5 + 24 * 24
    layer = 2 * 2 * 24 * 32 + attention + convolution
    predictor, joiner = 20 * 2, 24 * 18 + 20 * 18 + 18 * VOCAB
    assert measure_model(config, VOCAB).multiply_adds == (subsampling + frames * (2 * layer + predictor + joiner)) // 10


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    measure_model(ModelConfig(**{**vars(TEACHER), "joiner_dim": 56}), VOCAB)
    assert torch.equal(torch.rand(3), want)


def test_a_check_draws_no_random_numbers():
    """The training that comes after it is the same as without it, though widths differ and a projection is drawn."""
    teacher, student = Transducer(TEACHER, VOCAB), Transducer(replace(TEACHER, encoder_dim=48), VOCAB)
    config = TrainConfig(model=student.config, loss=LossConfig(distill=[DistillTerm("encoder_mse")]))
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    check_student(student, config, teacher, teacher, "config")
    assert torch.equal(torch.rand(3), want)


def test_a_student_of_its_teachers_size_is_refused():
    model = Transducer(TEACHER, VOCAB)
    with pytest.raises(RecipeError, match=r"stage1: the student has (\d+) parameters, its teacher \1; a stage must make the "):
        check_student(model, TrainConfig(model=TEACHER), None, model, "stage1")


@settings(max_examples=15)
@given(percent=st.integers(30, 85), stages=st.integers(1, 4))
def test_plans_reach_their_target_in_even_steps(percent, stages):
    plan = PlanConfig(stages=stages, target=f"{percent}%", proportions=WIDER)
    students = plan_stages(TEACHER, plan, VOCAB)
    whole = measure_model(TEACHER, VOCAB).total
    sizes = [measure_model(student, VOCAB).total for student in students]
    assert len(sizes) == stages and sizes == sorted(sizes, reverse=True) and len(set(sizes)) == stages
    for stage, size in enumerate(sizes, start=1):
        goal = whole * (1 - percent / 100) ** (stage / stages)
        assert 0.9 * goal < size <= goal * 1.001
    before = Transducer(TEACHER, VOCAB)
    for student in students:  # each can start from the one before
        model = Transducer(student, VOCAB)
        init_from_teacher(model, before)
        before = model


VOCABULARIES = {"voice_commands": 340, "fsdd": 44, "librispeech": 500, "aishell": 4336}


@pytest.mark.parametrize("recipe", VOCABULARIES)
@pytest.mark.parametrize("percent", [60, 75, 85, 93])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_plans_of_the_recipes_teachers_in_the_default_proportions(recipe, percent, stages):
    """Layers and heads are coarse in a small model, and no student may be larger than the one before it in anything."""
    teacher = load_config(TrainConfig, EGS / recipe / "conf" / "teacher.yaml").model
    vocab = VOCABULARIES[recipe]
    students = plan_stages(teacher, PlanConfig(stages=stages, target=f"{percent}%"), vocab)
    whole = measure_model(teacher, vocab, run=False).total
    before = teacher
    for stage, student in enumerate(students, start=1):
        goal = whole * (1 - percent / 100) ** (stage / stages)
        near = 0.97 if percent < 90 else 0.95  # the smaller a model, the coarser its grains
        assert near * goal < measure_model(student, vocab, run=False).total <= goal + 1
        assert all(getattr(student, name) <= getattr(before, name) for name in GRAINS)
        before = student


@settings(max_examples=10)
@given(width=st.integers(8, 48), layers=st.integers(2, 12), heads=st.integers(1, 8), head_dim=st.sampled_from([16, 32, 48]),
       wider=st.integers(2, 4), percent=st.integers(30, 90))
def test_feed_forward_layers_take_what_coarser_dimensions_leave_of_any_target(width, layers, heads, head_dim, wider, percent):
    teacher = replace(TEACHER, encoder_dim=8 * width, num_layers=layers, num_heads=heads, head_dim=head_dim,
                      feedforward_dim=8 * width * wider, predictor_dim=8 * width, joiner_dim=8 * width)
    try:
        student = plan_stages(teacher, PlanConfig(stages=1, target=f"{percent}%"), VOCAB)[-1]
    except RecipeError as error:
        assert "no model has fewer" in str(error)
        return
    wanted = measure_model(teacher, VOCAB, run=False).total * (1 - percent / 100)
    assert 0.95 * wanted <= measure_model(student, VOCAB, run=False).total <= wanted


SMALL = ["voice_commands", "fsdd"]
# The width stays: what is left is coarse.
COARSE = {"num_layers": 0.5, "num_heads": 0.5, "feedforward_dim": 1.0, "predictor_dim": 0.5, "joiner_dim": 0.5}


@pytest.mark.parametrize("percent, layers, heads, feedforward", [
    (40, [4, 4, 4], [3, 3, 3], [352, 256, 176]), (85, [3, 2, 1], [3, 2, 1], [240, 152, 152])])
def test_of_the_models_that_come_near_the_likest_is_taken(percent, layers, heads, feedforward):
    """Where the proportions' own layers and heads miss the goal, one head of four goes rather than three, or the last
    layer but one rather than nearly all of the feed-forward units."""
    teacher = load_config(TrainConfig, EGS / "fsdd" / "conf" / "teacher.yaml").model
    students = plan_stages(teacher, PlanConfig(stages=3, target=f"{percent}%", proportions=COARSE), VOCABULARIES["fsdd"])
    assert [student.num_layers for student in students] == layers
    assert [student.num_heads for student in students] == heads
    assert [student.feedforward_dim for student in students] == feedforward


def sizes_of(models, vocab):
    return [measure_model(model, vocab, run=False).total for model in models]


@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize("proportions, percent", [
    *((COARSE, percent) for percent in (10, 20, 30, 60, 75, 85, 88)),
    *((PlanConfig().proportions, percent) for percent in (20, 30, 60, 75, 85, 93))])
def test_ten_stages_of_a_small_teacher(recipe, proportions, percent):
    """At some of these targets a stage would take what is left for the next, were the last one not planned first."""
    teacher = load_config(TrainConfig, EGS / recipe / "conf" / "teacher.yaml").model
    vocab = VOCABULARIES[recipe]
    models = [teacher, *plan_stages(teacher, PlanConfig(stages=10, target=f"{percent}%", proportions=proportions), vocab)]
    sizes = sizes_of(models, vocab)
    assert len(sizes) == 11 and all(a > b for a, b in zip(sizes, sizes[1:]))
    assert all(getattr(a, name) >= getattr(b, name) for a, b in zip(models, models[1:]) for name in GRAINS)
    whole, part = sizes[0], 1 - percent / 100
    assert 0.95 * part * whole < sizes[-1] <= part * whole
    # Layers and heads are coarse in so small a model, the more of them go.
    near = 1.04 if percent <= 30 else 1.3
    assert all(1 / near < size / (whole * part ** (stage / 10)) < near for stage, size in enumerate(sizes))


@pytest.mark.parametrize("recipe", SMALL)
def test_more_stages_than_there_are_sizes(recipe):
    """The error says how many can be had, and they can."""
    teacher = load_config(TrainConfig, EGS / recipe / "conf" / "teacher.yaml").model
    vocab = VOCABULARIES[recipe]
    with pytest.raises(RecipeError, match="10% can be reached in ([0-9]+) stages, .*, not in 40: plan fewer") as error:
        plan_stages(teacher, PlanConfig(stages=40, target="10%", proportions=COARSE), vocab)
    most = int(re.search("in ([0-9]+) stages", str(error.value)).group(1))
    sizes = sizes_of([teacher, *plan_stages(teacher, PlanConfig(stages=most, target="10%", proportions=COARSE), vocab)], vocab)
    assert 10 < most == len(sizes) - 1 and all(a > b for a, b in zip(sizes, sizes[1:]))
    with pytest.raises(RecipeError, match=f"in {most} stages, .* not in {most + 1}"):
        plan_stages(teacher, PlanConfig(stages=most + 1, target="10%", proportions=COARSE), vocab)


def test_parts_that_leave_little_between_them():
    teacher = load_config(TrainConfig, EGS / "fsdd" / "conf" / "teacher.yaml").model
    parts = [0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.905]
    plan = PlanConfig(stages=10, target="10%", parts=parts, proportions=COARSE)
    whole, *sizes = sizes_of([teacher, *plan_stages(teacher, plan, 44)], 44)
    assert all(a > b for a, b in zip(sizes, sizes[1:]))
    assert sizes == pytest.approx([part * whole for part in [*parts, 0.9]], rel=0.02)


def test_even_steps_in_bytes():
    teacher = load_config(TrainConfig, EGS / "voice_commands" / "conf" / "teacher.yaml").model
    students = plan_stages(teacher, PlanConfig(target="1.2MB"), 340)
    sizes = [measure_model(model, 340, run=False).int8_bytes for model in (teacher, *students)]
    step = (1.2e6 / sizes[0]) ** (1 / 3)
    assert all(0.95 * step < b / a < 1.05 * step for a, b in zip(sizes, sizes[1:]))


@pytest.mark.parametrize("folder", ["conf", "conf/100h"])
def test_the_large_recipes_plan(folder):
    """The sizes that its results and the pages on cost speak of, of all of the speech and of a tenth."""
    teacher = load_config(TrainConfig, EGS / "librispeech" / folder / "teacher.yaml").model
    plan = load_config(ProgressiveConfig, EGS / "librispeech" / folder / "progressive.yaml").plan
    sizes = [measure_model(student, 500, run=False).total for student in plan_stages(teacher, plan, 500)]
    assert sizes == [29_955_412, 18_768_260, 9_716_660]


@pytest.mark.parametrize("taught, folder, sizes", [
    ("conf", "conf", [1_269_188, 916_856, 725_312]), ("conf", "conf/tiny", [725_312, 234_860]),
    ("conf/large", "conf/large", [9_524_084, 6_012_532, 3_335_188, 1_738_556]),
])
def test_the_chains_of_the_commands(taught, folder, sizes):
    """The sizes that their results speak of; and each student can start from the one before."""
    teacher = load_config(TrainConfig, EGS / "voice_commands" / taught / "teacher.yaml")
    chain = load_config(ProgressiveConfig, EGS / "voice_commands" / folder / "progressive.yaml")
    models = [config.model for config in stage_configs(chain, teacher, 340, [], folder)]
    assert [measure_model(model, 340, run=False).total for model in models] == sizes
    assert sizes[-1] <= (1 - chain.target_compression / 100) * measure_model(teacher.model, 340, run=False).total
    before = Transducer(teacher.model, 340)
    for model in models:
        student = Transducer(model, 340)
        init_from_teacher(student, before)
        before = student


def test_a_model_that_is_not_run_counts_the_same():
    run, counted = (measure_model(TEACHER, VOCAB, run=run) for run in (True, False))
    assert (run.parameters, run.float32_bytes, run.int8_bytes) == (
        counted.parameters, counted.float32_bytes, counted.int8_bytes)


def test_multiply_adds_with_all_the_past():
    """Each chunk of 8 sees itself and what came before: half of what full context sees, and half a chunk more."""
    def scores(**context):
        return measure_model(replace(TEACHER, **context), VOCAB).multiply_adds

    frames = (1000 - 3) // 4
    none, full, past = scores(left_context=0), scores(chunk_size=0), scores(left_context=-1)
    pair = (full - none) / (frames * (frames - 8))  # the cost of a query and a key
    seen = sum(min(frames, (t // 8 + 1) * 8) for t in range(frames))
    assert past - none == pytest.approx(pair * (seen - 8 * frames), rel=1e-3)


def test_what_all_students_change_is_part_of_the_plan():
    plan = PlanConfig(stages=2, target="60%", proportions=WIDER)
    students = plan_stages(TEACHER, plan, VOCAB, replace(TEACHER, subsampling_channels=8, kernel_size=3))
    sizes = [measure_model(model, VOCAB, run=False).total for model in (TEACHER, *students)]
    assert {student.kernel_size for student in students} == {3}
    assert 0.61 * sizes[0] < sizes[1] < 0.64 * sizes[0] and 0.39 * sizes[0] < sizes[2] <= 0.4 * sizes[0]


@pytest.mark.parametrize("width", [36, 100])
@pytest.mark.parametrize("plan", [PlanConfig(stages=6, target="10%", proportions=COARSE),
                                  PlanConfig(stages=2, target="40%", proportions=COARSE),
                                  PlanConfig(stages=2, target="40%", proportions={"num_layers": 1.0, "encoder_dim": 0.0})])
def test_what_has_no_proportion_is_left_alone(width, plan):
    """A teacher's width need be no multiple of the grain in which a plan would take from it."""
    students = plan_stages(replace(TEACHER, encoder_dim=width), plan, VOCAB)
    assert [student.encoder_dim for student in students] == [width] * plan.stages


def test_parts_that_are_below_the_target():
    with pytest.raises(RecipeError, match="the stage before the last keeps 0.3 .*plan.target 60% leaves .* 0.400"):
        plan_stages(TEACHER, PlanConfig(stages=3, target="60%", parts=[0.7, 0.3]), VOCAB)


def test_targets_are_understood():
    size = measure_model(TEACHER, VOCAB)
    assert parse_target("60%", size) == ("parameters", int(size.total * 0.4))
    assert parse_target("200k", size) == ("parameters", 200_000) == parse_target("0.2M", size)
    assert parse_target(" 150 kB", size) == ("int8_bytes", 150_000)
    for bad in ("60", "100%", "0%", "sixty", "9M", "9MB", "-3k"):
        with pytest.raises(RecipeError, match="plan.target"):
            plan_stages(TEACHER, PlanConfig(target=bad), VOCAB)
    for number in ("60", "0.6"):
        with pytest.raises(RecipeError, match=f"plan.target {number} alone would be so many parameters: write 60% for"):
            parse_target(number, size)


def test_a_target_in_bytes_and_parts_of_ones_own():
    plan = PlanConfig(stages=2, target="180kB", parts=[0.8], proportions=WIDER)
    students = plan_stages(TEACHER, plan, VOCAB)
    whole = measure_model(TEACHER, VOCAB).int8_bytes
    first, last = (measure_model(student, VOCAB).int8_bytes for student in students)
    assert 0.77 * whole < first <= 0.8 * whole and 172_000 < last <= 180_000


def test_what_cannot_be_reached_is_said_with_what_can():
    plan = PlanConfig(target="99%", proportions=COARSE)
    with pytest.raises(RecipeError, match="no model has fewer than ([0-9,]+) parameters") as error:
        plan_stages(TEACHER, plan, VOCAB)
    least = measure_model(shrink(TEACHER, 0.0, plan.proportions), VOCAB).total
    assert f"{least:,}" in str(error.value) and "encoder_dim" in str(error.value)
    with pytest.raises(RecipeError, match="10% can be reached in 1 stages, .* not in 9"):
        plan_stages(TEACHER, PlanConfig(stages=9, target="10%", proportions={"num_layers": 1.0}), VOCAB)
    with pytest.raises(RecipeError, match="plan.proportions: width is no dimension"):
        plan_stages(TEACHER, PlanConfig(proportions={"width": 1.0}), VOCAB)
    with pytest.raises(RecipeError, match="plan.parts"):
        PlanConfig(stages=3, parts=[0.5, 0.7])


def test_the_table_names_what_it_counts():
    header, rows = size_table({"teacher": TEACHER, "stage1": shrink(TEACHER, 0.5, WIDER)}, VOCAB)
    assert header[0] == "Model" and len(rows) == 2 and all(len(row) == len(header) for row in rows)
    for config, row in zip((TEACHER, shrink(TEACHER, 0.5, WIDER)), rows):
        size, cells = measure_model(config, VOCAB), dict(zip(header[1:], row[1:]))
        whole = measure_model(TEACHER, VOCAB).total
        assert cells == {
            "layers": str(config.num_layers), "width": str(config.encoder_dim), "ff": str(config.feedforward_dim),
            "heads": str(config.num_heads), **{part: f"{size.parameters[part]:,}" for part in size.parameters},
            "params": f"{size.total:,}", "of teacher": f"{100 * size.total / whole:.1f}%",
            "float32": f"{size.float32_bytes / 1e6:.2f} MB", "int8": f"{size.int8_bytes / 1e6:.2f} MB",
            "MMAC/s": f"{size.multiply_adds / 1e6:.1f}"}
