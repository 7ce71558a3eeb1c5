"""The transducer's inner loops, compiled for the CPU with Numba; imported by ``kdlib.rnnt.cpu`` on first use.

Each loop reads a logit once and writes a gradient once. The exponential is written out as a polynomial because
LLVM then turns the whole loop over the tokens into vector instructions; a call of the library's exp would stop it.

M rows (nodes), V tokens; N utterances, T frames, R nodes kept a frame.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# Sums may be reordered, which is what vectors need; infinities and nan keep their meaning.
SUMS = {"reassoc", "contract", "nsz"}
OPTIONS = dict(nogil=True, cache=True, fastmath=SUMS, error_model="numpy")

LOG2_E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # Cody and Waite: n * LN2_HIGH is exact
ROUND = np.float32(1.5 * 2**23)  # added, it leaves the nearest integer in the low bits of a float32
LOWEST = np.float32(-87.3)  # e to this is the smallest normal float32
NEG_INF = -math.inf


@intrinsic
def _bits(typing_context, value):
    """A float32's bits as an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(typing_context, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _exp(x):
    """e to x <= 0: within 2 units of the last place, nan where x is nan; below LOWEST, e to LOWEST."""


@overload(_exp, jit_options=dict(fastmath={"contract"}))  # reordering would undo the rounding below
def _exp_for(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def polynomial(x):
        x = LOWEST if x < LOWEST else x
        rounded = x * LOG2_E + ROUND
        n = rounded - ROUND
        r = x - n * LN2_HIGH - n * LN2_LOW
        # e^r on |r| <= ln(2)/2 by its Taylor series; the seventh power's term is below 2^-24 of the sum.
        p = np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        return p * _from_bits(np.int32((_bits(rounded) << np.int32(23)) + np.int32(0x3F800000)))

    return polynomial


def _row_max(row):
    """The largest of a row. A nan may be passed over where there are finite numbers: their sum finds it."""


@overload(_row_max)
def _row_max_for(row):
    if row.dtype != types.float32:

        def plainly(row):
            best = NEG_INF
            for k in range(row.shape[0]):
                if row[k] > best or row[k] != row[k]:
                    best = row[k]
            return best

        return plainly

    def by_bits(row):
        # A maximum of floats does not vectorise as long as nan keeps its meaning, one of integers does: flipping the
        # value bits of the negative ones gives integers in the order of the floats.
        best = np.int32(-(2**31))
        for k in range(row.shape[0]):
            bits = _bits(row[k])
            best = max(best, np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))
        top = _from_bits(np.int32(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF))))
        if top == NEG_INF or top == math.inf:  # a nan with its sign bit set comes below all numbers
            for k in range(row.shape[0]):
                if row[k] != row[k]:
                    return row[k]
        return top

    return by_bits


@njit(**OPTIONS)
def log_softmax_at(logits, labels, wanted, normaliser, label_logp, blank_logp, blank):
    """The log of each row's sum of exponentials, and the log-probabilities of its label and of the blank.

    Rows that are not wanted are not read; theirs are 0. A row with a nan gives nan, one with +inf a normaliser of
    +inf and nan, one of nothing but -inf log-probabilities of -inf.
    """
    rows, tokens = logits.shape
    for i in range(rows):
        if not wanted[i]:
            normaliser[i] = 0
            label_logp[i] = 0
            blank_logp[i] = 0
            continue
        row = logits[i]
        top = _row_max(row)
        if top == NEG_INF:
            normaliser[i] = 0
        elif top == math.inf:
            normaliser[i] = math.inf
        else:
            total = logits.dtype.type(0)
            for k in range(tokens):
                total += _exp(row[k] - top)
            normaliser[i] = top + math.log(total)
        label_logp[i] = row[labels[i]] - normaliser[i]
        blank_logp[i] = row[blank] - normaliser[i]


@njit(**OPTIONS)
def logit_gradient(logits, labels, normaliser, label_weight, blank_weight, out, blank, in_place, add):
    """out (+)= d(label_weight * log p(label) + blank_weight * log p(blank)) / d logits, row by row.

    ``in_place`` says that ``out`` is ``logits`` itself. A row of no weight is not read: its gradient is zero whatever
    it holds.
    """
    rows, tokens = logits.shape
    for i in range(rows):
        weight = label_weight[i] + blank_weight[i]
        source, target = logits[i], out[i]
        if weight == 0:
            if not add:
                target[:] = 0
            continue
        shift = normaliser[i]
        if add:
            for k in range(tokens):
                target[k] -= weight * _exp(source[k] - shift)
        elif in_place:  # a loop for itself, since only for one array does the compiler know that it may use vectors
            for k in range(tokens):
                target[k] = -weight * _exp(target[k] - shift)
        else:
            for k in range(tokens):
                target[k] = -weight * _exp(source[k] - shift)
        target[labels[i]] += label_weight[i]
        target[blank] += blank_weight[i]


@njit(fastmath={"contract"}, error_model="numpy")
def _log_sum(top, total):
    """The log of a sum of exponentials, ``total`` being that of their differences to the largest."""
    return top + math.log(total) if NEG_INF < top < math.inf else top


