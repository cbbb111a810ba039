import pytest

from detr_jax.errors import DivergedError, MissingFileError, MissingPackageError, UserError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (UserError, ValueError),
        (MissingFileError, FileNotFoundError),
        (MissingPackageError, ImportError),
        (DivergedError, FloatingPointError),
    ],
)
def test_is_caught_as_a_user_error_and_as_the_builtin_that_fits(error, builtin):
    for expected in (UserError, ValueError, builtin):
        with pytest.raises(expected, match="no checkpoint in runs/shapes"):
            raise error("no checkpoint in runs/shapes")
