"""The command line: one thin file per verb, nothing heavy imported before a verb runs."""
