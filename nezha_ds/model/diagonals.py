"""Relative positions inside a block of heads: where the diagonals of a square of scores lie, and what they add.

    scores_ij = query_i · (key_j + a_ij) + bias_j        mixed_i = Σ_j square_ij (value_j + a_ij)

`a_ij` depends on j - i alone, so a query has one product with each row of the table, and the numbers of one distance
meet in one row: both are products with the table's rows. What remains is to bring (i, distance) to (i, j) and back, and
that is a view: in a square of L columns, the same distance of the next query lies L + 1 further on.

`Plain` has no positions. `Whole` gives every distance its column, 2L - 1 of them: for sequences not much longer than the
clip K, or without a clip. `Band` has columns for some three K distances around the diagonal. The keys beyond are cut
into S steps; a step that lies K or more away from a query gets its score from one more feature of the product of
queries and keys, which is 1 for the keys of the step, and the sums over a step come with the product of square and
values. So nothing but the band is passed over. Its view shows, beyond the ends of a row, numbers of the next and the
last one: they are masked by their bits, and squares have a margin before the first row and after the last.

B batch, L length, H head size, K clip, R rows of the table, G heads of a block, S steps, W diagonals, F features of an
extended row: H, S, and 1 for the bias where there is padding.
"""

import torch
from torch import Tensor

