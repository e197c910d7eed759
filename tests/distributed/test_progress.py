"""Long work that shows itself on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable

import pytest

from dist_train.distributed.pool import working


class Terminal(io.StringIO):
    """A terminal that remembers what it was sent; ``shown`` is set at the first text."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.strip():
            self.shown.set()
        return written


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """``on_terminal()`` makes standard error a terminal; within a test, as pytest sets its own before."""

    def put() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return put


def test_work_that_lasts_is_named_and_the_line_goes_with_it(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with working("export to onnx"):
        assert terminal.shown.wait(60)
    text = terminal.getvalue()
    assert "export to onnx ... 00:0" in text and "\n" not in text
    assert text.endswith("\r") and not text.rstrip("\r").rsplit("\r", 1)[-1].strip()  # the last line drawn is empty


def test_short_work_and_what_is_not_to_be_shown_print_nothing(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    before = threading.active_count()
    with working("short"):
        pass
    with working("of another rank", show=False):
        assert threading.active_count() == before
    assert terminal.getvalue() == "" and threading.active_count() == before


def test_an_error_ends_the_line_too(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    before = threading.active_count()
    with pytest.raises(ValueError, match="bad"), working("fit"):
        assert terminal.shown.wait(60)
        raise ValueError("bad")
    assert threading.active_count() == before


def test_a_log_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    before = threading.active_count()
    with working("fit"):
        assert threading.active_count() == before
    assert log.getvalue() == ""
