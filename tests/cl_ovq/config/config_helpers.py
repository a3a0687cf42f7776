"""What tests of mistakes in a configuration share."""

import pytest

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.runs.checking import check_config

STREAM = {"stream": {"name": "split_digits"}}


def mistake(path, overrides=()):
    """Return the error's line; what needs more than the schema is checked too, as the command line does."""
    with pytest.raises(UserError) as caught:
        check_config(load_config(path, overrides))
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def known(names):
    return f"known: {', '.join(sorted(names))}"
