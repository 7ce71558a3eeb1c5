"""Sizes of models and plans of stages: against counts of the models themselves, and against every smaller size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.compression import init_from_teacher
from kdlib.config import ModelConfig, PlanConfig
from kdlib.errors import RecipeError
from kdlib.planning import measure_model, parse_target, plan_stages, shrink, size_table
from kdlib.transducer import Transducer

TEACHER = ModelConfig(encoder_dim=64, num_layers=6, num_heads=4, head_dim=16, feedforward_dim=256, predictor_dim=48,
                      joiner_dim=48)
VOCAB = 60
WIDER = {"num_layers": 0.5, "num_heads": 0.5, "feedforward_dim": 1.0, "predictor_dim": 0.5, "joiner_dim": 0.5,
         "encoder_dim": 0.5}


def test_sizes_are_those_of_the_model():
    model, size = Transducer(TEACHER, VOCAB), measure_model(TEACHER, VOCAB)
    assert dict(size.parameters) == {name: count for name, count in model.parameter_counts().items() if name != "total"}
    assert size.total == model.parameter_counts()["total"] and size.float32_bytes == 4 * size.total
    deployed = [p for name in ("encoder", "predictor", "joiner") for p in getattr(model, name).parameters()]
    assert size.int8_bytes == sum(p.numel() * (1 if p.dim() == 2 else 4) for p in deployed)


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


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    measure_model(ModelConfig(**{**vars(TEACHER), "joiner_dim": 56}), VOCAB)
    assert torch.equal(torch.rand(3), want)


@settings(max_examples=15, deadline=None)
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


def test_targets_are_understood():
    size = measure_model(TEACHER, VOCAB)
    assert parse_target("60%", size) == ("parameters", int(size.total * 0.4))
    assert parse_target("200k", size) == ("parameters", 200_000) == parse_target("0.2M", size)
    assert parse_target(" 150 kB", size) == ("int8_bytes", 150_000)
    for bad in ("60", "100%", "0%", "sixty", "9M", "9MB", "-3k"):
        with pytest.raises(RecipeError, match="plan.target"):
            plan_stages(TEACHER, PlanConfig(target=bad), VOCAB)


def test_a_target_in_bytes_and_parts_of_ones_own():
    plan = PlanConfig(stages=2, target="180kB", parts=[0.8], proportions=WIDER)
    students = plan_stages(TEACHER, plan, VOCAB)
    whole = measure_model(TEACHER, VOCAB).int8_bytes
    first, last = (measure_model(student, VOCAB).int8_bytes for student in students)
    assert 0.77 * whole < first <= 0.8 * whole and 172_000 < last <= 180_000


def test_what_cannot_be_reached_is_said_with_what_can():
    plan = PlanConfig(target="99%")
    with pytest.raises(RecipeError, match="no model has fewer than ([0-9,]+) parameters") as error:
        plan_stages(TEACHER, plan, VOCAB)
    least = measure_model(shrink(TEACHER, 0.0, plan.proportions), VOCAB).total
    assert f"{least:,}" in str(error.value) and "encoder_dim" in str(error.value)
    with pytest.raises(RecipeError, match="come out at the same size"):
        plan_stages(TEACHER, PlanConfig(stages=9, target="10%", proportions={"num_layers": 1.0}), VOCAB)
    with pytest.raises(RecipeError, match="plan.proportions: width is no dimension"):
        plan_stages(TEACHER, PlanConfig(proportions={"width": 1.0}), VOCAB)
    with pytest.raises(RecipeError, match="plan.parts"):
        PlanConfig(stages=3, parts=[0.5, 0.7])


def test_the_table_names_what_it_counts():
    header, rows = size_table({"teacher": TEACHER, "stage1": shrink(TEACHER, 0.5, WIDER)}, VOCAB)
    assert header[0] == "Model" and len(rows) == 2 and all(len(row) == len(header) for row in rows)
    assert rows[0][header.index("of teacher")] == "100.0%"
