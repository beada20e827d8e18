"""Figures: a table in, a plotly figure out. Nothing is computed here but pixels.

Colours, fonts and backgrounds of the page come from its style sheet when it is drawn, so one figure
serves light and dark; `style` holds the colours that mean something.
"""
