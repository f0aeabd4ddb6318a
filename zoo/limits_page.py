"""The page of the zoo in the limit, made from its results."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limits import CLOSE, DRAWS, MORE, MORE_DRAWS, NOISY, POINTS, SLOW

SERVED = 60  # bar
EMPTY = 1.0  # a bar of the wider network that nothing would miss
FOREIGN = ("foreign", "crashed", "broken")
Results = dict[str, dict[str, Any]]

HEAD = f"""# The zoo in the limit of infinite width

`make zoo-limits` makes this page: the models of [the zoo](zoo.md) with fresh weights, each through
`infinite_width` in a process of its own, `samples={POINTS}`, on three different samples, on one thread.

- *error*: `limit.error`, measured, four standard errors where functions are sampled; 0 for closed forms.
- *read*, *s*: seconds of a processor until the network is read, and until its NTK is made.
- *draws*: beside `ntkit.monte_carlo` of the network at two widths, one four times the other, {DRAWS[0]} to
  {DRAWS[1]} draws, {MORE_DRAWS} times as many where the NTK's standard error is above {NOISY}: the smallest
  width (the smallest size of a weight that grows), and the largest differences of NNGP and NTK with the
  draws' standard errors, over the largest value; the limit with {POINTS} to {MORE} sampled points, until
  `limit.error` is {CLOSE} or more would take {2 * SLOW:.0f} seconds, at each width. The bar of each is four
  standard errors, `limit.error` of that limit (*e*) and 8 / width, and that the wider network is nearer, or
  within its errors; a bar of the wider one that is {EMPTY:.0f} or more says nothing, and does not count. A
  model without hidden layers has no width: its bar has no 8 / width. What knows its width by itself is not
  drawn, nor what takes more than {SLOW:.0f} seconds. Where a smaller build or smaller inputs stand for a
  model here, it is said.
- A model that ends in no linear layer has got one (+): the limit is that of a read-out.
"""


def page(results: Results) -> tuple[str, list[str]]:
    """Return the page, and the bars that were missed."""
    states = Counter(r["status"] for r in results.values())
    served = {k: r for k, r in results.items() if r["status"] == "served"}
    drawn = {k: r for k, r in served.items() if isinstance(r.get("draws"), list)}
    apart = [k for k, r in drawn.items() if not all(near(r))]
    noisy = [k for k, r in drawn.items() if k not in apart and is_noisy(r)]
    met = len(drawn) - len(apart) - len(noisy)
    flat = sum(len(r["draws"]) == 1 for k, r in drawn.items() if k not in [*apart, *noisy])
    foreign = sum(states[s] for s in FOREIGN)
    bars = [
        (f"crashes, and other errors than ntkit's own: {foreign} (bar 0)", not foreign),
        (f"NaN or infinities: {states['wrong']} (bar 0)", not states["wrong"]),
        (f"served: {len(served)} (bar {SERVED})", len(served) >= SERVED),
        (
            f"met by draws: {met} of {len(drawn)}, {flat} of them without a width (bar {SERVED}); draws "
            f"too noisy to say: {_listed(noisy)}",
            met >= SERVED,
        ),
        (
            f"apart from draws, or not nearer at the larger width: {_listed(apart)} (bar 0)",
            not apart,
        ),
    ]
    lines = [HEAD, f"{len(results)} models; {states['refused']} are refused.", ""]
    lines += [f"- {text}: {'met' if reached else '**missed**'}" for text, reached in bars]
    late = [k for k, r in results.items() if r["status"] == "late"]
    lines += [f"- not at their end in the seconds of a processor that they were given: {_listed(late)}"]
    for library in dict.fromkeys(key.partition("/")[0] for key in results):
        rows = [r for k, r in results.items() if k.startswith(f"{library}/")]
        lines += ["", f"## {library} {rows[0]['versions'][library]}", ""]
        lines += [
            "| model | error | read | s | draws: width, NNGP, NTK | wider |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(r) for r in rows if r["status"] == "served"]
        others = [r for r in rows if r["status"] != "served"]
        if others:
            lines += ["", "| not served | why |", "|---|---|"]
            lines += [f"| {_name(r)} | {_why(r)} |" for r in others]
    return "\n".join(lines) + "\n", [text for text, reached in bars if not reached]


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def near(r: dict[str, Any]) -> list[bool]:
    """Return for each width whether draws and limit agree, and at last whether the difference falls."""
    found = []
    for row in r["draws"]:
        bars = _bars(row)
        found.append(row["nngp"] <= bars[0] and row["ntk"] <= bars[1])
    first, last = r["draws"][0], r["draws"][-1]
    noise = {kind: 4 * last[f"{kind}_error"] + last["error"] for kind in ("nngp", "ntk")}
    falls = [last[kind] <= max(first[kind], most) for kind, most in noise.items()]
    return [*found, all(falls)]


def is_noisy(r: dict[str, Any]) -> bool:
    """Return whether draws and limit would agree whatever they were: the last row's bars are too wide."""
    return max(_bars(r["draws"][-1])) >= EMPTY


def _bars(row: dict[str, Any]) -> list[float]:
    bias = 8 / row["width"] if row["width"] else 1e-9
    return [4 * row[f"{kind}_error"] + row["error"] + bias for kind in ("nngp", "ntk")]


def _row(r: dict[str, Any]) -> str:
    cells = [_name(r), f"{r['error']:.1e}" if r["error"] else "0", f"{r['read']:.2f}", f"{r['seconds']:.2f}"]
    draws = r.get("draws", "slow")
    if isinstance(draws, str):
        return f"| {' | '.join(cells)} | {_escaped(draws)} | |"
    *held, falls = near(r)
    for row, holds in zip(draws, held, strict=True):
        parts = [f"{row[kind]:.3f} ± {row[f'{kind}_error']:.3f}" for kind in ("nngp", "ntk")]
        parts += [f"e {row['error']:.1g}"] if row["error"] else []
        cells.append(f"{row['width'] or 'no width'}: {', '.join(parts)}" + ("" if holds else " **apart**"))
    if all(near(r)) and is_noisy(r):
        cells[-1] += " (too noisy to say)"
    cells += [""] * (6 - len(cells))
    if r.get("drawn", r["note"]) != r["note"]:
        cells[-2] = f"({r['drawn']}) {cells[-2]}"
    cells[-1] += "" if falls else " **not nearer**"
    return f"| {' | '.join(cells)} |"


def _name(r: dict[str, Any]) -> str:
    return r["name"] + (" +" if r.get("head") else "") + (f" ({r['note']})" if r["note"] else "")


def _why(r: dict[str, Any]) -> str:
    return _escaped(r["words"] if r["status"] == "refused" else f"**{r['status']}**: {r.get('words', '')}")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
