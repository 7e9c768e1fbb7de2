"""The reference of the commands, from the declarations of click. Called by ``docs/reference/commands.md`` (cog)."""

import inspect
from collections.abc import Iterator

import click

from documentation.markup import code, escape, table


def reference(command: click.Command, name: str, tables_elsewhere: dict[str, str] | None = None) -> str:
    """Return the reference of a command and its commands, as Markdown.

    Args:
        command: the command.
        name: how users call it.
        tables_elsewhere: by command, a link in place of its options with an environment variable.
    """
    links = tables_elsewhere or {}
    return "\n\n".join(part for context in _contexts(command, name, None) for part in _describe(context, links))


def _contexts(command: click.Command, name: str, parent: click.Context | None) -> Iterator[click.Context]:
    """Yield a context of a command, and those of its commands."""
    context = click.Context(command, info_name=name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from _contexts(command.commands[each], each, context)


def _describe(context: click.Context, links: dict[str, str]) -> Iterator[str]:
    """Yield heading, usage, description and options of a command."""
    command, path = context.command, context.command_path
    yield f"## {path}" if context.parent is None or context.parent.parent is None else f"### {path}"
    yield f"    {' '.join([path, *command.collect_usage_pieces(context)])}"
    yield from _paragraphs(command.help or "")
    options = [
        option
        for option in command.get_params(context)
        if isinstance(option, click.Option) and not option.hidden and "--help" not in option.opts
    ]
    if path in links:
        yield links[path]
        options = [option for option in options if not option.envvar]
    # In the order of --help: options without a section are last.
    sections = dict.fromkeys(_section(option) for option in options)
    for section in sorted(sections, key=lambda title: title is None):
        rows = [_row(option, context) for option in options if _section(option) == section]
        yield table((section or "Option", "Default", "Meaning"), rows)


def _row(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """Return names, default and meaning of an option."""
    names = "/".join([", ".join(option.opts), *option.secondary_opts])
    if not option.is_flag and not option.count:
        names += f" {option.make_metavar(context).replace(' RANGE', '')}"
    extra = option.get_help_extra(context)
    text, _, own_default = (option.help or "").removesuffix("]").partition("  [default: ")
    meaning = [
        escape(text),
        f"Range: {escape(extra['range'])}." if "range" in extra else "",
        f"Variable: {', '.join(code(name) for name in extra['envvars'])}." if extra.get("envvars") else "",
    ]
    default = "required" if "required" in extra else extra.get("default", f"({own_default})" if own_default else "")
    # click shows a description in parentheses, and a value as it is.
    default = escape(default[1:-1]) if default.startswith("(") else code(default) if default else ""
    return code(names), default, " ".join(part for part in meaning if part)


def _section(option: click.Option) -> str | None:
    """Return the heading of an option in ``--help``."""
    return getattr(option, "section", None) or getattr(option, "group", None)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; those with indented lines are code, because click keeps their lines."""
    for paragraph in inspect.cleandoc(text).replace("\b\n", "").split("\n\n"):
        if "\n " in paragraph:
            yield "\n".join(f"    {line}" for line in paragraph.splitlines())
        elif paragraph.strip():
            yield escape(paragraph)
