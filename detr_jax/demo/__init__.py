"""A page in the browser that segments images. It needs Gradio: `pip install 'detr_jax[demo]'`."""
