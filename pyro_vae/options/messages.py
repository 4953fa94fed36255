"""Errors of ``pyro-vae`` in one line."""

import re
import sysconfig
import textwrap
import traceback
from pathlib import Path

import torch
from jsonargparse import ArgumentError

from pyro_vae.options.classes import ROOMS, expected


def error_message(error: Exception, name: str) -> str:
    """Return an error in one line, with the line of the user's code; return an empty text for a bug in this package."""
    cause: BaseException | None = error
    while cause:
        if place := _place(cause):
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{place}: {kind}{_short(cause.msg if isinstance(cause, SyntaxError) else str(cause))}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), flags=re.IGNORECASE)
        advice = "Use a smaller latent, network, likelihood, prior or batch_size, or fewer draws."
        return f"Out of memory{f', allocating {size[1]}' if size else ''}. {advice}"
    if isinstance(error, OverflowError) or re.search("Overflow when unpacking|without overflow", str(error)):
        return "A number is too large for its type. Use a smaller one."
    if isinstance(error, ArgumentError):
        return f"{_of_parser(str(error), name)} See {name} --help."
    # For a union of types, jsonargparse lists one message per type; pick the one of this package.
    ours = re.search(r"^ *- (Expected (?!an? <class).*)$", str(error), flags=re.MULTILINE)
    if isinstance(error, OSError) and error.strerror:  # raised by the system
        return f"Expected a file or folder that can be read and written; got {str(error.filename)!r}: {error.strerror}."
    return _short(ours[1] if ours else str(error)) if isinstance(error, ValueError | OSError) else ""


def _place(error: BaseException) -> str:
    """Return the file and line of the user's code where an error comes from; empty for other code."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    here, installed = Path.cwd(), {"site-packages", "dist-packages"}
    libraries = (Path(__file__).parent.parent, Path(sysconfig.get_path("stdlib")))
    for name, line in reversed(lines):
        file = Path(name)
        of_library = installed.intersection(file.parts) or any(map(file.is_relative_to, libraries))
        if file.is_relative_to(here) and not of_library:
            return f"{file.relative_to(here)}, line {line}"
    return ""


def _short(message: str) -> str:
    """Return a message in one line, without the shapes of all sites that Pyro adds."""
    return textwrap.shorten(message.partition("Trace Shapes:")[0], 400, placeholder=" ...")


def _of_parser(message: str, name: str) -> str:
    """Return an error of jsonargparse in one line: expected, got."""
    message = re.sub(r"\S{200,}", lambda long: f"{long[0][:100]}...", " ".join(message.split()))
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    got = re.search(r"(?:(?:Got|Given) value|import path string): (.+?)(?:\. Got value|\.?$)", message)
    part = re.search(r"class_path='([\w.]+)'", message)
    kinds = [*dict.fromkeys(re.findall(r"Expected an? (?:<class ')?(.+?)(?:'>)?(?=\. Got| - | Given|$)", message))]
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path(?:=| )'(?:\w+\.)*(\w+)'", message)
        if not (owner or option):
            return f"Expected an option of {name.removeprefix('pyro-vae ')}; got {unknown[1]}."
        return f"Expected an argument of {owner[-1] if owner else option}; got --{option}.{unknown[1]}."
    if absent := re.findall(r"callable class: the following arguments are required: (\w+)", message):
        return f"Expected --{option}.{absent[-1]}, which {part[1] if part else option} requires; got none."
    if option in ROOMS and got:
        number = "a number, or " if kinds and kinds[0].startswith("float") else ""
        value = part[1] if part else re.split(" Given | - ", got[1])[0]
        return f"{expected(option).replace('one of', f'{number}one of')}; got {value}."
    if option and got and kinds:
        kinds = [kind for kind in kinds if kind != "NoneType"] or kinds
        kind = " or ".join(re.sub(r"typing\.Literal\[(.*)\]|(?:\w+\.)*(\w+)", r"\1\2", kind) for kind in kinds)
        value = re.split(" Given | - ", got[1])[0]
        return f"Expected --{option} to be {kind.replace('Sequence', 'a list, as [200, 200]')}; got {value}."
    return re.sub(r'Parser key "([\w.]+)": ', r"--\1: ", message).rstrip(".") + "."
