"""What a run has committed and spent, as a table."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Column, Table

from ka2l_ray.errors import UserError
from ka2l_ray.evaluation import headline
from ka2l_ray.ledger import Ledger
from ka2l_ray.store.artefacts import RunStore

WIDTH = 140  # columns, where there is no terminal


def status_table(run: str) -> None:
    """Print every artefact of a run with its key and cost.

    Raises:
        UserError: no run there.
    """
    store = RunStore(run)
    if not store.manifest:
        raise UserError(f"{run}: no run there (manifest.json is missing or empty); give a directory that ka2l run wrote")
    ledger = Ledger(store)
    table = Table(
        Column("artefact", no_wrap=True), Column("key", no_wrap=True), "rows", "seconds", "tokens", "judge calls", "labels", ""
    )
    for spending in ledger.spendings():
        entry = store.manifest[spending.artefact]
        table.add_row(
            spending.artefact,
            entry.key,
            str(spending.rows),
            f"{spending.seconds:.1f}",
            str(spending.tokens),
            str(spending.judge_calls),
            str(spending.labels),
            f"from {entry.reused_from}" if spending.reused else "",
        )
    totals = ledger.totals()
    table.add_section()
    spent = (f"{totals['seconds']:.1f}", str(totals["tokens"]), str(totals["judge_calls"]), str(totals["labels"]))
    table.add_row("spent by this run", "", "", *spent, "")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    for name, entry in store.manifest.items():
        if "by_exact_match" in entry.facts:
            console.print(f"{name}: {headline(entry.facts)}", markup=False, highlight=False)
