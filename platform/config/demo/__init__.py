"""The demo: starts every process of Assay on this machine, watches them, and stops them."""
