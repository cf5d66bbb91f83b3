"""Builds the pages offline: Furo, MyST, and autodoc on a Django that is just configured enough."""

import sys
from pathlib import Path

import django
from django.conf import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

settings.configure(INSTALLED_APPS=["aevents"])
django.setup()

import aevents  # noqa: E402  (after the setup that autodoc needs)

project = "aevents"
author = "aevents contributors"
copyright = "aevents contributors"
version = release = aevents.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_mock_imports = ["pytest"]  # the contract of transports runs under it; the pages are built without
default_role = "code"  # the docstrings' `names`

html_theme = "furo"
html_title = f"aevents {release}"


def drop_module_docstring(app, what, name, obj, options, lines):
    """A module's docstring is a map for readers of the code, not a page of the reference."""
    if what == "module":
        lines.clear()


def setup(app):
    app.connect("autodoc-process-docstring", drop_module_docstring)
