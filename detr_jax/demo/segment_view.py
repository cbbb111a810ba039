"""The picture of the segments with a legend, as HTML with styles and script."""

from xml.sax.saxutils import escape

from detr_jax.demo.shown_image import ShownImage
from detr_jax.visualize.color_math import hex_color

# Scoped to the component by Gradio. Colours of the page are its variables, which follow light and dark.
STYLE = """
.view { display: flex; flex-direction: column; gap: 12px; }
.view svg { width: 100%; height: auto; max-height: 70vh; border-radius: 8px; display: block; }
.view g[data-segment] { cursor: pointer; transition: opacity 120ms; }
.view.focused .segments > g { opacity: 0.12; }
.view.focused .segments > g.on { opacity: 1; }
.view.focused .labels { opacity: 0.25; }
.legend { display: flex; flex-wrap: wrap; gap: 6px; margin: 0; padding: 0; list-style: none; }
.legend button { display: flex; align-items: center; gap: 7px; padding: 4px 10px 4px 6px; cursor: pointer;
  border: 1px solid var(--border-color-primary); border-radius: 999px; font: inherit; font-size: 14px;
  color: var(--body-text-color); background: var(--background-fill-secondary); }
.legend button.on, .legend button:focus-visible { border-color: var(--body-text-color); outline: none; }
.legend i { width: 14px; height: 14px; border-radius: 50%; border: 1px solid rgba(0, 0, 0, 0.35); }
.legend small { opacity: 0.75; font-size: 12px; }
.hint { opacity: 0.75; font-size: 14px; margin: 0; }
"""

# The content is replaced whenever the segmentation changes, so the listeners are on the root.
SCRIPT = """
const segmentAt = (event) => event.target.closest('[data-segment]')?.dataset.segment;
const focus = (segment) => {
  const view = element.querySelector('.view');
  if (!view) return;
  view.classList.toggle('focused', segment !== undefined);
  for (const part of view.querySelectorAll('[data-segment]'))
    part.classList.toggle('on', part.dataset.segment === segment);
};
for (const kind of ['pointerover', 'focusin'])
  element.addEventListener(kind, (event) => focus(segmentAt(event)));
for (const kind of ['pointerleave', 'focusout'])
  element.addEventListener(kind, () => focus(undefined));
element.addEventListener('click', (event) => {
  const segment = segmentAt(event);
  if (segment !== undefined) trigger('select', {index: Number(segment)});
});
"""

EMPTY = '<p class="hint">Drop, paste or choose an image. It is segmented on this computer.</p>'


def segment_view(shown: ShownImage) -> str:
    """The picture and its legend. Parts of a segment have its index in `segments_info` as `data-segment`."""
    drawn = shown.drawn
    if not drawn.names:
        message = "No segment is above the threshold: lower it to see less certain ones."
        return f'<div class="view">{shown.picture}<p class="hint">{message}</p></div>'
    entries = [
        f'<li><button type="button" data-segment="{index}">'
        f'<i style="background: {hex_color(drawn.colors[index])}"></i>{escape(drawn.names[index])}'
        f"<small>{_percent(drawn.scores[index])}</small></button></li>"
        for index in range(len(drawn.names))
    ]
    legend = f'<ul class="legend" aria-label="Segments">{"".join(entries)}</ul>'
    hint = (
        '<p class="hint">Point at a segment to highlight it. Click it to see what the model attends to.</p>'
    )
    return f'<div class="view">{shown.picture}{legend}{hint}</div>'


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.0f}%"
