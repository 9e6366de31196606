"""The tables of docs/results/performance.md, from the JSON that the benchmarks wrote.

    python bench/tables.py            # print them all
    python bench/tables.py --write    # put each between its marks in docs/results/performance.md

A mark is a line `<!-- table: NAME -->`; the table reaches to the next `<!-- end -->`. A benchmark without results
gives "Not yet measured.". A target counts as met to the two decimals that it has.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "results" / "performance.md"
Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def origin(result: Result) -> str:
    """The line below a table: how it was made."""
    machine, versions = result["machine"], result["versions"]
    on = machine["accelerator"] or f"{machine['cpu']}, {machine['threads']} thread of {machine['cores']} cores"
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft", "numpy"))
    return (
        f"\n\n`{result['command']}` at {result['commit']}; {on}, load average {machine['load_average']}; Python "
        f"{machine['python']}, {used}; seed {result['seed']}."
    )


def spread(case: Result) -> str:
    return f"{case['ratio']:.3f} [{case['low']:.3f}, {case['high']:.3f}]"


def cell(case: Result) -> str:
    """Ratio with quartiles, floor and target of a case."""
    text = spread(case)
    if case["floor"] is not None:
        text += f"; floor {case['floor']:.3f}"
    if case["target"] is not None:
        met = round(case["ratio"], 2) <= case["target"]
        text += f"; target {case['target']:g}: " + ("met" if met else "**missed**")
    return text


def pivot(head: str, cells: Sequence[tuple[str, str, str]]) -> str:
    """A table of (row, column, text) with rows and columns in the order of their first appearance."""
    columns = dict.fromkeys(column for _, column, _ in cells)
    by_row: dict[str, dict[str, str]] = {}
    for row, column, text in cells:
        by_row.setdefault(row, {})[column] = text
    rows = [[row, *(found.get(column, "") for column in columns)] for row, found in by_row.items()]
    return table([head, *columns], rows)


def ratios(cases: Sequence[Result]) -> str:
    return pivot("case", [(case["name"], f"of {case['rival']}", cell(case)) for case in cases])


def listed(result: Result) -> str:
    return ratios(result["cases"]) + origin(result)


def inference(result: Result) -> str:
    named = [(*case["name"].split(", batch "), cell(case)) for case in result["cases"]]
    return pivot("of the base's time", [(name, f"batch {batch}", text) for name, batch, text in named]) + origin(
        result
    )


def memory(result: Result) -> str:
    cells = [
        (
            case["name"],
            f"{case['batch']} rows: MiB, of TRL's",
            f"{' '.join(map(str, case['peak_mib']))}, {case['ratio']:.3f}",
        )
        for case in result["cases"]
    ]
    return pivot("case", cells) + origin(result)


def fitting(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        time, errors, mib = case.get("time"), case.get("error_held_out", {}), case["memory_mib"]
        alone = case.get("seconds_with_making_the_pairs")
        rows.append(
            [
                case["prompts"],
                f"{spread(time)} ({1 / time['ratio']:.1f} x faster)" if time else case["numpy"],
                f"{time['seconds']:.1f}, {time['rival_seconds']:.1f}"
                if time
                else f"{alone['wall']:.1f} with the pairs",
                ", ".join(f"{error:.6f}" for error in errors.values()),
                ", ".join(map(str, mib.values())),
            ]
        )
    head = [
        "prompts (8 pairs each)",
        "CPU time",
        "wall s: ours, numpy",
        "held-out error: ours, numpy",
        "MiB: ours, numpy",
    ]
    return table(head, rows) + origin(result)


def packing(result: Result) -> str:
    rates = table(["case", "row tokens a second"], [[name, f"{rate:,}"] for name, rate in result["rates"].items()])
    data = result["data"]
    about = (
        f"{data['rows']} rows of {data['tokens']:,} tokens in all, the longest of {data['longest']}; {data['batch']} "
        f"rows a batch, or one bin of {data['bin']:,} tokens."
    )
    return "\n\n".join([ratios(result["cases"]), rates, about]) + origin(result)


def startup(result: Result) -> str:
    read, per = result["tokens"], result["ratio_per_token"]
    more = (
        f"\n\nTokens read: TRL {read['TRL']:,}, ours {read['sampled']:,}; CPU time a token read: {per:.3f} of TRL's."
    )
    return ratios(result["cases"]) + more + origin(result)


def growth(result: Result) -> str:
    rows = [
        [
            axis,
            ", ".join(
                f"{point['at']}: {point['ratio']['ratio']:.3f} ({point['ratio']['floor']:.3f})"
                for point in found["points"]
            ),
        ]
        for axis, found in result["axes"].items()
    ]
    return table(["axis", "at: time of plain SFT's (floor)"], rows) + origin(result)


def gpu(result: Result) -> str:
    steps = [
        (f"{case['name'].partition(' ')[2]}, of {case['rival']}", name, cell(case))
        for name, shape in result["shapes"].items()
        for case in shape["cases"]
    ]
    answering = []
    for case in result["answering"]:
        name, batch = case["name"].split(", batch ")
        answering.append((name, f"batch {batch}", cell(case)))
    figures = [
        (
            case,
            f"{name}: row tokens/s, MFU, GiB",
            f"{one['row_tokens_per_second']:,}"
            + ("" if one["mfu"] is None else f", {100 * one['mfu']:.1f} %")
            + ("" if one["peak_gib"] is None else f", {one['peak_gib']:.1f}"),
        )
        for name, shape in result["shapes"].items()
        for case, one in shape["figures"].items()
    ]
    parts = [("step", steps), ("answers, of the base's time", answering), ("case", figures)]
    return "\n\n".join(pivot(head, cells) for head, cells in parts if cells) + origin(result)


def gpu_packing(result: Result) -> str:
    ratios = [
        (case["name"].partition(" ")[2], f"{name}, of {case['rival']}", cell(case))
        for name, shape in result["shapes"].items()
        for case in shape["cases"]
    ]
    figures = [
        (
            case,
            name,
            f"{one['row_tokens_per_second']:,}" + ("" if one["mfu"] is None else f", {100 * one['mfu']:.1f} %"),
        )
        for name, shape in result["shapes"].items()
        for case, one in shape["figures"].items()
    ]
    return pivot("case", ratios) + "\n\n" + pivot("row tokens/s, MFU", figures) + origin(result)


TABLES: dict[str, Callable[[Result], str]] = {
    "training_step": listed,
    "parallel_text": listed,
    "recording": listed,
    "packing": packing,
    "memory": memory,
    "inference": inference,
    "fitting": fitting,
    "startup": startup,
    "growth": growth,
    "gpu": gpu,
    "gpu_128_rows": gpu,
    "gpu_8b": gpu,
    "gpu_answers": gpu,
    "gpu_packing": gpu_packing,
}


def made(name: str, folder: Path) -> str:
    path = folder / f"{name}.json"
    if not path.is_file():
        return "Not yet measured."
    return TABLES[name](json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="into docs/results/performance.md")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name in TABLES:
        text = made(name, options.results)
        if options.write:
            mark = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            page, count = mark.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
            if count != 1:
                raise SystemExit(f"{PAGE.name}: {count} marks for the table {name}, expected 1")
        else:
            print(f"## {name}\n\n{text}\n")
    if options.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
