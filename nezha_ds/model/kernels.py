"""Attention with NEZHA's clipped relative positions as Triton kernels: no gather, no L x L tensor, forward or backward.

A row of the table is [sin θ, cos θ] of the angles θ = (d + K) w. For distances |d| < K, sine and cosine of a sum split:

    q_i · a_(j-i) = φ(q_i) · ψ(j),   ψ(j) = [sin (j - m)w, cos (j - m)w],   φ(q_i) = q_i turned by (K - i + m)w

so a block of scores is one more matrix product; on the value side Σ_j p_ij ψ(j) is summed and turned back once. Beyond
the band a row is one of two constants: a number per query, and the sum of its probabilities on that side. Blocks wholly
beyond the band, most of them at L = 512 with K = 64, cost what plain attention costs. m is the middle of the A queries,
at most 2K, that a query stands among: no key in its band is more than 2K steps from there, so the table itself, with
the sines' sign turned for steps below 0, holds all that is needed. Forward and backward take the same A: then backward
finds forward's scores again, roundings of φ included, and probabilities that add up to 1.

Forward goes over the keys block by block under a running maximum, as FlashAttention-2 does (arXiv 2307.08691), and
keeps the output and one logarithm a row. Backward computes the probabilities again, in two kernels: over blocks of
queries for q, which leaves φ(q), φ(dO) and five numbers a query, then over blocks of keys for k and v. The row sum of
dO · O that softmax's gradient needs contains the values' position terms because O does.

Dropout is a function of (seed, head, query, key). Philox gives a head two words, a mixer of 32 bits makes of them a
word per query and per key, and mixes the sum of both into what is compared with the rate: seven integer operations a
pair, where Philox itself would take some eighty and more time than the matrix products.

Products take the arguments' dtype (EXACT: fp32 in full, not TF32), everything else is fp32. The table must be the
functional one; it gets no gradient.

B batch, N heads, L length, H head size, R rows of the table, K clip, M queries and T keys of a block, A as above.
"""

# Triton's language has types of its own.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl
from triton.language import constexpr

INTERPRETED = constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run without a GPU, because TRITON_INTERPRET was set: for tests, thousands of times slower."""

LOG2E = constexpr(1.4426950408889634)
LOWEST = constexpr(-1e30)
"""In place of a mask's lowest number: that times log2 e is infinite in fp32."""


@triton.jit
def _mix(x):
    """A word of 32 bits from another, its high bits the best: lowbias32 of github.com/skeeto/hash-prospector."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def _salts(seed, head, CUT: constexpr):
    """A head's two words: for its queries and for its keys."""
    first, second = head, head
    if CUT:
        first = tl.randint(tl.load(seed), head * 2)
        second = tl.randint(tl.load(seed), head * 2 + 1)
    return first.to(tl.uint32), second.to(tl.uint32)


@triton.jit
def _words(salt, places):
    """A word for each query, or each key."""
    word = _mix(places.to(tl.uint32) + salt)
    return word ^ (word >> 16)


@triton.jit
def _dot(left, right, added, EXACT: constexpr):
    """A product of matrices, and what is added to it."""
    if INTERPRETED:  # by numpy, which has no bf16
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, added, input_precision="ieee" if EXACT else "tf32")


@triton.jit
def _place(length, M: constexpr):
    """Where this program's block starts, and of which of the B · N heads: a grid's second axis ends at 65,535."""
    blocks = tl.cdiv(length, M)
    return tl.program_id(0) % blocks * M, tl.program_id(0) // blocks


