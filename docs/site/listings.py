"""Source of functions and classes, for pages that explain them."""

import ast
import textwrap
from pathlib import Path


def listing(file: Path, name: str) -> str:
    """The source of a function as a collapsed Markdown block, without its docstring.

    Args:
      file: Python file.
      name: Name of the function, or "Class.method".

    Raises:
      ValueError: The file does not define it.
    """
    text = file.read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = _child(node, part, file)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    lines = text.splitlines()
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    kept = set(range(first, (node.end_lineno or first) + 1))
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        kept -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    code = textwrap.dedent("\n".join(lines[number - 1] for number in sorted(kept)))
    block = f"```python\n{code}\n```"
    return f'??? code "Code: `{name}`"\n\n{textwrap.indent(block, "    ")}\n'


def _child(owner: ast.AST, name: str, file: Path) -> ast.AST:
    for node in ast.iter_child_nodes(owner):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise ValueError(f"{file} does not define {name}")
