"""The results of `benchmarks.models` as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENGINES = ("ONNX Runtime fp32", "ONNX Runtime int8", "PyTorch eager", "torch.compile")
LARGEST = 6
"""Operators that are named; the others are summed up."""
WANTED = 2.0
"""Times that int8 shall be faster than float32, of the paper's full-size network at this batch."""
WANTED_BATCH = 16

Results = dict[str, Any]
Cell = dict[str, Any]


def render(results: Results) -> str:
    """Everything, in Markdown."""
    models = measured(results)
    made = {(part["date"], part["machine"], part["note"]) for part in results.values()}
    lines = [
        "# What models cost",
        "",
        *(
            f"`python -m benchmarks.models`, {date}, {machine}.{' ' + note if note else ''}"
            for date, machine, note in sorted(made)
        ),
        "",
        "Milliseconds of a batch: median of rounds in which the engines take turns, in brackets the middle 80 % of the",
        "rounds. Shipped models as they are shipped, all other networks with fresh weights; int8 by the product's own",
        "quantiser, which leaves out the transformers. Where the brackets are wide, others used the machine meanwhile.",
        "",
        "![Times of the engines, and what grows](models.png)",
        "",
        *_int8(models),
        *(_choices(results["int8"]) if "int8" in results else ()),
        *_times(models),
        *_profiles(models),
        *_first(models),
        *(_growth(results["growth"]) if "growth" in results else ()),
    ]
    return "\n".join([*lines, ""])


def measured(results: Results) -> Results:
    """The networks among the parts, by name."""
    return {name: part for name, part in sorted(results.items()) if "times" in part}


def cells(part: Cell) -> dict[tuple[str, int, int], Cell]:
    """Times by engine, threads and batch."""
    return {(time["engine"], time["threads"], time["batch"]): time for time in part["times"]}


def speedup(part: Cell, threads: int, batch: int) -> float:
    """How many times faster int8 is."""
    found = cells(part)
    fp32, int8 = (found[f"ONNX Runtime {precision}", threads, batch]["ms"] for precision in ("fp32", "int8"))
    return float(fp32 / int8)


def _int8(models: Results) -> Iterator[str]:
    if "paper_multi" not in models:
        return
    part = models["paper_multi"]
    ratios = {threads: speedup(part, threads, WANTED_BATCH) for threads in (1, 2)}
    verdict = "met" if min(ratios.values()) >= WANTED else "missed"
    found = ", ".join(
        f"{ratio:.2f} times on {threads} thread{'s' * (threads > 1)}" for threads, ratio in ratios.items()
    )
    wanted = f"{WANTED:g} times are wanted: {verdict}"
    yield f"**int8 against float32**, {part['title']}, batch {WANTED_BATCH}: {found}; {wanted}."
    yield "That is speed alone, with fresh weights and every layer that may be quantised: what int8 costs a trained"
    yield "network of this size in accuracy is not measured. `stn export` leaves out layers that harm, which makes it"
    yield "slower, and refuses what loses more than 0.2 points."
    yield ""


def _choices(part: Cell) -> Iterator[str]:
    yield "Its choices, in turn, and how many times faster than float32 each is. `stn export` quantises all but the"
    yield "transformers. Where they stand between convolutions, as here, these are looked at as well, and theta moves a"
    yield "little: leaving them in float32, so that it stays as it is, costs what the last line but one shows."
    yield "Localisation in int8, too, brings next to nothing; scales, bits and format cost nothing."
    yield ""
    yield "| | 1 thread | | 2 threads | |"
    yield "|---|---:|---:|---:|---:|"
    found = {(row["choice"], row["threads"]): row for row in part["rows"]}
    for choice in dict.fromkeys(row["choice"] for row in part["rows"]):
        columns = [
            f"{_spread(found[choice, threads])} | {found['float32', threads]['ms'] / found[choice, threads]['ms']:.2f}"
            for threads in (1, 2)
        ]
        yield f"| {choice} | {' | '.join(columns)} |"
    yield ""


def _times(models: Results) -> Iterator[str]:
    for threads in (2, 1):
        yield f"## Against PyTorch, {threads} thread{'s' * (threads > 1)}"
        yield ""
        yield f"| | batch | {' | '.join(ENGINES)} | int8 faster | than eager | than compiled |"
        yield f"|---|---:|{'---:|' * (len(ENGINES) + 3)}"
        for part in models.values():
            found = cells(part)
            for batch in sorted({batch for _, count, batch in found if count == threads}):
                row = {engine: found[engine, threads, batch] for engine in ENGINES}
                fp32 = row[ENGINES[0]]["ms"]
                eager, compiled = (row[engine]["ms"] / fp32 for engine in ENGINES[2:])
                times = " | ".join(_spread(cell) for cell in row.values())
                ratios = f"{speedup(part, threads, batch):.2f} | {eager:.2f} | {compiled:.2f}"
                yield f"| {part['title']} | {batch} | {times} | {ratios} |"
        yield ""
    yield "The last columns: how many times faster int8 is than float32, and float32 in ONNX Runtime than PyTorch."
    yield ""


