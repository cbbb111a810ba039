import ast

import error_table
import pytest

MESSAGES = error_table.messages()


def test_the_page_is_that_of_the_code():
    assert error_table.PAGE.read_text() == error_table.page(), "run `python tests/error_table.py`"


def test_every_message_has_a_cause():
    assert not [message for message in MESSAGES if not message.cause]


def test_every_module_that_raises_a_user_error_has_a_section():
    family = error_table.user_errors()
    raising = {
        path.relative_to(error_table.PACKAGE).as_posix()
        for path in error_table.PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in family
    }
    assert raising - {message.module for message in MESSAGES} == set()


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (
            "UserError(f'{path} has no images: choose another folder')",
            "{path} has no images",
            "choose another folder",
        ),
        ("UserError('the image ' + f'{name} is ' + 'empty')", "the image {name} is empty", ""),
        ("UserError(message)", "the file is damaged", ""),
    ],
)
def test_messages_are_read_from_the_code(code, text, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr(error_table, "PACKAGE", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(
        f'def f(path):\n    """Reads.\n\n    Raises:\n      UserError: It fails.\n    """\n'
        f"    message = 'the file is damaged'\n    raise {code}\n"
    )
    (message,) = error_table.messages_of(file, {"UserError"})
    assert message.text.startswith(text) and message.remedy == remedy
    assert message.cause == "It fails"
