"""One sentence for what is wrong."""

from __future__ import annotations

import re
import sysconfig
import textwrap
import traceback
from pathlib import Path

import torch
from jsonargparse import ArgumentError

from pyro_vae.options.rooms import ROOMS, expected

__all__ = ["sentence"]


def sentence(error: Exception, name: str) -> str:
    """Say in one sentence what is wrong, with file and line where it is in the user's code.

    Arguments:
        error: What a command raised.
        name: The command, whose ``--help`` says more.

    Returns:
        Nothing if the error is neither in the user's code nor one of bad input.
    """
    cause: BaseException | None = error
    while cause:
        if place := _place(cause):
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{place}: {kind}{_short(cause.msg if isinstance(cause, SyntaxError) else str(cause))}"
        cause = cause.__cause__ or cause.__context__
    if too_large := _too_large(error):
        return too_large
    if isinstance(error, ArgumentError):
        return f"{_one_sentence(str(error))} See {name} --help."
    # Of a union of types jsonargparse lists what each said; ours is the sentence.
    ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
    if isinstance(error, OSError) and error.strerror:  # the system's own
        return f"Expected a file or folder that can be read and written; got {str(error.filename)!r}: {error.strerror}."
    return _short(ours[1] if ours else str(error)) if isinstance(error, ValueError | OSError) else ""


def _too_large(error: Exception) -> str:
    """Say it where a number is too large for memory, or for the bits that numbers have."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), flags=re.IGNORECASE)
        return (
            f"Expected what fits into memory; got more{f', {size[1]} at a time' if size else ''}. "
            "Use a smaller latent, network, likelihood, prior or batch_size, or fewer draws."
        )
    if isinstance(error, OverflowError) or re.search("Overflow when unpacking|without overflow", str(error)):
        return "Expected numbers that fit into the bits a computer has for them; got one too large. Use a smaller one."
    return ""


def _place(error: BaseException) -> str:
    """Return the file and line of the user's own code where an error comes from, if it does."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    here, others = Path.cwd(), (Path(__file__).parent.parent, Path(sysconfig.get_path("stdlib")))
    for name, line in reversed(lines):
        file = Path(name)
        installed = {"site-packages", "dist-packages"}.intersection(file.parts) or any(
            file.is_relative_to(other) for other in others
        )
        if file.is_relative_to(here) and not installed:
            return f"{file.relative_to(here)}, line {line}"
    return ""


def _short(message: str) -> str:
    """One line, without the shapes of every site that Pyro adds."""
    return textwrap.shorten(message.partition("Trace Shapes:")[0], 400, placeholder=" ...")


def _one_sentence(message: str) -> str:
    """Say what jsonargparse found wrong in one line: expected, got."""
    message = re.sub(r"\S{200,}", lambda long: f"{long[0][:100]}...", " ".join(message.split()))
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if absent := re.findall(r"callable class: the following arguments are required: (\w+)", message):
        return f"Expected --{option}.{absent[-1]}, which {part[1] if part else option} must be given; got none."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        found = part[1] if part else re.split(" Given | - ", got[1])[0]
        return f"{expected(option).replace('one of', f'{number}one of')}; got {found}."
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        found = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {found}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
