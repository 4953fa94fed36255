"""Messages, docstrings and pages are in plain words: the turns of phrase that a reader reads twice are in none."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATTERNS = [
    r"as (it|they) (was|were|is|are)\b",
    r"\b(goes|going|went|go|gone) on\b",
    r"\b(is|are|be|was) said\b",
    r"\bsays? (so|which|how)\b",
    r"\banew\b",
    r"\bof (its|their|his|your|our) own\b",
    r"\bwhat (is|are|was|were)\b",
    r"\bthose of\b",
    r"\bothers\b",
    r"\bnone that\b",
    r"\bbe had\b",
    r"\blaws?\b",
]
PLAIN = re.compile("|".join(PATTERNS), re.IGNORECASE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FILES = sorted([*(ROOT / "pyro_vae").rglob("*.py"), *(ROOT / "experiments").glob("*.py")])


def texts(file):
    """Yield the line and the text of each message and of the first line of each docstring."""
    tree = ast.parse(file.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            docstrings.add(id(node.body[0].value))
            yield node.body[0].lineno, ast.get_docstring(node).splitlines()[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_and_first_lines_are_in_plain_words(file):
    matches = [f"{line}: {text!r}" for line, text in texts(file) if " " in text and PLAIN.search(text)]
    assert not matches, "\n".join(matches)
