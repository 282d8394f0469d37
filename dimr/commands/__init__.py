"""The subcommands of ``dimr``, one module each: ``add_arguments(parser)``, ``run(arguments)``."""
