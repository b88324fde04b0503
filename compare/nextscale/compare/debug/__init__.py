"""Where two backends, or two bundles, begin to differ inside one graph; Polygraphy runs both."""
