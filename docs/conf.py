"""Sphinx's configuration: pages in Markdown, the reference from docstrings, no network.

Docstrings are written to be read in an editor, in the manner of Markdown: a word in backquotes is
code, and what is indented is code. Two functions below bring that to Sphinx, which expects
reStructuredText.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

project = "tsengine"
author = "The tsengine authors"
copyright = "The tsengine authors; licence Apache-2.0"  # noqa: A001  # Sphinx's name for it
version = release = version_of("tsengine")

sys.path.insert(0, str(Path(__file__).parent))  # for commands.py
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Names of other projects: to link them, a build would have to ask their hosts.
    (r"py:.*", r"(_?asyncio|abc|collections|contextlib|datetime|dt|enum|pathlib|threading)\..*"),
    (r"py:.*", r"(hypothesis|numpy|np|pa|pandas|pd|pl|psycopg)\..*"),
    (r"py:.*", r"Metric|SupportsIndex"),  # of prometheus_client and typing
    (r"py:.*", r"tsengine\..*\._\w+"),  # type variables: they have no page
]

# --------------------------------------------------------------------------------- pages

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "tsengine"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
# Fonts are those of the reader's system, and no page asks another host for anything.

# ----------------------------------------------------------------------------- reference

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
# What signatures name by itself, and not by what it stands for: see reference/data.md.
autodoc_type_aliases = {
    "CopySource": "tsengine.pipeline.sources.CopySource",
    "DurationLike": "tsengine.model.time.DurationLike",
    "Fill": "tsengine.aggregation.asking.Fill",
    "Int64Array": "tsengine.model.batches.Int64Array",
    "LabelColumns": "tsengine.tables.form.LabelColumns",
    "OnExportProgress": "tsengine.formats.exporting.OnExportProgress",
    "OnImportProgress": "tsengine.formats.importing.OnImportProgress",
    "OnProgress": "tsengine.pipeline.writing.OnProgress",
    "OnReject": "tsengine.pipeline.writing.OnReject",
    "OnRollup": "tsengine.rollups.renewing.OnRollup",
    "PointLike": "tsengine.model.batches.PointLike",
    "Receipt": "tsengine.aio.delivery.Receipt",
    "Selection": "tsengine.testing.reference.Selection",
    "SelectorLike": "tsengine.selectors.SelectorLike",
    "TimestampLike": "tsengine.model.time.TimestampLike",
    "Value": "tsengine.model.values.Value",
    "ValueArray": "tsengine.model.values.ValueArray",
    "ValueColumns": "tsengine.tables.form.ValueColumns",
    "What": "tsengine.pipeline.verifying.What",
}
# Where an annotation cannot be evaluated, as it names what is imported for type checkers alone,
# Sphinx gets the words of the source.
SOURCE_NAMES = autodoc_type_aliases | {
    "Acknowledgement": "tsengine.buffering.acknowledgement.Acknowledgement",
    "core.Engine": "tsengine.Engine",
    "BulkUpsertReport": "tsengine.metrics.BulkUpsertReport",
    "pipeline.CopyReport": "tsengine.CopyReport",
    "rollups.RollupReport": "tsengine.RollupReport",
    "pipeline.VerifyReport": "tsengine.VerifyReport",
}
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Thread-safety", "notes_style")]

_OBJECT = re.compile(r"(?:tsengine\.)?(?:\w+\.)*[A-Z]\w*(?:\.\w+)*|\w[\w.]*\(\)")
_STAND_IN = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
_SECTION = re.compile(r"[A-Z][\w-]*:\Z")


def code_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Inliner,
    options: object = None,
    content: object = (),
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Show what stands in backquotes as code, linked where it names something of the reference."""
    if _OBJECT.fullmatch(text):
        role = PyXRefRole(fix_parens=text.endswith("()"))
        return role("py:obj", rawtext, text, lineno, inliner)
    return [nodes.literal(rawtext, text)], []


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Link names by which the source calls things; leave others in backquotes unlinked."""
    target = SOURCE_NAMES.get(node.get("reftarget", ""))
    if target is not None:
        python = env.domains.python_domain
        document = node.get("refdoc", env.docname)
        return python.resolve_xref(env, document, app.builder, "obj", target, node, contnode)
    return contnode if node["reftype"] == "obj" else None


def name_aliases(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    arguments: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Mend signatures: an alias in a union by its name, where Sphinx 9.0 shows its stand-in for it.

    And `...` for defaults that a dataclass makes anew, as `<factory>` is nothing to be parsed.
    """
    shown = [text and _STAND_IN.sub(r"\1", text) for text in (arguments, returned)]
    return shown[0] and shown[0].replace("<factory>", "..."), shown[1]


def mark_code(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make literal blocks of what is indented in a docstring, but for its sections and lists."""
    if what in ("attribute", "data", "property"):
        # An empty comment, as napoleon takes what stands before a colon here for a type.
        lines[:0] = ["..", ""]
    marked: list[str] = []
    held = False  # in a section, in an item of a list, or in code that was marked
    for line in lines:
        is_indented = line.startswith("    ")
        if line and not is_indented:
            held = bool(_SECTION.match(line)) or line.startswith(("- ", "  "))
        elif is_indented and not held and (not marked or not marked[-1]):
            marked += ["::", ""]
            held = True
        marked.append(line)
    lines[:] = marked


def setup(app: Sphinx) -> None:
    """Register the functions above."""
    app.add_role("code-or-link", code_role)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("autodoc-process-docstring", mark_code, priority=100)  # before napoleon


default_role = "code-or-link"
