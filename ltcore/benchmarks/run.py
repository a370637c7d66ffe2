"""Execution of benchmarks, with a table and a JSON file of the results."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from ltcore.benchmarks.harness import MET, NO_AIM, Section
from ltcore.benchmarks.machine import state, warning
from ltcore.benchmarks.options import BENCHES, Options
from ltcore.reporting.terminal import Terminal, styled
from ltcore.storage import write_bytes_atomic
from ltcore.text import counted

SCHEMA = 1


def bench(options: Options) -> dict[str, Any]:
    """Measures everything and writes it to ``options.output``; prints each section when it is done."""
    console = Terminal()
    began, started_at = time.monotonic(), datetime.datetime.now(datetime.UTC)
    machine = state()
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "command": sys.argv,
        "what": options.what,
        "rounds": options.turns,
        "quick": options.quick,
        "data": options.data,
        "started_at": started_at.isoformat(timespec="seconds"),
        "hardware": machine,
        "warning": warning(machine["load_average"][0]),
        "sections": [],
    }
    console.print(hardware_line(machine))
    if document["warning"]:
        console.print(f"WARNING: {document['warning']}", style="bold yellow")
    for name in BENCHES if options.what == "all" else (options.what,):
        if name == "large" and options.what == "all" and options.data is None:
            console.print("large: not measured, it needs real JPEGs (--data)")
            continue
        for section in sections_of(name, options):
            show(console, section)
            document["sections"].append({"bench": name, **section.plain()})
            document["seconds"] = time.monotonic() - began
            write_bytes_atomic(options.output, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    console.print(f"All measurements: {options.output}")
    return document


def sections_of(name: str, options: Options) -> Iterable[Section]:
    """Runs one benchmark. Imports only what it needs: half of them need no Ray."""
    if name == "ladder":
        from ltcore.benchmarks.ladder import ladder

        return ladder(options)
    if name == "sweep":
        from ltcore.benchmarks.sweep import sweep

        return sweep(options)
    if name == "memory":
        from ltcore.benchmarks.memory import memory

        return memory(options)
    if name == "large":
        from ltcore.benchmarks.large import large

        return large(options)
    if name == "glt":
        from ltcore.benchmarks.glt import glt

        return glt(options)
    if name == "scale":
        from ltcore.benchmarks.scale import scale

        return [*scale(options), *_of_real_trials(options)]
    if name == "gpu":
        from ltcore.benchmarks.gpu import gpu

        return gpu(options)
    from ltcore.benchmarks.losses import losses

    return losses(options)


def _of_real_trials(options: Options) -> Sequence[Section]:
    if not options.trials:
        return []
    from ltcore.benchmarks.trials import real_trials

    return real_trials(options)


def hardware_line(machine: dict[str, Any]) -> str:
    """Describes the machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    load = machine["load_average"][0]
    return (
        f"{machine['cpu']}: {counted(machine['allocated_cpus'], 'CPU')}{gpus}; torch threads {machine['torch_threads']}; "
        f"load {load:.2f} at the start; {versions}"
    )


def show(console: Terminal, section: Section) -> None:
    """Prints a section as a table."""
    unit = section.unit
    table = Table(title=section.title, title_justify="left")
    for name in ("rung", f"{unit} (median)", "peer", f"peer {unit}", "ratio", "wanted", "verdict"):
        table.add_column(name, overflow="fold")
    for rung in section.rungs:
        verdict = section.verdict(rung)
        style = "" if verdict == NO_AIM else "green" if verdict == MET else "yellow"
        table.add_row(
            rung.name,
            readable(section.median(rung.name)),
            rung.peer,
            readable(section.median(rung.peer)),
            f"{section.ratio(rung):.3g}",
            str(rung.aim or "-"),
            styled((verdict, style)),
        )
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}")


def readable(value: float) -> str:
    """Formats a number with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
