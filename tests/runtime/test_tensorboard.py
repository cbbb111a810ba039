"""The event files of a run, read back as TensorBoard does: framed protocol buffers."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from detr_jax.runtime.reporting import Reporter
from detr_jax.runtime.tensorboard import PICTURES, tags


def read_events(workdir):
    """All events of a directory, in the order of its files."""
    events = []
    for file in sorted(workdir.glob("events.out.tfevents*")):
        content = io.BytesIO(file.read_bytes())
        while header := content.read(12):  # a length and its checksum
            events.append(Event.FromString(content.read(struct.unpack("<Q", header[:8])[0])))
            content.read(4)
    return events


def read_values(workdir):
    """Values by tag and step, as TensorBoard shows them: without those that a resumed run made invalid."""
    values = {}
    for event in read_events(workdir):
        if event.session_log.status == SessionLog.START:
            values = {key: value for key, value in values.items() if key[1] < event.step}
        for value in event.summary.value:
            values[value.tag, event.step] = value
    return values


def scalars(workdir):
    return {
        key: value.simple_value for key, value in read_values(workdir).items() if not value.HasField("image")
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", ["loss/total"]),
        ("loss_ce", ["loss/ce", "loss_ce_by_layer/last"]),
        ("loss_ce_0", ["loss_ce_by_layer/0"]),
        ("loss_mask", ["loss/mask"]),
        ("class_error", ["error/class"]),
        ("cardinality_error_4", ["cardinality_error_by_layer/4"]),
        ("frozen/loss_ce", ["frozen/loss_ce"]),
        ("frozen/loss_ce_0", ["frozen/loss_ce_0"]),
        ("gradient_norm", ["gradient_norm/all"]),
        ("gradient_norm_mask_head", ["gradient_norm/mask_head"]),
        ("weight_norm_backbone", ["weight_norm/backbone"]),
        ("learning_rate_transformer", ["learning_rate/transformer"]),
        ("seconds_matching", ["seconds/matching"]),
        ("images_per_second", ["speed/images_per_second"]),
        ("val_pq_all", ["val/pq_all"]),
        ("val_part_pq_all", ["val_part/pq_all"]),
        ("val_raw_AP50", ["val_raw/AP50"]),
        ("val_boxes_AP", ["val/boxes_AP"]),
        ("skipped_steps", ["skipped_steps"]),
    ],
)
def test_groups_metrics(name, expected):
    assert list(tags(name, [name, "loss_ce_0", "frozen/loss_ce_0"])) == expected


def test_writes_metrics_and_scores_of_categories(tmp_path):
    reporter = Reporter(tmp_path)
    reporter.write(3, {"loss": 2.5, "loss_ce": 1.5, "loss_ce_0": 1.75, "gradient_norm_backbone": 0.25})
    with reporter.scores_as("val_part_"):
        reporter.write_class_scores(3, {"person": 0.5, "traffic light": None})
    reporter.write_class_scores(3, {"person": 0.75})
    reporter.close()
    assert scalars(tmp_path) == {
        ("loss/total", 3): 2.5,
        ("loss/ce", 3): 1.5,
        ("loss_ce_by_layer/last", 3): 1.5,
        ("loss_ce_by_layer/0", 3): 1.75,
        ("gradient_norm/backbone", 3): 0.25,
        ("val_part_pq_by_class/person", 3): 0.5,
        ("val_pq_by_class/person", 3): 0.75,
    }


def test_shows_the_same_pictures_each_time_and_once_per_step(tmp_path):
    reporter = Reporter(tmp_path)
    shown = []
    for step, order in ((1, range(6)), (1, reversed(range(6))), (2, reversed(range(6)))):
        for index in order:
            if reporter.wants_picture(step, f"{index}"):
                shown.append((step, index))
                reporter.write_picture(step, f"{index}", np.full((640, 100, 3), 40 * index, np.uint8))
    reporter.close()
    assert shown == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 3), (2, 2), (2, 1), (2, 0)] and PICTURES == 4
    image = read_values(tmp_path)["pictures/3", 2].image
    assert (image.height, image.width, image.colorspace) == (320, 50, 3)
    assert (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) == 120).all()


def test_a_resumed_run_replaces_later_events(tmp_path):
    for first, value in ((0, 1.0), (2, 2.0)):
        reporter = Reporter(tmp_path)
        reporter.drop_records_after(first)
        for step in range(first + 1, 4):
            reporter.write(step, {"loss": value})
        reporter.close()
    assert scalars(tmp_path) == {
        ("loss/total", 1): 1.0,
        ("loss/total", 2): 1.0,
        ("loss/total", 3): 2.0,
    }


def test_a_reporter_that_writes_nothing_leaves_no_events(tmp_path):
    Reporter(tmp_path).close()
    assert not list(tmp_path.iterdir())
