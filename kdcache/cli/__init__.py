"""The command line: one module per command, each one library call with a frozen config. The only home of click."""
