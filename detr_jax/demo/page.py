"""The page: its parts, and what happens when a visitor uses them. Needs Gradio."""

import html
import os
import socket
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
KEPT_VISITORS = 16  # a photo of 12 megapixels and its outputs take 150 MB per visitor
KEPT_SECONDS = 3600
_LAST_PORT = 65535

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
                        format="jpeg",  # a WebP has no side above 16383 pixels
                        buttons=["fullscreen"],
                        elem_id="attention",
                    )
                with gradio.Tab("Segments"):
                    table = gradio.Dataframe(
                        headers=COLUMNS, interactive=False, show_label=False, elem_id="table"
                    )
        outputs = [shown, view, table, attention, *files]
        options: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
        # One after another, so that thresholds moved during an upload apply to its segmentation.
        in_order = options | {"concurrency_limit": 1, "concurrency_id": "model"}
        upload.change(_on_upload(predictor), [upload, threshold, overlap], outputs, **in_order).then(
            _write_files, [shown], files, **options
        )
        given, show = [shown, upload, threshold, overlap], _on_thresholds(predictor)
        for slider in (threshold, overlap):
            slider.change(show, given, outputs, trigger_mode="always_last", **in_order).then(
                _write_files, [shown], files, **options
            )
        view.select(_on_select, [shown], [attention], **in_order)
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
      UserError: The port is in use or no port, or the host is no address of this computer.
    """
    host = host.removeprefix("[").removesuffix("]")  # of IPv6
    _check_address(host, port)
    _reach_directly(host)
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
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
            f"cannot listen on {host}, port {port or 'any'}: none is free. Choose another one by --port."
        ) from error
    return str(address)


def _check_address(host: str, port: int | None) -> None:
    """Raises a `UserError` if this computer cannot listen on an address, or the port is in use."""
    if port is not None and port > _LAST_PORT:
        raise UserError(f"there is no port {port}: choose one up to {_LAST_PORT} by --port")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}, port {port or 'any'}: {reason}. Choose an address of this computer by "
            "--host, and a free port by --port."
        ) from error


def _reach_directly(host: str) -> None:
    """Exempts this computer from a proxy: Gradio asks its own server whether it has started."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, [listed, "localhost", "127.0.0.1", "::1", host]))


def _slider(label: str, value: float, info: str) -> Any:
    return gradio.Slider(0, 1, value, step=0.01, label=label, info=info, elem_id=label.lower())


def _path_of(payload: Any) -> Path | None:
    """The path of an upload, which Gradio itself would decode. The project's reader has limits.

    It is no text, since the reader would download what a visitor's browser calls a path but is an address.
    """
    return None if payload is None or payload.path is None else Path(payload.path)


def _on_upload(predictor: Predictor) -> Callable[[Path | None, float, float], tuple[Any, ...]]:
    def show(path: Path | None, threshold: float, overlap: float) -> tuple[Any, ...]:
        if path is None:
            return _changes(None)
        try:
            return _changes(UploadedImage(predictor, path).segment(threshold, overlap))
        except UserError as error:
            # A message is HTML, and can quote the content of the file.
            gradio.Warning(html.escape(str(error).replace(str(path), path.name), quote=False), title="Error")
            return _changes(None)  # the segments of another image would stand beside this one

    return show


def _on_thresholds(
    predictor: Predictor,
) -> Callable[[ShownImage | None, Path | None, float, float], tuple[Any, ...]]:
    def show(
        shown: ShownImage | None, path: Path | None, threshold: float, overlap: float
    ) -> tuple[Any, ...]:
        if shown is None:  # it has expired, or other visitors needed its place
            return _on_upload(predictor)(path, threshold, overlap)
        return _changes(shown.image.segment(threshold, overlap))

    return show


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
