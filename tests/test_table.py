"""Tables are plain text: no colours, no markup, nothing cut."""

from __future__ import annotations

import pytest

from jaxinit._table import render_table


def test_numbers_stand_to_the_right_and_words_to_the_left():
    rows = [("a", 1, 0.5, "1,024 MiB"), ("long name", None, 1e-9, "2 B"), ("c", -20, None, "")]
    assert (
        render_table(["name", "n", "std", "size"], rows)
        == """\
name         n    std       size
────────────────────────────────
a            1    0.5  1,024 MiB
long name       1e-09        2 B
c          -20"""
    )


def test_a_title_and_no_rows():
    assert (
        render_table(["path", "what"], [], title="Nothing")
        == """\
Nothing
path  what
──────────"""
    )


def test_nothing_is_markup():
    text = render_table(["[bold]x[/bold]"], [("[red]a[/red]",), (":smile:",), ("\x1b",)])
    assert "[bold]x[/bold]" in text
    assert "[red]a[/red]" in text
    assert ":smile:" in text


def test_without_a_width_nothing_is_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = render_table(["path", "value"], [("a" * 300, "b" * 300)])
    assert text.splitlines()[-1] == f"{'a' * 300}  {'b' * 300}"


def test_a_width_wraps_and_loses_nothing():
    text = render_table(["path", "n"], [("abcdefghij" * 5, 7)], max_width=24)
    assert max(map(len, text.splitlines())) <= 24
    assert "".join(text.split()).count("abcdefghij") >= 2
    assert sum(text.count(letter) for letter in "cdefg") == 25


def test_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"^render_table needs 2 cells .* got 1 in row 1: \['b'\]"):
        render_table(["x", "y"], [("a", 1), ("b",)])