def _profiles(models: Results) -> Iterator[str]:
    yield "## Where the time goes"
    yield ""
    yield "ONNX Runtime's profiler, one thread, each operator as it runs after fusion. The transformers' share is that"
    yield "of localisation, grid and `GridSample`."
    yield ""
    yield "| | precision | batch | transformers | operators |"
    yield "|---|---|---:|---:|---|"
    for part in models.values():
        for each in part["profiles"]:
            total = sum(ms for _, ms in each["operators"])
            named = [f"{name} {100 * ms / total:.1f} %" for name, ms in each["operators"][:LARGEST]]
            rest = 100 * sum(ms for _, ms in each["operators"][LARGEST:]) / total
            share = f"{each['transformer_percent']:.1f} %"
            what = f"{', '.join(named)}, others {rest:.1f} %"
            yield f"| {part['title']} | {each['precision']} | {each['batch']} | {share} | {what} |"
    yield ""


def _first(models: Results) -> Iterator[str]:
    yield "## To the first answer"
    yield ""
    yield "Seconds of a new process with two threads, of one image: importing + loading + first run. Medians of five;"
    yield "torch.compile once, with an empty cache. Loading is building the network, for PyTorch."
    yield ""
    yield f"| | {' | '.join(ENGINES)} |"
    yield f"|---|{'---:|' * len(ENGINES)}"
    for part in models.values():
        times = []
        for engine in ENGINES:
            seconds = part["first"][engine].values()
            times.append(f"**{sum(seconds):.2f}** = {' + '.join(f'{each:.2f}' for each in seconds)}")
        yield f"| {part['title']} | {' | '.join(times)} |"
    yield ""


def _growth(part: Cell) -> Iterator[str]:
    yield "## As networks grow"
    yield ""
    yield f"ONNX Runtime fp32, {part['threads']} threads, one image; batches are in the tables above."
    yield ""
    for grows, unit in (("size", "image, px"), ("transformers", "transformers")):
        rows = [row for row in part["rows"] if row["grows"] == grows]
        networks = list(dict.fromkeys(row["network"] for row in rows))
        found = {(row["network"], row["value"]): row for row in rows}
        yield f"| {unit} | {' | '.join(f'{network}, ms | file, MB' for network in networks)} |"
        yield f"|---:|{'---:|---:|' * len(networks)}"
        for value in sorted({row["value"] for row in rows}):
            columns = [f"{_spread(found[name, value])} | {found[name, value]['megabytes']:.1f}" for name in networks]
            yield f"| {value} | {' | '.join(columns)} |"
        yield ""


def _spread(cell: Cell) -> str:
    digits = 2 if cell["ms"] < 10 else 1 if cell["ms"] < 100 else 0
    return f"{cell['ms']:.{digits}f} ({cell['low_ms']:.{digits}f} to {cell['high_ms']:.{digits}f})"


def draw(results: Results, path: Path) -> None:
    """Three panels: the engines, image sizes, numbers of transformers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    engines, size, transformers = figure.subplots(1, 3)
    models = measured(results)
    for index, engine in enumerate(ENGINES):
        batches = [max(batch for _, _, batch in cells(part) if batch <= WANTED_BATCH) for part in models.values()]
        pairs = zip(models.values(), batches, strict=True)
        ms = [cells(part)[engine, 2, batch]["ms"] / batch for part, batch in pairs]
        engines.bar([place + 0.2 * index - 0.3 for place in range(len(models))], ms, 0.2, label=engine)
    engines.set_xticks(range(len(models)), models, fontsize="small", rotation=15)
    engines.set(yscale="log", ylabel="ms an image", title="batch 16 (birds 8), 2 threads")
    engines.set_ylim(top=4 * engines.get_ylim()[1])  # room for the legend
    engines.legend(fontsize="small", loc="upper center", ncols=2)
    rows = results["growth"]["rows"] if "growth" in results else []
    for axis, grows, title in ((size, "size", "pixels a side"), (transformers, "transformers", "transformers")):
        for network in dict.fromkeys(row["network"] for row in rows if row["grows"] == grows):
            found = [row for row in rows if row["network"] == network and row["grows"] == grows]
            axis.plot([row["value"] for row in found], [row["ms"] for row in found], "-o", label=network)
        axis.set(xlabel=title, ylabel="ms of one image", ylim=(0, None))
        axis.grid(alpha=0.3)
        if rows:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