@triton.jit
def _offset(head, heads, batch_stride, head_stride):
    """Where a head of a (B, N, L, H) tensor begins."""
    return (head // heads).to(tl.int64) * batch_stride + (head % heads).to(tl.int64) * head_stride


@triton.jit
def _rows(base, place, stride, length, H: constexpr):
    """(M, H): rows of a (L, H) matrix, zeros beyond its end."""
    pointers = base + place[:, None] * stride + tl.arange(0, H)[None, :]
    return tl.load(pointers, mask=(place < length)[:, None], other=0.0)


@triton.jit
def _store(base, place, stride, length, x, H: constexpr):
    pointers = base + place[:, None] * stride + tl.arange(0, H)[None, :]
    tl.store(pointers, x.to(base.dtype.element_ty), mask=(place < length)[:, None])


@triton.jit
def _turn(x, table, query, BACK: constexpr, CLIP: constexpr, A: constexpr, M: constexpr, H: constexpr):
    """(M, H) fp32: φ of a block's queries, or its inverse."""
    column = tl.arange(0, H)
    row = table + (CLIP + A // 2 - query % A)[:, None] * H
    sine = tl.load(row + (column & ~1)[None, :]).to(tl.float32)
    cosine = tl.load(row + (column | 1)[None, :]).to(tl.float32)
    sign = tl.where((column % 2 == 0) == BACK, 1.0, -1.0)
    x = x.to(tl.float32)
    first, second = tl.split(tl.reshape(x, (M, H // 2, 2)))
    partner = tl.reshape(tl.join(second, first), (M, H))
    return x * cosine + partner * sine * sign[None, :]


@triton.jit
def _waves(table, step, CLIP: constexpr, H: constexpr):
    """(T, H): ψ of keys that lie `step` behind the middle of the queries; beyond 2K steps it means nothing."""
    column = tl.arange(0, H)
    wave = tl.load(table + tl.minimum(tl.abs(step), 2 * CLIP)[:, None] * H + column[None, :]).to(tl.float32)
    return tl.where((step < 0)[:, None] & (column % 2 == 0)[None, :], -wave, wave).to(table.dtype.element_ty)


@triton.jit
def _ends(x, table, CLIP: constexpr, H: constexpr):
    """(M,) twice: a block's rows times the lowest and the highest row of the table."""
    x = x.to(tl.float32)
    low = tl.load(table + tl.arange(0, H)).to(tl.float32)
    high = tl.load(table + 2 * CLIP * H + tl.arange(0, H)).to(tl.float32)
    return tl.sum(x * low[None, :], 1), tl.sum(x * high[None, :], 1)


@triton.jit
def _unfold(
    mixed, waved, low_mass, high_mass, table, query, CLIP: constexpr, A: constexpr, M: constexpr, H: constexpr
):  # fmt: skip
    """(M, H) fp32: Σ_j p_ij (y_j + a_ij) from its four parts."""
    low = tl.load(table + tl.arange(0, H)).to(tl.float32)
    high = tl.load(table + 2 * CLIP * H + tl.arange(0, H)).to(tl.float32)
    mixed += low_mass[:, None] * low[None, :] + high_mass[:, None] * high[None, :]
    return mixed + _turn(waved, table, query, True, CLIP, A, M, H)


@triton.jit
def _against(
    left, right, left_wave, right_wave, low, high, distance,
    SIDE: constexpr, CLIP: constexpr, EXACT: constexpr,
):  # fmt: skip
    """x_i · (y_j + a_ij) for a block whose keys lie before the band (0), behind it (1), or around it (2)."""
    zeros = tl.zeros((left.shape[0], right.shape[0]), tl.float32)
    product = _dot(left, tl.trans(right), zeros, EXACT)
    if SIDE == 0:
        product += low
    elif SIDE == 1:
        product += high
    else:
        near = _dot(left_wave, tl.trans(right_wave), zeros, EXACT)
        product += tl.where(distance <= -CLIP, low, tl.where(distance >= CLIP, high, near))
    return product


@triton.jit
def _bias(mask, key, length):
    """(T,): what a key's scores get, in powers of two."""
    bias = tl.load(mask + key, mask=key < length, other=0.0).to(tl.float32) * LOG2E
    return tl.where(key < length, tl.maximum(bias, LOWEST), -float("inf"))


@triton.jit
def _span(SIDE: constexpr, first, size, length, CLIP: constexpr, T: constexpr):
    """Where blocks of T lie wholly before the band around `size` places (0), behind it (1), or in it (2)."""
    before = tl.maximum(first - CLIP + 1, 0) // T * T
    behind = tl.minimum(tl.cdiv(first + size - 1 + CLIP, T) * T, length)
    start = 0 if SIDE == 0 else (behind if SIDE == 1 else before)
    stop = before if SIDE == 0 else (length if SIDE == 1 else behind)
    return start, stop


@triton.jit
def _attend(
    mixed, waved, low_mass, high_mass, total, top, x, turned, low, high, query, word,
    k, v, mask, table, salt, k_row, v_row, length, middle, start, stop,
    SIDE: constexpr, CLIP: constexpr, H: constexpr, T: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """Let a block of queries see the keys from start to stop, all on one side of the band or around it."""
    for first in range(start, stop, T):
        key = first + tl.arange(0, T)
        distance = key[None, :] - query[:, None]
        y = _rows(k, key, k_row, length, H)
        wave = y
        if SIDE == 2:
            wave = _waves(table, key - middle, CLIP, H)
        scores = _against(x, y, turned, wave, low[:, None], high[:, None], distance, SIDE, CLIP, EXACT)
        scores = scores * LOG2E + _bias(mask, key, length)[None, :]
        higher = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp2(top - higher)
        share = tl.exp2(scores - higher[:, None])
        total = total * decay + tl.sum(share, 1)
        if CUT:
            share = tl.where(_mix(word[:, None] + _words(salt, key)[None, :]) >= CUT, share, 0.0)
        y = _rows(v, key, v_row, length, H)
        mixed = _dot(share.to(y.dtype), y, mixed * decay[:, None], EXACT)
        low_mass, high_mass = low_mass * decay, high_mass * decay
        if SIDE == 0:
            low_mass += tl.sum(share, 1)
        elif SIDE == 1:
            high_mass += tl.sum(share, 1)
        else:
            near = tl.where(tl.abs(distance) < CLIP, share, 0.0).to(y.dtype)
            waved = _dot(near, wave, waved * decay[:, None], EXACT)
            low_mass += tl.sum(tl.where(distance <= -CLIP, share, 0.0), 1)
            high_mass += tl.sum(tl.where(distance >= CLIP, share, 0.0), 1)
        top = higher
    return mixed, waved, low_mass, high_mass, total, top


@triton.jit
def _forward(
    q, k, v, mask, table, seed, out, logs,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row, mask_batch,
    heads, length, scale,
    CLIP: constexpr, A: constexpr, H: constexpr, M: constexpr, T: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """A block of queries of one head; the grid is the blocks of all heads."""
    start, head = _place(length, M)
    k += _offset(head, heads, k_batch, k_head)
    v += _offset(head, heads, v_batch, v_head)
    mask += _offset(head, heads, mask_batch, 0)
    query = start + tl.arange(0, M)
    x = _rows(q + _offset(head, heads, q_batch, q_head), query, q_row, length, H)
    turned = _turn(x, table, query, False, CLIP, A, M, H).to(x.dtype)
    low, high = _ends(x, table, CLIP, H)
    salt, key_salt = _salts(seed, head, CUT)
    word = _words(salt, query)
    mixed, waved = tl.zeros((M, H), tl.float32), tl.zeros((M, H), tl.float32)
    low_mass, high_mass, total = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
    top = tl.full((M,), -float("inf"), tl.float32)
    # The band comes last, so that its sum need not follow the maximum through the other blocks.
    for SIDE in tl.static_range(3):
        begin, end = _span(SIDE, start, M, length, CLIP, T)
        mixed, waved, low_mass, high_mass, total, top = _attend(
            mixed, waved, low_mass, high_mass, total, top, x, turned, low, high, query, word,
            k, v, mask, table, key_salt, k_row, v_row, length, start // A * A + A // 2, begin, end,
            SIDE, CLIP, H, T, CUT, EXACT,
        )  # fmt: skip
    result = _unfold(mixed, waved, low_mass, high_mass, table, query, CLIP, A, M, H) * (scale / total)[:, None]
    _store(out + _offset(head, heads, out_batch, out_head), query, out_row, length, result, H)
    tl.store(logs + head.to(tl.int64) * length + query, top + tl.log2(total), mask=query < length)


@triton.jit
def _slope_queries(
    mixed, waved, low_mass, high_mass, x, x_turned, x_low, x_high, g, g_turned, g_low, g_high, log, delta, query, word,
    k, v, mask, table, salt, k_row, v_row, length, middle, start, stop, scale,
    SIDE: constexpr, CLIP: constexpr, H: constexpr, T: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """Add what the keys from start to stop, all on one side, give to the gradient of a block of queries."""
    for first in range(start, stop, T):
        key = first + tl.arange(0, T)
        distance = key[None, :] - query[:, None]
        y, z = _rows(k, key, k_row, length, H), _rows(v, key, v_row, length, H)
        wave = y
        if SIDE == 2:
            wave = _waves(table, key - middle, CLIP, H)
        scores = _against(x, y, x_turned, wave, x_low[:, None], x_high[:, None], distance, SIDE, CLIP, EXACT)
        share = tl.exp2(scores * LOG2E + (_bias(mask, key, length)[None, :] - log[:, None]))
        slope = _against(g, z, g_turned, wave, g_low[:, None], g_high[:, None], distance, SIDE, CLIP, EXACT)
        if CUT:
            keep = _mix(word[:, None] + _words(salt, key)[None, :]) >= CUT
            slope = tl.where(keep, slope * scale, 0.0)
        slope = share * (slope - delta[:, None])
        mixed = _dot(slope.to(y.dtype), y, mixed, EXACT)
        if SIDE == 0:
            low_mass += tl.sum(slope, 1)
        elif SIDE == 1:
            high_mass += tl.sum(slope, 1)
        else:
            near = tl.where(tl.abs(distance) < CLIP, slope, 0.0).to(y.dtype)
            waved = _dot(near, wave, waved, EXACT)
            low_mass += tl.sum(tl.where(distance <= -CLIP, slope, 0.0), 1)
            high_mass += tl.sum(tl.where(distance >= CLIP, slope, 0.0), 1)
    return mixed, waved, low_mass, high_mass


@triton.jit
def _backward_queries(
    q, k, v, mask, table, seed, out, logs, passed, d_q, turned, notes,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row, mask_batch,
    passed_batch, passed_head, passed_row, heads, length, scale,
    CLIP: constexpr, A: constexpr, H: constexpr, M: constexpr, T: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """The gradient of a block of queries of one head, and what `_backward_keys` wants to know of them."""
    start, head = _place(length, M)
    k += _offset(head, heads, k_batch, k_head)
    v += _offset(head, heads, v_batch, v_head)
    mask += _offset(head, heads, mask_batch, 0)
    query = start + tl.arange(0, M)
    x = _rows(q + _offset(head, heads, q_batch, q_head), query, q_row, length, H)
    g = _rows(passed + _offset(head, heads, passed_batch, passed_head), query, passed_row, length, H)
    y = _rows(out + _offset(head, heads, out_batch, out_head), query, out_row, length, H)
    delta = tl.sum(g.to(tl.float32) * y.to(tl.float32), 1)
    x_low, x_high = _ends(x, table, CLIP, H)
    g_low, g_high = _ends(g, table, CLIP, H)
    x_turned = _turn(x, table, query, False, CLIP, A, M, H).to(x.dtype)
    g_turned = _turn(g, table, query, False, CLIP, A, M, H).to(x.dtype)
    row = head.to(tl.int64) * length
    plane = (tl.num_programs(0) // tl.cdiv(length, M)).to(tl.int64) * length
    _store(turned + row * H, query, H, length, x_turned, H)
    _store(turned + (plane + row) * H, query, H, length, g_turned, H)
    inside = query < length
    tl.store(notes + row + query, delta, mask=inside)
    tl.store(notes + plane + row + query, x_low, mask=inside)
    tl.store(notes + 2 * plane + row + query, x_high, mask=inside)
    tl.store(notes + 3 * plane + row + query, g_low, mask=inside)
    tl.store(notes + 4 * plane + row + query, g_high, mask=inside)
    log = tl.load(logs + row + query, mask=inside, other=float("inf"))
    salt, key_salt = _salts(seed, head, CUT)
    word = _words(salt, query)
    mixed, waved = tl.zeros((M, H), tl.float32), tl.zeros((M, H), tl.float32)
    low_mass, high_mass = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
    for SIDE in tl.static_range(3):
        begin, end = _span(SIDE, start, M, length, CLIP, T)
        mixed, waved, low_mass, high_mass = _slope_queries(
            mixed, waved, low_mass, high_mass, x, x_turned, x_low, x_high, g, g_turned, g_low, g_high, log, delta,
            query, word, k, v, mask, table, key_salt, k_row, v_row, length, start // A * A + A // 2, begin, end, scale,
            SIDE, CLIP, H, T, CUT, EXACT,
        )  # fmt: skip
    result = _unfold(mixed, waved, low_mass, high_mass, table, query, CLIP, A, M, H)
    _store(d_q + _offset(head, heads, out_batch, out_head), query, out_row, length, result, H)


@triton.jit
def _slope_keys(
    d_key, d_value, y, z, bias, key, word,
    q, passed, logs, turned, notes, plane, table, salt, q_row, passed_row, length, start, stop, scale,
    SIDE: constexpr, CLIP: constexpr, A: constexpr, H: constexpr, M: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """Add what the queries from start to stop give a block of keys, of scores that lie keys by queries."""
    for first in range(start, stop, M):
        query = first + tl.arange(0, M)
        inside = query < length
        distance = key[:, None] - query[None, :]
        x, g = _rows(q, query, q_row, length, H), _rows(passed, query, passed_row, length, H)
        x_turned, g_turned, wave = x, g, y
        x_low, x_high, g_low, g_high = 0.0, 0.0, 0.0, 0.0
        if SIDE == 2:
            x_turned = _rows(turned, query, H, length, H)
            g_turned = _rows(turned + plane * H, query, H, length, H)
            wave = _waves(table, key - (first // A * A + A // 2), CLIP, H)
        if SIDE != 1:
            x_low = tl.load(notes + plane + query, mask=inside, other=0.0)[None, :]
            g_low = tl.load(notes + 3 * plane + query, mask=inside, other=0.0)[None, :]
        if SIDE != 0:
            x_high = tl.load(notes + 2 * plane + query, mask=inside, other=0.0)[None, :]
            g_high = tl.load(notes + 4 * plane + query, mask=inside, other=0.0)[None, :]
        log = tl.load(logs + query, mask=inside, other=float("inf"))
        delta = tl.load(notes + query, mask=inside, other=0.0)
        scores = _against(y, x, wave, x_turned, x_low, x_high, distance, SIDE, CLIP, EXACT)
        share = tl.exp2(scores * LOG2E + (bias[:, None] - log[None, :]))
        slope = _against(z, g, wave, g_turned, g_low, g_high, distance, SIDE, CLIP, EXACT)
        kept = share
        if CUT:
            keep = _mix(_words(salt, query)[None, :] + word[:, None]) >= CUT
            kept = tl.where(keep, share, 0.0)
            slope = tl.where(keep, slope * scale, 0.0)
        d_value = _dot(kept.to(g.dtype), g, d_value, EXACT)
        slope = share * (slope - delta[None, :])
        d_key = _dot(slope.to(x.dtype), x, d_key, EXACT)
    return d_key, d_value


@triton.jit
def _backward_keys(
    q, k, v, mask, table, seed, logs, passed, d_k, d_v, turned, notes,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row, mask_batch,
    passed_batch, passed_head, passed_row, heads, length, scale,
    CLIP: constexpr, A: constexpr, H: constexpr, M: constexpr, T: constexpr, CUT: constexpr, EXACT: constexpr,
):  # fmt: skip
    """The gradients of a block of keys and values of one head; the grid is the blocks of all heads."""
    start, head = _place(length, T)
    row, plane = head.to(tl.int64) * length, (tl.num_programs(0) // tl.cdiv(length, T)).to(tl.int64) * length
    q += _offset(head, heads, q_batch, q_head)
    passed += _offset(head, heads, passed_batch, passed_head)
    key = start + tl.arange(0, T)
    y = _rows(k + _offset(head, heads, k_batch, k_head), key, k_row, length, H)
    z = _rows(v + _offset(head, heads, v_batch, v_head), key, v_row, length, H)
    bias = _bias(mask + _offset(head, heads, mask_batch, 0), key, length)
    query_salt, salt = _salts(seed, head, CUT)
    word = _words(salt, key)
    d_key, d_value = tl.zeros((T, H), tl.float32), tl.zeros((T, H), tl.float32)
    for SIDE in tl.static_range(3):
        # To queries behind the band the keys lie before it.
        begin, end = _span(SIDE if SIDE == 2 else 1 - SIDE, start, T, length, CLIP, M)
        d_key, d_value = _slope_keys(
            d_key, d_value, y, z, bias, key, word, q, passed, logs + row, turned + row * H, notes + row, plane, table,
            query_salt, q_row, passed_row, length, begin, end, scale, SIDE, CLIP, A, H, M, CUT, EXACT,
        )  # fmt: skip
    _store(d_k + _offset(head, heads, out_batch, out_head), key, out_row, length, d_key, H)
    _store(d_v + _offset(head, heads, out_batch, out_head), key, out_row, length, d_value * scale, H)
