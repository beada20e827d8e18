"""Reports: saved runs in, one HTML page out that needs nothing but a browser.

Tables compute what is drawn; `figures/` turns a table into a plotly figure and computes nothing;
`page` puts figures and tables into the one template. `training`, `serving` and `comparison` say
which of them a page holds. Nothing here is imported before it is used, and plotly only to draw.
"""
