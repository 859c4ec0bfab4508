"""Sphinx's configuration: the site, and with `-t man` the man pages. Nothing is fetched while it builds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.util.tags import Tags

    tags: Tags  # Sphinx defines it

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import commands_reference  # noqa: E402 - in docs/_ext

project = "vmdebug"
author = "the vmdebug developers"
project_copyright = author
version = release = commands_reference.version(ROOT)

extensions = ["myst_parser", "commands_reference"]
exclude_patterns = ["_ext"]
nitpicky = False
highlight_language = "text"
smartquotes = False  # it would make a dash of the two in --halt

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

man_pages = commands_reference.man_pages()

if tags.has("man"):  # noqa: F821 - Sphinx defines it
    # The wheel's build has neither the libraries that vmdebug imports nor a theme.
    root_doc = commands_reference.FIRST
    include_patterns = ["reference/commands/*.md", "reference/configuration.md"]
    suppress_warnings = ["myst.xref_missing", "toc.not_included"]
    man_show_urls = False
else:
    extensions += ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_reference"]
    default_role = "code"  # docstrings mark code with single backticks
    autodoc_member_order = "bysource"
    autodoc_default_options = {"members": True, "inherited-members": False}
    autodoc_typehints_format = "short"
    autodoc_preserve_defaults = True
    autodoc_class_signature = "mixed"
    napoleon_numpy_docstring = False
    napoleon_use_rtype = False
    python_use_unqualified_type_names = True
    python_maximum_signature_line_length = 100
    # Types that the public API mentions and does not export.
    suppress_warnings = ["ref.python"]

    html_theme = "furo"
    html_title = f"vmdebug {release}"
    html_static_path = ["_static"]
    html_css_files = ["site.css"]
    html_show_sphinx = False
    html_copy_source = False
    html_show_sourcelink = False
    html_theme_options = {"navigation_with_keys": True}
