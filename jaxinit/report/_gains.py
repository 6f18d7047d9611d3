"""What `jaxinit gain` does: opens an activation and sums up what is known of it."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from jaxinit.activations import Summary, summary
from jaxinit.report._errors import as_unusable
from jaxinit.report._render import new_table
from jaxinit.report._targets import loaded

_TORCH = "torch:"


def gain_row(target: str, inputs: int | None = None) -> Summary:
    """The summary of an activation.

    Args:
        target: a name of the catalogue, or ``module:attribute`` / ``file.py:attribute``;
            ``torch:NAME`` is the activation whose number in torch is wanted.
        inputs: how many inputs a callable takes.

    Raises:
        Unusable: when there is no such name, nothing usable is there, or it is no activation.
    """
    name = target.strip().removeprefix(_TORCH)
    if ":" not in name:
        with as_unusable():
            return summary(name, inputs=inputs)
    with loaded(target) as found, as_unusable(f"TARGET: {found.text}: ", found.source):
        return summary(found.value, inputs=inputs)


def print_gain(console: Console, row: Summary) -> None:
    """Prints the summary: a table, torch's number with what differs, and warnings."""
    known, pair = row.moments, row.critical
    table = new_table(["", "value", "what it is"], ["value"])
    for label, value, meaning in (
        ("E f", known.mean, "mean of the output, for N(0, 1) in"),
        ("E f^2", known.second_moment, "its second moment"),
        ("E f'^2", known.derivative_second_moment, "second moment of the slope"),
        ("forward gain", row.forward_gain, "keeps the second moment of signals"),
        ("backward gain", row.backward_gain, "keeps the second moment of gradients"),
        ("chi1", row.chi1, "growth of gradients at the forward gain"),
        ("Q'(1)", row.slope, "slope of the length map; above 1 unstable"),
        ("torch gain", row.torch and row.torch.gain, "torch.nn.init.calculate_gain"),
        ("C_W", pair and pair.weight_variance, "critical weight variance, times fan_in"),
        ("C_b", pair and pair.bias_variance, "critical bias variance"),
        ("q*", pair and pair.variance, "variance of the signal there"),
    ):
        table.add_row(label, "none" if value is None else f"{value:.9g}", meaning)
    console.print(Text(row.name, "bold cyan"))
    console.print(table)
    if row.torch:
        console.print(f"\n{row.torch}")
    if row.no_critical:
        console.print(f"\nNo critical pair: {row.no_critical}.")
    for warning in row.warnings:
        console.print(Text(f"\nwarning: {warning}", "bold yellow"))
