"""The page: its parts, and what happens when a visitor uses them. Needs Gradio."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detr_jax.demo.segment_view import EMPTY, SCRIPT, STYLE, segment_view
from detr_jax.demo.shown_image import ShownImage, UploadedImage
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.inference.predictor import Predictor

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio
except ImportError as error:
    raise MissingPackageError("the demo needs Gradio: pip install 'detr_jax[demo]'") from error

COLUMNS = ["#", "class", "kind", "score %", "pixels"]
KEPT_VISITORS = 32  # the outputs of a large model take 25 MB per visitor
KEPT_SECONDS = 3600

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
_BUTTON: dict[str, Any] = {"interactive": False, "size": "sm", "min_width": 80}
_MONOSPACED = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def build_page(predictor: Predictor, title: str, examples: Sequence[str] = ()) -> Any:
    """The page of a model.

    Args:
      predictor: The model, which has a mask head.
      title: Name of the model.
      examples: Paths of images that visitors can choose.

    Returns:
      A `gradio.Blocks`.
    """
    settings = predictor.config.eval
    with gradio.Blocks(
        title=f"{title} - detr_jax", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(f"# Panoptic segmentation\n\nDETR in JAX, model **{title}**.")
        shown = gradio.State(None, time_to_live=KEPT_SECONDS)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                upload = gradio.Image(sources=["upload", "clipboard"], label="Image", elem_id="upload")
                upload.preprocess = _path_of
                threshold = _slider("Threshold", settings.threshold, "Class probability of a segment")
                overlap = _slider(
                    "Overlap",
                    settings.duplicate_iou,
                    "Mask IoU above which the less certain segment is dropped",
                )
                if examples:
                    gradio.Examples([[example] for example in examples], [upload], label="Examples")
            with gradio.Column(scale=3, min_width=300):
                view = gradio.HTML(EMPTY, css_template=STYLE, js_on_load=SCRIPT, elem_id="segments")
                with gradio.Row():
                    files = [gradio.DownloadButton(kind, **_BUTTON) for kind in ("PNG", "JSON", "SVG")]
                with gradio.Tab("Attention"):
                    attention = gradio.Image(
                        label="Decoder attention of the segment that was clicked",
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id="attention",
                    )
                with gradio.Tab("Segments"):
                    table = gradio.Dataframe(
                        headers=COLUMNS, interactive=False, show_label=False, elem_id="table"
                    )
        outputs = [shown, view, table, attention, *files]
        given = [shown, threshold, overlap]
        options: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
        upload.change(_on_upload(predictor), [upload, threshold, overlap], outputs, **options).then(
            _write_files, [shown], files, **options
        )
        for slider in (threshold, overlap):
            slider.change(_on_thresholds, given, outputs, trigger_mode="always_last", **options).then(
                _write_files, [shown], files, **options
            )
        view.select(_on_select, [shown], [attention], **options)
    return page


def serve(page: Any, host: str, port: int | None, max_megabytes: int) -> str:
    """Serves a page, in threads, as long as the program runs.

    Args:
      page: Result of `build_page`.
      host: Address to listen on.
      port: Port to listen on; None for the first free one from 7860.
      max_megabytes: Maximum size of an uploaded file.

    Returns:
      The address of the page.

    Raises:
      UserError: The port is in use.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            max_file_size=max_megabytes * 1_000_000,
            state_session_capacity=KEPT_VISITORS,
            theme=gradio.themes.Default(font=_FONTS, font_mono=_MONOSPACED),
            ssr_mode=False,
            mcp_server=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port}: {error}. Choose another one by --port."
        ) from error
    return str(address)


def _slider(label: str, value: float, info: str) -> Any:
    return gradio.Slider(0, 1, value, step=0.01, label=label, info=info, elem_id=label.lower())


def _path_of(payload: Any) -> str | None:
    """The path of an upload, which Gradio itself would decode. The project's reader has limits."""
    return None if payload is None else payload.path


def _on_upload(predictor: Predictor) -> Callable[[str | None, float, float], tuple[Any, ...]]:
    def show(path: str | None, threshold: float, overlap: float) -> tuple[Any, ...]:
        if path is None:
            return _changes(None)
        try:
            return _changes(UploadedImage(predictor, path).segment(threshold, overlap))
        except UserError as error:
            raise _message(str(error).replace(path, Path(path).name)) from error

    return show


def _on_thresholds(shown: ShownImage | None, threshold: float, overlap: float) -> tuple[Any, ...]:
    return _changes(None if shown is None else shown.image.segment(threshold, overlap))


def _on_select(shown: ShownImage | None, event: gradio.EventData) -> Any:
    if shown is None or not 0 <= event.index < len(shown.fused.queries):
        return None
    return shown.attention_picture(event.index)


def _changes(shown: ShownImage | None) -> tuple[Any, ...]:
    """New values of the outputs; the files follow, so that the picture need not wait for them."""
    unavailable = [gradio.DownloadButton(interactive=False) for _ in range(3)]
    if shown is None:
        return None, EMPTY, [], None, *unavailable
    return shown, segment_view(shown), shown.rows(), None, *unavailable


def _write_files(shown: ShownImage | None) -> list[Any]:
    if shown is None:
        return [gradio.DownloadButton(interactive=False) for _ in range(3)]
    return [gradio.DownloadButton(value=str(path), interactive=True) for path in shown.files]


def _message(text: str) -> Exception:
    return gradio.Error(text, print_exception=False)
