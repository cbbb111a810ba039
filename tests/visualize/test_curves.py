import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from detr_jax.visualize.curves import plot_curves


def colour_fraction(path, color, tolerance=40):
    """Shape of a picture, and the fraction of its pixels that are close to a colour."""
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    return picture.shape, (np.abs(picture - color).max(-1) < tolerance).mean()


def test_plots_losses_and_scores_in_two_panels(tmp_path):
    records = [{"step": step, "loss": 5 / step, "loss_ce": 2 / step, "lr": 1e-4} for step in range(1, 200)]
    backend = matplotlib.get_backend()
    plot_curves(records, tmp_path / "new" / "curves.png")
    with_losses, black = colour_fraction(tmp_path / "new" / "curves.png", (17, 17, 17))
    assert black > 0.002
    records += [{"step": step, "val_pq": step / 400, "val_pq_stuff": step / 500} for step in (50, 100)]
    plot_curves(records, tmp_path / "both.png")
    both, blue = colour_fraction(tmp_path / "both.png", (31, 119, 180))
    assert both[1] == 2 * with_losses[1]
    assert both[0] == with_losses[0]
    assert blue > 0.001
    assert matplotlib.get_backend() == backend


def test_ignores_inner_layers_and_earlier_records_of_a_step(tmp_path):
    plain = [{"step": step, "loss_ce": 1 / step} for step in range(1, 9)]
    plot_curves(plain, tmp_path / "plain.png")
    stale = [{"step": step, "loss_ce": 77.0} for step in range(3, 9)]
    layered = [{**record, "loss_ce_0": 5.0, "lr": 1.0} for record in plain]
    plot_curves(plain[:2] + stale + layered, tmp_path / "more.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "more.png").read_bytes()


def test_draws_what_is_trained_and_finite_values_only(tmp_path):
    plain = [{"step": step, "loss": 1 / step, "loss_mask": 1 / step} for step in range(1, 9)]
    plot_curves(plain, tmp_path / "plain.png")
    others = [{**record, "frozen/loss_ce": 4.0, "val_pq/disc": 0.5, "val_sq_all": 0.7} for record in plain]
    others += [{"step": 9, "loss": float("nan"), "loss_mask": 10**400}, {"step": 10**400, "loss": 1.0}]
    plot_curves(others, tmp_path / "more.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "more.png").read_bytes()


def test_the_legend_covers_no_curve(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    records = [{"step": step, "loss": 2 / step, "loss_mask": 1 / step} for step in range(1, 60)]
    scores = {"val_part_pq_all": 0.5, "val_part_pq_things": 0.4, "val_part_pq_stuff": 0.6}
    records += [{"step": step, **scores} for step in (20, 40, 60)]
    records += [{"step": 60, **{name.replace("part_", ""): value for name, value in scores.items()}}]
    plot_curves(records, tmp_path / "curves.png")
    (figure,) = figures
    figure.draw_without_rendering()
    losses, quality = figure.axes
    for axes in (losses, quality):
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent())
        assert figure.bbox.contains(legend.x0, legend.y0) and figure.bbox.contains(legend.x1, legend.y1)
    assert "running median over 5 steps" in losses.get_legend().get_title().get_text()
    assert len(losses.lines) == 4  # smoothed over raw
    assert len(quality.lines) == 6 and [len(line.get_xdata()) for line in quality.lines] == [3, 1] * 3


def test_accepts_no_records_and_a_single_step(tmp_path):
    plot_curves([], tmp_path / "nothing.png")
    one = [
        {"step": 1, "loss": 0.0, "loss_ce": 0.0, "val_pq_all": 0.0, "val_AP": -1.0}
    ]  # an AP that is undefined
    plot_curves(one, tmp_path / "one.png")
    assert (tmp_path / "nothing.png").stat().st_size > 0
    assert (tmp_path / "one.png").stat().st_size > 0
