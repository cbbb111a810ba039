"""The rows of accelerator.py, in the order in which they run: those that matter most come first."""

import dataclasses

STAGES = ("joint", "boxes", "masks")  # the one that needs most memory first
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table. Unused fields keep their defaults.

    Attributes:
      name: What the table calls it; unique.
      work: Name of the function in accelerator_rows.py, or in accelerator_peers.py for a `peer`, that
        measures it.
      batch: Images per device; 0 for the largest batch that fits.
      dtype: Dtype of the computation.
      stage: Trained parameters, see `stage` of the config.
      matching: Where queries are matched with targets: "scipy" on the host, "optax" on the device.
      like: Name of an earlier row whose batch is taken; empty for none.
      peer: Whether transformers does the work, in PyTorch.
      compiled: Whether PyTorch compiles the model.
      reference: Reference file to agree with, without suffix.
      precision: Precision of matrix products, as in `jax.default_matmul_precision`.
    """

    name: str
    work: str
    batch: int = 1
    dtype: str = "float32"
    stage: str = "joint"
    matching: str = "scipy"
    like: str = ""
    peer: bool = False
    compiled: bool = False
    reference: str = "made_r50"
    precision: str = "default"


def _agreement(reference: str, precision: str) -> Row:
    name = f"agreement of {reference.removeprefix('made_')}, {precision} precision"
    return Row(name, "agreement", reference=reference, precision=precision)


def _inference(batch: int, dtype: str) -> Row:
    return Row(f"inference, batch {batch}, {dtype}", "inference", batch, dtype)


def _step(stage: str, dtype: str) -> Row:
    return Row(f"{stage} step, {dtype}", "step", 0, dtype, stage)


def _matched_on_device(row: Row) -> Row:
    return dataclasses.replace(
        row, name=f"{row.name}, matched on the device", matching="optax", like=row.name
    )


def _peer(row: Row, compiled: bool) -> Row:
    name = f"transformers, {'compiled' if compiled else 'eager'}: {row.name}"
    return dataclasses.replace(row, name=name, peer=True, compiled=compiled)


_INFERENCE = [_inference(batch, dtype) for dtype in DTYPES for batch in (8, 1)]
_STEPS = [_step(stage, dtype) for stage in STAGES for dtype in DTYPES]


def _steps_of(stage: str) -> list[Row]:
    """The steps of a stage, ours and those of transformers."""
    ours = [row for row in _STEPS if row.stage == stage]
    return [*ours, _matched_on_device(ours[0]), *(_peer(row, compiled=False) for row in ours)]


ROWS: list[Row] = [
    Row("device", "device"),
    _agreement("made_r50", "highest"),
    _agreement("made_r50", "default"),
    *_INFERENCE,
    Row("PQ, device and host", "quality", 8),
    Row("matching, device and host", "matching", 8),
    *(_peer(row, compiled=False) for row in _INFERENCE),
    *(row for stage in STAGES for row in _steps_of(stage)),
    *(_peer(row, compiled=True) for row in (*_INFERENCE, *_STEPS)),
    *(_agreement(name, "highest") for name in ("made_r50_dc5", "made_r101")),
    *(_agreement(name, "default") for name in ("made_r50_dc5", "made_r101")),
]
