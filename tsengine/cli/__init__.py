"""The command line `tsengine`: one module a command, or a family of them.

    __main__.py    where the program begins, with the extra `cli` or without
    app.py         the commands, under one name
    failures.py    from what is raised to a message and an exit code
    interrupts.py  Ctrl-C as a request to stop, for what can say how far it got
    importing.py   a file into a store
    exporting.py   a store into a file
    arguments.py   arguments and options that commands share
    moments.py     times as they are given: absolute, or from now
    stores.py      stores opened for reading or writing, and never made by mistake
    texts.py       timestamps, values and sizes as text
    output.py      rows as a table, CSV or JSON
    progress.py    a bar on the terminal

What each command does stands in its help. Only `__main__` may be imported without click.
"""
