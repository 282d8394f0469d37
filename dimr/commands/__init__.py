"""The subcommands of ``dimr``, one module each: ``HELP``, ``add_arguments(parser)``, ``run(arguments)``."""
