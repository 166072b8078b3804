"""Splicing of chunks on a clock, and every reason of refusal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volar.robots import chunk_buffer
from volar.robots.action_space import end_effector_delta
from volar.robots.chunk_buffer import ChunkBuffer
from volar.robots.interface import ActionChunk

SPEC = end_effector_delta(rate_hz=10.0, step_m=1.0)
STEP_NS = 100_000_000
MS = 1_000_000


def chunk(value: float, stamp_ns: int = 0, steps: int = 4, gripper: float = 1.0, dt_s: float = 0.1) -> ActionChunk:
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 0] = value + 0.1 * np.arange(steps)
    actions[:, 6] = gripper
    return ActionChunk(actions, stamp_ns, dt_s)


def x(buffer: ChunkBuffer, now_ns: int) -> float:
    action = buffer.at(now_ns)
    assert action is not None
    return float(action[0])


def test_actions_hold_for_their_step() -> None:
    buffer = ChunkBuffer(SPEC)
    assert buffer.at(0) is None
    assert buffer.push(chunk(0.0, stamp_ns=1000), 1000) is None
    for i in range(4):
        assert x(buffer, 1000 + i * STEP_NS) == pytest.approx(0.1 * i)
        assert x(buffer, 999 + (i + 1) * STEP_NS) == pytest.approx(0.1 * i)
    assert buffer.at(1000 + 4 * STEP_NS) is None
    assert buffer.at(999) is None


def test_late_chunk_loses_what_has_passed() -> None:
    buffer = ChunkBuffer(SPEC)
    assert buffer.push(chunk(0.0), 250 * MS) is None
    assert x(buffer, 250 * MS) == pytest.approx(0.2)


def test_refusals() -> None:
    buffer = ChunkBuffer(SPEC)
    now_ns = 1000 * MS
    broken = chunk(0.0, now_ns)
    broken.actions[3, 2] = np.nan
    narrow = ActionChunk(np.zeros((4, 6), np.float32), now_ns, 0.1)
    assert buffer.push(broken, now_ns) == chunk_buffer.NON_FINITE
    assert buffer.push(chunk(0.0, now_ns, steps=0), now_ns) == chunk_buffer.EMPTY
    assert buffer.push(narrow, now_ns) == chunk_buffer.WRONG_WIDTH
    assert buffer.push(chunk(0.0, now_ns, dt_s=0.2), now_ns) == chunk_buffer.WRONG_RATE
    assert buffer.push(chunk(0.0, now_ns + 1), now_ns) == chunk_buffer.FUTURE
    assert buffer.push(chunk(0.0, now_ns - 4 * STEP_NS), now_ns) == chunk_buffer.PAST
    assert buffer.at(now_ns) is None
    assert not buffer.ever_filled
    assert buffer.push(chunk(0.0, now_ns), now_ns) is None
    assert buffer.push(chunk(0.5, now_ns), now_ns) == chunk_buffer.DUPLICATE
    assert buffer.push(chunk(0.5, now_ns - 1), now_ns) == chunk_buffer.OLDER
    assert x(buffer, now_ns) == 0.0
    buffer.clear()
    assert buffer.at(now_ns) is None
    assert buffer.push(chunk(0.5, now_ns), now_ns) is None


def test_refused_chunk_leaves_the_current_one() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.0)
    assert buffer.push(chunk(0.3), 0) is None
    bad = chunk(0.0, 50 * MS)
    bad.actions[0, 0] = np.inf
    assert buffer.push(bad, 50 * MS) == chunk_buffer.NON_FINITE
    assert x(buffer, 60 * MS) == pytest.approx(0.3)


def test_blend_is_linear_and_leaves_the_gripper_alone() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.1)
    buffer.push(chunk(0.0, gripper=1.0), 0)
    buffer.push(chunk(0.5, stamp_ns=200 * MS, gripper=0.0), 200 * MS)
    at_250 = buffer.at(250 * MS)
    assert x(buffer, 200 * MS) == pytest.approx(0.2)
    assert at_250 is not None
    assert at_250[0] == pytest.approx(0.5 * 0.2 + 0.5 * 0.5)
    assert at_250[6] == 0.0
    assert x(buffer, 300 * MS) == pytest.approx(0.6)


def test_no_blend_after_the_old_chunk_ends() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.1)
    buffer.push(chunk(0.0, steps=1), 0)
    buffer.push(chunk(0.5, stamp_ns=STEP_NS), STEP_NS)
    assert x(buffer, STEP_NS) == pytest.approx(0.5)


def test_values_are_clipped_into_the_spec() -> None:
    buffer = ChunkBuffer(SPEC)
    buffer.push(chunk(5.0, gripper=2.0), 0)
    action = buffer.at(0)
    assert action is not None
    assert action[0] == 1.0
    assert action[6] == 1.0


def test_negative_blend_is_refused() -> None:
    with pytest.raises(ValueError, match="blend_s"):
        ChunkBuffer(SPEC, blend_s=-1.0)


def test_a_third_chunk_during_a_blend_makes_no_jump() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.1)
    buffer.push(chunk(0.0), 0)
    buffer.push(chunk(0.5, stamp_ns=10 * MS), 50 * MS)
    before = x(buffer, 80 * MS)
    assert before == pytest.approx(0.7 * 0.0 + 0.3 * 0.5)
    buffer.push(chunk(-0.5, stamp_ns=20 * MS), 80 * MS)
    assert x(buffer, 80 * MS) == before
    assert x(buffer, 90 * MS) == pytest.approx(0.9 * (0.4 * 0.5) + 0.1 * -0.5)
    assert x(buffer, 180 * MS) == pytest.approx(-0.4)  # its second action, alone


def test_a_late_answer_to_an_earlier_question_is_refused() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.0)
    buffer.push(chunk(0.3, stamp_ns=100 * MS), 150 * MS)
    assert buffer.push(chunk(0.9, stamp_ns=50 * MS), 160 * MS) == chunk_buffer.OLDER
    assert buffer.push(chunk(0.9, stamp_ns=100 * MS), 160 * MS) == chunk_buffer.DUPLICATE
    assert x(buffer, 160 * MS) == pytest.approx(0.3)


def test_after_a_start_only_answers_to_later_questions_count() -> None:
    buffer = ChunkBuffer(SPEC)
    buffer.clear(since_ns=100 * MS)
    assert buffer.push(chunk(0.3, stamp_ns=99 * MS), 110 * MS) == chunk_buffer.RETIRED
    assert buffer.push(chunk(0.3, stamp_ns=100 * MS), 110 * MS) is None


def test_the_frozen_prefix_is_executed_whatever_comes() -> None:
    """Asked at 150 ms, expected 120 ms later: two whole actions from then on stay, the blend begins after them."""
    buffer = ChunkBuffer(SPEC, blend_s=0.1)
    buffer.push(chunk(0.0, steps=6), 0)
    prefix = buffer.freeze(150 * MS, 0.12)
    assert prefix.frozen == 2
    np.testing.assert_allclose(prefix.actions[:, 0], [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)
    assert buffer.push(chunk(-1.0, stamp_ns=150 * MS, steps=8), 200 * MS) is None
    for i, expected in enumerate(prefix.actions[:2]):
        assert x(buffer, 150 * MS + i * STEP_NS) == pytest.approx(expected[0])
    assert x(buffer, 349 * MS) == pytest.approx(0.3)
    assert x(buffer, 350 * MS) == pytest.approx(0.3)
    assert x(buffer, 400 * MS) == pytest.approx(0.5 * 0.4 + 0.5 * -0.8)
    assert x(buffer, 450 * MS) == pytest.approx(-0.7)


def test_a_chunk_that_waits_is_replaced_by_a_newer_one() -> None:
    buffer = ChunkBuffer(SPEC, blend_s=0.0)
    buffer.push(chunk(0.0, steps=6), 0)
    buffer.freeze(100 * MS, 0.2)
    buffer.push(chunk(-1.0, stamp_ns=100 * MS), 110 * MS)
    buffer.push(chunk(0.7, stamp_ns=120 * MS), 130 * MS)
    assert x(buffer, 299 * MS) == pytest.approx(0.2)
    assert x(buffer, 320 * MS) == pytest.approx(0.9)


def test_a_prefix_ends_with_what_is_there() -> None:
    buffer = ChunkBuffer(SPEC)
    assert buffer.freeze(0, 1.0).actions.shape == (0, 7)
    buffer.push(chunk(0.0, steps=2), 0)
    prefix = buffer.freeze(50 * MS, 1.0)
    assert (len(prefix.actions), prefix.frozen) == (2, 2)
    buffer.push(chunk(0.5, stamp_ns=50 * MS, steps=5), 60 * MS)
    assert x(buffer, 199 * MS) == pytest.approx(0.1)
    assert x(buffer, 200 * MS) == pytest.approx(0.6)  # nothing frozen is left, so not later


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 120), st.floats(-1, 1), st.integers(5, 8), st.integers(0, 2)), max_size=10))
def test_no_arrival_makes_a_jump(pushes: list[tuple[int, float, int, int]]) -> None:
    """What is in force at the moment a chunk is spliced in is what was in force before."""
    buffer, now_ns = ChunkBuffer(SPEC, blend_s=0.15), 10**9
    for wait_ms, value, steps, frozen in pushes:
        now_ns += wait_ms * MS
        old = buffer.at(now_ns)
        if frozen:
            buffer.freeze(now_ns, 0.1 * (frozen - 1))
        assert buffer.push(chunk(value, now_ns, steps), now_ns) is None
        if old is not None:
            assert x(buffer, now_ns) == pytest.approx(old[0], abs=1e-12)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 300), st.floats(-1, 1), st.integers(1, 6)), max_size=12),
    st.floats(0, 0.3),
)
def test_what_is_in_force_lies_between_what_was_pushed(
    pushes: list[tuple[int, int, float, int]], blend_s: float
) -> None:
    """For any arrival order and lateness: actions stay in the hull of the chunks taken, and never outlive them."""
    buffer, now_ns, taken = ChunkBuffer(SPEC, blend_s), 10**9, []
    for wait_ms, late_ms, value, steps in pushes:
        now_ns += wait_ms * MS
        new = chunk(value, now_ns - late_ms * MS, steps)
        if buffer.push(new, now_ns) is None:
            taken.append(new)
        action = buffer.at(now_ns)
        if action is not None:
            values = np.clip(np.concatenate([c.actions[:, 0] for c in taken]), -1, 1)
            assert values.min() - 1e-6 <= action[0] <= values.max() + 1e-6
            assert now_ns < max(c.stamp_ns + len(c.actions) * STEP_NS for c in taken)
