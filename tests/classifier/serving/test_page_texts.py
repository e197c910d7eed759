"""The texts of the page: both languages have all of them, and none is written anywhere else."""

from __future__ import annotations

import ast
import json
import re
import typing
from pathlib import Path

import pytest

import dist_train
from dist_train.classifier.model_json import Deed
from dist_train.classifier.serving.app import PAGE
from dist_train.classifier.serving.connections import FULL, LATE, MANY

ROOT = Path(dist_train.__file__).parent
TABLES: dict[str, dict[str, str]] = json.loads((PAGE / "texts.json").read_text())
CODE = {path.name: path.read_text() for path in sorted(PAGE.glob("*.js"))}
PAGES = {path.name: path.read_text() for path in sorted(PAGE.glob("*.html"))}
PLURAL = re.compile(r"\.(one|other)$")


def words(text: str) -> list[str]:
    """Return the names of the values that a text is filled with."""
    return sorted(set(re.findall(r"\{(\w+)\}", text)))


def test_languages_have_the_same_texts_with_the_same_values() -> None:
    english, german = TABLES["en"], TABLES["de"]
    assert list(english) == list(german)
    for key in english:
        assert german[key] and words(english[key]) == words(german[key]), key
    same = {key for key in english if english[key] == german[key]}
    assert same <= {"new.name", "class.name", "class.open", "login.token"}  # a text that was not translated


def test_plurals_are_whole_in_both_languages() -> None:
    for table in TABLES.values():
        roots = {PLURAL.sub("", key) for key in table if PLURAL.search(key)}
        for root in roots:
            assert {f"{root}.one", f"{root}.other"} <= set(table) and root not in table
            assert "{n}" in table[f"{root}.other"]


def test_every_text_that_is_asked_for_exists_and_every_text_is_asked_for() -> None:
    asked = {key for text in PAGES.values() for key in re.findall(r'data-(?:text|label|hint)="([^"]*)"', text)}
    strings = {key for text in CODE.values() for key in re.findall(r'"([a-z]+(?:\.[a-z]+)*)"', text)}
    called = {key for text in CODE.values() for key in re.findall(r'\bt\("([^"]*)"', text)}
    keys = {PLURAL.sub("", key) for key in TABLES["en"]} - {"language.name"}
    assert asked | called <= keys
    together = {key for key in keys if key.startswith(("about.", "deed.", "error."))}  # their keys are put together
    assert keys - asked - strings - together == set()


def test_every_change_and_every_fault_that_the_server_names_has_its_text_and_no_other_has() -> None:
    """The second word of ``UserError``, the third of ``Refusal`` and ``error_response`` name a fault."""
    keys = {PLURAL.sub("", key) for key in TABLES["en"]}
    kinds = typing.get_args(typing.get_type_hints(Deed)["kind"])
    assert {key for key in keys if key.startswith("deed.")} == {f"deed.{kind}" for kind in (*kinds, "undone", "more")}
    named, places = set[str](), {"UserError": 1, "Refusal": 2, "error_response": 2}
    for path in ROOT.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in places:
                for word in call.args[(place := places[call.func.id]) : place + 1]:
                    constants = [leaf.value for leaf in ast.walk(word) if isinstance(leaf, ast.Constant)]
                    named |= {value for value in constants if isinstance(value, str) and value}
    named |= {notice.kind for notice in (FULL, LATE, MANY)} | {
        "photo.large",
        "photo.long",
    }  # chosen before they are named
    assert {key for key in keys if key.startswith("error.")} - {
        "error.unreachable",
        "error.code",
        "error.english",
    } == {f"error.{kind}" for kind in named}


def test_a_fault_without_a_code_is_said_as_the_server_says_it() -> None:
    assert all("{detail}" in table["error.english"] for table in TABLES.values())


class _Reader:
    """Collect what an HTML file shows or says: its texts, and the attributes that are read out."""

    def __init__(self, text: str) -> None:
        from html.parser import HTMLParser

        self.said: list[str] = []
        parser = HTMLParser()
        parser.handle_data = lambda data: self.said.append(data.strip())  # type: ignore[method-assign]
        parser.handle_starttag = self._read  # type: ignore[method-assign]
        parser.feed(text)

    def _read(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        read_out = ("alt", "title", "placeholder", "aria-label", "value")
        self.said += [
            value or "" for name, value in attributes if name in read_out and tag not in ("progress", "option")
        ]


@pytest.mark.parametrize("name", PAGES)
def test_no_text_is_written_in_a_page(name: str) -> None:
    said = {text for text in _Reader(PAGES[name]).said if text}
    assert said <= {"dist_train", "i", "×"}


@pytest.mark.parametrize("name", CODE)
def test_no_text_is_written_in_the_code(name: str) -> None:
    """A string of two words or more, or one that begins with a capital letter and goes on in small letters, is a text;
    ``{...}`` of a template is code."""
    code = re.sub(r"/\*.*?\*/|(?m:^|(?<=\s))//[^\n]*", "", CODE[name], flags=re.DOTALL)
    strings = re.findall(r'"((?:[^"\\\n]|\\.)*)"', code)
    strings += [re.sub(r"\$\{[^}]*\}", "", text) for text in re.findall(r"`([^`]*)`", code)]
    texts = {text for text in strings if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}|^[A-Z][a-z]{2,}\b", text)}
    classes = set(re.findall(r'className: "([^"]*)"', code))
    assert texts - classes <= {"Content-Type"}


def test_the_pages_load_nothing_from_elsewhere_and_only_files_that_exist() -> None:
    for text in [*PAGES.values(), *CODE.values(), (PAGE / "page.css").read_text()]:
        assert not re.search(r"https?://(?!www\.w3\.org/)|url\(|@import", text)
        for path in re.findall(r'(?:src|href)="(page/[^"]*)"', text) + re.findall(r'from "\./([^"]*)"', text):
            assert (PAGE / Path(path).relative_to("page" if path.startswith("page/") else "")).is_file(), path