_LANES = 32
"""Numbers of bf16 in one instruction: those left over at the end of a row cost 30 times as much."""
_STEPS = 16
"""S at most, so that an extended row of 64 has 80 features."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Plain:
    """No relative positions. `heads` is the largest G, `like` any tensor (…, H) of the working dtype."""

    index: Tensor
    """(W + 2S,): the table's row of each factor."""
    rows: Tensor
    """(W + 2S, H)."""

    def __init__(self, like: Tensor, length: int, heads: int, padded: bool, steps: int = 0, margin: int = 0) -> None:
        self.size, self.length, self.heads, self.steps = like.shape[-1], length, heads, steps
        self._margin = margin
        # The last feature of a query is 1: the bias enters by it.
        self._queries = like.new_ones(heads, length, self.size + steps + padded)

    def rooms(self, number: int) -> list[Tensor]:
        """Squares (G, L, L) to compute in, zeros at first."""
        shape = (self.heads, self.length, self.length)
        cells, margin = self.heads * self.length**2, self._margin
        return [self._queries.new_zeros(cells + 2 * margin)[margin : margin + cells].view(shape) for _ in range(number)]

    def extended(self) -> Tensor:
        """(G, L, F): room for keys or values."""
        return torch.zeros_like(self._queries)

    def extend(self, x: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
        """Keys or values (b, n, L, H) of a block, keys with their bias (b, L), in `out`: (G, L, F)."""
        rows = out[: x.shape[0] * x.shape[1]]
        apart = rows.unflatten(0, x.shape[:2])
        apart[..., : self.size] = x
        if bias is not None:
            apart[..., -1] = bias[:, None]
        return rows

    def scores(self, square: Tensor, query: Tensor, keys: Tensor) -> Tensor:
        """query_i · (key_j + a_ij) + bias_j in `square` (G, L, L), from (G, L, H) and (G, L, F)."""
        return torch.bmm(self._extended_query(query), keys.transpose(1, 2), out=square)

    def mix(self, square: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j square_ij (value_j + a_ij), (G, L, H), and the factors (G·L, W + 2S) of the table's rows in it."""
        mixed = torch.bmm(square, values)[..., : self.size]
        return mixed, mixed.new_empty(mixed.shape[0] * self.length, 0)

    def _extended_query(self, query: Tensor) -> Tensor:
        if self._queries.shape[2] == self.size:
            return query
        rows = self._queries[: len(query)]
        rows[..., : self.size] = query
        return rows


class Whole(Plain):
    """A column for every distance."""

    def __init__(self, table: Tensor, length: int, heads: int, padded: bool) -> None:
        super().__init__(table, length, heads, padded)
        clip = len(table) // 2
        distances = torch.arange(1 - length, length)
        self.index = distances.clamp(-clip, clip) + clip
        self.rows = table[self.index]
        # Written at the diagonals only: what lies outside of the square stays zero.
        self._factors = table.new_zeros(heads, length, len(distances))
        self._products = torch.empty_like(self._factors)

    def scores(self, square: Tensor, query: Tensor, keys: Tensor) -> Tensor:
        """As of `Plain`."""
        products = self._products[: len(query)]
        torch.mm(query.flatten(0, 1), self.rows.T, out=products.flatten(0, 1))
        return super().scores(square, query, keys).add_(self._sheared(products))

    def mix(self, square: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Plain`."""
        mixed, _ = super().mix(square, values)
        factors = self._factors[: len(square)]
        self._sheared(factors).copy_(square)
        flat = factors.flatten(0, 1)
        return torch.addmm(mixed.flatten(0, 1), flat, self.rows).view(mixed.shape), flat

    def _sheared(self, x: Tensor) -> Tensor:
        """(G, L, 2L - 1) by distance -> (G, L, L) by key."""
        length, width = self.length, x.shape[2]
        return x.as_strided((len(x), length, length), (length * width, width - 1, 1), length - 1)


class Band(Plain):
    """Columns for the distances around the diagonal, steps beyond."""

    def __init__(self, table: Tensor, length: int, heads: int, padded: bool) -> None:
        clip = len(table) // 2
        step, reach, width = band_sizes(clip, length)
        steps = -(-length // step)
        super().__init__(table, length, heads, padded, steps, margin=width)
        self._reach, self._sizes = reach, (width, steps, steps)
        places = torch.arange(length)
        self._is_step = (places[:, None] // step == torch.arange(steps)).to(table.dtype)
        first = torch.arange(steps) * step
        low, high = first + step - 1 - places[:, None] <= -clip, first - places[:, None] >= clip
        distances = torch.arange(width) - reach
        keys = places[:, None] + distances
        # (L, W): in the square, and not in a step that is taken as a whole.
        within = (keys >= 0) & (keys < length) & ~(low | high).gather(1, keys.clamp(0, length - 1) // step)
        self.index = torch.cat((distances.clamp(-clip, clip), first * 0 - clip, first * 0 + clip)) + clip
        self.rows = table[self.index]
        self._integers = _INTEGERS[table.element_size()]
        # (L, W + 2S): all bits or none.
        self._allowed = -torch.cat((within, low, high), 1).to(self._integers)
        self._factors = table.new_empty(heads, length, len(self.index))
        self._products = torch.empty_like(self._factors)

    def extended(self) -> Tensor:
        """As of `Plain`."""
        rows = super().extended()
        rows[..., self.size : self.size + self.steps] = self._is_step
        return rows

    def scores(self, square: Tensor, query: Tensor, keys: Tensor) -> Tensor:
        """As of `Plain`."""
        products = self._products[: len(query)]
        torch.mm(query.flatten(0, 1), self.rows.T, out=products.flatten(0, 1))
        products.view(self._integers).bitwise_and_(self._allowed)
        near, low, high = products.split(self._sizes, 2)
        extended = self._extended_query(query)
        torch.add(low, high, out=extended[..., self.size : self.size + self.steps])
        torch.bmm(extended, keys.transpose(1, 2), out=square)
        # Every other head: a zero that one adds beyond its last row falls on the next one's first.
        for part in (slice(0, None, 2), slice(1, None, 2)):
            self._diagonals(square[part]).add_(near[part])
        return square

    def mix(self, square: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Plain`."""
        mixed = torch.bmm(square, values)
        integers, factors = self._integers, self._factors[: len(square)]
        band, low, high = factors.view(integers).split(self._sizes, 2)
        near, is_low, is_high = self._allowed.split(self._sizes, 1)
        torch.bitwise_and(self._diagonals(square).view(integers), near, out=band)
        sums = mixed[..., self.size : self.size + self.steps].view(integers)
        torch.bitwise_and(sums, is_low, out=low)
        torch.bitwise_and(sums, is_high, out=high)
        flat = factors.flatten(0, 1)
        own = mixed[..., : self.size].flatten(0, 1)
        return torch.addmm(own, flat, self.rows).view(len(square), self.length, self.size), flat

    def _diagonals(self, square: Tensor) -> Tensor:
        """(G, L, W), of squares from `rooms`."""
        shape = (len(square), self.length, self._sizes[0])
        return square.as_strided(shape, (square.stride(0), self.length + 1, 1), square.storage_offset() - self._reach)


def band_sizes(clip: int, length: int) -> tuple[int, int, int]:
    """Keys of a step, the furthest distance back in the band, and W."""
    step = max(clip // 2, -(-length // _STEPS), 1)
    reach = clip + step - 1
    return step, reach, -(-(2 * reach + 1) // _LANES) * _LANES


def positions(table: Tensor | None, like: Tensor, length: int, heads: int, padded: bool) -> Plain:
    """The cheapest kind for a table (R, H), or None, in the dtype of `like` (…, H)."""
    if table is None:
        return Plain(like, length, heads, padded)
    # A band wider than a row would hold some cells twice.
    fits = band_sizes(len(table) // 2, length)[2] <= length + 1
    return (Band if fits else Whole)(table.to(like.dtype), length, heads, padded)
