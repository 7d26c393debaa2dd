"""A directive that shows the help of a command line, a section for each command.

    ```{commands} tsengine.cli.app:app
    ```

What it shows is what the command prints, so that the two cannot differ.
"""

from __future__ import annotations

from importlib import import_module
from typing import ClassVar, Final

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

COLUMNS: Final = 90
"""Characters of a line of code that the pages have room for."""


class Commands(SphinxDirective):
    """The commands of a group of click, named by `module:attribute`."""

    required_arguments: ClassVar = 1

    def run(self) -> list[nodes.Node]:
        """Make a section for each command."""
        module, _, attribute = self.arguments[0].partition(":")
        group: object = getattr(import_module(module), attribute)
        if not isinstance(group, click.Group):
            raise ExtensionError(f"{self.arguments[0]} is no group of commands")
        settings = {**group.context_settings, "terminal_width": COLUMNS}
        program = click.Context(group, info_name=module.partition(".")[0], **settings)
        return [
            self._section(f"{program.info_name} {name}", group.commands[name], program)
            for name in sorted(group.commands)
        ]

    def _section(self, title: str, command: click.Command, program: click.Context) -> nodes.section:
        context = click.Context(
            command, parent=program, info_name=command.name, terminal_width=COLUMNS
        )
        shown = command.get_help(context)
        section = nodes.section("", nodes.title(text=title), ids=[nodes.make_id(title)])
        self.state.document.note_implicit_target(section, section)
        section += nodes.literal_block(shown, shown, language="text")
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; its pages are read by any number of processes."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
