"""Damaged and hostile inputs are read, or refused in a few lines: no other error, no hang, bounded memory.

By hand, for longer: `DETR_JAX_FUZZ=600 pytest -n2 -s -m slow tests/fuzzing`.
"""

import collections
import os
import random
import resource
import signal
import traceback
import warnings

import pytest
from readers import READERS

from detr_jax.errors import UserError

INPUTS = int(os.environ.get("DETR_JAX_FUZZ", 20))
SECONDS, MEGABYTES, LINES = 10, 1000, 40


class Hang(BaseException):
    """Raised in a reader that takes too long."""


def _stop(*_):
    raise Hang


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_input(reader, file):
    """Returns what became of an input: "read", "refused" or a description of what went wrong."""
    before = _peak()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        reader.read(file)
        outcome = "read"
    except UserError as error:
        lines = str(error).splitlines()
        good = 0 < len(lines) <= LINES and all(0 < len(line) < 2000 for line in lines)
        outcome = "refused" if good else f"message of {len(lines)} lines: {str(error)[:200]!r}"
    except Hang:
        outcome = "hang in " + "; ".join(traceback.format_exc(limit=-3).splitlines()[1:7])
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "detr_jax" in frame.filename]
        at = f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno} " if ours else ""
        outcome = f"{type(error).__name__} at {at}({place.name}): {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return outcome if _peak() - before < MEGABYTES else f"{_peak() - before:.0f} MB, {outcome}"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there is no alarm")
@pytest.mark.parametrize("name", list(READERS))
def test_mutated_inputs_are_read_or_refused(name, tmp_path, capsys):
    reader = READERS[name](tmp_path / "data")
    contents = {file: file.read_bytes() for file in reader.files}
    outcomes = {"the valid file": try_input(reader, reader.files[0])}
    for seed in range(INPUTS):
        choose = random.Random(f"{name} {seed}")
        file = choose.choice(reader.files)
        file.write_bytes(reader.mutate(contents[file], list(contents.values()), choose))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes[seed] = try_input(reader, file)
        for path, content in contents.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
    capsys.readouterr()
    counts = collections.Counter(
        outcome if outcome in ("read", "refused") else "wrong" for outcome in outcomes.values()
    )
    with capsys.disabled():
        print(f"\n{name}: {dict(counts)}", flush=True)
    wrong = {seed: outcome for seed, outcome in outcomes.items() if outcome not in ("read", "refused")}
    assert not wrong, "\n".join(f"seed {seed}: {outcome}" for seed, outcome in wrong.items())
