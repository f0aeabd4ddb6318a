"""How an account is made, and what it is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

from ntkit.compute.plan import format_bytes

_TOLD = 1e-10  # floors that say something about the network


@dataclass(frozen=True)
class AccountPlan:
    """How an account is or was made; printed, it says so in words.

    Attributes
    ----------
    precision
        ``"float32"``, where the tolerance and the measured rounding allow it, else ``"float64"``; sums are
        float64 either way.
    nodes
        How places along the steps are chosen: for the residual of ``"the whole account"``, for that of
        ``"each step"``, or the fixed rule that was asked for.
    contributions
        Where what each sample contributed comes from: ``"structure"`` (products of factors, no gradient is
        made), ``"forward mode"`` (a forward pass of the batch in each direction), ``"backward twice"``
        (derivatives of a backward pass of the batch, where forward mode is missing or wrong),
        ``"backward passes"`` (of each sample).
    steps, rows, tiles
        How many steps the run has, how many numbers are accounted for (queries x outputs), and in how many
        parts.
    seconds
        What it took, or, before it was made, what it is expected to take, from one timed step with as many
        nodes as that took.
    bytes
        What the large arrays take at a time.
    floor
        The residual, in units of the largest abs(prediction - initial), below which rounding within the
        network is all that is seen: about 1e-14, and 1e-6 where a float64 network computes in float32 inside.
    """

    precision: str
    nodes: str
    contributions: str
    steps: int
    rows: int
    tiles: int
    seconds: float
    bytes: int
    floor: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.rows} rows over {self.steps} steps in {self.tiles} tile{'s' * (self.tiles != 1)}, "
            f"{self.precision}; nodes for {self.nodes}; contributions by {self.contributions}; "
            f"{self.seconds:.3g} s, {format_bytes(self.bytes)}"
            + (f"; rounding within the network leaves {self.floor:.0e}" if self.floor > _TOLD else "")
        )

    __repr__ = __str__
