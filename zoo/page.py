"""The page of the zoo, made from its results."""

from __future__ import annotations

from collections import Counter
from typing import Any

SERVED, STRUCTURE = 0.95, 0.80  # bars: of the models that are functions of one sample, of their weights
WAYS = ("structure", "formed", "contraction")
REASON = 120  # characters of a reason
Results = dict[str, dict[str, Any]]

HEAD = """# The zoo

`make zoo` makes this page: models of other libraries with random weights in small configurations, each
through `EmpiricalNTK` in a process of its own, on three different samples.

- *structure*, *formed*, *contraction*: the share of the weights that went this way ([finite.md](finite.md)).
- *error*: the largest difference of the kernel, full and as mean over the outputs, from that of
  `torch.autograd.grad` of the module itself, one sample and one output at a time, over its largest value. All
  weights are float64 and the bar is 1e-9; it is 1e-5 for models marked ³², which cast to float32 inside.
- *first*: seconds of the first call, with its proofs, on other samples, of which nothing is masked; *s*: of
  the next one, the faster of two where it takes less than two seconds; *MiB*: the most by which the resident
  memory of the process grew in it (Linux: VmHWM, set back before).
- *loop*: seconds and MiB of the plain loop that the error is measured from; *vmap*: those of `vmap(jacrev)`
  of `functional_call`, or - where torch cannot. All run on one thread.
"""


def page(results: Results) -> tuple[str, list[str]]:
    """Return the page, and the bars that were missed."""
    summary, missed = _summary(results)
    lines = [HEAD, *summary, *_reasons(results)]
    for library in dict.fromkeys(key.partition("/")[0] for key in results):
        rows = {k: r for k, r in results.items() if k.startswith(f"{library}/")}
        number = next(iter(rows.values()))["versions"][library]
        lines += ["", f"## {library} {number}", ""]
        lines += [
            "| model | weights | structure | formed | contraction | error | first | s | MiB | loop | vmap |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
        lines += [_row(r) for r in rows.values() if "shares" in r]
        others = [r for r in rows.values() if "shares" not in r]
        if others:
            lines += ["", "| not served | why |", "|---|---|"]
            lines += [f"| {_name(r)} | {_escaped(_why(r))} |" for r in others]
    return "\n".join(lines) + "\n", missed


def _summary(results: Results) -> tuple[list[str], list[str]]:
    """Return the lines that compare with the bars, and those of them that are missed."""
    functions = [r for r in results.values() if r["per_sample"]]
    served = [r for r in functions if r["status"] == "served"]
    shares: Counter[str] = Counter()
    for r in served:
        shares.update(r["shares"])
    share = shares["structure"] / max(1, shares.total())
    mean, known = (
        sum(sum(r["shares"].get(way, 0) for way in ways) / r["weights"] for r in served) / max(1, len(served))
        for ways in (("structure",), ("structure", "formed"))
    )
    states = Counter(r["status"] for r in results.values())
    foreign = sum(states[s] for s in ("foreign", "crashed", "late", "broken"))
    bars = [
        (f"silently wrong: {states['wrong']} (bar 0)", states["wrong"] == 0),
        (f"other errors than ntkit's own, crashes, late ends: {foreign} (bar 0)", foreign == 0),
        (
            f"functions of one sample served: {len(served)} of {len(functions)} (bar {SERVED:.0%})",
            len(served) >= SERVED * len(functions),
        ),
        (
            f"weights by structure, as a mean over the models served: {mean:.1%} (bar {STRUCTURE:.0%}); "
            f"{known:.1%} with those that are formed, {share:.1%} of all weights together",
            mean >= STRUCTURE,
        ),
    ]
    total = len(results)
    refused = sum(not r["per_sample"] and r["status"] == "refused" for r in results.values())
    lines = [
        f"{total} models; {refused} of the {total - len(functions)} that are no functions of one sample are "
        "refused.",
        "",
        *(f"- {text}: {'met' if reached else '**missed**'}" for text, reached in bars),
        *_sources(results),
    ]
    return lines, [text for text, reached in bars if not reached]


def _sources(results: Results) -> list[str]:
    """Return a line that says so where the results are of several states of ntkit's sources."""
    counts = Counter(r["versions"].get("ntkit") for r in results.values()).most_common()
    if len(counts) < 2:
        return []
    told = ", ".join(f"{count} of {name}" for name, count in counts)
    return [
        "",
        f"The results are of several states of ntkit's sources (first digits of their SHA-256): {told}.",
    ]


def _reasons(results: Results) -> list[str]:
    """Return the table of why weights went another way than by structure."""
    shares: dict[str, dict[str, float]] = {}
    for key, r in results.items():
        for reason, size in r.get("reasons", {}).items():
            shares.setdefault(reason[:REASON], {})[key] = size / r["weights"]
    lines = ["", "| not by structure, and why | models | such as |", "|---|---|---|"]
    for reason, found in sorted(shares.items(), key=lambda item: -sum(item[1].values())):
        most = sorted(found, key=lambda key: -found[key])[:3]
        examples = ", ".join(f"{key} ({found[key]:.0%})" for key in most)
        lines.append(f"| {_escaped(reason)} | {len(found)} | {examples} |")
    return lines


def _row(r: dict[str, Any]) -> str:
    shares = [f"{r['shares'].get(way, 0) / max(1, r['weights']):.0%}" for way in WAYS]
    error = f"{r['error']:.0e}" if "error" in r else ""
    if r["status"] != "served":
        error = f"**{error} {r['status']}**"
    own = r["ntkit"]
    cells = [_name(r), f"{r['weights']:,}", *(s if s != "0%" else "" for s in shares), error]
    cells += [f"{own['first']:.2f}", f"{own['seconds']:.3f}", _mib(own["peak"])]
    cells += [_peer(r.get("loop")), _peer(r.get("vmap"))]
    return f"| {' | '.join(cells)} |"


def _peer(figures: Any) -> str:
    return f"{figures['seconds']:.3f}, {_mib(figures['peak'])}" if isinstance(figures, dict) else "-"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def _name(r: dict[str, Any]) -> str:
    return r["name"] + ("³²" if r.get("float32") else "") + (f" ({r['note']})" if r["note"] else "")


def _why(r: dict[str, Any]) -> str:
    if r["status"] == "refused":
        return ("" if r["per_sample"] else "no function of one sample: ") + r["words"]
    return f"**{r['status']}**: {r['words']}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
