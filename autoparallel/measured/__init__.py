"""Measured figures as users and papers write them, read strictly and made into cases.

Takes CSV files in the columns of `benchmarks/measured/README.md`. `rows` and `serving_rows` are one
row each of training and of serving, `words` their spellings; `twins` and `serving_models` find the
catalog's model that a row speaks of, and `cases` stacks training rows into one case of columns.
"""