@njit(**OPTIONS)
def kl_divergence(student, teacher, student_norm, teacher_norm, value, sharpness):
    """KL(softmax(sharpness * teacher) || softmax(sharpness * student)) of each row, and the log-sum-exps of both.

    A token that the teacher excludes (-inf) adds nothing, nor does one of less than e to LOWEST of its best, whatever the
    student makes of it but -inf: one that the student alone excludes makes it +inf.
    """
    rows, tokens = student.shape
    zero, lowest = student.dtype.type(0), student.dtype.type(NEG_INF)
    scale = student.dtype.type(sharpness)
    for i in range(rows):
        s, t = student[i], teacher[i]
        s_top, t_top = _row_max(s), _row_max(t)
        s_total, t_total, crossed = zero, zero, zero
        for k in range(tokens):
            below = scale * (t[k] - t_top)
            share = _exp(below)
            s_total += _exp(scale * (s[k] - s_top))
            t_total += share
            difference = t[k] - s[k]
            # A share has no less than e to LOWEST, which times a difference such as that to -1e38, a mask, would be nats.
            nothing = t[k] == lowest or (below < LOWEST and s[k] > lowest)
            crossed += share * (zero if nothing else difference)
        student_norm[i] = _log_sum(scale * s_top, s_total)
        teacher_norm[i] = _log_sum(scale * t_top, t_total)
        divergence = scale * crossed / t_total - (teacher_norm[i] - student_norm[i])
        value[i] = zero if divergence < zero else divergence  # below zero by rounding alone


@njit(**OPTIONS)
def kl_gradient(student, teacher, student_norm, teacher_norm, weight, out, sharpness):
    """out = weight * sharpness * (student's softmax - teacher's), the gradient with respect to the student."""
    rows, tokens = student.shape
    scale = student.dtype.type(sharpness)
    for i in range(rows):
        s, t, target = student[i], teacher[i], out[i]
        factor = weight[i] * scale
        if factor == 0:
            target[:] = 0
            continue
        s_norm, t_norm = student_norm[i], teacher_norm[i]
        for k in range(tokens):
            target[k] = factor * (_exp(scale * s[k] - s_norm) - _exp(scale * t[k] - t_norm))


@njit(fastmath={"contract"}, error_model="numpy")
def _log_add(a, b):
    if a < b:
        a, b = b, a
    if b == NEG_INF:
        return a
    return a + math.log1p(math.exp(b - a))


@njit(fastmath={"contract"}, error_model="numpy")
def _along(value, arc):
    """What cannot be reached passes nothing on, not even a nan."""
    return NEG_INF if value == NEG_INF else value + arc


@njit(**{**OPTIONS, "fastmath": {"contract"}})
def lattice(
    label_arcs, blank_arcs, starts, boundary, alpha, score, label_occupancy, blank_occupancy, modified, least, occupancies
):
    """Forward and, for the occupancies, backward over each utterance's band of nodes, in float64.

    See ``kdlib.rnnt.lattice.score_lattice``. ``alpha`` (N, T, R) float64 is room to work in; posteriors whose
    log is below ``least`` are given as 0.
    """
    utterances, _, kept = label_arcs.shape
    for n in range(utterances):
        u_begin, t_begin, u_end, t_end = boundary[n, 0], boundary[n, 1], boundary[n, 2], boundary[n, 3]
        label, blank, first = label_arcs[n], blank_arcs[n], starts[n]
        forward = alpha[n]
        for t in range(t_begin, t_end):
            for r in range(kept):
                u = first[t] + r
                value = NEG_INF
                if u < u_begin or u > u_end:
                    forward[t, r] = value
                    continue
                if t == t_begin:
                    if u == u_begin:
                        value = 0.0
                else:
                    before = u - first[t - 1]
                    if 0 <= before < kept:
                        value = _along(forward[t - 1, before], blank[t - 1, before])
                    if modified and 1 <= before <= kept and u > u_begin:
                        value = _log_add(value, _along(forward[t - 1, before - 1], label[t - 1, before - 1]))
                if not modified and r > 0 and u > u_begin:
                    value = _log_add(value, _along(forward[t, r - 1], label[t, r - 1]))
                forward[t, r] = value

        total = 0.0 if t_begin == t_end and u_begin == u_end else NEG_INF
        if t_end > t_begin:
            at = u_end - first[t_end - 1]
            if 0 <= at < kept:
                total = _along(forward[t_end - 1, at], blank[t_end - 1, at])
            if modified and u_end > u_begin and 1 <= at <= kept:
                total = _log_add(total, _along(forward[t_end - 1, at - 1], label[t_end - 1, at - 1]))
        score[n] = total
        if not occupancies:
            continue
        if not (NEG_INF < total < math.inf):  # no path, or nan on it
            label_occupancy[n] = 0
            blank_occupancy[n] = 0
            continue

        label_occupancy[n, :t_begin] = 0
        blank_occupancy[n, :t_begin] = 0
        label_occupancy[n, t_end:] = 0
        blank_occupancy[n, t_end:] = 0
        later = np.empty(kept)  # the backward variable of frame t + 1
        here = np.empty(kept)
        for t in range(t_end - 1, t_begin - 1, -1):
            for r in range(kept - 1, -1, -1):
                u = first[t] + r
                by_label = by_blank = NEG_INF
                if u_begin <= u <= u_end:
                    if t == t_end - 1:
                        if u == u_end:
                            by_blank = blank[t, r] + 0.0
                        if modified and u + 1 == u_end:
                            by_label = label[t, r] + 0.0
                    else:
                        after = u - first[t + 1]
                        if 0 <= after < kept:
                            by_blank = blank[t, r] + later[after]
                        if modified and u < u_end and 0 <= after + 1 < kept:
                            by_label = label[t, r] + later[after + 1]
                    if not modified and u < u_end and r + 1 < kept:
                        by_label = label[t, r] + here[r + 1]
                here[r] = _log_add(by_label, by_blank)
                reach = forward[t, r] - total
                label_occupancy[n, t, r] = math.exp(reach + by_label) if reach + by_label > least else 0.0
                blank_occupancy[n, t, r] = math.exp(reach + by_blank) if reach + by_blank > least else 0.0
            later, here = here, later
