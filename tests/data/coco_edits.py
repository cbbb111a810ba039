"""Changes to the COCO folder of tests."""

import json


def edit_json(folder, change):
    path = folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
