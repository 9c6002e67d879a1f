"""Commands as a person uses them: processes, signals, files, errors."""
