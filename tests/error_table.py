"""Writes docs/errors.md, the table of every message of a `UserError`, from the code that raises it.

Run `python tests/error_table.py` after a message has changed; `test_error_table.py` compares the two.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "detr_jax"
PAGE = ROOT / "docs" / "errors.md"

HEAD = """# Error messages

What a user can mend is reported as `error: MESSAGE`, without a traceback and with exit status 1. In Python,
the same message is that of a `UserError` of [detr_jax/errors.py](../detr_jax/errors.py). Exhausted memory of
a device is reported in the same way, with the settings that need less. An exception with a traceback is a
fault of this package: please report it.

This page lists every message by the module that makes it, in the order of the code. A name in braces stands
for a value. The cause is taken from the docstring. The last column repeats what the message says to do; where
it is empty, the line above the table applies. `python tests/error_table.py` writes this page from the code.
"""

# What to do about messages that do not say it, by the path of the module: the first that fits.
REMEDIES = {
    "config.py": "correct the field; `python main.py --config=FILE --help` lists all fields",
    "config_rules.py": "correct the field or the JSON file that is named",
    "data/image": "convert or replace the image; `data.max_pixels` limits its size",
    "data/pixels.py": "convert the image to 8 bits per channel",
    "data/tfds.py": "prepare the data with `detr-jax tfds --data_dir=DIR`",
    "data/": "correct the file or the setting that is named; `detr-jax check FOLDER` lists all problems",
    "runtime/": "choose another workdir, or change what is named",
    "training/checkpoints.py": "set `--config.checkpoint.fallback=True`, or choose another workdir",
    "training/": "lower `optim.learning_rate`, or correct the setting that is named",
    "weights/": "use an undamaged copy, or a checkpoint of this model",
    "": "correct the argument, setting or file that is named",
}
VERBS = (
    "add|choose|convert|copy|correct|delete|download|export|install|lower|make|merge|move|name|omit|pass|pip|"
    "pull|read|remove|rename|repair|replace|rerun|restore|rewrite|run|save|select|set|split|start|take|try|update|use"
)
SAYS_WHAT_TO_DO = re.compile(rf"(?:[:;,] |\. )(?:or )?((?:{VERBS}) .*)", re.DOTALL | re.IGNORECASE)


LISTS = ("Iterator[str]", "str | None")  # what functions return that list problems


class Message(NamedTuple):
    """A message of the package.

    Attributes:
      module: Path of the module within the package.
      text: The message, with names in braces for values.
      cause: When it appears, by the docstring.
      remedy: What to do, if the message says so.
    """

    module: str
    text: str
    cause: str
    remedy: str


def user_errors() -> set[str]:
    """Names of `UserError` and of all classes that derive from it."""
    classes = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    family = {"UserError"}
    while more := {name for name, bases in classes.items() if bases & family} - family:
        family |= more
    return family


def template(node: ast.AST | None, scope: ast.AST) -> str:
    """The text of a string expression, with names in braces for values."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, scope) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, scope) + template(right, scope)
        case ast.IfExp(body=body, orelse=orelse):
            return template(body, scope) or template(orelse, scope)
        case ast.Name(id=name):
            for other in ast.walk(scope):
                if isinstance(other, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id == name for target in other.targets
                ):
                    text = template(other.value, ast.Module([], []))
                    if re.search(r"\w+ \w+", text):
                        return text
            return f"{{{name}}}"
        case ast.FormattedValue(value=value):
            names = [part.id for part in ast.walk(value) if isinstance(part, ast.Name)]
            if isinstance(value, ast.Attribute):
                return f"{{{value.attr}}}"
            return f"{{{names[-1]}}}" if names else "{...}"
    return "{...}"


def _cause(scopes: tuple[ast.AST, ...], error: str) -> str:
    """The cause by the docstring of a function, or else of what contains it."""
    for scope in reversed(scopes):
        text = ast.get_docstring(scope) or ""  # type: ignore[arg-type]
        raises = re.search(rf"^ *{error}: (.*?)(?=\n *\w+: |\n\S|\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        if found := raises[1] if raises else text.partition("\n")[0]:
            return " ".join(found.split()).rstrip(".")
    return ""


def default_remedy(module: str) -> str:
    """What to do about the messages of a module that do not say it."""
    return next(remedy for prefix, remedy in REMEDIES.items() if module.startswith(prefix))


def _scopes(outer: tuple[ast.AST, ...]) -> Iterator[tuple[tuple[ast.AST, ...], list[ast.AST]]]:
    """Yields the module, and each class and function below its owners, with the nodes that are its own."""
    nodes, inner, level = [], [], list(ast.iter_child_nodes(outer[-1]))
    while level:
        node = level.pop(0)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner.append(node)
        else:
            nodes.append(node)
            level = [*ast.iter_child_nodes(node), *level]
    yield outer, nodes
    for node in inner:
        yield from _scopes((*outer, node))


def messages_of(path: Path, family: set[str]) -> Iterator[Message]:
    """Yields the messages of a module: of errors that it makes, and problems that it lists."""
    module = path.relative_to(PACKAGE).as_posix()
    for scopes, nodes in _scopes((ast.parse(path.read_text()),)):
        scope = scopes[-1]
        lists = isinstance(scope, ast.FunctionDef) and ast.unparse(scope.returns or scope) in LISTS
        for node in nodes:
            match node:
                case ast.Call(func=ast.Name(id=error), args=[argument, *_]) if error in family:
                    text = template(argument, scope)
                case ast.Yield(value=value) | ast.Return(value=value) if lists:
                    text, error = template(value, scope), "Yields"
                case _:
                    continue
            text = " ".join(text.split())
            if re.search(r"[a-z]{2,} ", re.sub(r"\{\w*\}", "", text + " ")):
                remedy = SAYS_WHAT_TO_DO.search(text)
                yield Message(module, text, _cause(scopes, error), remedy[1] if remedy else "")


def messages() -> list[Message]:
    """All messages of the package, by module and in the order of the code."""
    family = user_errors()
    found = [message for path in sorted(PACKAGE.rglob("*.py")) for message in messages_of(path, family)]
    return list(dict.fromkeys(found))


def page() -> str:
    """The text of docs/errors.md."""
    parts, module = [HEAD], ""
    for message in messages():
        if message.module != module:
            module = message.module
            parts.append(f"\n## [{module}](../detr_jax/{module})\n\n")
            parts.append(f"What to do: {default_remedy(module)}.\n\n")
            parts.append("| message | cause | what to do |\n| --- | --- | --- |\n")
        cells = (f"`` {message.text} ``", message.cause, message.remedy)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
